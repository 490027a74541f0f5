// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Utf8Assembler } from "./utf8-assembler.js";

const bytes = fc.oneof(
	fc.uint8Array({ maxLength: 24 }),
	fc
		.array(fc.constantFrom(0x41, 0x80, 0xbf, 0xc2, 0xe0, 0xa0, 0xed, 0x9f, 0xf0, 0x90, 0xf4, 0x8f, 0xff), {
			maxLength: 16,
		})
		.map((b) => Uint8Array.from(b)),
	fc.string({ unit: "grapheme", maxLength: 12 }).map((s) => new Uint8Array(Buffer.from(s))),
);

describe("Utf8Assembler", () => {
	it("decodes as TextDecoder does, however the bytes are cut", () => {
		fc.assert(
			fc.property(bytes, fc.array(fc.nat(24), { maxLength: 6 }), (all, cuts) => {
				const assembler = new Utf8Assembler(false);
				const places = [0, ...cuts.map((c) => Math.min(c, all.length)).sort((a, b) => a - b), all.length];
				let text = "";
				for (let i = 1; i < places.length; i++) text += assembler.push(all.subarray(places[i - 1], places[i]));
				expect(text + assembler.flush()).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(all));
			}),
			{ numRuns: 2000 },
		);
	});

	it("says when it holds bytes", () => {
		const assembler = new Utf8Assembler(true);
		expect(assembler.push(Uint8Array.of(0xf0, 0x9f))).toBe("");
		expect(assembler.pending).toBe(true);
		expect(assembler.flush()).toBe("\uFFFD\uFFFD");
		expect(assembler.pending).toBe(false);
	});
});
