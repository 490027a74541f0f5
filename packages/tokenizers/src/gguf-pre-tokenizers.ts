// SPDX-License-Identifier: Apache-2.0
import { GgufTokenizerError } from "./errors.js";

/** What a `tokenizer.ggml.pre` name stands for, in the terms of tokenizer.json. */
export interface PreTokenizerKind {
	/** `normalizer` section. */
	normalizer: object | null;
	/** `pre_tokenizer` section. */
	preTokenizer: object;
	/** A word that is a token as a whole is not put together from merges. */
	ignoreMerges: boolean;
	/** A beginning-of-sequence token is added where the file does not say. */
	addBos: boolean;
}

// The patterns below are those of the models' own tokenizer.json files (or, where those chain several
// steps, of llama.cpp, which names the kinds); each is applied in turn, splitting what the one before left.

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SPACES = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)";
const LLAMA3 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`;
const QWEN2 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`;
const QWEN35 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|${SPACES}`;
const SEED_CODER = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|${SPACES}`;
const MINICPM5 = `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}+| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`;
const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
/** Words split where lower case turns to upper case. */
const casedWords = (suffix: string): string =>
	`[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${suffix}|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${suffix}`;
const TEKKEN = `${casedWords("")}|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${SPACES}`;
const GPT4O = `${casedWords(`${CONTRACTIONS}?`)}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${SPACES}`;
const DEEPSEEK3_WORDS =
	"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+" +
	`| ?[\\p{P}\\p{S}]+[\\r\\n]*|${SPACES}`;
/** Chinese characters, hiragana and katakana. */
const CJK_RUN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
const BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+";

const byteLevel = (useRegex: boolean): object => ({
	type: "ByteLevel",
	add_prefix_space: false,
	trim_offsets: true,
	use_regex: useRegex,
});
const sequence = (...pretokenizers: object[]): object => ({ type: "Sequence", pretokenizers });
const split = (pattern: string): object => ({
	type: "Split",
	pattern: { Regex: pattern },
	behavior: "Isolated",
	invert: false,
});
const digits = { type: "Digits", individual_digits: true };

interface KindOptions {
	nfc?: boolean;
	ignoreMerges?: boolean;
	addBos?: boolean;
}
const kind = (preTokenizer: object, options: KindOptions = {}): PreTokenizerKind => ({
	normalizer: options.nfc ? { type: "NFC" } : null,
	preTokenizer,
	ignoreMerges: options.ignoreMerges ?? false,
	addBos: options.addBos ?? false,
});
const splits = (patterns: string[], options?: KindOptions): PreTokenizerKind =>
	kind(sequence(...patterns.map(split), byteLevel(false)), options);

const gpt2 = kind(byteLevel(true));
const digitsThenGpt2 = kind(sequence(digits, byteLevel(true)));
const qwen2 = splits([QWEN2]);
const gpt4o = splits([GPT4O]);
const llama3 = splits([LLAMA3], { ignoreMerges: true, addBos: true });
const llama3Merging = splits([LLAMA3]);
const deepseek3 = splits(["\\p{N}{1,3}", CJK_RUN, DEEPSEEK3_WORDS]);
const bloom = splits([BLOOM]);

/** Kinds by their `tokenizer.ggml.pre` name. */
const KINDS: ReadonlyMap<string, PreTokenizerKind> = new Map([
	["default", splits(["[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"])],
	["gpt-2", gpt2],
	["phi-2", gpt2],
	["mpt", gpt2],
	["olmo", gpt2],
	["jais", gpt2],
	["trillion", gpt2],
	["exaone4", gpt2],
	["gigachat", gpt2],
	["a.x-4.0", gpt2],
	["mellum", gpt2],
	["granite-docling", gpt2],
	["smollm", digitsThenGpt2],
	["starcoder", digitsThenGpt2],
	["refact", digitsThenGpt2],
	["command-r", digitsThenGpt2],
	["codeshell", digitsThenGpt2],
	["exaone", digitsThenGpt2],
	["minerva-7b", digitsThenGpt2],
	["mellum2", digitsThenGpt2],
	["llama3", llama3],
	["llama-v3", llama3],
	["llama-bpe", llama3],
	["falcon3", llama3],
	["falcon-h1", llama3],
	["pixtral", llama3],
	["midm-2.0", llama3],
	["lfm2", llama3],
	["dbrx", llama3Merging],
	["smaug-bpe", llama3Merging],
	["glm4", llama3Merging],
	["chatglm-bpe", llama3Merging],
	["qwen2", splits([QWEN2], { nfc: true })],
	["qwen35", splits([QWEN35], { nfc: true })],
	["deepseek-r1-qwen", qwen2],
	["kormo", qwen2],
	["megrez", qwen2],
	["stablelm2", qwen2],
	["hunyuan", qwen2],
	["solar-open", qwen2],
	["grok-2", qwen2],
	["seed-coder", splits([SEED_CODER])],
	["minicpm5", splits(["\\p{N}{1,3}", MINICPM5], { ignoreMerges: true })],
	[
		"deepseek-coder",
		splits(["[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "\\p{N}"]),
	],
	["deepseek-v3", deepseek3],
	["hunyuan-dense", deepseek3],
	["joyai-llm", deepseek3],
	["tekken", splits([TEKKEN], { ignoreMerges: true, addBos: true })],
	["gpt-4o", gpt4o],
	["llama4", gpt4o],
	["kanana2", gpt4o],
	["minimax-m2", gpt4o],
	["falcon", splits(["[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"])],
	["bloom", bloom],
	["poro-chat", bloom],
	["gpt3-finnish", bloom],
	["viking", splits([BLOOM, "\\p{N}"])],
]);

/** Names of `tokenizer.ggml.pre` that can be converted. */
export const SUPPORTED_PRE_TOKENIZERS: readonly string[] = [...KINDS.keys()];

/**
 * The kind of a `tokenizer.ggml.pre` name; a file without one means `default`.
 *
 * @throws GgufTokenizerError that names the kind and lists those that work
 */
export function preTokenizerKind(name: string | undefined): PreTokenizerKind {
	const found = KINDS.get(name ?? "default");
	if (found === undefined) {
		throw new GgufTokenizerError(
			`GGUF tokenizer.ggml.pre "${name}" is not supported; supported are ${SUPPORTED_PRE_TOKENIZERS.join(", ")}. ` +
				"Use the model's Hugging Face folder (with its tokenizer.json) instead.",
		);
	}
	return found;
}
