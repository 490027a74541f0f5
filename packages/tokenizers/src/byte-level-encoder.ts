// SPDX-License-Identifier: Apache-2.0
import { BYTE_TO_CHAR } from "./byte-level.js";
import { planSplitter, SAME_IN_BOTH, type Splitter } from "./split-pattern.js";

/** The parts of a tokenizer.json that decide how text becomes ids. */
export interface EncoderSections {
	normalizer?: unknown;
	pre_tokenizer?: unknown;
	post_processor?: unknown;
	model?: {
		type?: unknown;
		dropout?: unknown;
		continuing_subword_prefix?: unknown;
		end_of_word_suffix?: unknown;
		ignore_merges?: unknown;
		vocab?: Record<string, number> | [string, number][];
		merges?: (string | [string, string])[];
	};
}

/** An added token, as far as finding it in text needs it. */
interface FoundToken {
	readonly id: number;
	readonly content: string;
	readonly lstrip: boolean;
	readonly rstrip: boolean;
	readonly normalized: boolean;
	readonly singleWord: boolean;
}

/** Longer texts (UTF-16 units) are worth the way to another thread. */
const MAX_TEXT = 16 * 1024;
/** Merging costs the square of this; longer pieces (UTF-8 bytes) are left to the native library. */
const MAX_PIECE_BYTES = 128;
/** Pieces kept per generation, of two. */
const MAX_CACHED_PIECES = 32 * 1024;

/**
 * Text -> ids of byte-level BPE tokenizers on the calling thread: the native library needs several hundred
 * microseconds for a prompt of a hundred words, most of them for offsets and masks that nobody asks for. The ids of
 * pieces that were seen before (nearly all, in natural text) are looked up. Exact: what it is not certain of, it refuses.
 */
export class ByteLevelEncoder {
	readonly #split: Splitter;
	readonly #nfc: boolean;
	readonly #ignoreMerges: boolean;
	readonly #added: AddedTokenFinder;
	readonly #byteToId: Int32Array;
	readonly #merges: MergeTable;
	readonly #tokenToId: (token: string) => number | undefined;
	#recent = new Map<string, number | readonly number[]>();
	#older: ReadonlyMap<string, number | readonly number[]> = new Map();
	readonly #bytes = new Uint8Array(MAX_PIECE_BYTES);
	readonly #ids = new Int32Array(MAX_PIECE_BYTES);
	readonly #ranks = new Int32Array(MAX_PIECE_BYTES);

	private constructor(
		split: Splitter,
		nfc: boolean,
		ignoreMerges: boolean,
		added: AddedTokenFinder,
		byteToId: Int32Array,
		merges: MergeTable,
		tokenToId: (token: string) => number | undefined,
	) {
		this.#split = split;
		this.#nfc = nfc;
		this.#ignoreMerges = ignoreMerges;
		this.#added = added;
		this.#byteToId = byteToId;
		this.#merges = merges;
		this.#tokenToId = tokenToId;
	}

	/**
	 * The encoder for a tokenizer.json; undefined when it does something that is not done here.
	 * @param tokenToId ids of the vocabulary.
	 */
	static plan(
		sections: EncoderSections,
		addedTokens: readonly FoundToken[],
		tokenToId: (token: string) => number | undefined,
	): ByteLevelEncoder | undefined {
		const model = sections.model ?? {};
		const isPlain = (value: unknown): boolean => value === undefined || value === null || value === "";
		if (model.type !== "BPE" || !Array.isArray(model.merges)) return undefined;
		if (!isPlain(model.dropout) || !isPlain(model.continuing_subword_prefix) || !isPlain(model.end_of_word_suffix)) {
			return undefined;
		}
		const normalizer = sections.normalizer as { type?: unknown } | null | undefined;
		const nfc = normalizer?.type === "NFC";
		if (!nfc && !isPlain(normalizer)) return undefined;
		const split = planSplitter(sections.pre_tokenizer);
		const added = AddedTokenFinder.plan(addedTokens, nfc);
		if (split === undefined || added === undefined) return undefined;
		const byteToId = new Int32Array(256);
		for (let byte = 0; byte < 256; byte++) {
			byteToId[byte] = tokenToId(BYTE_TO_CHAR[byte] as string) ?? UNKNOWN;
		}
		const merges = MergeTable.plan(model.merges, vocabularyOf(model.vocab, addedTokens));
		if (merges === undefined) return undefined;
		return new ByteLevelEncoder(split, nfc, model.ignore_merges === true, added, byteToId, merges, tokenToId);
	}

