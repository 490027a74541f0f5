// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isU64, normaliseId, parseJson, stringifyJson, U64_MAX } from "./json.js";

describe("parseJson", () => {
	it.each([
		["9007199254740991", 9007199254740991],
		["9007199254740992", 9007199254740992n],
		["18446744073709551615", U64_MAX],
		["-9223372036854775808", -9223372036854775808n],
		["1234567890123456.5", 1234567890123456.5],
		["12345678901234567e3", 12345678901234567e3],
		["0.12345678901234567890", 0.12345678901234568],
		["[1,18446744073709551615 ,{}]", [1, U64_MAX, {}]],
		['{"text":"1234567890123456789"}', { text: "1234567890123456789" }],
		['{"text":": 1234567890123456789"}', { text: ": 1234567890123456789" }],
		['{"a":1,"a":9223372036854775807}', { a: 9223372036854775807n }],
	])("reads %s exactly", (text, value) => {
		expect(parseJson(text)).toEqual(value);
	});

	it.each(["", "{", "[1,]", "01", "9007199254740993x", '{"a":9007199254740993', "tru", "1.", "\u0007"])(
		"refuses %j",
		(text) => {
			expect(() => parseJson(text)).toThrow(SyntaxError);
		},
	);

	it.each(['{"__proto__":{"polluted":1}}', '{"__proto__":{"polluted":12345678901234567890}}'])(
		"keeps %s an own property",
		(text) => {
			const value = parseJson(text) as Record<string, unknown>;
			expect(Object.keys(value)).toEqual(["__proto__"]);
			expect(value.polluted).toBeUndefined();
			expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
		},
	);

	it("reads bytes as UTF-8", () => {
		expect(parseJson(new TextEncoder().encode('{"é":"😀"}'))).toEqual({ é: "😀" });
	});

	it("finds a long number wherever it stands in the text", () => {
		for (let pad = 0; pad < 40; pad++) {
			const text = `{"p":"${"x".repeat(pad)}","id":9007199254740993}`;
			expect((parseJson(text) as { id: unknown }).id).toBe(9007199254740993n);
		}
	});

	it("gives back what stringifyJson wrote, any 64-bit integer included", () => {
		const integer = fc.bigInt({ min: -(2n ** 63n), max: U64_MAX });
		const value = fc.letrec((tie) => ({
			value: fc.oneof(fc.string(), fc.boolean(), fc.constant(null), integer, tie("array"), tie("object")),
			array: fc.array(tie("value"), { maxLength: 4 }),
			object: fc.dictionary(fc.string(), tie("value"), { maxKeys: 4, noNullPrototype: true }),
		})).value;
		fc.assert(
			fc.property(value, (given) => {
				const normal = (x: unknown): unknown => {
					if (typeof x === "bigint") return x >= -(2n ** 53n) + 1n && x < 2n ** 53n ? Number(x) : x;
					if (Array.isArray(x)) return x.map(normal);
					if (typeof x === "object" && x !== null) {
						return Object.fromEntries(Object.entries(x).map(([k, v]) => [k, normal(v)]));
					}
					return x;
				};
				expect(parseJson(stringifyJson(given))).toEqual(normal(given));
			}),
		);
	});
});

describe("stringifyJson", () => {
	it("writes bigints bare and leaves undefined members out", () => {
		expect(stringifyJson({ a: U64_MAX, b: undefined, c: [1n, undefined] })).toBe(
			'{"a":18446744073709551615,"c":[1,null]}',
		);
		expect(stringifyJson({ a: 1, b: undefined })).toBe('{"a":1}');
	});

	it("refuses what JSON cannot write", () => {
		const cycle: Record<string, unknown> = {};
		cycle.self = cycle;
		expect(() => stringifyJson(cycle)).toThrow(TypeError);
		expect(() => stringifyJson(undefined)).toThrow(TypeError);
	});
});

describe("ids", () => {
	it("become bigint from either form", () => {
		expect(normaliseId(5)).toBe(5n);
		expect(normaliseId(U64_MAX)).toBe(U64_MAX);
	});

	it.each([-1, 1.5, 2 ** 53, Number.NaN, -1n, U64_MAX + 1n])("refuse %s", (x) => {
		expect(() => normaliseId(x)).toThrow(RangeError);
		expect(isU64(x)).toBe(false);
	});
});
