// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ChatTemplate } from "./chat-template.js";
import { GgufTokenizerError } from "./errors.js";
import { SUPPORTED_PRE_TOKENIZERS } from "./gguf-pre-tokenizers.js";
import { convertGgufTokenizer } from "./gguf-tokenizer.js";
import { resolveSpecialTokens } from "./special-tokens.js";
import { Tokenizer } from "./tokenizer.js";

const STANDS: string[] = [];
for (let b = 0, next = 256; b < 256; b++) {
	const printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
	STANDS.push(String.fromCharCode(printable ? b : next++));
}
const spell = (text: string): string => [...Buffer.from(text)].map((b) => STANDS[b]).join("");

/** Metadata of a byte-level vocabulary whose merges build each of `words`. */
function byteLevel(
	pre: string | undefined,
	words: string[] = [],
	more: Record<string, unknown> = {},
): Record<string, unknown> {
	const tokens = ["<|im_start|>", "<|im_end|>", "<think>", ...STANDS];
	const merges: string[] = [];
	for (const word of words.map(spell)) {
		for (let n = 1; n < word.length; n++) {
			const merge = `${word.slice(0, n)} ${word[n]}`;
			if (merges.includes(merge)) continue;
			merges.push(merge);
			tokens.push(merge.replace(" ", ""));
		}
	}
	return {
		"general.architecture": "llama",
		"tokenizer.ggml.model": "gpt2",
		...(pre === undefined ? {} : { "tokenizer.ggml.pre": pre }),
		"tokenizer.ggml.tokens": tokens,
		"tokenizer.ggml.token_type": Int32Array.from(tokens, (_, id) => (id < 2 ? 3 : id === 2 ? 4 : 1)),
		"tokenizer.ggml.merges": merges,
		"tokenizer.ggml.bos_token_id": 0,
		"tokenizer.ggml.eos_token_id": 1,
		...more,
	};
}

const convert = (metadata: Record<string, unknown>): Tokenizer =>
	Tokenizer.fromJson(convertGgufTokenizer(metadata).tokenizerJson);

/**
 * How a pre-tokenizer cuts a text. Each pair of bytes that may be joined is joined (all 65,536 merges would
 * be too many: those of the text's own bytes), so that a token is a whole word of the pre-tokenizer.
 */
async function words(pre: string | undefined, text: string): Promise<string[]> {
	const bytes = spell(text);
	const pieces = new Set<string>();
	for (let from = 0; from < bytes.length; from++) {
		for (let to = from + 2; to <= bytes.length; to++) pieces.add(bytes.slice(from, to));
	}
	const tokens = ["<|im_start|>", "<|im_end|>", "<think>", ...STANDS, ...pieces];
	const merges = [...pieces].flatMap((piece) => `${piece.slice(0, -1)} ${piece.at(-1)}`);
	const tokenizer = convert({
		...byteLevel(pre),
		"tokenizer.ggml.tokens": tokens,
		"tokenizer.ggml.token_type": Int32Array.from(tokens, (_, id) => (id < 2 ? 3 : 1)),
		"tokenizer.ggml.merges": merges,
	});
	const ids = await tokenizer.encode(text, { addSpecialTokens: false });
	return ids.map((id) => tokenizer.decode([id]));
}