	/** Ids of a text without what a post-processor adds; undefined: ask the native library. */
	encode(text: string): number[] | undefined {
		if (text.length > MAX_TEXT || !SAME_IN_BOTH.test(text)) return undefined;
		const ids: number[] = [];
		return this.#added.walk(text, ids, this.#encodeBetween) ? ids : undefined;
	}

	/** Text without added tokens. @returns false when it is not for this encoder. */
	readonly #encodeBetween = (text: string, ids: number[]): boolean => {
		const pieces = this.#split(this.#nfc ? text.normalize("NFC") : text);
		for (let i = 0; i < pieces.length; i++) {
			const piece = pieces[i] as string;
			const known = this.#recent.get(piece) ?? this.#encodePiece(piece);
			if (known === undefined) return false;
			if (typeof known === "number") ids.push(known);
			else for (let k = 0; k < known.length; k++) ids.push(known[k] as number);
		}
		return true;
	};

	#encodePiece(piece: string): number | readonly number[] | undefined {
		const found = this.#older.get(piece) ?? this.#merge(piece);
		if (found === undefined) return undefined;
		if (this.#recent.size >= MAX_CACHED_PIECES) {
			this.#older = this.#recent;
			this.#recent = new Map();
		}
		// A copy: a piece may be a view that would keep the whole prompt in memory.
		this.#recent.set(` ${piece}`.slice(1), found);
		return found;
	}

	/** Applies the merges in the order of their ranks, leftmost first. */
	#merge(piece: string): number | readonly number[] | undefined {
		if (piece.length > MAX_PIECE_BYTES) return undefined;
		const { read, written } = utf8.encodeInto(piece, this.#bytes);
		if (read < piece.length) return undefined;
		if (this.#ignoreMerges) {
			let token = "";
			for (let i = 0; i < written; i++) token += BYTE_TO_CHAR[this.#bytes[i] as number];
			const whole = this.#tokenToId(token);
			if (whole !== undefined) return whole;
		}
		const ids = this.#ids;
		const ranks = this.#ranks;
		const merges = this.#merges;
		for (let i = 0; i < written; i++) {
			const id = this.#byteToId[this.#bytes[i] as number] as number;
			if (id === UNKNOWN) return undefined;
			ids[i] = id;
		}
		let count = written;
		for (let i = 0; i + 1 < count; i++) ranks[i] = merges.rank(ids[i] as number, ids[i + 1] as number);
		while (count > 1) {
			let best = 0;
			for (let i = 1; i + 1 < count; i++) if ((ranks[i] as number) < (ranks[best] as number)) best = i;
			const rank = ranks[best] as number;
			if (rank === NO_MERGE) break;
			ids[best] = merges.results[rank] as number;
			ids.copyWithin(best + 1, best + 2, count);
			ranks.copyWithin(best, best + 1, count - 1);
			count--;
			if (best > 0) ranks[best - 1] = merges.rank(ids[best - 1] as number, ids[best] as number);
			if (best + 1 < count) ranks[best] = merges.rank(ids[best] as number, ids[best + 1] as number);
		}
		return count === 1 ? (ids[0] as number) : Array.from(ids.subarray(0, count));
	}
}

/** The library answers the same, but so many questions to it take a second. */
function vocabularyOf(
	vocab: Record<string, number> | [string, number][] | undefined,
	addedTokens: readonly FoundToken[],
): ReadonlyMap<string, number> {
	const vocabulary = new Map<string, number>();
	if (!Array.isArray(vocab)) for (const token in vocab) vocabulary.set(token, vocab[token] as number);
	for (const { content, id } of addedTokens) vocabulary.set(content, id);
	return vocabulary;
}

const utf8 = new TextEncoder();

/** A byte that the vocabulary lacks; some leave out those that UTF-8 does not use. */
const UNKNOWN = -1;
const NO_MERGE = 0x7fff_ffff;

/** Pairs of ids -> rank, in open addressing: a Map of so many pairs would take ten times the memory. */
class MergeTable {
	/** Rank -> id of what the merge makes. */
	readonly results: Int32Array;
	readonly #mask: number;
	/** Left id, right id, rank + 1 (0: free) per slot. */
	readonly #slots: Int32Array;

	private constructor(results: Int32Array) {
		this.results = results;
		let size = 16;
		while (size < 2 * results.length) size *= 2;
		this.#mask = size - 1;
		this.#slots = new Int32Array(3 * size);
	}

