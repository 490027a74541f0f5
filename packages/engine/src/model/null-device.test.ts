// SPDX-License-Identifier: Apache-2.0
// The whole loop on ONNX Runtime's real CUDA provider, with a device that computes nothing: what the provider accepts
// and places, what is captured and replayed, how often is copied and waited, and how the process ends.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildNullCuda, cudaOrtFolder, nullCudaObstacle } from "../ort/testing/null-cuda.js";
import { makeTinyLlama, writeTinyFolder } from "./testing/tiny-llama.js";

const FIXTURES = fileURLToPath(new URL("../../fixtures/families/", import.meta.url));
const CHILD = fileURLToPath(new URL("../../dist/model/testing/null-device-run.js", import.meta.url));

const ort = cudaOrtFolder(process.env);
const obstacle = nullCudaObstacle(ort);
const base = mkdtempSync(join(tmpdir(), "null-device-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

describe.skipIf(obstacle !== undefined)(`on the null device${obstacle ? ` (${obstacle})` : ""}`, () => {
	let libraries: string;
	beforeAll(() => {
		libraries = buildNullCuda(join(base, "libraries"), ort!);
	});

	function run(model: string, quantization = "auto", env: Record<string, string> = {}) {
		const child = spawnSync(process.execPath, [CHILD, libraries, model, quantization, join(base, "graphs")], {
			encoding: "utf8",
			env: { ...process.env, NULL_CUDA_MEMORY: String(2 ** 28), NULL_CUDA_LOG: "1", ...env },
			maxBuffer: 1 << 28,
		});
		const parts = new Map<string, string[]>();
		let part = "start";
		for (const line of child.stderr.split("\n")) {
			if (line.startsWith("== ")) part = line.slice(3);
			else if (line.startsWith("[null-cuda"))
				parts.set(part, [...(parts.get(part) ?? []), line.replace(/^.*?\] /, "")]);
		}
		return { ...child, parts };
	}

	/** Names of the calls in a part of the log. */
	const calls = (lines: readonly string[] | undefined) =>
		(lines ?? []).map((line) => /^[A-Za-z]+( [hd]2[hd])?/.exec(line)![0]);

	test("steps are one copy in, one run, one copy out and one wait; the process ends well", () => {
		const { status, signal, stdout, parts } = run(
			writeTinyFolder(join(base, "tiny"), makeTinyLlama(), { type: "F16" }),
		);
		expect([status, signal]).toEqual([0, null]);
		expect(JSON.parse(stdout)).toMatchObject({ device: "cuda", blockSize: 256, maxModelLen: 128 });
		// A replay launches its graph and nothing else; no call waits for the whole device.
		expect(calls(parts.get("decode"))).toEqual([
			"cudaMemcpyAsync h2d",
			"cudaGraphLaunch",
			"cudaMemcpyAsync d2h",
			"cudaStreamSynchronize",
		]);
		const prefill = calls(parts.get("prefill"));
		expect(prefill.filter((call) => call !== "cudaMalloc")).toEqual([
			"cudaMemcpyAsync h2d",
			"cudaMemcpyAsync d2h",
			"cudaStreamSynchronize",
		]);
		const all = [...parts.values()].flat().join("\n");
		// Batches of 1, 2 and 4 in one width of the block table.
		expect(all.match(/cudaStreamBeginCapture/g)).toHaveLength(3);
		// What would break a capture on a real device.
		expect(all).not.toMatch(/(cudaStreamSynchronize|cudaMalloc|cudaDeviceSynchronize|cudaMemcpy ).*DURING CAPTURE/);
		// Device memory is all given back.
		expect(JSON.parse(stdout).leaked).toBe(0);
	}, 60_000);

	test.each(["int8", "int4"])(
		"%s weights are placed on the device",
		(quantization) => {
			const model = makeTinyLlama({ hidden_size: 128, intermediate_size: 192 });
			const folder = writeTinyFolder(join(base, `tiny-${quantization}`), model, { type: "F16" });
			const { status, stderr } = run(folder, quantization);
			expect(status, stderr.slice(-2000)).toBe(0);
		},
		60_000,
	);

	test.each(["llama-bias", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3"])(
		"the family of %s is placed on the device",
		(name) => {
			const { status, stderr } = run(join(FIXTURES, name));
			expect(status, stderr.replaceAll(/^\[null-cuda.*$\n/gm, "").slice(-2000)).toBe(0);
		},
		60_000,
	);

	test.each([
		["the cache", 600_000, /RangeError: the device has 0\.00 GiB.*gpuMemoryUtilization.*maxModelLen/],
		[
			"the largest step",
			500_000,
			/RangeError: a step of 64 tokens does not fit beside the weights.*maxNumBatchedTokens/,
		],
	])(
		"too little memory for %s is refused with the cure, and the process ends well",
		(name, memory, words) => {
			const folder = writeTinyFolder(join(base, `tiny for ${name}`), makeTinyLlama(), { type: "F16" });
			const { status, signal, stderr } = run(folder, "auto", { NULL_CUDA_MEMORY: String(memory) });
			expect([status, signal]).toEqual([1, null]);
			expect(stderr).toMatch(words);
		},
		60_000,
	);
});
