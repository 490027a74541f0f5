// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { Packr } from "msgpackr";
import { describe, expect, it } from "vitest";
import { U64_MAX } from "../json.js";
import { decodeBody, encodeBody } from "./body-codec.js";
import { encodeResponseFrame } from "./response-frame.js";

const hex = (value: unknown): string => encodeBody(value, "msgpack").toString("hex");

describe("numbers", () => {
	it.each<[number | bigint, string]>([
		[0, "00"],
		[127, "7f"],
		[128, "cc80"],
		[255, "ccff"],
		[256, "cd0100"],
		[65_536, "ce00010000"],
		[2 ** 32 - 1, "ceffffffff"],
		[2 ** 32, "cf0000000100000000"],
		[2 ** 40, "cf0000010000000000"],
		[2 ** 53 - 1, "cf001fffffffffffff"],
		[U64_MAX, "cfffffffffffffffff"],
		[5n, "05"],
		[2n ** 32n, "cf0000000100000000"],
		[-1, "ff"],
		[-32, "e0"],
		[-33, "d0df"],
		[-128, "d080"],
		[-129, "d1ff7f"],
		[-32_769, "d2ffff7fff"],
		[-(2 ** 31) - 1, "d3ffffffff7fffffff"],
		[-(2n ** 63n), "d38000000000000000"],
		[0.5, "ca3f000000"],
		[0.1, "cb3fb999999999999a"],
		[2 ** 64, "cb43f0000000000000"],
	])("%s", (value, bytes) => {
		expect(hex({ x: value })).toBe(`81a178${bytes}`);
	});

	it("beyond 64 bits are refused", () => {
		expect(() => hex({ x: U64_MAX + 1n })).toThrow(RangeError);
		expect(() => hex({ x: -(2n ** 63n) - 1n })).toThrow(RangeError);
	});

	it("of sampling_options are 32-bit floats, of routing hints 64-bit ones, whole or not", () => {
		expect(hex({ sampling_options: { temperature: 1, top_k: 1, seed: 2 ** 40, top_p: 0.7, min_p: null } })).toContain(
			`${Buffer.from("temperature").toString("hex")}ca3f800000`,
		);
		const options = { temperature: 1, top_p: 0.7, seed: 2 ** 40 };
		expect(decodeBody(encodeBody({ sampling_options: options }, "msgpack"), "msgpack")).toEqual({
			sampling_options: { temperature: 1, top_p: Math.fround(0.7), seed: 2 ** 40 },
		});
		expect(hex({ routing: { priority_jump: 2, dp_rank: 0 } })).toContain("cb4000000000000000");
		// The same names elsewhere are no such fields.
		expect(hex({ tool: { temperature: 1 } })).toBe("81a4746f6f6c81ab74656d706572617475726501");
	});
});

describe("values", () => {
	it("members that are undefined are left out", () => {
		expect(hex({ a: undefined, b: 1 })).toBe("81a16201");
		expect(hex([undefined])).toBe("91c0");
	});

	it("handoff_id is 16 bytes and comes back as text", () => {
		const body = { bootstrap_info: { bootstrap_room: U64_MAX, handoff_id: "55a51329-1b91-49cc-b0e2-6e473f8d9848" } };
		expect(hex(body)).toContain("c41055a513291b9149ccb0e26e473f8d9848");
		expect(decodeBody(encodeBody(body, "msgpack"), "msgpack")).toEqual(body);
		expect(decodeBody(encodeBody(body, "json"), "json")).toEqual(body);
		expect(() => hex({ bootstrap_info: { handoff_id: "nope" } })).toThrow("not a UUID");
	});

	it.each([31, 32, 255, 256, 65_535, 65_536])("strings and bytes of length %d", (length) => {
		for (const text of ["x".repeat(length), "é".repeat(length), "😀".repeat(length)]) {
			const value = { text, bytes: Buffer.alloc(length, 7) };
			expect(decodeBody(encodeBody(value, "msgpack"), "msgpack")).toEqual(value);
		}
	});

	it.each([15, 16, 65_535, 65_536])("arrays and maps of %d", (length) => {
		const value = {
			array: Array.from({ length }, (_, i) => i),
			map: Object.fromEntries(Array.from({ length: Math.min(length, 70_000) }, (_, i) => [`k${i}`, i])),
		};
		expect(decodeBody(encodeBody(value, "msgpack"), "msgpack")).toEqual(value);
	});

	it("typed arrays of token ids are arrays", () => {
		expect(hex({ t: Uint32Array.of(1, 70_000) })).toBe("81a1749201ce00011170");
	});

	it("what msgpack cannot write is refused, and the next value is sound", () => {
		const cycle: Record<string, unknown> = {};
		cycle.self = cycle;
		expect(() => hex(cycle)).toThrow("nested deeper");
		expect(() => hex({ f: () => {} })).toThrow(TypeError);
		expect(hex({ a: 1 })).toBe("81a16101");
	});

	it("results stay as they are when more is written", () => {
		const bodies = Array.from({ length: 3000 }, (_, i) => encodeBody({ i, pad: "p".repeat(i % 200) }, "msgpack"));
		for (const [i, body] of bodies.entries()) {
			expect(decodeBody(body, "msgpack")).toEqual({ i, pad: "p".repeat(i % 200) });
		}
	});
});