	/** Undefined for merges that the vocabulary does not have. */
	static plan(
		merges: readonly (string | readonly [string, string])[],
		vocabulary: ReadonlyMap<string, number>,
	): MergeTable | undefined {
		const table = new MergeTable(new Int32Array(merges.length));
		for (const [rank, merge] of merges.entries()) {
			const pair = typeof merge === "string" ? merge.split(" ") : merge;
			if (pair.length !== 2) return undefined;
			const left = vocabulary.get(pair[0] as string);
			const right = vocabulary.get(pair[1] as string);
			const result = vocabulary.get(`${pair[0]}${pair[1]}`);
			if (left === undefined || right === undefined || result === undefined) return undefined;
			table.results[rank] = result;
			if (!table.#add(left, right, rank)) return undefined;
		}
		return table;
	}

	rank(left: number, right: number): number {
		const slots = this.#slots;
		for (let slot = hash(left, right) & this.#mask; ; slot = (slot + 1) & this.#mask) {
			const at = 3 * slot;
			const stored = slots[at + 2] as number;
			if (stored === 0) return NO_MERGE;
			if (slots[at] === left && slots[at + 1] === right) return stored - 1;
		}
	}

	/** @returns false for a pair that is there already. */
	#add(left: number, right: number, rank: number): boolean {
		if (this.rank(left, right) !== NO_MERGE) return false;
		let slot = hash(left, right) & this.#mask;
		while (this.#slots[3 * slot + 2] !== 0) slot = (slot + 1) & this.#mask;
		this.#slots.set([left, right, rank + 1], 3 * slot);
		return true;
	}
}

function hash(left: number, right: number): number {
	const mixed = Math.imul(left, 0x9e37_79b1) ^ Math.imul(right, 0x85eb_ca6b);
	return mixed ^ (mixed >>> 15);
}

/** Finds added tokens in text, the leftmost and of those the longest, as the native library does. */
class AddedTokenFinder {
	readonly #ids: ReadonlyMap<string, number>;
	readonly #pattern: RegExp | undefined;

	private constructor(ids: ReadonlyMap<string, number>) {
		this.#ids = ids;
		const byLength = [...ids.keys()].sort((a, b) => b.length - a.length);
		if (byLength.length > 0) this.#pattern = new RegExp(byLength.map(escapeRegExp).join("|"), "g");
	}

	/** Undefined when a token takes white space with it, minds its neighbours or is looked for in changed text. */
	static plan(tokens: readonly FoundToken[], normalizes: boolean): AddedTokenFinder | undefined {
		const found = tokens.filter(({ content }) => content !== "");
		if (found.some(({ lstrip, rstrip, singleWord }) => lstrip || rstrip || singleWord)) return undefined;
		// Tokens of both kinds are looked for one kind after the other; here is one search only.
		const kinds = new Set(found.map(({ normalized }) => normalized));
		if (kinds.size > 1 || (kinds.has(true) && normalizes)) return undefined;
		return new AddedTokenFinder(new Map(found.map(({ content, id }) => [content, id])));
	}

	/**
	 * Adds ids of added tokens, and calls `between` for the text between them.
	 * @returns false as soon as `between` does.
	 */
	walk(text: string, ids: number[], between: (text: string, ids: number[]) => boolean): boolean {
		const pattern = this.#pattern;
		let end = 0;
		if (pattern !== undefined) {
			pattern.lastIndex = 0;
			for (let match = pattern.exec(text); match !== null; match = pattern.exec(text)) {
				if (match.index > end && !between(text.slice(end, match.index), ids)) {
					return false;
				}
				ids.push(this.#ids.get(match[0]) as number);
				end = pattern.lastIndex;
			}
		}
		return end === text.length || between(end === 0 ? text : text.slice(end), ids);
	}
}

function escapeRegExp(text: string): string {
	return text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
}

/** A text in which the steps of known tokenizers show; see {@link Tokenizer.encode}. */
export const SELF_CHECK_TEXT =
	"Hello, World! I'm here; you'RE not. it's 1234567890 and 3.14 v2x\n\n\tdef f(a_b, *c):\n\t\treturn  {'k': [1, 2]}  \r\n" +
	"   three   spaces and trailing  \n \n  x=y!=z && (p->q) // see http://example.org/?a=b#c\n" +
	"Ünïcödé naïve Straße e\u0301 Привет мир γειά σου שלום नमस्ते 你好,世界。東京タワー 한국어 🙂🚀 “quotes” — dash… ½ ² Ⅷ €5";
