// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from "node:timers/promises";
import { ENV } from "@dynamo-ts/protocols/internal";
import { EXIT } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import type { CommandSpec } from "../flags/flag-spec.js";
import { RUNTIME_FLAGS } from "../flags/runtime-flags.js";
import { type ClusterSource, openClusterSource } from "../top/cluster-source.js";
import { formatCluster } from "../top/format.js";

const SPEC: CommandSpec = {
	name: "top",
	summary: "Shows models and workers as they are now: load, caches, rates, latencies.",
	flags: [
		{
			flag: "url",
			type: "string",
			defaultText: "http://127.0.0.1:8000, with the port of DYN_HTTP_PORT",
			help: "A frontend. Where it has no dashboard, its metrics are read, and discovery says who is there.",
		},
		{
			flag: "interval",
			type: "number",
			metavar: "SECONDS",
			min: 0.2,
			max: 3600,
			default: 1,
			help: "Time between two looks.",
		},
		{ flag: "once", type: "boolean", default: false, help: "Look for two intervals, print what there is, and end." },
		{ flag: "json", type: "boolean", default: false, help: "Print JSON, one line per look." },
		...RUNTIME_FLAGS,
	],
	epilog: [
		"keys: q or Ctrl-C ends",
		"examples:",
		"  dynamo top",
		"  dynamo top --once --json | jq '.workers[].kvUsage'",
		"  dynamo top --url http://frontend:8000",
	],
};

/** `dynamo top`: the cluster in a terminal, live; plain lines where it is none. */
export const command: Command = { spec: SPEC, run };

async function run(context: CommandContext): Promise<number> {
	const { flags, console, lifecycle } = context;
	const source = await openClusterSource(context);
	lifecycle.markReady();
	const intervalMs = (flags.number("interval") as number) * 1000;
	const pause = () => sleep(intervalMs, undefined, { signal: lifecycle.signal }).catch(() => {});
	const json = flags.boolean("json");
	const print = (view: Awaited<ReturnType<ClusterSource>>): void => {
		if (json) console.out(`${JSON.stringify(view)}\n`);
		else
			console.out(
				`${formatCluster(view, { columns: 1000, rows: Number.POSITIVE_INFINITY, colours: false }).join("\n")}\n`,
			);
	};
	if (flags.boolean("once")) {
		// Rates lie between two looks.
		let view = await source();
		for (let looks = 0; view.windowSeconds === 0 && looks < 10 && !lifecycle.stopping; looks++) {
			await pause();
			view = await source();
		}
		print(view);
	} else if (json || process.stdout.isTTY !== true) {
		while (!lifecycle.stopping) {
			print(await source());
			if (!json) console.out("\n");
			await pause();
		}
	} else {
		await showLive(context, source, pause);
	}
	lifecycle.stop(EXIT.ok);
	return lifecycle.ended;
}

/** Draws over the same screen until the end; what was on the terminal before comes back then. */
async function showLive(context: CommandContext, source: ClusterSource, pause: () => Promise<void>): Promise<void> {
	const { lifecycle } = context;
	const { stdin, stdout } = process;
	const leave = (): void => {
		if (stdin.isTTY) stdin.setRawMode(false);
		stdin.pause();
		// Cursor on, the former screen.
		stdout.write("\x1b[?25h\x1b[?1049l");
	};
	lifecycle.onStop(leave);
	lifecycle.onKill(leave);
	stdout.write("\x1b[?1049h\x1b[?25l");
	let last: Awaited<ReturnType<ClusterSource>> | undefined;
	const draw = (): void => {
		if (last === undefined || lifecycle.stopping) return;
		const screen = {
			columns: stdout.columns ?? 80,
			rows: (stdout.rows ?? 24) - 1,
			colours: (context.flags.env[ENV.NO_COLOR] ?? "") === "",
		};
		// Each line is cleared to its end, then what is below: no flicker.
		const lines = formatCluster(last, screen).map((line) => `${line}\x1b[K`);
		stdout.write(`\x1b[H${lines.join("\r\n")}\x1b[J`);
	};
	stdout.on("resize", draw);
	if (stdin.isTTY) {
		stdin.setRawMode(true).resume();
		stdin.on("data", (keys: Buffer) => {
			// In raw mode Ctrl-C is a key.
			if (keys.includes("q") || keys.includes(0x03)) lifecycle.stop(EXIT.ok);
		});
	}
	try {
		while (!lifecycle.stopping) {
			last = await source();
			draw();
			await pause();
		}
	} catch (error) {
		if (!lifecycle.stopping) throw error;
	} finally {
		stdout.off("resize", draw);
	}
}
