// SPDX-License-Identifier: Apache-2.0
// The whole way of a step on CUDA but the kernels: packing, block tables, captured sizes, the graph's wiring and its
// tail run against an interpreter, and give what the references give.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test, vi } from "vitest";
import { encodeF16, halfToFloatTable } from "../weights/float-formats.js";
import type { CudaModelRunner } from "./cuda-model-runner.js";
import type { RunnerRow } from "./model-runner.js";
import { referenceLogits } from "./testing/llama-reference.js";
import { type InterpretedRunnerOptions, interpretedRunner } from "./testing/paged-runner.js";
import { makeTinyLlama, type TinyLlama, writeTinyFolder } from "./testing/tiny-llama.js";

// Plain loops take their time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

/** Of the largest logit: rotary tables, and blocks that were moved, are rounded to half precision. */
const ERROR = 3e-3;
/** Where weights are rounded too. */
const WEIGHT_ERROR = 5e-3;

const base = mkdtempSync(join(tmpdir(), "paged-graph-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const cacheDir = join(base, "graphs");

/** A tiny model whose weights half precision holds exactly. */
function halfModel(overrides: Parameters<typeof makeTinyLlama>[0] = {}, seed = 1): TinyLlama {
	const model = makeTinyLlama(overrides, seed);
	const table = halfToFloatTable();
	for (const { data } of model.tensors.values()) {
		const halves = encodeF16(data);
		for (let i = 0; i < data.length; i++) data[i] = table[halves[i]!]!;
	}
	return model;
}

let folders = 0;
function open(model: TinyLlama, options: Partial<InterpretedRunnerOptions> = {}) {
	const folder = writeTinyFolder(join(base, `model-${folders++}`), model, { type: "F16" });
	return interpretedRunner(folder, { cacheDir, ...options });
}

const text = (seed: number, length: number, vocabulary = 200) =>
	Int32Array.from({ length }, (_, i) => (i * 37 + seed * 61 + 3) % vocabulary);

/** A row of a text; the sequence's blocks are in no order. */
function part(id: number, tokens: Int32Array, start: number, end: number, wanted = 0): RunnerRow {
	const blocks = Int32Array.from({ length: 8 }, (_, i) => (id * 11 + i * 7 + 5) % 24);
	return { id, tokens, start, end, blocks, wanted, isPrefill: end - start > 1 };
}

/** The largest difference, as a share of the largest number. */
function error(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
	let worst = 0;
	let largest = 0;
	for (let i = 0; i < wanted.length; i++) {
		worst = Math.max(worst, Math.abs(got[i]! - wanted[i]!));
		largest = Math.max(largest, Math.abs(wanted[i]!));
	}
	expect(got.length).toBe(wanted.length);
	return worst / largest;
}

describe("a step against the reference", () => {
	const model = halfModel();
	const { runner, device } = open(model);

	test("the operators are those that CUDA has kernels of", () => {
		const known = [
			"Gather",
			"SimplifiedLayerNormalization",
			"Gemm",
			"PagedAttention",
			"SkipSimplifiedLayerNormalization",
		];
		known.push("Split", "QuickGelu", "Mul", "Cast", "TopK", "LogSoftmax", "GatherElements");
		expect([...new Set(device.operators)].sort()).toEqual(known.sort());
	});

	test("chunks of prompts beside decode steps, in shuffled blocks among others that hold no numbers", () => {
		const texts = [text(1, 40), text(2, 33), text(3, 20)];
		const expected = texts.map((ids) => referenceLogits(model, [...ids]));
		const check = (rows: readonly RunnerRow[]) => {
			const logits = runner.execute(rows);
			let i = 0;
			for (const { id, end, wanted } of rows) {
				for (let w = wanted; w > 0; w--, i++) {
					const reference = expected[id]![end - w]!;
					expect(error(logits.row(i), reference)).toBeLessThan(ERROR);
					const { k, ids, logits: top, logSumExp } = logits.top!;
					const order = [...reference.keys()].sort((a, b) => reference[b]! - reference[a]!);
					expect(k).toBe(64);
					expect([...ids.subarray(i * k, i * k + 3)]).toEqual(order.slice(0, 3));
					expect(
						error(
							top.subarray(i * k, i * k + k),
							order.slice(0, k).map((id) => reference[id]!),
						),
					).toBeLessThan(ERROR);
					const sum = Math.log(reference.reduce((total, x) => total + Math.exp(x), 0));
					expect(error([logSumExp[i]!], [sum])).toBeLessThan(ERROR);
				}
			}
			expect(logits.top!.ids.length).toBe(i * 64);
		};
		// Each sequence has three blocks of its own.
		const blocks = [Int32Array.of(5, 1, 22), Int32Array.of(0, 9, 17), Int32Array.of(23, 2)];
		const at = (id: number, start: number, end: number, wanted: number): RunnerRow => ({
			...part(id, texts[id]!, start, end, wanted),
			blocks: blocks[id]!,
		});
		const before = device.runs.length;
		check([at(0, 0, 10, 0)]);
		check([at(0, 10, 30, 1), at(1, 0, 4, 0)]);
		check([at(1, 4, 24, 2), at(0, 30, 31, 1), at(2, 0, 3, 1)]);
		check([at(0, 31, 32, 1), at(1, 24, 25, 1), at(2, 3, 4, 1)]);
		for (let i = 0; i < 8; i++) check([at(1, 25 + i, 26 + i, 1), at(0, 32 + i, 33 + i, 1)]);
		// Steps of one token per row are replays of captured graphs, all others are not.
		const graphs = device.runs.slice(before);
		expect(graphs.map((graph) => graph > 0)).toEqual([false, false, false, ...Array<boolean>(9).fill(true)]);
		expect(new Set(graphs.slice(3)).size).toBe(2);
	});

	test("a step beyond a run's limits is several runs with the same results", () => {
		const ids = text(4, 60);
		const expected = referenceLogits(model, [...ids]);
		const before = device.runs.length;
		// 60 tokens and 40 wanted ones, where a run has 24 of both; and another row behind it.
		const logits = runner.execute([part(0, ids, 0, 60, 40), part(1, text(5, 3), 0, 3, 1)]);
		expect(device.runs.length - before).toBe(3);
		for (let i = 0; i < 40; i++) {
			const reference = expected[20 + i]!;
			expect(error(logits.row(i), reference)).toBeLessThan(ERROR);
			expect(logits.top!.ids[i * 64]).toBe(reference.indexOf(Math.max(...reference)));
		}
		const other = referenceLogits(model, [...text(5, 3)])[2]!;
		expect(error(logits.row(40), other)).toBeLessThan(ERROR);
		expect(() => logits.row(41)).toThrow(RangeError);
	});

	test("blocks go out and come in again, at another place", () => {
		const ids = text(6, 40);
		const expected = referenceLogits(model, [...ids]);
		runner.execute([part(0, ids, 0, 32)]);
		const { blocks } = part(0, ids, 0, 32);
		const moved = Int32Array.of(blocks[5]!, blocks[6]!, blocks[7]!);
		const bytes = new Uint8Array(runner.kvBytesPerToken * runner.blockSize);
		for (let i = 0; i < 2; i++) {
			runner.readBlock(blocks[i]!, bytes);
			runner.writeBlock(moved[i]!, bytes);
		}
		const logits = runner.execute([{ ...part(0, ids, 32, 40, 1), blocks: moved }]);
		expect(error(logits.row(0), expected[39]!)).toBeLessThan(ERROR);
		expect(() => runner.readBlock(24, bytes)).toThrow(/block 24 is not one of 24/);
		expect(() => runner.writeBlock(0, bytes.subarray(1))).toThrow(/a block has \d+ bytes/);
	});

	test("what does not fit is refused before anything is computed", () => {
		const ids = text(7, 20);
		expect(() => runner.execute([part(0, ids, 0, 200)])).toThrow(/do not fit 128/);
		expect(() => runner.execute([{ ...part(0, ids, 0, 20), blocks: Int32Array.of(1) }])).toThrow(
			/block undefined at 1/,
		);
		expect(() => runner.execute([{ ...part(0, ids, 0, 20), blocks: Int32Array.of(1, 24) }])).toThrow(/block 24 at 1/);
		expect(() => runner.execute([part(0, Int32Array.of(200), 0, 1)])).toThrow(/token 200 is not in the vocabulary/);
	});
});

test("without captured steps the results are the same", () => {
	const model = halfModel();
	const { runner, device } = open(model, { capture: false });
	const ids = text(8, 6);
	const expected = referenceLogits(model, [...ids]);
	runner.execute([part(0, ids, 0, 5)]);
	expect(error(runner.execute([part(0, ids, 5, 6, 1)]).row(0), expected[5]!)).toBeLessThan(ERROR);
	expect(new Set(device.runs)).toEqual(new Set([-1]));
});

test("a small vocabulary has fewer likeliest tokens", () => {
	const model = halfModel({ vocab_size: 40, tie_word_embeddings: false }, 2);
	const { runner } = open(model);
	const ids = text(1, 5, 40);
	const logits = runner.execute([part(0, ids, 0, 5, 1)]);
	const [reference] = referenceLogits(model, [...ids]).slice(-1);
	expect(logits.top!.k).toBe(40);
	expect(error(logits.row(0), reference!)).toBeLessThan(ERROR);
	expect([...logits.top!.ids].sort((a, b) => a - b)).toEqual([...reference!.keys()]);
});

/** Logits of a text in chunks and then token by token, beside another text. */
function logitsOf(runner: CudaModelRunner, ids: Int32Array, chunks: readonly number[]): number[] {
	const out: number[] = [];
	const other = Int32Array.from(ids).reverse();
	let at = 0;
	for (let step = 0; at < ids.length; step++) {
		const end = Math.min(ids.length, at + (chunks[step] ?? 1));
		const logits = runner.execute([part(1, other, step, step + 1, 1), part(0, ids, at, end, end - at)]);
		for (let i = at; i < end; i++) out.push(...logits.row(1 + i - at));
		at = end;
	}
	return out;
}

const FIXTURES = fileURLToPath(new URL("../../fixtures/families/", import.meta.url));

describe.each(readdirSync(FIXTURES).sort())("the family of %s", (name) => {
	test("has the logits of transformers", () => {
		const json = JSON.parse(readFileSync(join(FIXTURES, name, "golden.json"), "utf8"));
		const expected = new Float32Array(new Uint8Array(Buffer.from(json.logits, "base64")).buffer);
		const ids = Int32Array.from(json.ids as number[]);
		const { runner } = interpretedRunner(join(FIXTURES, name), { cacheDir, maxModelLen: ids.length });
		expect(error(logitsOf(runner, ids, [10, 7, 16]), expected)).toBeLessThan(WEIGHT_ERROR);
	});
});

test.each([
	["int8", 2e-2],
	["int4", 0.3],
] as const)("%s weights are wired as their scales and zero points say", (quantization, bound) => {
	const model = halfModel({ hidden_size: 128, intermediate_size: 192 }, 3);
	const { runner, device } = open(model, { quantization });
	const ids = text(1, 12);
	const logits = runner.execute([part(0, ids, 0, 12, 1)]);
	const [reference] = referenceLogits(model, [...ids]).slice(-1);
	const got = error(logits.row(0), reference!);
	expect(got).toBeLessThan(bound);
	expect(device.operators).toContain("MatMulNBits");
	expect(device.operators).toContain("GatherBlockQuantized");
});
