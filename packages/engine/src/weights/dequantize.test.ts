// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { fromHalf } from "../model/testing/weight-encoders.js";
import { dequantize } from "./dequantize.js";
import { halfToFloatTable } from "./float-formats.js";
import { BLOCK_LAYOUTS, type BlockType } from "./gguf-blocks.js";

const blockBytes = (length: number) =>
	fc.uint8Array({ minLength: length, maxLength: length }).map((bytes) => {
		// Scales of real files are finite: clear one exponent bit of the half-precision fields.
		for (const at of [1, 3]) bytes[at]! &= 0xbf;
		return bytes;
	});

/** Weight `i` of a block by the formula of the format, independent of the reader's loops. */
const FORMULAS = {
	Q8_0: (view: DataView, i: number) => fromHalf(view.getUint16(0, true)) * view.getInt8(2 + i),
	Q4_0: (view: DataView, i: number) => {
		const byte = view.getUint8(2 + (i % 16));
		return fromHalf(view.getUint16(0, true)) * ((i < 16 ? byte % 16 : Math.floor(byte / 16)) - 8);
	},
	Q4_1: (view: DataView, i: number) => {
		const byte = view.getUint8(4 + (i % 16));
		const q = i < 16 ? byte % 16 : Math.floor(byte / 16);
		return fromHalf(view.getUint16(0, true)) * q + fromHalf(view.getUint16(2, true));
	},
} as const;
const SIZES = { Q8_0: 34, Q4_0: 18, Q4_1: 20 } as const;

describe("dequantize", () => {
	it("knows every half-precision value", () => {
		const table = halfToFloatTable();
		for (let bits = 0; bits < 65536; bits++) {
			if (((bits >> 10) & 31) === 31) continue;
			expect(table[bits]).toBe(fromHalf(bits));
		}
		expect(table[0x7c00]).toBe(Number.POSITIVE_INFINITY);
		expect(table[0xfc00]).toBe(Number.NEGATIVE_INFINITY);
		expect(table[0x7c01]).toBeNaN();
	});

	for (const type of ["Q8_0", "Q4_0", "Q4_1"] as const) {
		it(`${type} follows its formula bit for bit`, () => {
			fc.assert(
				fc.property(fc.array(blockBytes(SIZES[type]), { minLength: 1, maxLength: 4 }), (blocks) => {
					const out = new Float32Array(blocks.length * 32);
					dequantize(type, Buffer.concat(blocks), out);
					blocks.forEach((bytes, b) => {
						const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
						// Adding zero makes -0 and 0 the same: products with a negative zero scale differ in sign only.
						for (let i = 0; i < 32; i++) expect(out[b * 32 + i]! + 0).toBe(Math.fround(FORMULAS[type](view, i)) + 0);
					});
				}),
			);
		});
	}

	const golden = JSON.parse(readFileSync(new URL("../../fixtures/gguf-types.json", import.meta.url), "utf8")) as Record<
		string,
		{ raw: string; values: string }
	>;

	it.each(Object.keys(BLOCK_LAYOUTS) as BlockType[])("%s gives the numbers of another implementation", (type) => {
		const raw = new Uint8Array(Buffer.from(golden[type]!.raw, "base64"));
		const bytes = new Uint8Array(Buffer.from(golden[type]!.values, "base64"));
		const expected = new Float32Array(bytes.buffer);
		expect(expected.length).toBe(512);
		const out = new Float32Array(expected.length);
		dequantize(type, raw, out);
		expect([...out].map((value) => value + 0)).toEqual([...expected].map((value) => value + 0));
	});

	it("reads F32, F16 and BF16, also from an odd address", () => {
		const out = new Float32Array(2);
		const shifted = (bytes: number[]) => new Uint8Array([0, ...bytes]).subarray(1);
		dequantize("F32", shifted([0, 0, 128, 63, 0, 0, 32, 192]), out);
		expect([...out]).toEqual([1, -2.5]);
		dequantize("F16", shifted([0x00, 0x3c, 0x00, 0xc1]), out);
		expect([...out]).toEqual([1, -2.5]);
		dequantize("BF16", shifted([0x80, 0x3f, 0x20, 0xc0]), out);
		expect([...out]).toEqual([1, -2.5]);
	});
});