describe("convertGgufTokenizer - byte-level", () => {
	const text = "I'm HERE'S  Größe 12345\n\n  x=1;";
	it.each([
		["gpt-2", ["I", "'m", " HERE", "'", "S", " ", " Größe", " 12345", "\n\n ", " x", "=", "1", ";"]],
		[
			"smollm",
			["I", "'m", " HERE", "'", "S", " ", " Größe", " ", "1", "2", "3", "4", "5", "\n\n ", " x", "=", "1", ";"],
		],
		["llama-bpe", ["I", "'m", " HERE", "'S", " ", " Größe", " ", "123", "45", "\n\n", " ", " x", "=", "1", ";"]],
		[
			"qwen2",
			["I", "'m", " HERE", "'S", " ", " Größe", " ", "1", "2", "3", "4", "5", "\n\n", " ", " x", "=", "1", ";"],
		],
		[
			"tekken",
			["I", "'m", " HERE", "'S", " ", " Größe", " ", "1", "2", "3", "4", "5", "\n\n", " ", " x", "=", "1", ";"],
		],
		["gpt-4o", ["I'm", " HERE'S", " ", " Größe", " ", "123", "45", "\n\n", " ", " x", "=", "1", ";"]],
		["deepseek-v3", ["I", "'m", " HERE", "'S", " ", " Größe", " ", "123", "45", "\n\n", " ", " x", "=", "1", ";"]],
		[undefined, ["I", "'", "m", " HERE", "'", "S", " ", " Größe", " ", "123", "45", "\n\n ", " x", "=", "1", ";"]],
	])("pre %s cuts words as its models do", async (pre, expected) => {
		expect(await words(pre, text)).toEqual(expected);
	});

	it("tekken and gpt-4o cut where lower case turns to upper case, glm4 does not", async () => {
		expect(await words("tekken", "camelCaseWORDy")).toEqual(["camel", "Case", "WORDy"]);
		expect(await words("gpt-4o", "camelCase")).toEqual(["camel", "Case"]);
		expect(await words("glm4", "camelCase")).toEqual(["camelCase"]);
	});

	it.each(SUPPORTED_PRE_TOKENIZERS)("pre %s loads, and any text comes back", async (pre) => {
		const tokenizer = convert(byteLevel(pre, ["the", " the", "世", "ing"]));
		await fc.assert(
			fc.asyncProperty(fc.string({ unit: "grapheme", maxLength: 30 }), async (text) => {
				const source = ["qwen2", "qwen35"].includes(pre) ? text.normalize("NFC") : text;
				expect(tokenizer.decode(await tokenizer.encode(text, { addSpecialTokens: false }))).toBe(source);
			}),
			{ numRuns: 25 },
		);
	});

	it("llama-bpe: a bos in front unless the file says no; a word that is a token needs no merges", async () => {
		const metadata = byteLevel("llama-bpe", ["ab"]);
		(metadata["tokenizer.ggml.tokens"] as string[]).push("xyz");
		metadata["tokenizer.ggml.token_type"] = undefined;
		const tokenizer = convert(metadata);
		expect(tokenizer.templateTokens).toEqual({ before: [0], after: [] });
		const xyz = tokenizer.tokenToId("xyz");
		expect(await tokenizer.encode("xyz")).toEqual([0, xyz]);
		const without = convert({
			...metadata,
			"tokenizer.ggml.add_bos_token": false,
			"tokenizer.ggml.add_eos_token": true,
		});
		expect(await without.encode("xyz")).toEqual([xyz, 1]);
	});

	it("control tokens are special, user-defined ones are not", async () => {
		const tokenizer = convert(byteLevel("smollm"));
		expect([...tokenizer.specialTokens.values()]).toEqual([0, 1]);
		expect(await tokenizer.encode("<|im_start|><think>")).toEqual([0, 2]);
		expect(tokenizer.decode([0, 2, 1])).toBe("<think>");
	});

	it("tokens that look like numbers or like __proto__ keep their ids; same metadata, same bytes", () => {
		const metadata = byteLevel("smollm");
		(metadata["tokenizer.ggml.tokens"] as string[]).push("__proto__", "12", "77");
		metadata["tokenizer.ggml.token_type"] = undefined;
		const tokenizer = convert(metadata);
		expect(["__proto__", "12", "77"].map((t) => tokenizer.tokenToId(t))).toEqual([259, 260, 261]);
		expect(convertGgufTokenizer(new Map(Object.entries(metadata)))).toEqual(convertGgufTokenizer(metadata));
	});
});

