// SPDX-License-Identifier: Apache-2.0
// Writes the small tokenizer.json files in ../fixtures, one per kind of decoder. They are made up (no model
// has them) and cover what the detokenizer must get right: characters spread over tokens, byte tokens,
// spaces at the start, added tokens. Run with: node scripts/make-fixtures.mjs
import { writeFileSync } from "node:fs";

const write = (name, json) =>
	writeFileSync(new URL(`../fixtures/${name}.json`, import.meta.url), `${JSON.stringify(json)}\n`);

const added = (id, content, special = true) => ({
	id,
	content,
	single_word: false,
	lstrip: false,
	rstrip: false,
	normalized: false,
	special,
});

const WORDS = ["the", "cat", "sat", "on", "mat", "hello", "world", "is", "Paris", "and", "he", "in", "ing"];
const CHARS = [..."abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'\n-é世界😀"];
const byteTokens = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`);

/** Merges that build each word from its characters, left to right, and every prefix on the way. */
function mergesFor(words) {
	const merges = [];
	for (const word of words) {
		const chars = [...word];
		let left = chars[0];
		for (const right of chars.slice(1)) {
			if (!merges.some(([a, b]) => a === left && b === right)) merges.push([left, right]);
			left += right;
		}
	}
	return merges;
}

const bpe = (tokens, merges, options) => ({
	type: "BPE",
	dropout: null,
	unk_token: null,
	continuing_subword_prefix: null,
	end_of_word_suffix: null,
	fuse_unk: false,
	byte_fallback: false,
	ignore_merges: false,
	...options,
	vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
	merges,
});

const file = (parts) => ({
	version: "1.0",
	truncation: null,
	padding: null,
	added_tokens: [],
	normalizer: null,
	pre_tokenizer: null,
	post_processor: null,
	decoder: null,
	model: null,
	...parts,
});

// Byte-level BPE in the manner of Llama 3: a Split pattern, ignore_merges, a template with a bos.
{
	const stands = [];
	let next = 256;
	for (let b = 0; b < 256; b++) {
		const printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
		stands.push(String.fromCharCode(printable ? b : next++));
	}
	const spell = (text) => [...Buffer.from(text, "utf8")].map((b) => stands[b]).join("");
	const merges = mergesFor([...WORDS, ...WORDS.map((w) => ` ${w}`), "世", "界", "😀", "é"].map(spell));
	const tokens = [...new Set([...stands, ...merges.map(([a, b]) => a + b), spell(" whole")])];
	const split =
		"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
	const base = tokens.length;
	write(
		"byte-level-bpe",
		file({
			added_tokens: [
				added(base, "<|begin_of_text|>"),
				added(base + 1, "<|eot_id|>"),
				added(base + 2, "<tool call>", false),
				added(base + 3, "<|émoji|>", false),
			],
			pre_tokenizer: {
				type: "Sequence",
				pretokenizers: [
					{ type: "Split", pattern: { Regex: split }, behavior: "Isolated", invert: false },
					{ type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
				],
			},
			post_processor: {
				type: "Sequence",
				processors: [
					{ type: "ByteLevel", add_prefix_space: true, trim_offsets: false, use_regex: true },
					{
						type: "TemplateProcessing",
						single: [{ SpecialToken: { id: "<|begin_of_text|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
						pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
						special_tokens: {
							"<|begin_of_text|>": { id: "<|begin_of_text|>", ids: [base], tokens: ["<|begin_of_text|>"] },
						},
					},
				],
			},
			decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
			model: bpe(tokens, merges, { ignore_merges: true }),
		}),
	);
}

// SentencePiece BPE in the manner of Llama 2.
{
	const merges = mergesFor([...WORDS, ...WORDS.map((w) => `▁${w}`), "▁▁▁▁"]);
	const tokens = ["<unk>", "<s>", "</s>", ...byteTokens];
	tokens.push(...new Set(["▁", ...CHARS, ...merges.map(([a, b]) => a + b)]));
	const base = tokens.length;
	write(
		"sentencepiece-bpe",
		file({
			added_tokens: [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(base, "[TOOL]", false)],
			normalizer: {
				type: "Sequence",
				normalizers: [
					{ type: "Prepend", prepend: "▁" },
					{ type: "Replace", pattern: { String: " " }, content: "▁" },
				],
			},
			post_processor: {
				type: "TemplateProcessing",
				single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
				pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
				special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
			},
			decoder: {
				type: "Sequence",
				decoders: [
					{ type: "Replace", pattern: { String: "▁" }, content: " " },
					{ type: "ByteFallback" },
					{ type: "Fuse" },
					{ type: "Strip", content: " ", start: 1, stop: 0 },
				],
			},
			model: bpe(tokens, merges, { unk_token: "<unk>", fuse_unk: true, byte_fallback: true }),
		}),
	);
}

const pieces = [...new Set(["▁", ...CHARS, ...WORDS, ...WORDS.map((w) => `▁${w}`), "▁▁", "▁▁▁"])];
const scored = (tokens) => tokens.map((token, id) => [token, id < 3 ? 0 : -1 - id / 100 - 2 / token.length]);

// Unigram with byte fallback, in the manner of Gemma: no space before the first word.
{
	const tokens = ["<pad>", "<eos>", "<bos>", "<unk>", ...byteTokens, ...pieces];
	write(
		"unigram-byte-fallback",
		file({
			added_tokens: [added(0, "<pad>"), added(1, "<eos>"), added(2, "<bos>"), added(3, "<unk>")],
			normalizer: { type: "Replace", pattern: { String: " " }, content: "▁" },
			decoder: {
				type: "Sequence",
				decoders: [
					{ type: "Replace", pattern: { String: "▁" }, content: " " },
					{ type: "ByteFallback" },
					{ type: "Fuse" },
				],
			},
			model: { type: "Unigram", unk_id: 3, vocab: scored(tokens), byte_fallback: true },
		}),
	);
}

// Unigram with Metaspace on both sides, in the manner of T5.
{
	const tokens = ["<pad>", "</s>", "<unk>", ...pieces];
	const metaspace = { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true };
	write(
		"unigram-metaspace",
		file({
			added_tokens: [added(0, "<pad>"), added(1, "</s>"), added(2, "<unk>")],
			pre_tokenizer: metaspace,
			decoder: metaspace,
			model: { type: "Unigram", unk_id: 2, vocab: scored(tokens), byte_fallback: false },
		}),
	);
}
