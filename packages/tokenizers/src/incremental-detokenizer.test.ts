// SPDX-License-Identifier: Apache-2.0
import { isUtf8 } from "node:buffer";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import native from "tokenizers";
import { beforeAll, describe, expect, it } from "vitest";
import { IncrementalDetokenizer } from "./incremental-detokenizer.js";
import { planDecoder, TokenTable } from "./token-decoder.js";
import { Tokenizer } from "./tokenizer.js";

const fixture = (name: string): string => readFileSync(new URL(`../fixtures/${name}.json`, import.meta.url), "utf8");

const KINDS = ["byte-level-bpe", "sentencepiece-bpe", "unigram-byte-fallback", "unigram-metaspace"] as const;

/** The stored kinds, and forms of their decoder section that other models have. */
const VARIANTS: [name: string, json: string][] = [
	...KINDS.map((name): [string, string] => [name, fixture(name)]),
	["no decoder", withDecoder("sentencepiece-bpe", null)],
	[
		"ByteFallback, Fuse, Replace, Strip",
		withDecoder("sentencepiece-bpe", {
			type: "Sequence",
			decoders: [
				{ type: "ByteFallback" },
				{ type: "Fuse" },
				{ type: "Replace", pattern: { String: "▁" }, content: " " },
				{ type: "Strip", content: " ", start: 2, stop: 0 },
			],
		}),
	],
	[
		"Metaspace, ByteFallback, Fuse",
		withDecoder("sentencepiece-bpe", {
			type: "Sequence",
			decoders: [
				{ type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: true },
				{ type: "ByteFallback" },
				{ type: "Fuse" },
			],
		}),
	],
	[
		"Metaspace never",
		withDecoder("unigram-metaspace", { type: "Metaspace", replacement: "▁", prepend_scheme: "never", split: true }),
	],
	[
		"Strip of each token",
		withDecoder("unigram-metaspace", {
			type: "Sequence",
			decoders: [
				{ type: "Strip", content: "▁", start: 1, stop: 0 },
				{ type: "Replace", pattern: { Regex: "[aeiou]" }, content: "_" },
			],
		}),
	],
];

function withDecoder(name: string, decoder: unknown): string {
	return JSON.stringify({ ...JSON.parse(fixture(name)), decoder });
}

