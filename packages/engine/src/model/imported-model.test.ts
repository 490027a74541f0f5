// SPDX-License-Identifier: Apache-2.0
// A decoder in the form of onnxruntime-genai's exports, made here from a tiny model with the operators that its builder
// uses, against the plain implementation.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { findImportedModel } from "./imported-model.js";
import { loadModelRunner } from "./load-model-runner.js";
import type { ModelRunnerOptions } from "./model-runner.js";
import { writeGenaiFolder } from "./testing/genai-folder.js";
import { referenceLogits } from "./testing/llama-reference.js";
import { RunnerDriver } from "./testing/runner-driver.js";
import { makeTinyLlama, writeTinyFolder } from "./testing/tiny-llama.js";

const root = mkdtempSync(join(tmpdir(), "imported-"));
afterAll(() => rmSync(root, { recursive: true }));
let paths = 0;

const model = makeTinyLlama();
const TEXT = Array.from({ length: 45 }, (_, i) => (i * 37 + 5) % 200);
const ids = (list: readonly number[]) => Int32Array.from(list);

async function withRunner(
	change: (config: { model: Record<string, unknown>; search: Record<string, unknown> }) => void,
	use: (driver: RunnerDriver) => void,
	options: Partial<ModelRunnerOptions> = {},
): Promise<void> {
	const folder = join(root, String(paths++));
	mkdirSync(folder);
	writeGenaiFolder(folder, model, { change });
	const runner = await loadModelRunner({
		model: folder,
		maxNumSeqs: 4,
		maxModelLen: 64,
		blockSize: 8,
		quantization: "auto",
		cacheDir: join(root, "cache"),
		...options,
	});
	try {
		use(new RunnerDriver(runner));
	} finally {
		runner.close();
	}
}

function distance(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
	expect(actual.length).toBe(expected.length);
	return Array.from(expected).reduce((most, value, i) => Math.max(most, Math.abs(value - actual[i]!)), 0);
}

describe("a folder of onnxruntime-genai", () => {
	const expected = referenceLogits(model, TEXT);

	it("gives the model's logits: prompts longer than a run, single tokens, guesses, all in one step", async () => {
		await withRunner(
			() => {},
			(driver) => {
				expect(
					distance(driver.prefillAllLogits(0, ids(TEXT.slice(0, 40)), 0), expected.slice(0, 40).flat()),
				).toBeLessThan(1e-3);
				expect(distance(driver.prefill(1, ids(TEXT.slice(0, 5)), 0, true)!, expected[4]!)).toBeLessThan(1e-3);
				driver.prefill(2, ids(TEXT.slice(0, 9)), 0, false);
				const row = { tokens: ids(TEXT), blocks: ids([0, 1, 2, 3, 4, 5]), wanted: 1, isPrefill: false };
				const logits = driver.runner.execute([
					{ ...row, id: 0, start: 40, end: 43, wanted: 3 },
					{ ...row, id: 2, start: 9, end: 10, blocks: ids([16, 17]) },
					{ ...row, id: 1, start: 5, end: 6, blocks: ids([8, 9]) },
				]);
				for (const [i, position] of [40, 41, 42, 9, 5].entries()) {
					expect(distance(logits.row(i), expected[position]!)).toBeLessThan(1e-3);
				}
			},
		);
	});

	it("gives all logits of more guesses than a run holds", async () => {
		await withRunner(
			() => {},
			(driver) => {
				driver.prefill(0, ids(TEXT.slice(0, 4)), 0, false);
				const logits = driver.check(0, ids(TEXT.slice(4, 40)), 4);
				expect(distance(logits, expected.slice(4, 40).flat())).toBeLessThan(1e-3);
			},
		);
	});

	it("shares blocks like other models", async () => {
		await withRunner(
			() => {},
			({ runner }) => {
				const row = {
					tokens: ids(TEXT),
					start: 0,
					end: 45,
					blocks: ids([0, 1, 2, 3, 4, 5]),
					wanted: 1,
					isPrefill: true,
				};
				const whole = runner
					.execute([{ ...row, id: 1 }])
					.row(0)
					.slice();
				for (let i = 0; i < 3; i++) runner.persist(1, i, i);
				runner.release(1);
				const shared = runner.execute([{ ...row, id: 2, start: 24, blocks: ids([0, 1, 2, 7, 8, 9]) }]).row(0);
				expect(distance(shared, whole)).toBeLessThan(1e-5);
			},
		);
	});

	it("is passed over where the folder has weights of its own, in one file or in shards", () => {
		for (const shards of [1, 2]) {
			const folder = writeTinyFolder(join(root, String(paths++)), model, { shards });
			expect(findImportedModel(folder)).toBeUndefined();
			writeGenaiFolder(folder, model);
			expect(findImportedModel(folder)).toBeUndefined();
		}
		const bare = join(root, String(paths++));
		mkdirSync(bare);
		writeGenaiFolder(bare, model);
		expect(findImportedModel(bare)?.modelPath).toBe(join(bare, "model.onnx"));
	});

	it("says what is wrong with a folder", async () => {
		const fails = (change: Parameters<typeof withRunner>[0], message: RegExp) =>
			expect(withRunner(change, () => {})).rejects.toThrow(message);
		await fails(({ search }) => {
			search.past_present_share_buffer = false;
		}, /past_present_share_buffer is not true/);
		await fails(({ model: json }) => {
			(json.decoder as Record<string, unknown>).filename = "other.onnx";
		}, /other\.onnx: does not exist/);
		await fails(({ model: json }) => {
			(json.decoder as { inputs: Record<string, unknown> }).inputs.attention_mask = "mask";
		}, /wants the input attention_mask, which is not one of a text decoder/);
		await fails(({ model: json }) => {
			delete json.vocab_size;
		}, /model\.vocab_size is missing/);
		await fails(({ model: json }) => {
			json.vision = {};
		}, /more than a text decoder/);
	});
});
