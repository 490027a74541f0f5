// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { RunnerRow } from "./model-runner.js";
import { chooseNumBlocks, pagedBlockBytes, pagedBlockSize } from "./paged-cache-memory.js";
import { captureBatches, captureColumns, runLayout, runShape, splitStep, writeRun } from "./paged-step.js";

const rowArbitrary = fc
	.record({
		past: fc.nat(40),
		count: fc.integer({ min: 1, max: 40 }),
		share: fc.double({ min: 0, max: 1, noNaN: true }),
	})
	.map(({ past, count, share }): Omit<RunnerRow, "id"> => {
		const end = past + count;
		const tokens = Int32Array.from({ length: end }, (_, i) => 1000 + i);
		const blocks = Int32Array.from({ length: Math.ceil(end / 16) }, (_, i) => 2 * i + 1);
		return { tokens, start: past, end, blocks, wanted: Math.round(share * count), isPrefill: true };
	});
const rowsArbitrary = fc
	.array(rowArbitrary, { minLength: 1, maxLength: 9 })
	.map((rows) => rows.map((row, id): RunnerRow => ({ ...row, id })));
const limitsArbitrary = fc.record({
	tokens: fc.integer({ min: 1, max: 50 }),
	batch: fc.integer({ min: 1, max: 5 }),
	wanted: fc.integer({ min: 1, max: 20 }),
});

describe("dividing a step", () => {
	test("every token and every wanted one is in exactly one run, in order, within the limits", () => {
		fc.assert(
			fc.property(rowsArbitrary, limitsArbitrary, (rows, limits) => {
				const runs = splitStep(rows, limits);
				for (const run of runs) {
					const sum = (of: (segment: (typeof run)[number]) => number) =>
						run.reduce((total, part) => total + of(part), 0);
					expect(run.length).toBeGreaterThan(0);
					expect(run.length).toBeLessThanOrEqual(limits.batch);
					expect(sum(({ start, end }) => end - start)).toBeLessThanOrEqual(limits.tokens);
					expect(sum(({ wanted }) => wanted)).toBeLessThanOrEqual(limits.wanted);
				}
				const computed = runs
					.flat()
					.flatMap(({ row, start, end, wanted }) =>
						Array.from({ length: end - start }, (_, i) => `${row.id} ${start + i} ${start + i >= end - wanted}`),
					);
				const expected = rows.flatMap(({ id, start, end, wanted }) =>
					Array.from({ length: end - start }, (_, i) => `${id} ${start + i} ${start + i >= end - wanted}`),
				);
				expect(computed).toEqual(expected);
			}),
		);
	});
});

describe("writing a run", () => {
	test("what is written says what the parts are, whatever padding there is", () => {
		fc.assert(
			fc.property(rowsArbitrary, fc.nat(3), fc.nat(4), (rows, extraColumns, extraRows) => {
				const segments = splitStep(rows, { tokens: 1e6, batch: 1e6, wanted: 1e6 })[0]!;
				const tight = runShape(segments, 16);
				const real = segments.reduce((sum, { wanted }) => sum + wanted, 0);
				const shape = {
					tokens: tight.tokens + extraRows,
					batch: tight.batch + extraRows,
					columns: tight.columns + extraColumns,
					wanted: Math.max(1, real + extraRows),
				};
				const layout = runLayout(shape);
				const out = new Int32Array(layout.length).fill(-7);
				writeRun(out, segments, { shape, blockSize: 16, firstBlock: 1 });
				const wanted = [...out.subarray(layout.rows, layout.rows + shape.wanted)];
				let token = 0;
				rows.forEach((row, i) => {
					expect(out[layout.cumulative + i]).toBe(token);
					expect(out[layout.past + i]).toBe(row.start);
					const count = row.end - row.start;
					expect([...out.subarray(layout.ids + token, layout.ids + token + count)]).toEqual([
						...row.tokens.subarray(row.start, row.end),
					]);
					const table = layout.table + i * shape.columns;
					const used = Math.ceil(row.end / 16);
					expect([...out.subarray(table, table + used)]).toEqual([...row.blocks].map((block) => block + 1));
					expect(out.subarray(table + used, table + shape.columns).every((block) => block === 0)).toBe(true);
					token += count;
					expect(wanted.splice(0, row.wanted)).toEqual(
						Array.from({ length: row.wanted }, (_, w) => token - row.wanted + w),
					);
				});
				// The padding: one token each, in block 0.
				for (let i = rows.length; i < shape.batch; i++, token++) {
					expect(out[layout.cumulative + i + 1]).toBe(token + 1);
					expect(out[layout.past + i]).toBe(0);
					expect(out[layout.table + i * shape.columns]).toBe(0);
				}
				expect(out[layout.cumulative + shape.batch]).toBe(shape.tokens);
				expect(wanted.every((index) => index >= 0 && index < shape.tokens)).toBe(true);
			}),
		);
	});
});

