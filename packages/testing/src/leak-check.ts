// SPDX-License-Identifier: Apache-2.0
// After a fault: every gauge of requests at 0, no object of a request, timer, socket or listener that was not there before.

import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ENV } from "@dynamo-ts/protocols/internal";
import { gaugesUp, type WatchedProcess } from "./gauge-check.js";
import { PROBE_MARK, type ProbeReport } from "./leak-report.js";
import { PROJECT_ROOT } from "./own-processes.js";
import { parsePrometheus } from "./prom-parse.js";
import { http } from "./sse-client.js";

/** Environment of processes that {@link LeakCheck} can look into. Idle request connections close soon in them. */
export const LEAK_PROBE_ENV: Readonly<Record<string, string>> = {
	NODE_OPTIONS: `--import ${pathToFileURL(join(PROJECT_ROOT, "packages", "testing", "dist", "leak-probe.js")).href}`,
	[ENV.DYN_TCP_HOST_IDLE_TTL_SECS]: "1",
};

/** A process that was started with {@link LEAK_PROBE_ENV}. */
export type ProbedProcess = WatchedProcess;

/** Counted by the probe but not by requests: they come and go by themselves. */
const RESTLESS = new Set(["Immediate", "TickObject", "FSReqCallback", "FSReqPromise", "GetAddrInfoReqWrap"]);

/** Longest wait for connections of a process' start, such as those over which it fetched files. */
const QUIET_MS = 10_000;

/** Compares what processes hold after a fault with what they held before. */
export class LeakCheck {
	readonly #before: readonly (readonly [ProbedProcess, ProbeReport])[];

	private constructor(before: readonly (readonly [ProbedProcess, ProbeReport])[]) {
		this.#before = before;
	}

	/** Looks at processes that have nothing to do; waits until connections of their start are closed. */
	static async begin(processes: readonly ProbedProcess[]): Promise<LeakCheck> {
		const quiet = async (each: ProbedProcess): Promise<ProbeReport> => {
			const deadline = Date.now() + QUIET_MS;
			for (;;) {
				const found = await probe(each);
				if ((found.resources.TCPSocketWrap ?? 0) === 0 || Date.now() > deadline) return found;
				await new Promise((resolve) => setTimeout(resolve, 500));
			}
		};
		return new LeakCheck(await Promise.all(processes.map(async (each) => [each, await quiet(each)] as const)));
	}

	/**
	 * Waits until each process that still runs holds no more than before.
	 * @param options.connections so many more TCP connections are no leak: those that a process opens when it first needs
	 *   them and then keeps.
	 * @throws Error naming the process and what it still holds.
	 */
	async end(options: { readonly timeoutMs?: number; readonly connections?: number } = {}): Promise<void> {
		const deadline = Date.now() + (options.timeoutMs ?? 20_000);
		for (const [each, before] of this.#before) {
			if (each.child.ended !== undefined) continue;
			for (;;) {
				const left = [...(await gaugesLeft(each)), ...difference(before, await probe(each), options.connections ?? 0)];
				if (left.length === 0) break;
				if (Date.now() > deadline) throw new Error(`${each.name} still holds: ${left.join(", ")}`);
				await new Promise((resolve) => setTimeout(resolve, 200));
			}
		}
	}
}

async function gaugesLeft(each: ProbedProcess): Promise<string[]> {
	const up = gaugesUp(parsePrometheus((await http(`${each.url}/metrics`)).body));
	return up.map(({ name, labels, value }) => `${name}${JSON.stringify(labels)} ${value}`);
}

function difference(before: ProbeReport, after: ProbeReport, connections: number): string[] {
	const left: string[] = [];
	for (const kind of ["resources", "live"] as const) {
		for (const [name, count] of Object.entries(after[kind])) {
			const known = (before[kind][name] ?? 0) + (name === "TCPSocketWrap" ? connections : 0);
			if (count > known && !RESTLESS.has(name)) left.push(`${count - known} ${name}`);
		}
	}
	return left;
}

async function probe({ name, child }: ProbedProcess): Promise<ProbeReport> {
	const seen = child.stderr.split(PROBE_MARK).length;
	child.kill("SIGUSR2");
	const deadline = Date.now() + 20_000;
	for (;;) {
		const parts = child.stderr.split(PROBE_MARK);
		const last = parts.at(-1) ?? "";
		if (parts.length > seen && last.includes("\n")) {
			const found = JSON.parse(last.slice(0, last.indexOf("\n"))) as ProbeReport & { failed?: string };
			if (found.failed !== undefined) throw new Error(`${name}: the probe failed: ${found.failed}`);
			return found;
		}
		if (child.ended !== undefined) throw new Error(`${name} ended: ${child.output.slice(-2000)}`);
		if (Date.now() > deadline)
			throw new Error(`${name}: no answer of the probe; output:\n${child.output.slice(-2000)}`);
		await new Promise((resolve) => setTimeout(resolve, 20));
	}
}
