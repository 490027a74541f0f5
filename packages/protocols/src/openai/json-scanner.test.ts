// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { countMembers, escapeControls, findSyntaxError, locate, membersOf, positionAt } from "./json-scanner.js";

describe("findSyntaxError", () => {
	it("finds none where JSON.parse finds none", () => {
		fc.assert(fc.property(fc.json(), (text) => findSyntaxError(text) === undefined));
		fc.assert(fc.property(fc.jsonValue(), (value) => findSyntaxError(JSON.stringify(value, null, 2)) === undefined));
	});

	it("finds one where JSON.parse finds one", () => {
		const spoilt = fc.tuple(
			fc.json(),
			fc.nat(),
			fc.constantFrom("", "x", '"', ",", "{", "]", "\\", "\n", "-", ".", "\u0001"),
		);
		fc.assert(
			fc.property(spoilt, ([text, at, piece]) => {
				const place = at % (text.length + 1);
				const changed = text.slice(0, place) + piece + text.slice(place + (piece === "" ? 1 : 0));
				let fails = false;
				try {
					JSON.parse(changed);
				} catch {
					fails = true;
				}
				if (fails) expect(findSyntaxError(changed)).toBeDefined();
			}),
			{ numRuns: 500 },
		);
	});
});

describe("places", () => {
	it("count lines, and bytes within them", () => {
		expect(positionAt("aé\n€b", 2)).toEqual({ line: 1, column: 3 });
		expect(positionAt("aé\n€b", 3)).toEqual({ line: 2, column: 0 });
		expect(positionAt("aé\n€b", 5)).toEqual({ line: 2, column: 4 });
	});

	it("follow a path of keys and indexes", () => {
		const text = '{"a":[1,{"b":"x"}],"a2":{}}';
		const at = (path: (string | number)[]) => {
			const span = locate(text, path);
			return span === undefined ? undefined : text.slice(span.valueStart, span.valueEnd);
		};
		expect(at(["a"])).toBe('[1,{"b":"x"}]');
		expect(at(["a", 1, "b"])).toBe('"x"');
		expect(at(["a2"])).toBe("{}");
		expect(at(["zz"])).toBeUndefined();
		expect(at(["a", 9])).toBe('[1,{"b":"x"}]');
	});
});

describe("escapeControls", () => {
	it.each([
		['{"a\nb":"c\u0000\\""}', '{"a\\u000ab":"c\\u0000\\""}'],
		['{"a":\n"b"}\n', '{"a":\n"b"}\n'],
		['"a\\\n"', '"a\\\\u000a"'],
	])("of %j is %j", (text, escaped) => {
		expect(escapeControls(text)).toBe(escaped);
	});

	it("leaves valid JSON alone", () => {
		fc.assert(
			fc.property(fc.json(), (text) => {
				expect(escapeControls(text)).toBe(text);
			}),
		);
	});
});

describe("countMembers", () => {
	it.each([
		["{}", 0, 0],
		['{"a":1,"a":2}', 2, 2],
		['{"a":{"b":1,"c":[{"d":2}]},"e":":{\\":\\\\"}', 2, 5],
		['{"a\\\\":"\\\\\\"{","b":"}"}', 2, 2],
	])("of %s is %d, and %d with those of inner objects", (text, outer, all) => {
		expect(countMembers(text)).toEqual({ outer, all });
	});

	it("is the number of members", () => {
		fc.assert(
			fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (object) => {
				const text = JSON.stringify(object);
				expect(countMembers(text).outer).toBe(Object.keys(object).length);
				expect(membersOf(text).map(({ key }) => key)).toEqual(Object.keys(JSON.parse(text)));
			}),
		);
	});
});
