// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import fc from "fast-check";
import native from "tokenizers";
import { describe, expect, it } from "vitest";
import { BYTE_TO_CHAR } from "./byte-level.js";
import { preTokenizerKind, SUPPORTED_PRE_TOKENIZERS } from "./gguf-pre-tokenizers.js";
import { planSplitter, SAME_IN_BOTH, translatePattern } from "./split-pattern.js";
import { Tokenizer } from "./tokenizer.js";

const fixture = JSON.parse(readFileSync(new URL("../fixtures/byte-level-bpe.json", import.meta.url), "utf8"));

// biome-ignore lint/suspicious/noExplicitAny: a file's JSON, changed at will.
type Json = Record<string, any>;

/** The small byte-level tokenizer, changed. */
function changed(change: (json: Json) => void): string {
	const json = structuredClone(fixture);
	change(json);
	return JSON.stringify(json);
}

const standIns = (text: string): string => [...Buffer.from(text)].map((byte) => BYTE_TO_CHAR[byte]).join("");

/** What a pre-tokenizer of the native library makes of a text. */
function nativeSplitter(preTokenizer: object): (text: string) => string[] {
	const found = native.Tokenizer.fromString(
		changed((json) => {
			json.pre_tokenizer = preTokenizer;
		}),
	).getPreTokenizer();
	return (text) => found!.preTokenizeString(text).map(([piece]) => piece);
}

const kinds = new Map(
	SUPPORTED_PRE_TOKENIZERS.map((name) => {
		const { preTokenizer } = preTokenizerKind(name);
		return [JSON.stringify(preTokenizer), { name, preTokenizer }];
	}),
);

/** Everything that SAME_IN_BOTH lets through, one character at a time. */
const safe: string[] = [];
for (let code = 0; code < 0x20000; code++) {
	const char = String.fromCodePoint(code);
	if (SAME_IN_BOTH.test(char)) safe.push(char);
}

const wordy = fc.oneof(
	{ weight: 4, arbitrary: fc.constantFrom(..."aZ'sTRe 1 2.,!\n\r\t-_/$+<|>éß  ") },
	{ weight: 1, arbitrary: fc.constantFrom("'ll", "'VE", "   ", "\r\n", "ABCdef", "123", "...", "日本", "e\u0301") },
	{ weight: 1, arbitrary: fc.constantFrom(...safe) },
);
const texts = fc.array(wordy, { maxLength: 40 }).map((parts) => parts.join(""));

describe("planSplitter", () => {
	it("understands the patterns of the widespread kinds", () => {
		for (const name of ["gpt-2", "smollm", "llama3", "qwen2", "gpt-4o", "tekken"]) {
			expect(planSplitter(preTokenizerKind(name).preTokenizer), name).toBeDefined();
		}
	});

	for (const { name, preTokenizer } of kinds.values()) {
		const ours = planSplitter(preTokenizer);
		if (ours === undefined) continue;
		const theirs = nativeSplitter(preTokenizer);

		it(`${name}: cuts as the native library does`, () => {
			fc.assert(
				fc.property(texts, (text) => {
					if (text !== "") expect(ours(text).map(standIns)).toEqual(theirs(text));
				}),
				{ numRuns: 300 },
			);
		});

		it(`${name}: every character that is let through has the same class in both engines`, () => {
			// In one text per block: a character between letters, digits, blanks and marks shows what it is taken for.
			for (let at = 0; at < safe.length; at += 256) {
				const text = safe
					.slice(at, at + 256)
					.map((char) => `a${char}b 1${char}2 ${char} .${char}'${char} A${char}B\n`)
					.join("");
				const found = ours(text).map(standIns);
				const expected = theirs(text);
				if (found.join("\0") !== expected.join("\0")) expect(found).toEqual(expected);
			}
		});
	}

	it("refuses what it cannot be certain of", () => {
		for (const pattern of [
			"a*",
			"\\p{L}++",
			"\\s++$",
			"^a",
			"\\h+",
			"(?i:[a-z])x",
			"[a-z&&[b]]",
			"\\w+",
			".",
			"(?<=a)b",
			"x{2,}",
		]) {
			expect(translatePattern(pattern), pattern).toBeUndefined();
		}
		const level = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
		for (const section of [
			null,
			{ type: "Whitespace" },
			{ ...level, add_prefix_space: true },
			{ type: "Sequence", pretokenizers: [] },
			{ type: "Sequence", pretokenizers: [level, { type: "Digits", individual_digits: true }] },
			{ type: "Sequence", pretokenizers: [{ type: "Split", pattern: { Regex: "a" }, behavior: "Removed" }, level] },
			{ type: "Sequence", pretokenizers: [{ type: "Split", pattern: { String: "a" }, behavior: "Isolated" }, level] },
		]) {
			expect(planSplitter(section), JSON.stringify(section)).toBeUndefined();
		}
	});
});

