// SPDX-License-Identifier: Apache-2.0
import { GgufTokenizerError } from "./errors.js";
import type { GgufFields } from "./gguf-metadata.js";

/** `tokenizer.ggml.token_type` values. */
export const TOKEN_TYPE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** The tokens of a GGUF file. */
export interface GgufVocabulary {
	/** Token text by id. */
	tokens: readonly string[];
	/** Ids by token text. */
	ids: ReadonlyMap<string, number>;
	/** TOKEN_TYPE by id. */
	types: ArrayLike<number>;
}

/**
 * Reads tokens and their types. An empty token gets a name of its own, since tokenizer.json knows tokens by
 * their text.
 *
 * @throws GgufTokenizerError when there are none, or two are the same
 */
export function readGgufVocabulary(fields: GgufFields): GgufVocabulary {
	const source = fields.strings("tokenizer.ggml.tokens");
	if (source === undefined || source.length === 0) {
		throw new GgufTokenizerError("GGUF has no tokenizer.ggml.tokens: the file holds no vocabulary");
	}
	const tokens = new Array<string>(source.length);
	const ids = new Map<string, number>();
	for (let id = 0; id < source.length; id++) {
		const token = source[id] === "" ? `[EMPTY_${id}]` : source[id]!;
		const twin = ids.get(token);
		if (twin !== undefined) {
			throw new GgufTokenizerError(
				`GGUF tokenizer.ggml.tokens has ${JSON.stringify(token)} twice, ids ${twin} and ${id}`,
			);
		}
		tokens[id] = token;
		ids.set(token, id);
	}
	const types = fields.numbers("tokenizer.ggml.token_type") ?? new Uint8Array(tokens.length).fill(TOKEN_TYPE.normal);
	if (types.length < tokens.length) {
		throw new GgufTokenizerError(
			`GGUF tokenizer.ggml.token_type has ${types.length} entries for ${tokens.length} tokens`,
		);
	}
	return { tokens, ids, types };
}

/**
 * Merge rules that the file spells out (`tokenizer.ggml.merges`, "left right"), without those that speak of
 * tokens that the vocabulary lacks; undefined when it has none.
 */
export function readMerges(fields: GgufFields, vocabulary: GgufVocabulary): [string, string][] | undefined {
	const source = fields.strings("tokenizer.ggml.merges");
	if (source === undefined) return undefined;
	const { ids } = vocabulary;
	const merges: [string, string][] = [];
	for (const merge of source) {
		const at = merge.indexOf(" ", 1);
		if (at < 0) continue;
		const left = merge.slice(0, at);
		const right = merge.slice(at + 1);
		if (ids.has(left) && ids.has(right) && ids.has(left + right)) merges.push([left, right]);
	}
	return merges;
}

/**
 * Merge rules of a SentencePiece vocabulary. SentencePiece joins the neighbours whose joint piece has the
 * best score; so each way to cut a piece into two pieces is a rule, ordered by the score of the whole.
 * Files made from a tokenizer.json have the same score everywhere; there, as in those files, ids are in the
 * order of the merges.
 */
export function mergesFromScores(fields: GgufFields, vocabulary: GgufVocabulary): [string, string][] {
	const scores = fields.numbers("tokenizer.ggml.scores");
	const { tokens, ids, types } = vocabulary;
	if (scores === undefined || scores.length < tokens.length) {
		throw new GgufTokenizerError("GGUF has no tokenizer.ggml.scores for all tokens, which a llama vocabulary needs");
	}
	const mergeable = (id: number): boolean => {
		const type = types[id]!;
		return type === TOKEN_TYPE.normal || type === TOKEN_TYPE.userDefined || type === TOKEN_TYPE.unused;
	};
	const rules: { id: number; cut: number; score: number }[] = [];
	for (let id = 0; id < tokens.length; id++) {
		if (!mergeable(id)) continue;
		const piece = tokens[id]!;
		for (let cut = 1; cut < piece.length; cut++) {
			const left = ids.get(piece.slice(0, cut));
			if (left === undefined || !mergeable(left)) continue;
			const right = ids.get(piece.slice(cut));
			if (right === undefined || !mergeable(right)) continue;
			rules.push({ id, cut, score: scores[id]! });
		}
	}
	rules.sort((a, b) => b.score - a.score || a.id - b.id || b.cut - a.cut);
	return rules.map(({ id, cut }) => [tokens[id]!.slice(0, cut), tokens[id]!.slice(cut)]);
}