describe("against msgpackr", () => {
	// msgpackr writes integers from 2^32 on, and floats, another way; below that the bytes must be the same.
	const packr = new Packr({ useRecords: false, variableMapSize: true });
	const value = fc.letrec((tie) => ({
		value: fc.oneof(
			fc.string({ unit: "grapheme" }),
			fc.boolean(),
			fc.constant(null),
			fc.integer(),
			fc.uint8Array().map((bytes) => Buffer.from(bytes)),
			tie("array"),
			tie("object"),
		),
		array: fc.array(tie("value"), { maxLength: 20 }),
		object: fc.dictionary(
			fc.string().filter((key) => key !== "__proto__"),
			tie("value"),
			{ maxKeys: 18, noNullPrototype: true },
		),
	}));

	it("bytes are equal and both read them", () => {
		fc.assert(
			fc.property(value.object, (object) => {
				const bytes = encodeBody(object, "msgpack");
				expect(bytes).toEqual(packr.pack(object));
				expect(decodeBody(bytes, "msgpack")).toEqual(object);
			}),
		);
	});

	it("one-token items are equal", () => {
		for (const id of [0, 127, 128, 255, 256, 49_151, 65_536, 128_255]) {
			const item = { data: { token_ids: [id] } };
			expect(encodeResponseFrame(item, "msgpack").subarray(24)).toEqual(
				packr.pack({ data: item, complete_final: false }),
			);
		}
	});
});

describe("messages from a peer that is not trusted", () => {
	const read = (text: string): unknown => decodeBody(Buffer.from(text, "hex"), "msgpack");

	it.each([
		["an array of 33 million", "dd02000000", "33554432 members are announced"],
		["arrays in arrays, each of 16 million", "dd00ffffff".repeat(10), "members are announced"],
		["a map of 4 billion", "dfffffffff", "members are announced"],
		["a string of 4 GB", "dbffffffff", "in the middle of a value"],
		["a bin of 4 GB", "c6ffffffff", "in the middle of a value"],
		["a record definition", "d4724092a161a1620102", "type 0xd4"],
		["a date", "d6ff5f5f5f5f", "type 0xd6"],
		["the unused type", "c1", "type 0xc1"],
		["a number as key", "810101", "the key of a map must be a string"],
		["two values", "0102", "1 bytes behind the value"],
		["nothing", "", "in the middle of a value"],
		["a deep nest", "91".repeat(100_000), "nested deeper"],
	])("%s is refused", (_, text, message) => {
		expect(() => read(text)).toThrow(message);
	});

	it("__proto__ becomes an own member", () => {
		const value = read("81a95f5f70726f746f5f5f81a16101") as Record<string, unknown>;
		expect(Object.keys(value)).toEqual(["__proto__"]);
		expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
		expect(value.a).toBeUndefined();
	});

	it("reads every form of a number", () => {
		expect(
			read(
				"9bccffcdffffceffffffffcf001fffffffffffffcf0020000000000000d080d18000d280000000d3ffe0000000000001d3ffe0000000000000e0",
			),
		).toEqual([
			255,
			65_535,
			2 ** 32 - 1,
			2 ** 53 - 1,
			2n ** 53n,
			-128,
			-32_768,
			-(2 ** 31),
			-(2 ** 53) + 1,
			-(2n ** 53n),
			-32,
		]);
		expect(read("92ca3f800000cb3fb999999999999a")).toEqual([1, 0.1]);
	});

	it("keys that share a place in the cache stay apart", () => {
		const keys = Array.from({ length: 5000 }, (_, i) => `a${i}b`);
		const object = Object.fromEntries(keys.map((key, i) => [key, i]));
		for (let i = 0; i < 2; i++) expect(decodeBody(encodeBody(object, "msgpack"), "msgpack")).toEqual(object);
	});
});
