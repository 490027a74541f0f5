// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { setScales } from "../model/testing/weight-encoders.js";
import { dequantize } from "../weights/dequantize.js";
import { BLOCK_LAYOUTS, type BlockLayout, type BlockType } from "../weights/gguf-blocks.js";
import { type QuantizedRows, quantize4, quantize8, repackBlocks, storedForm } from "./block-quantize.js";

/** Weights by the definition of MatMulNBits' inputs. */
function unpack(rows: QuantizedRows, bits: 4 | 8, columns: number, blockSize: number): number[] {
	const blocks = Math.ceil(columns / blockSize);
	const height = rows.scales.length / blocks;
	const out: number[] = [];
	for (let row = 0; row < height; row++) {
		for (let column = 0; column < columns; column++) {
			const block = Math.floor(column / blockSize);
			const index = (row * blocks + block) * blockSize + (column % blockSize);
			const q = bits === 8 ? rows.packed[index]! : (rows.packed[index >> 1]! >> ((index & 1) * 4)) & 15;
			let zero = bits === 8 ? 128 : 8;
			if (rows.zeroPoints) {
				zero = (rows.zeroPoints[row * Math.ceil(blocks / 2) + (block >> 1)]! >> ((block & 1) * 4)) & 15;
			}
			const at = row * blocks + block;
			out.push(rows.scales[at]! * (q - zero) + (rows.offsets?.[at] ?? 0));
		}
	}
	return out;
}

const numbers = (length: number) =>
	fc
		.array(fc.double({ min: -3, max: 3, noNaN: true }), { minLength: length, maxLength: length })
		.map((values) => Float32Array.from(values));

/** Blocks of random bytes with moderate scales. */
const rawBlocks = (type: BlockType, count: number) => {
	const { bytes } = BLOCK_LAYOUTS[type];
	return fc
		.tuple(
			fc.uint8Array({ minLength: count * bytes, maxLength: count * bytes }),
			fc.array(fc.double({ min: -0.1, max: 0.1, noNaN: true }), { minLength: 2 * count, maxLength: 2 * count }),
		)
		.map(([raw, scales]) => setScales(type, raw, (i) => scales[i]!));
};

describe("block formats", () => {
	it.each(Object.keys(BLOCK_LAYOUTS) as BlockType[])("%s is repacked without loss", (type) => {
		const layout: BlockLayout = BLOCK_LAYOUTS[type];
		const { bits, blockSize, offsets } = storedForm(layout);
		fc.assert(
			fc.property(rawBlocks(type, 2), (raw) => {
				const expected = new Float32Array(2 * layout.weights);
				dequantize(type, raw, expected);
				// An offset is rounded once to fp32: the last bits of numbers of up to 200 may differ.
				const tolerance = offsets ? 2 ** -15 : 0;
				unpack(repackBlocks(layout, raw), bits, 2 * layout.weights, blockSize).forEach((weight, i) => {
					// Plainly: an assertion for each of so many numbers takes long.
					if (Math.abs(Math.fround(weight) - expected[i]!) > tolerance) expect(weight).toBe(expected[i]);
				});
			}),
		);
	});

	it("8 bits are within half a step, also in a padded block", () => {
		fc.assert(
			fc.property(numbers(2 * 96), (values) => {
				unpack(quantize8(values, 96, 64), 8, 96, 64).forEach((weight, i) => {
					const from = Math.floor(i / 96) * 96 + (i % 96 < 64 ? 0 : 64);
					const block = values.subarray(from, from + (i % 96 < 64 ? 64 : 32));
					const step = Math.max(...block.map(Math.abs)) / 127;
					expect(Math.abs(weight - values[i]!)).toBeLessThanOrEqual(step * 0.5001 + 1e-38);
				});
			}),
		);
	});

	it("4 bits are no worse than half a step on average, and exact for zeros", () => {
		fc.assert(
			fc.property(numbers(96), (values) => {
				const weights = unpack(quantize4(values, 96, 32), 4, 96, 32);
				for (let block = 0; block < 3; block++) {
					const part = values.subarray(block * 32, block * 32 + 32);
					const step = (Math.max(0, ...part) - Math.min(0, ...part)) / 15;
					const errors = [...part].map((value, i) => (weights[block * 32 + i]! - value) ** 2);
					// The whole range as it is, with a rounded zero point, has at most half a step each, one at an end.
					expect(errors.reduce((sum, error) => sum + error, 0)).toBeLessThanOrEqual(32 * step * step + 1e-38);
				}
			}),
		);
		expect(unpack(quantize4(new Float32Array(64), 64, 32), 4, 64, 32)).toEqual(new Array(64).fill(0));
	});

	it("4 bits use all levels of a lopsided block", () => {
		const values = Float32Array.from({ length: 32 }, (_, i) => i % 16);
		expect(unpack(quantize4(values, 32, 32), 4, 32, 32)).toEqual([...values]);
	});
});
