// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import native from "tokenizers";
import { describe, expect, it } from "vitest";
import { TokenizerError, UnsupportedDecoderError } from "./errors.js";
import { Tokenizer } from "./tokenizer.js";

const fixture = (name: string): string => readFileSync(new URL(`../fixtures/${name}.json`, import.meta.url), "utf8");

describe("Tokenizer", () => {
	it.each(["byte-level-bpe", "sentencepiece-bpe", "unigram-byte-fallback", "unigram-metaspace"])(
		"%s: encodes as the library does, one by one and in a batch",
		async (name) => {
			const reference = native.Tokenizer.fromString(fixture(name));
			const tokenizer = Tokenizer.fromJson(fixture(name));
			await fc.assert(
				fc.asyncProperty(
					fc.array(fc.string({ unit: "grapheme", maxLength: 20 }), { maxLength: 4 }),
					fc.boolean(),
					async (texts, addSpecialTokens) => {
						const expected = [];
						for (const text of texts)
							expected.push((await reference.encode(text, null, { addSpecialTokens })).getIds());
						expect(await Promise.all(texts.map((t) => tokenizer.encode(t, { addSpecialTokens })))).toEqual(expected);
						expect(await tokenizer.encodeBatch(texts, { addSpecialTokens })).toEqual(expected);
					},
				),
				{ numRuns: 60 },
			);
		},
	);

	it("knows its special tokens", async () => {
		const tokenizer = Tokenizer.fromJson(fixture("byte-level-bpe"));
		const bos = tokenizer.tokenToId("<|begin_of_text|>")!;
		expect([...tokenizer.specialTokens]).toEqual([
			["<|begin_of_text|>", bos],
			["<|eot_id|>", bos + 1],
		]);
		expect(tokenizer.addedTokens.map((t) => t.content)).toEqual([
			"<|begin_of_text|>",
			"<|eot_id|>",
			"<tool call>",
			"<|émoji|>",
		]);
		expect(tokenizer.templateTokens).toEqual({ before: [bos], after: [] });
		expect(tokenizer.isSpecial(bos)).toBe(true);
		expect(tokenizer.isSpecial(bos + 2)).toBe(false);
		expect(tokenizer.vocabSize).toBe(bos + 4);
		expect(tokenizer.idToToken(bos + 2)).toBe("<tool call>");
		expect(tokenizer.tokenToId("no such token")).toBeUndefined();
		expect(await tokenizer.encode("<tool call>", { addSpecialTokens: false })).toEqual([bos + 2]);
		expect(tokenizer.decode([bos, bos + 2, bos + 1])).toBe("<tool call>");
		expect(tokenizer.decode([bos, bos + 2], { skipSpecialTokens: false })).toBe("<|begin_of_text|><tool call>");
	});

	it("ignore_merges: a word that is a token is that token, though no merge makes it", async () => {
		const tokenizer = Tokenizer.fromJson(fixture("byte-level-bpe"));
		const ids = await tokenizer.encode("the whole", { addSpecialTokens: false });
		expect(ids.map((id) => tokenizer.idToToken(id))).toEqual(["the", "Ġwhole"]);
	});

	it("never cuts or pads a text, whatever the file says", async () => {
		const json = JSON.parse(fixture("sentencepiece-bpe"));
		json.truncation = { direction: "Right", max_length: 3, strategy: "LongestFirst", stride: 0 };
		json.padding = {
			strategy: { Fixed: 20 },
			direction: "Right",
			pad_to_multiple_of: null,
			pad_id: 0,
			pad_type_id: 0,
			pad_token: "<unk>",
		};
		const plain = await Tokenizer.fromJson(fixture("sentencepiece-bpe")).encode("hello world the cat");
		expect(plain.length).toBeGreaterThan(3);
		expect(await Tokenizer.fromJson(JSON.stringify(json)).encode("hello world the cat")).toEqual(plain);
	});

	it("a token called __proto__ is a token like any other", () => {
		const json = fixture("sentencepiece-bpe")
			.replace('"▁wor":', '"__proto__":')
			.replace(/\["▁wo","r"\],|\["▁wor","l"\],/g, "");
		const tokenizer = Tokenizer.fromJson(json);
		const id = tokenizer.tokenToId("__proto__")!;
		expect(id).toBeGreaterThan(0);
		expect(tokenizer.decode([id, id])).toBe("__proto____proto__");
	});

	it("the same content is loaded once", () => {
		const json = fixture("unigram-metaspace");
		const tokenizer = Tokenizer.fromJson(json);
		expect(Tokenizer.fromJson(Buffer.from(json))).toBe(tokenizer);
		for (let i = 0; i < 4; i++) Tokenizer.fromJson(`${json}${" ".repeat(i + 1)}`);
		expect(Tokenizer.fromJson(json)).not.toBe(tokenizer);
	});

	it("says what is wrong with a file, and where it is", async () => {
		const folder = mkdtempSync(join(tmpdir(), "tokenizer-"));
		try {
			const path = join(folder, "tokenizer.json");
			await expect(Tokenizer.fromFile(path)).rejects.toThrow(TokenizerError);
			await expect(Tokenizer.fromFile(path)).rejects.toThrow(path);
			writeFileSync(path, '{"model":');
			await expect(Tokenizer.fromFile(path)).rejects.toThrow(/tokenizer\.json: tokenizer\.json cannot be loaded/);
			writeFileSync(
				path,
				JSON.stringify({
					...JSON.parse(fixture("unigram-metaspace")),
					decoder: { type: "CTC", pad_token: "<pad>", word_delimiter_token: "|", cleanup: true },
				}),
			);
			await expect(Tokenizer.fromFile(path)).rejects.toThrow(UnsupportedDecoderError);
			writeFileSync(path, fixture("unigram-metaspace"));
			expect((await Tokenizer.fromFile(path)).vocabSize).toBe(105);
		} finally {
			rmSync(folder, { recursive: true });
		}
	});
});
