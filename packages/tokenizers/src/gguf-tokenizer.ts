// SPDX-License-Identifier: Apache-2.0
import { GgufTokenizerError } from "./errors.js";
import { GgufFields, type GgufMetadata } from "./gguf-metadata.js";
import { ggufModelConfig } from "./gguf-model-config.js";
import { preTokenizerKind } from "./gguf-pre-tokenizers.js";
import {
	type GgufVocabulary,
	mergesFromScores,
	readGgufVocabulary,
	readMerges,
	TOKEN_TYPE,
} from "./gguf-vocabulary.js";

export interface GgufConversionOptions {
	/** Whether the output layer reuses the embedding, i.e. the file has no tensor output.weight. */
	tieWordEmbeddings?: boolean;
}

/** Texts of the Hugging Face files that say what the GGUF metadata says. Same metadata, same bytes. */
export interface GgufHuggingFaceFiles {
	/** tokenizer.json */
	tokenizerJson: string;
	/** tokenizer_config.json, with the chat template if there is one */
	tokenizerConfig: string;
	/** generation_config.json */
	generationConfig: string;
	/** config.json; undefined for an architecture that is laid out in another way than Llama */
	config: string | undefined;
}

/** `tokenizer.ggml.model` values that can be converted. */
export const SUPPORTED_GGUF_TOKENIZER_MODELS = ["gpt2", "llama"] as const;

/** Tokens that end a turn or a document; generation stops at them whatever the file's eos id is. */
const END_TOKENS = [
	"<|eot_id|>",
	"<|im_end|>",
	"<|end|>",
	"<end_of_turn>",
	"<|eom_id|>",
	"<|endoftext|>",
	"<|end_of_text|>",
];

interface SpecialIds {
	bos: number | undefined;
	eos: number | undefined;
	unk: number | undefined;
	pad: number | undefined;
	/** Every id that ends generation, the file's eos first. */
	ends: number[];
}

/**
 * Turns the tokenizer of a GGUF file into Hugging Face files, so that any frontend can use the model:
 * byte-level BPE (`tokenizer.ggml.model` gpt2) and SentencePiece BPE (`llama`).
 *
 * Keys and defaults: the GGUF specification and llama.cpp.
 *
 * @throws GgufTokenizerError for a tokenizer kind that cannot be converted (it names the kind and lists
 *   those that can) or for missing or broken keys
 */