describe("convertGgufTokenizer - SentencePiece", () => {
	const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`);
	const pieces = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁ab", "▁b", "ca", "cab", "▁▁", "aa", "世"];
	const tokens = ["<unk>", "<s>", "</s>", ...bytes, ...pieces];
	// Scores in no particular order, none the same.
	const scores = Float32Array.from(tokens, (_, id) => (id < 259 ? 0 : -((id * 7) % 31) - 1));
	const metadata: Record<string, unknown> = {
		"general.architecture": "llama",
		"tokenizer.ggml.model": "llama",
		"tokenizer.ggml.pre": "default",
		"tokenizer.ggml.tokens": tokens,
		"tokenizer.ggml.scores": scores,
		"tokenizer.ggml.token_type": Int32Array.from(tokens, (_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1)),
		"tokenizer.ggml.bos_token_id": 1n,
		"tokenizer.ggml.eos_token_id": 2,
	};

	/** SentencePiece's own rule: join the neighbours whose joint piece scores best, the leftmost first. */
	function sentencePiece(text: string): number[] {
		let symbols = [...text.replaceAll(" ", "▁")];
		for (;;) {
			let best = -1;
			let bestScore = Number.NEGATIVE_INFINITY;
			for (let i = 0; i + 1 < symbols.length; i++) {
				const id = tokens.indexOf(symbols[i]! + symbols[i + 1]!, 259);
				if (id >= 0 && scores[id]! > bestScore) {
					best = i;
					bestScore = scores[id]!;
				}
			}
			if (best < 0) break;
			symbols = [...symbols.slice(0, best), symbols[best]! + symbols[best + 1]!, ...symbols.slice(best + 2)];
		}
		return symbols.flatMap((symbol) => {
			const id = tokens.indexOf(symbol);
			return id >= 0 ? [id] : [...Buffer.from(symbol)].map((b) => 3 + b);
		});
	}

	const texts = fc.string({
		unit: fc.constantFrom("a", "b", "c", "a", "b", " ", "世", "é", "😀", "\n"),
		maxLength: 24,
	});

	it.each([true, false])("encodes as SentencePiece does, with a space in front: %s", async (prefix) => {
		const tokenizer = convert({ ...metadata, "tokenizer.ggml.add_space_prefix": prefix });
		await fc.assert(
			fc.asyncProperty(texts, async (text) => {
				const ids = await tokenizer.encode(text, { addSpecialTokens: false });
				expect(ids).toEqual(text === "" ? [] : sentencePiece(prefix ? ` ${text}` : text));
				expect(tokenizer.decode(ids)).toBe(text);
			}),
			{ numRuns: 500 },
		);
	});

	it("with the same score everywhere, merges follow the ids; merges that the file has win", async () => {
		const same = { ...metadata, "tokenizer.ggml.scores": new Float32Array(tokens.length).fill(-1000) };
		const pieces = async (tokenizer: Tokenizer): Promise<(string | undefined)[]> =>
			(await tokenizer.encode("cabc", { addSpecialTokens: false })).map((id) => tokenizer.idToToken(id));
		expect(await pieces(convert(same))).toEqual(["▁", "c", "abc"]);
		expect(await pieces(convert({ ...same, "tokenizer.ggml.merges": ["c a", "ca b"] }))).toEqual(["▁", "cab", "c"]);
	});

	it("adds a bos by default and finds special tokens in text", async () => {
		const tokenizer = convert(metadata);
		expect(await tokenizer.encode("ab</s>")).toEqual([1, tokens.indexOf("▁ab"), 2]);
		expect(await convert({ ...metadata, "tokenizer.ggml.add_bos_token": false }).encode("ab")).toEqual([
			tokens.indexOf("▁ab"),
		]);
	});
});

describe("convertGgufTokenizer - the other files", () => {
	const metadata = byteLevel("smollm", [], {
		"tokenizer.ggml.padding_token_id": 1,
		"tokenizer.ggml.eot_token_id": 2,
		"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
		"tokenizer.chat_template.tool_use": "tools",
		"llama.block_count": 30,
		"llama.context_length": 8192n,
		"llama.embedding_length": 576,
		"llama.feed_forward_length": 1536,
		"llama.attention.head_count": 9,
		"llama.attention.head_count_kv": [3, 3, 3],
		"llama.rope.freq_base": 100000,
		"llama.attention.layer_norm_rms_epsilon": Math.fround(1e-5),
		"llama.rope.scaling.type": "yarn",
		"llama.rope.scaling.factor": Math.fround(4.1),
		"llama.rope.scaling.original_context_length": 4096,
	});

	it("config.json", () => {
		expect(JSON.parse(convertGgufTokenizer(metadata, { tieWordEmbeddings: true }).config!)).toEqual({
			architectures: ["LlamaForCausalLM"],
			model_type: "llama",
			vocab_size: 259,
			hidden_size: 576,
			intermediate_size: 1536,
			num_hidden_layers: 30,
			num_attention_heads: 9,
			num_key_value_heads: 3,
			head_dim: 64,
			max_position_embeddings: 8192,
			rms_norm_eps: 1e-5,
			rope_theta: 100000,
			rope_scaling: { rope_type: "yarn", factor: 4.1, original_max_position_embeddings: 4096 },
			hidden_act: "silu",
			tie_word_embeddings: true,
			bos_token_id: 0,
			eos_token_id: [1, 2],
		});
		const gemma = JSON.parse(
			convertGgufTokenizer({
				...metadata,
				"general.architecture": "gemma2",
				"gemma2.attention.sliding_window": 4096,
				"gemma2.final_logit_softcapping": 30,
			}).config!,
		);
		expect(gemma).toMatchObject({
			architectures: ["Gemma2ForCausalLM"],
			model_type: "gemma2",
			hidden_activation: "gelu_pytorch_tanh",
			sliding_window: 4096,
			final_logit_softcapping: 30,
		});
		expect(convertGgufTokenizer({ ...metadata, "general.architecture": "mamba" }).config).toBeUndefined();
	});

	it("generation_config.json and tokenizer_config.json make the chat template and the ends of sequence", () => {
		const files = convertGgufTokenizer(metadata);
		expect(JSON.parse(files.generationConfig)).toEqual({ bos_token_id: 0, eos_token_id: [1, 2], pad_token_id: 1 });
		const tokenizerConfig = JSON.parse(files.tokenizerConfig);
		expect(tokenizerConfig).toMatchObject({
			bos_token: "<|im_start|>",
			eos_token: "<|im_end|>",
			model_max_length: 8192,
		});
		expect(tokenizerConfig).not.toHaveProperty("unk_token");
		const special = resolveSpecialTokens({ tokenizerConfig, generationConfig: JSON.parse(files.generationConfig) });
		expect(special.eosTokenIds).toEqual([1, 2]);
		const chat = new ChatTemplate({ tokenizerConfig }, special.variables);
		expect(chat.names).toEqual(["default", "tool_use"]);
		expect(chat.render({ messages: [{ role: "user", content: "x" }] })).toBe("<|im_start|>x");
	});
});

describe("convertGgufTokenizer - errors name what is wrong", () => {
	it.each<[Record<string, unknown>, RegExp]>([
		[{ "tokenizer.ggml.model": "t5" }, /tokenizer\.ggml\.model "t5" is not supported; supported are gpt2, llama/],
		[{ "tokenizer.ggml.model": undefined }, /tokenizer\.ggml\.model is missing/],
		[
			{ "tokenizer.ggml.pre": "kimi-k2" },
			/tokenizer\.ggml\.pre "kimi-k2" is not supported; supported are default, gpt-2,.*smollm/,
		],
		[{ "tokenizer.ggml.tokens": undefined }, /no tokenizer\.ggml\.tokens/],
		[{ "tokenizer.ggml.tokens": ["a", "b", "a"] }, /has "a" twice, ids 0 and 2/],
		[{ "tokenizer.ggml.tokens": [1] }, /tokenizer\.ggml\.tokens should be a list of strings/],
		[{ "tokenizer.ggml.token_type": [1] }, /token_type has 1 entries for 259 tokens/],
		[{ "tokenizer.ggml.merges": undefined }, /no tokenizer\.ggml\.merges/],
		[{ "tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": undefined }, /no tokenizer\.ggml\.scores/],
		[{ "tokenizer.ggml.bos_token_id": "x" }, /bos_token_id should be a number/],
		[{ "tokenizer.ggml.add_bos_token": 1 }, /add_bos_token should be true or false/],
	])("%o", (more, message) => {
		const run = () => convertGgufTokenizer(byteLevel("smollm", [], more));
		expect(run).toThrow(GgufTokenizerError);
		expect(run).toThrow(message);
	});
});