describe("encodeNow", () => {
	const whole = (json: string) => {
		const reference = native.Tokenizer.fromString(json);
		return {
			tokenizer: Tokenizer.fromJson(json),
			expected: async (text: string, addSpecialTokens: boolean) =>
				(await reference.encode(text, null, { addSpecialTokens })).getIds(),
		};
	};
	const bos = fixture.added_tokens[0].content as string;
	const withTokens = fc
		.array(
			fc.oneof({ weight: 3, arbitrary: texts }, fc.constantFrom(bos, bos.slice(0, 5), "<tool call>", "<tool call")),
			{
				maxLength: 6,
			},
		)
		.map((parts) => parts.join(""));

	it.each([
		["as it is", () => {}],
		[
			"NFC",
			(json: Json) => {
				json.normalizer = { type: "NFC" };
			},
		],
		[
			"merging always",
			(json: Json) => {
				json.model.ignore_merges = false;
			},
		],
		[
			"merges as text",
			(json: Json) => {
				json.model.merges = json.model.merges.map((merge: string | string[]) =>
					typeof merge === "string" ? merge : merge.join(" "),
				);
			},
		],
		[
			"no post-processor",
			(json: Json) => {
				json.post_processor = null;
			},
		],
	])("%s: the same ids as the native library's, from a cold and a warm cache", async (_, change) => {
		const { tokenizer, expected } = whole(changed(change));
		expect(await tokenizer.encode("warm", { addSpecialTokens: false })).toEqual(await expected("warm", false));
		await fc.assert(
			fc.asyncProperty(withTokens, fc.boolean(), async (text, addSpecialTokens) => {
				const ids = await expected(text, addSpecialTokens);
				expect(tokenizer.encodeNow(text, { addSpecialTokens })).toEqual(ids);
				expect(tokenizer.encodeNow(text, { addSpecialTokens })).toEqual(ids);
				expect(await tokenizer.encode(text, { addSpecialTokens })).toEqual(ids);
			}),
			{ numRuns: 200 },
		);
	});

	it("leaves to the native library what it may see otherwise, and long pieces and texts", async () => {
		const { tokenizer, expected } = whole(JSON.stringify(fixture));
		await tokenizer.encode("x");
		for (const text of ["\u0085", "\ufeff", "\u{1e922}", "\ud800", "a".repeat(129), "a b ".repeat(10_000)]) {
			expect(tokenizer.encodeNow(text), JSON.stringify(text.slice(0, 9))).toBeUndefined();
			if (text !== "\ud800") expect(await tokenizer.encode(text)).toEqual(await expected(text, true));
		}
		expect(tokenizer.encodeNow("a".repeat(128))).toBeDefined();
	});

	it("knows nothing of other tokenizers", async () => {
		const tokens = (change: object) => (json: Json) => {
			json.added_tokens = json.added_tokens.map((token: object) => ({ ...token, ...change }));
		};
		for (const change of [
			tokens({ lstrip: true }),
			tokens({ rstrip: true }),
			tokens({ single_word: true }),
			(json: Json) => {
				json.normalizer = { type: "Lowercase" };
			},
			(json: Json) => {
				json.model.dropout = 0.1;
			},
			(json: Json) => {
				json.pre_tokenizer = { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true };
			},
		]) {
			const tokenizer = Tokenizer.fromJson(changed(change));
			await tokenizer.encode("hello");
			expect(tokenizer.encodeNow("hello")).toBeUndefined();
		}
	});

	it("keeps giving the same ids when more pieces come by than are kept", async () => {
		const { tokenizer, expected } = whole(JSON.stringify(fixture));
		await tokenizer.encode("x");
		const text = "the whole hello world 12";
		const before = await expected(text, true);
		for (let i = 0; i < 70_000; i += 100) {
			tokenizer.encodeNow(
				Array.from({ length: 100 }, (_, k) => ` w${(i + k).toString(36).replace(/\d/g, "q")}`).join(""),
			);
			expect(tokenizer.encodeNow(text)).toEqual(before);
		}
	});
});
