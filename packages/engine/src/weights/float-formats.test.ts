// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { encodeF16, halfToFloatTable } from "./float-formats.js";

const table = halfToFloatTable();

test("every half-precision number survives the way through fp32", () => {
	const back = encodeF16(table);
	for (let bits = 0; bits < 65536; bits++) {
		if (Number.isNaN(table[bits])) expect(back[bits]! & 0x7fff).toBe(0x7e00);
		else if (back[bits] !== bits) throw new Error(`${bits} became ${back[bits]}`);
	}
});

test("rounding takes the nearest number, and of two equally near ones the even", () => {
	fc.assert(
		fc.property(
			fc.integer({ min: 0, max: 0x7bff - 1 }),
			fc.constantFrom(0.25, 0.5, 0.75),
			fc.boolean(),
			(bits, share, negative) => {
				const low = table[bits]!;
				const high = table[bits + 1]!;
				const value = Math.fround(low + (high - low) * share);
				const nearest = share < 0.5 ? bits : share > 0.5 ? bits + 1 : bits % 2 === 0 ? bits : bits + 1;
				const [got] = encodeF16(Float32Array.of(negative ? -value : value));
				expect(got).toBe(negative ? nearest | 0x8000 : nearest);
			},
		),
	);
});

test("numbers beyond the range become infinite, tiny ones zero", () => {
	expect([...encodeF16(Float32Array.of(65504, 65519, 65520, 1e38, -1e38, 2 ** -26, -0))]).toEqual([
		0x7bff, 0x7bff, 0x7c00, 0x7c00, 0xfc00, 0, 0x8000,
	]);
});
