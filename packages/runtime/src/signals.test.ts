// SPDX-License-Identifier: Apache-2.0
// A worker process seen from outside; runs what `tsc -b` built.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const built = fileURLToPath(new URL("../dist/index.js", import.meta.url));

const PROGRAM = `
	const { DistributedRuntime, installSignalHandlers } = await import(process.env.BUILT);
	const runtime = await DistributedRuntime.create({ shutdownGraceMs: 0 });
	const endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate");
	await endpoint.serve(() => {});
	installSignalHandlers(runtime, {
		onDrain: () => (process.env.HANG ? new Promise(() => setInterval(() => {}, 1000)) : console.log("drained")),
	});
	console.log("ready");
`;

describe.skipIf(!existsSync(built))("signals", () => {
	let root: string;
	let child: ChildProcess;
	let output: string;

	beforeEach(async () => {
		root = await mkdtemp(join(tmpdir(), "signals-"));
	});
	afterEach(async () => {
		child.kill("SIGKILL");
		await rm(root, { recursive: true, force: true });
	});

	const start = async (env: Record<string, string> = {}) => {
		output = "";
		child = spawn(process.execPath, ["--input-type=module", "-e", PROGRAM], {
			env: { ...process.env, BUILT: built, DYN_DISCOVERY_BACKEND: "file", DYN_FILE_KV: root, ...env },
			stdio: ["ignore", "pipe", "pipe"],
		});
		await new Promise<void>((resolve, reject) => {
			child.stdout?.on("data", (chunk) => {
				output += chunk;
				if (output.includes("ready")) resolve();
			});
			child.once("exit", (code) => reject(new Error(`ended with ${code}`)));
		});
	};
	const exit = () =>
		new Promise<{ code: number | null; signal: string | null }>((resolve) =>
			child.once("exit", (code, signal) => resolve({ code, signal })),
		);
	const records = () => readdir(join(root, "v1/instances"));

	for (const signal of ["SIGTERM", "SIGINT"] as const) {
		it(`${signal} drains, takes the records away and ends with 0`, async () => {
			await start();
			expect(await records()).toHaveLength(1);
			const ended = exit();
			child.kill(signal);
			expect(await ended).toEqual({ code: 0, signal: null });
			expect(output).toContain("drained");
			expect(await records()).toEqual([]);
		});
	}

	it("a second signal ends the process at once, without its records", async () => {
		await start({ HANG: "1" });
		const ended = exit();
		const shuttingDown = new Promise<void>((resolve) =>
			child.stderr?.on("data", (chunk) => String(chunk).includes("shutting down") && resolve()),
		);
		child.kill("SIGTERM");
		await shuttingDown;
		child.kill("SIGTERM");
		expect(await ended).toEqual({ code: 143, signal: null });
		expect(await records()).toEqual([]);
	});
});