describe("sizes of captured steps", () => {
	test("grow and end with the largest", () => {
		expect(captureBatches(1)).toEqual([1]);
		expect(captureBatches(6)).toEqual([1, 2, 4, 6]);
		expect(captureBatches(64)).toEqual([1, 2, 4, 8, 16, 24, 32, 48, 64]);
		expect(captureColumns(3)).toEqual([3]);
		expect(captureColumns(40)).toEqual([8, 16, 32, 40]);
	});
});

describe("blocks", () => {
	test("are as large as FlashAttention wants, or a power of two", () => {
		expect([64, 80, 128, 256].map((headDim) => pagedBlockSize({ headDim }, undefined))).toEqual([256, 128, 128, 64]);
		expect(pagedBlockSize({ headDim: 64 }, 32)).toBe(32);
		for (const wrong of [8, 24, 0, 16.5]) expect(() => pagedBlockSize({ headDim: 64 }, wrong)).toThrow(/power of two/);
	});

	const GIB = 2 ** 30;
	const config = { numLayers: 32, numKvHeads: 8, headDim: 128 };
	const sizing = {
		blockBytes: pagedBlockBytes(config, 128),
		blockSize: 128,
		askedBytes: undefined,
		askedModelLen: undefined,
		longest: 8192,
		utilization: 0.9,
		memory: { free: 60 * GIB, total: 80 * GIB },
		scratchBlocks: 1,
	};

	test("fill the share of the memory that weights leave", () => {
		expect(sizing.blockBytes).toBe(16 * 2 ** 20);
		// 60 - 8 GiB in blocks of 16 MiB, but one.
		expect(chooseNumBlocks(sizing)).toEqual({ numBlocks: 52 * 64 - 1, maxModelLen: 8192 });
		expect(chooseNumBlocks({ ...sizing, askedBytes: 11 * sizing.blockBytes })).toEqual({
			numBlocks: 10,
			maxModelLen: 1280,
		});
	});

	test("that do not fit are refused with the numbers", () => {
		const small = { ...sizing, memory: { free: 9 * GIB, total: 80 * GIB }, askedModelLen: 8192 };
		expect(chooseNumBlocks({ ...small, askedModelLen: 63 * 128 }).maxModelLen).toBe(63 * 128);
		expect(() => chooseNumBlocks(small)).toThrow(
			/80\.00 GiB, of which 71\.00 GiB.*90 % .*leave 1\.00 GiB.*63 blocks of 128 tokens.*64 are needed.*8192 tokens/,
		);
		expect(() => chooseNumBlocks({ ...sizing, askedBytes: 53 * GIB })).toThrow(
			/53\.00 GiB were asked for \(kvCacheMemory\)/,
		);
		expect(() => chooseNumBlocks({ ...sizing, utilization: 1.5 })).toThrow(/gpuMemoryUtilization is 1.5/);
		expect(() => chooseNumBlocks({ ...sizing, memory: { free: 0, total: GIB } })).toThrow(/leave 0\.00 GiB/);
	});
});