export function convertGgufTokenizer(
	metadata: GgufMetadata,
	options: GgufConversionOptions = {},
): GgufHuggingFaceFiles {
	const fields = new GgufFields(metadata);
	const model = fields.string("tokenizer.ggml.model");
	if (model !== "gpt2" && model !== "llama") {
		throw new GgufTokenizerError(
			`GGUF tokenizer.ggml.model ${model === undefined ? "is missing" : `"${model}" is not supported`}; ` +
				`supported are ${SUPPORTED_GGUF_TOKENIZER_MODELS.join(", ")}. ` +
				"Use the model's Hugging Face folder (with its tokenizer.json) instead.",
		);
	}
	const sentencePiece = model === "llama";
	const vocabulary = readGgufVocabulary(fields);
	const ids = readSpecialIds(fields, vocabulary, sentencePiece);
	const kind = sentencePiece ? undefined : preTokenizerKind(fields.string("tokenizer.ggml.pre"));
	const addBos =
		(fields.boolean("tokenizer.ggml.add_bos_token") ?? kind?.addBos ?? sentencePiece) && ids.bos !== undefined;
	const addEos = (fields.boolean("tokenizer.ggml.add_eos_token") ?? false) && ids.eos !== undefined;
	const added = addedTokens(vocabulary, ids);

	const spacePrefix = fields.boolean("tokenizer.ggml.add_space_prefix") ?? sentencePiece;
	const merges = readMerges(fields, vocabulary);
	if (merges === undefined && !sentencePiece) {
		throw new GgufTokenizerError("GGUF has no tokenizer.ggml.merges, which a gpt2 vocabulary needs");
	}
	const parts = sentencePiece
		? sentencePieceParts(vocabulary, merges ?? mergesFromScores(fields, vocabulary), ids, spacePrefix)
		: {
				normalizer: kind!.normalizer,
				preTokenizer: kind!.preTokenizer,
				decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
				model: bpeModel(vocabulary, merges!, {
					unkToken: null,
					fuseUnk: false,
					byteFallback: false,
					ignoreMerges: kind!.ignoreMerges,
				}),
			};

	const tokenizerJson =
		`{"version":"1.0","truncation":null,"padding":null,"added_tokens":${JSON.stringify(added)},` +
		`"normalizer":${JSON.stringify(parts.normalizer)},"pre_tokenizer":${JSON.stringify(parts.preTokenizer)},` +
		`"post_processor":${JSON.stringify(postProcessor(vocabulary, addBos ? ids.bos : undefined, addEos ? ids.eos : undefined))},` +
		`"decoder":${JSON.stringify(parts.decoder)},"model":${parts.model}}`;

	const text = (id: number | undefined): string | undefined => (id === undefined ? undefined : vocabulary.tokens[id]);
	const contextLength = fields.uniformNumber(`${fields.string("general.architecture")}.context_length`);
	const tokenizerConfig = {
		tokenizer_class: "PreTrainedTokenizerFast",
		add_bos_token: addBos,
		add_eos_token: addEos,
		...(sentencePiece ? { add_prefix_space: spacePrefix } : {}),
		bos_token: text(ids.bos),
		eos_token: text(ids.eos),
		unk_token: text(ids.unk),
		pad_token: text(ids.pad),
		clean_up_tokenization_spaces: false,
		model_max_length: contextLength,
		chat_template: chatTemplate(fields),
		added_tokens_decoder: Object.fromEntries(added.map(({ id, ...token }) => [id, token])),
	};
	const generationConfig = {
		bos_token_id: ids.bos,
		eos_token_id: ids.ends.length > 1 ? ids.ends : ids.ends[0],
		pad_token_id: ids.pad,
	};
	const config = ggufModelConfig(fields, {
		vocabSize: vocabulary.tokens.length,
		bosTokenId: ids.bos,
		eosTokenIds: ids.ends,
		tieWordEmbeddings: options.tieWordEmbeddings,
	});
	return {
		tokenizerJson,
		tokenizerConfig: `${JSON.stringify(tokenizerConfig, null, 2)}\n`,
		generationConfig: `${JSON.stringify(generationConfig, null, 2)}\n`,
		config: config === undefined ? undefined : `${JSON.stringify(config, null, 2)}\n`,
	};
}

function readSpecialIds(fields: GgufFields, vocabulary: GgufVocabulary, sentencePiece: boolean): SpecialIds {
	const read = (name: string, fallback?: number): number | undefined => {
		const id = fields.number(`tokenizer.ggml.${name}`) ?? fallback;
		return id !== undefined && id >= 0 && id < vocabulary.tokens.length ? id : undefined;
	};
	const unk = read("unknown_token_id", sentencePiece ? 0 : undefined);
	const bos = read("bos_token_id", sentencePiece ? 1 : undefined);
	const eos = read("eos_token_id", sentencePiece ? 2 : undefined);
	// With <|return|> and <|call|>, <|end|> ends a message, not the turn.
	const harmony = vocabulary.ids.has("<|return|>") && vocabulary.ids.has("<|call|>");
	const known = END_TOKENS.filter((token) => !harmony || token !== "<|end|>").map((token) => vocabulary.ids.get(token));
	const more = [read("eot_token_id"), read("eom_token_id"), ...known].filter((id) => id !== undefined);
	const ends = [...new Set([...(eos === undefined ? [] : [eos]), ...more.sort((a, b) => a - b)])];
	return { bos, eos, unk, pad: read("padding_token_id"), ends };
}

