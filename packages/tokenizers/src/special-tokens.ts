// SPDX-License-Identifier: Apache-2.0

/** Parsed Hugging Face files of a model; any of them may be absent. */
export interface SpecialTokenSources {
	/** generation_config.json */
	generationConfig?: object | undefined;
	/** config.json */
	config?: object | undefined;
	/** tokenizer_config.json */
	tokenizerConfig?: object | undefined;
	/** special_tokens_map.json */
	specialTokensMap?: object | undefined;
	/** The tokenizer, for ids of tokens given as text and as the last resort. */
	tokenizer?: TokenLookup | undefined;
}

/** The part of a Tokenizer that is needed here. */
export interface TokenLookup {
	tokenToId(token: string): number | undefined;
	idToToken(id: number): string | undefined;
	readonly specialTokens: ReadonlyMap<string, number>;
}

/** The file that an answer came from. */
export type SpecialTokenSource =
	| "generation_config"
	| "config"
	| "tokenizer_config"
	| "special_tokens_map"
	| "tokenizer"
	| "none";

export interface SpecialTokens {
	/** Every id that ends generation; empty when no file names one. */
	eosTokenIds: readonly number[];
	eosSource: SpecialTokenSource;
	bosTokenId: number | undefined;
	bosSource: SpecialTokenSource;
	padTokenId: number | undefined;
	/**
	 * Special tokens by the name that chat templates use (`bos_token`, `eos_token`, `pad_token`, `unk_token`
	 * and whatever else tokenizer_config.json has under a name ending in `_token`).
	 */
	variables: Readonly<Record<string, string>>;
}

type Json = Record<string, unknown>;

/** Ends of sequence that tokenizers are known to use, for models where no file says which one it is. */
const KNOWN_EOS = [
	"<|eot_id|>",
	"<|im_end|>",
	"<end_of_turn>",
	"<|end_of_text|>",
	"<|endoftext|>",
	"<｜end▁of▁sentence｜>",
	"</s>",
	"<eos>",
	"<|end|>",
];
const KNOWN_BOS = ["<|begin_of_text|>", "<bos>", "<s>", "<｜begin▁of▁sentence｜>", "<|startoftext|>"];

/**
 * Resolves end-of-sequence ids and the other special tokens. The first file that names an
 * end of sequence decides, in this order: generation_config.json, config.json (also inside `text_config`),
 * tokenizer_config.json, special_tokens_map.json, and last a well-known special token of tokenizer.json.
 * A list gives all its ids. Values that are no token (null, -1, a text that the vocabulary lacks) are passed over.
 */
export function resolveSpecialTokens(sources: SpecialTokenSources): SpecialTokens {
	const { tokenizer } = sources;
	const config = sources.config as Json | undefined;
	const idFiles: [SpecialTokenSource, Json | undefined][] = [
		["generation_config", sources.generationConfig as Json | undefined],
		["config", config],
		["config", (config?.text_config ?? config?.llm_config) as Json | undefined],
	];
	const textFiles: [SpecialTokenSource, Json | undefined][] = [
		["tokenizer_config", sources.tokenizerConfig as Json | undefined],
		["special_tokens_map", sources.specialTokensMap as Json | undefined],
	];

	const find = (name: string, known: readonly string[]): { ids: number[]; source: SpecialTokenSource } => {
		for (const [source, file] of idFiles) {
			const ids = tokenIds(file?.[`${name}_token_id`]);
			if (ids.length > 0) return { ids, source };
		}
		for (const [source, file] of textFiles) {
			const text = tokenText(file?.[`${name}_token`]);
			const id = text === undefined ? undefined : tokenizer?.tokenToId(text);
			if (id !== undefined) return { ids: [id], source };
		}
		for (const text of known) {
			const id = tokenizer?.specialTokens.get(text);
			if (id !== undefined) return { ids: [id], source: "tokenizer" };
		}
		return { ids: [], source: "none" };
	};

	const eos = find("eos", KNOWN_EOS);
	const bos = find("bos", KNOWN_BOS);
	const pad = find("pad", []);

	const variables: Record<string, string> = {};
	for (const [, file] of [...textFiles].reverse()) {
		for (const [name, value] of Object.entries(file ?? {})) {
			const text = name.endsWith("_token") ? tokenText(value) : undefined;
			if (text !== undefined) variables[name] = text;
		}
	}
	// Without either file the template still gets the tokens that the ids stand for. A file that sets the
	// token to null means it: such models have none.
	const described = textFiles.some(([, file]) => file !== undefined);
	for (const [name, ids] of described
		? []
		: ([
				["bos_token", bos.ids],
				["eos_token", eos.ids],
				["pad_token", pad.ids],
			] as const)) {
		const text = ids[0] === undefined ? undefined : tokenizer?.idToToken(ids[0]);
		if (text !== undefined) variables[name] = text;
	}
	return {
		eosTokenIds: eos.ids,
		eosSource: eos.source,
		bosTokenId: bos.ids[0],
		bosSource: bos.source,
		padTokenId: pad.ids[0],
		variables,
	};
}

/** What is encoded: a rendered chat template, or a prompt as the client wrote it. */
export type PromptKind = "chat" | "completion";

/**
 * Whether `encode` should add special tokens, so that a prompt has one beginning-of-sequence token and
 * never two: no for a rendered chat template (it has its own), yes for a plain prompt unless it begins
 * with that token already.
 */
export function shouldAddSpecialTokens(kind: PromptKind, text: string, bosToken: string | undefined): boolean {
	if (kind === "chat") return false;
	return bosToken === undefined || bosToken === "" || !text.startsWith(bosToken);
}

/** Text of a special token given as a string or as an AddedToken object; undefined for anything else. */
export function tokenText(value: unknown): string | undefined {
	if (typeof value === "string") return value;
	const content = (value as Json | null | undefined)?.content;
	return typeof content === "string" ? content : undefined;
}

function tokenIds(value: unknown): number[] {
	const ids = Array.isArray(value) ? value : [value];
	return [...new Set(ids.map((id) => (typeof id === "bigint" ? Number(id) : id)))].filter(
		(id): id is number => Number.isInteger(id) && (id as number) >= 0,
	);
}