/** Deltas of a stream, flush last. */
function stream(tokenizer: Tokenizer, ids: number[], options = {}): string[] {
	const detokenizer = new IncrementalDetokenizer(tokenizer, options);
	return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

/** Bytes of a byte token, by its name; undefined for any other token. */
const byteOf = (token: string): number | undefined => {
	const match = /^<0x(..)>$/.exec(token);
	return match === null ? undefined : Number.parseInt(match[1]!, 16);
};

describe.each(VARIANTS)("IncrementalDetokenizer - %s", (_name, json) => {
	const reference = native.Tokenizer.fromString(json);
	const tokenizer = Tokenizer.fromJson(json);
	const { tokens, plan } = tokenizer.table;
	const byteIds = tokens.flatMap((t, id) => (byteOf(t!) === undefined ? [] : [id]));
	const idOfByte = new Map(byteIds.map((id) => [byteOf(tokens[id]!)!, id]));

	const anyId = fc.integer({ min: 0, max: tokenizer.vocabSize + 2 });
	// Random ids rarely make characters: mix in byte tokens of real text, whole and cut short.
	const byteRun = fc
		.tuple(fc.string({ unit: "grapheme", minLength: 1, maxLength: 3 }), fc.nat(2))
		.map(([text, cut]) => [...Buffer.from(text)].slice(0, Math.max(1, Buffer.from(text).length - cut)))
		.map((bytes) => bytes.flatMap((byte) => idOfByte.get(byte) ?? []));
	const idLists = fc
		.array(
			byteIds.length > 0
				? fc.oneof(
						anyId.map((id) => [id]),
						byteRun,
					)
				: anyId.map((id) => [id]),
			{ maxLength: 24 },
		)
		.map((lists) => lists.flat());

	/** With byte fallback the library spoils complete characters next to a wrong byte: leave those out. */
	const comparable = (ids: number[], skipSpecialTokens: boolean): boolean => {
		if (plan.bytes !== "byte-fallback") return true;
		const kept = ids.filter((id) => tokens[id] !== undefined && !(skipSpecialTokens && tokenizer.isSpecial(id)));
		let run: number[] = [];
		for (const id of [...kept, -1]) {
			const byte = id < 0 ? undefined : byteOf(tokens[id]!);
			if (byte !== undefined) run.push(byte);
			else {
				const bytes = Uint8Array.from(run);
				const anyCharacter = run.some((_, i) =>
					[1, 2, 3, 4].some((n) => i + n <= run.length && isUtf8(bytes.subarray(i, i + n))),
				);
				if (!isUtf8(bytes) && anyCharacter) return false;
				run = [];
			}
		}
		return true;
	};

	it("deltas together are the library's decode of all ids", async () => {
		await fc.assert(
			fc.asyncProperty(idLists, fc.boolean(), async (ids, skipSpecialTokens) => {
				fc.pre(comparable(ids, skipSpecialTokens));
				const whole = await reference.decode(ids, skipSpecialTokens);
				expect(stream(tokenizer, ids, { skipSpecialTokens }).join("")).toBe(whole);
				expect(tokenizer.decode(ids, { skipSpecialTokens })).toBe(whole);
			}),
			{ numRuns: 400 },
		);
	});

	it("a text comes back whole, and no delta ends inside a character", async () => {
		await fc.assert(
			fc.asyncProperty(fc.string({ unit: "grapheme", maxLength: 40 }), async (text) => {
				const encoding = await reference.encode(text, null, { addSpecialTokens: false });
				const ids = encoding.getIds();
				const deltas = stream(tokenizer, ids, { skipSpecialTokens: false });
				expect(deltas.join("")).toBe(await reference.decode(ids, false));
				for (const delta of deltas) expect(delta).toBe(Buffer.from(delta).toString());
				if (plan.bytes !== "none") expect(deltas.at(-1)).toBe("");
			}),
			{ numRuns: 150 },
		);
	});

	it("idToBytes is what a token adds in the middle of a text", () => {
		for (let id = 0; id < tokenizer.vocabSize; id++) {
			const bytes = tokenizer.idToBytes(id)!;
			const detokenizer = tokenizer.detokenizer({ skipSpecialTokens: false, continuation: true });
			if (isUtf8(bytes)) expect(detokenizer.push(id)).toBe(Buffer.from(bytes).toString());
			else expect(detokenizer.push(id) + detokenizer.flush()).toContain("\uFFFD");
		}
		expect(tokenizer.idToBytes(tokenizer.vocabSize)).toBeUndefined();
		expect(tokenizer.idToBytes(-1)).toBeUndefined();
	});
});

describe("IncrementalDetokenizer - byte fallback", () => {
	let tokenizer: Tokenizer;
	let bytes: (...values: number[]) => number[];
	beforeAll(() => {
		tokenizer = Tokenizer.fromJson(fixture("sentencepiece-bpe"));
		bytes = (...values) =>
			values.map((b) => tokenizer.tokenToId(`<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`)!);
	});

	it("a character comes out with its last byte, wrong bytes as one U+FFFD each", () => {
		expect(stream(tokenizer, bytes(0xf0, 0x9f, 0x98, 0x80))).toEqual(["", "", "", "😀", ""]);
		expect(stream(tokenizer, bytes(0xf0, 0x9f, 0x98, 0x41))).toEqual(["", "", "", "\uFFFD\uFFFD\uFFFDA", ""]);
		expect(stream(tokenizer, bytes(0xff, 0x80))).toEqual(["\uFFFD", "\uFFFD", ""]);
		expect(stream(tokenizer, bytes(0xe2, 0x82))).toEqual(["", "", "\uFFFD\uFFFD"]);
	});

	it("complete characters stay, also next to a wrong byte", async () => {
		fc.assert(
			fc.property(
				fc.array(fc.oneof(fc.integer({ min: 0, max: 255 }), fc.constantFrom(0xe2, 0x82, 0xac, 0xf0, 0x9f)), {
					maxLength: 30,
				}),
				(values) => {
					// Another way to the same text: the longest valid character at each place, else U+FFFD for the byte.
					const all = Uint8Array.from(values);
					let expected = "";
					for (let i = 0; i < all.length; ) {
						const n = [1, 2, 3, 4].find((n) => i + n <= all.length && isUtf8(all.subarray(i, i + n)));
						expected += n === undefined ? "\uFFFD" : Buffer.from(all.subarray(i, i + n)).toString();
						i += n ?? 1;
					}
					expect(stream(tokenizer, bytes(...values), { continuation: true }).join("")).toBe(expected);
				},
			),
			{ numRuns: 500 },
		);
	});

	it("a continuation keeps the space that a whole text would lose", async () => {
		const prompt = await tokenizer.encode("hello", { addSpecialTokens: true });
		const ids = [tokenizer.tokenToId("▁world")!, tokenizer.tokenToId("▁he")!];
		expect(stream(tokenizer, ids).join("")).toBe("world he");
		expect(stream(tokenizer, ids, { continuation: true }).join("")).toBe(" world he");
		expect(tokenizer.decode([...prompt, ...ids])).toBe("hello world he");
	});

	it("a prompt that ends inside a character leaves nothing in the stream", () => {
		const [e2, x82, xac] = bytes(0xe2, 0x82, 0xac) as [number, number, number];
		const prompt = [tokenizer.tokenToId("▁world")!, e2];
		const answer = [x82, xac, tokenizer.tokenToId("▁he")!];
		expect(stream(tokenizer, answer, { continuation: true })).toEqual(["\uFFFD", "\uFFFD", " he", ""]);
		expect(tokenizer.decode([...prompt, ...answer])).toBe("world€ he");
	});

	it("bytes before a special token that is left out still complete with those after it", async () => {
		const ids = [...bytes(0xe2, 0x82), 2, ...bytes(0xac)];
		expect(tokenizer.decode(ids)).toBe("€");
	});
});

describe("planDecoder", () => {
	it("names a decoder that cannot be streamed", () => {
		expect(() => planDecoder({ type: "WordPiece", prefix: "##", cleanup: true })).toThrow(
			/decoder WordPiece is not supported/,
		);
		expect(() =>
			planDecoder({
				type: "Sequence",
				decoders: [{ type: "Fuse" }, { type: "Strip", content: " ", start: 0, stop: 1 }],
			}),
		).toThrow(/Strip is not supported \(it strips the end/);
	});

	it("an empty byte-level token does not break a character", () => {
		const table = new TokenTable(["Ã", "", "©"], new Uint8Array(3), planDecoder({ type: "ByteLevel" }));
		const detokenizer = new IncrementalDetokenizer({ table });
		expect([0, 1, 2].map((id) => detokenizer.push(id))).toEqual(["", "", "é"]);
	});
});