/** Tokens that are found in text as a whole: control and unknown ones (special), user-defined ones. */
function addedTokens(vocabulary: GgufVocabulary, ids: SpecialIds) {
	const named = new Set([ids.bos, ids.eos, ids.unk, ids.pad, ...ids.ends]);
	const added = [];
	for (let id = 0; id < vocabulary.tokens.length; id++) {
		const type = vocabulary.types[id];
		const special = type === TOKEN_TYPE.control || type === TOKEN_TYPE.unknown || named.has(id);
		if (!special && type !== TOKEN_TYPE.userDefined) continue;
		const content = vocabulary.tokens[id]!;
		added.push({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special });
	}
	return added;
}

function sentencePieceParts(
	vocabulary: GgufVocabulary,
	merges: [string, string][],
	ids: SpecialIds,
	spacePrefix: boolean,
) {
	const replace = { type: "Replace", pattern: { String: " " }, content: "▁" };
	const steps: object[] = [
		{ type: "Replace", pattern: { String: "▁" }, content: " " },
		{ type: "ByteFallback" },
		{ type: "Fuse" },
	];
	if (spacePrefix) steps.push({ type: "Strip", content: " ", start: 1, stop: 0 });
	return {
		normalizer: spacePrefix ? { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace] } : replace,
		preTokenizer: null,
		decoder: { type: "Sequence", decoders: steps },
		model: bpeModel(vocabulary, merges, {
			unkToken: ids.unk === undefined ? null : vocabulary.tokens[ids.unk]!,
			fuseUnk: true,
			byteFallback: vocabulary.ids.has("<0x00>"),
			ignoreMerges: false,
		}),
	};
}

interface BpeOptions {
	unkToken: string | null;
	fuseUnk: boolean;
	byteFallback: boolean;
	ignoreMerges: boolean;
}

/**
 * JSON text of the `model` section. Written by hand: a vocabulary kept as an object would lose a token
 * called `__proto__` and reorder tokens that are numbers.
 */
function bpeModel(vocabulary: GgufVocabulary, merges: [string, string][], options: BpeOptions): string {
	const vocab = vocabulary.tokens.map((token, id) => `${JSON.stringify(token)}:${id}`);
	return (
		`{"type":"BPE","dropout":null,"unk_token":${JSON.stringify(options.unkToken)},` +
		`"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":${options.fuseUnk},` +
		`"byte_fallback":${options.byteFallback},"ignore_merges":${options.ignoreMerges},` +
		`"vocab":{${vocab.join(",")}},"merges":${JSON.stringify(merges)}}`
	);
}

/** A TemplateProcessing step that puts bos before and eos after the text; null when there is neither. */
function postProcessor(vocabulary: GgufVocabulary, bos: number | undefined, eos: number | undefined): object | null {
	if (bos === undefined && eos === undefined) return null;
	const special = (id: number | undefined, typeId: number): object[] =>
		id === undefined ? [] : [{ SpecialToken: { id: vocabulary.tokens[id]!, type_id: typeId } }];
	const around = (name: string, typeId: number): object[] => [
		...special(bos, typeId),
		{ Sequence: { id: name, type_id: typeId } },
		...special(eos, typeId),
	];
	const used = [...new Set([bos, eos])].filter((id) => id !== undefined);
	return {
		type: "TemplateProcessing",
		single: around("A", 0),
		pair: [...around("A", 0), ...around("B", 1)],
		special_tokens: Object.fromEntries(
			used.map((id) => {
				const token = vocabulary.tokens[id]!;
				return [token, { id: token, ids: [id], tokens: [token] }];
			}),
		),
	};
}

/** `tokenizer.chat_template`, or a list of named templates where the file has `tokenizer.chat_template.NAME`. */
function chatTemplate(fields: GgufFields): string | { name: string; template: string }[] | undefined {
	const prefix = "tokenizer.chat_template";
	const main = fields.string(prefix);
	const named = fields
		.keysWith(`${prefix}.`)
		.map((key) => ({ name: key.slice(prefix.length + 1), template: fields.string(key)! }));
	if (named.length === 0) return main;
	return main === undefined ? named : [{ name: "default", template: main }, ...named];
}
