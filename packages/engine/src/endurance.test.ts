// SPDX-License-Identifier: Apache-2.0
// What a long life leaves behind: memory after ten thousand requests, files after kills. The children run the built
// package, so build before these tests. DYNAMO_TEST_KILLS sets how often a process is killed.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { makeTinyLlama, writeTinyFolder } from "./model/testing/tiny-llama.js";

const root = mkdtempSync(join(tmpdir(), "endurance-"));
const child = fileURLToPath(new URL("../dist/testing/engine-child.js", import.meta.url));
let folder: string;

beforeAll(() => {
	folder = writeTinyFolder(join(root, "model"), makeTinyLlama({}, 3));
});
afterAll(() => rmSync(root, { recursive: true }));

function start(cacheDir: string, requests: number) {
	const own = join(root, "tmp");
	return spawn(process.execPath, ["--expose-gc", child, folder, cacheDir, String(requests)], {
		stdio: ["ignore", "pipe", "inherit"],
		env: { ...process.env, TMPDIR: own },
	});
}

describe("an engine that lives long", () => {
	it("needs no more memory after 10,000 short requests than after 2,000", async () => {
		const process_ = start(join(root, "cache-memory"), 10_000);
		let text = "";
		process_.stdout.setEncoding("utf8").on("data", (chunk: string) => {
			text += chunk;
		});
		// Not "exit", which may come before the last of what it said.
		await once(process_, "close");
		const samples = text.trim().split("\n").map(Number);
		expect(samples.length).toBe(10);
		const [, early, ...later] = samples as [number, number, ...number[]];
		// A collector's mood is worth some MiB; a leak of one token's logits per request would be 8.
		expect(Math.max(...later) - early).toBeLessThan(12);
	}, 300_000);

	it("leaves no files, whenever it is killed", async () => {
		const cache = join(root, "cache-files");
		for (let i = 0; i < Number(process.env.DYNAMO_TEST_KILLS ?? 10); i++) {
			// Every fifth has its graph still to build.
			if (i % 5 === 0) rmSync(cache, { recursive: true, force: true });
			const process_ = start(cache, 100_000);
			const exited = once(process_, "exit");
			// At its first word, or a moment of its start.
			if (i % 2 === 0) await Promise.race([once(process_.stdout, "data"), exited]);
			else await new Promise((resolve) => setTimeout(resolve, 20 + ((i * 37) % 400)));
			process_.kill("SIGKILL");
			await exited;
		}
		const last = start(cache, 1000);
		expect(await once(last, "exit")).toEqual([0, null]);
		expect(readdirSync(cache)).toHaveLength(1);
		expect(readdirSync(root).sort()).toEqual(["cache-files", "cache-memory", "model"]);
	}, 600_000);
});
