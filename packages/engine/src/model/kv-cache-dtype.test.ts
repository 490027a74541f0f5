// SPDX-License-Identifier: Apache-2.0
// Keys and values in fewer bytes: how far the logits move, and that nothing else changes.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { loadModelRunner } from "./load-model-runner.js";
import type { KvCacheDtype } from "./model-runner.js";
import { RunnerDriver } from "./testing/runner-driver.js";
import { makeTinyLlama, writeTinyFolder } from "./testing/tiny-llama.js";

const root = mkdtempSync(join(tmpdir(), "kv-dtype-"));
afterAll(() => rmSync(root, { recursive: true }));
const model = writeTinyFolder(join(root, "model"), makeTinyLlama());
const cacheDir = join(root, "cache");
const TEXT = Array.from({ length: 24 }, (_, i) => (i * 37 + 11) % 200);

/** Logits of a text read in chunks of `chunk` tokens, then two tokens one at a time; beside another sequence or not. */
async function logitsOf(dtype: KvCacheDtype, chunk: number, beside: boolean): Promise<number[]> {
	const runner = await loadModelRunner({
		model,
		maxNumSeqs: 4,
		maxModelLen: 64,
		quantization: "none",
		kvCacheDtype: dtype,
		cacheDir,
	});
	try {
		const driver = new RunnerDriver(runner);
		const { vocabSize } = runner.config;
		const ids = Int32Array.from(TEXT);
		const out: number[] = [];
		if (beside) driver.prefill(1, ids.toReversed(), 0, false);
		for (let start = 0; start < ids.length; start += chunk) {
			out.push(...driver.prefillAllLogits(0, ids.subarray(start, start + chunk), start));
		}
		for (let step = 0; step < 2; step++) {
			const at = ids.length + step;
			const rows = beside ? 2 : 1;
			const logits = driver.decode(rows, new Int32Array(rows).fill(5 + step), new Int32Array(rows).fill(at));
			out.push(...logits.subarray(0, vocabSize));
		}
		expect(runner.kvCacheDtype).toBe(dtype);
		const bytes = { fp32: 4, fp16: 2, int8: 1 }[dtype];
		const { numLayers, numKvHeads, headDim } = runner.config;
		expect(runner.kvBytesPerToken).toBe(numLayers * 2 * numKvHeads * headDim * bytes);
		expect(runner.blockBytes).toBe(runner.kvBytesPerToken * runner.blockSize);
		return out;
	} finally {
		runner.close();
	}
}

describe("kvCacheDtype", () => {
	for (const [dtype, share] of [
		["fp16", 0.005],
		["int8", 0.05],
	] as const) {
		it(`${dtype}: logits stay close to those of fp32, whatever the chunks and the batch`, async () => {
			const exact = await logitsOf("fp32", 24, false);
			const found = await logitsOf(dtype, 24, false);
			const spread = Math.sqrt(exact.reduce((sum, value) => sum + value * value, 0) / exact.length);
			const error = Math.sqrt(exact.reduce((sum, value, i) => sum + (value - found[i]!) ** 2, 0) / exact.length);
			expect(error).toBeGreaterThan(0);
			expect(error / spread).toBeLessThan(share);
			// Keys and values of a chunk itself are not rounded to fp16 in its own attention, so there chunks show a little.
			const chunked = await logitsOf(dtype, 8, false);
			const moved = Math.max(...chunked.map((value, i) => Math.abs(value - found[i]!)));
			expect(moved).toBeLessThanOrEqual(dtype === "int8" ? 0 : spread * share);
			expect(await logitsOf(dtype, 24, true)).toEqual(found);
		});
	}
});
