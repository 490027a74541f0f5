// SPDX-License-Identifier: Apache-2.0
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import type { Tokenizer as NativeTokenizer } from "tokenizers";
import { ByteLevelEncoder, type EncoderSections, SELF_CHECK_TEXT } from "./byte-level-encoder.js";
import { TokenizerError } from "./errors.js";
import { IncrementalDetokenizer, type IncrementalDetokenizerOptions } from "./incremental-detokenizer.js";
import { planDecoder, TOKEN_BYTES, TOKEN_TEXT, TokenTable } from "./token-decoder.js";

/** An entry of `added_tokens` in tokenizer.json. */
export interface AddedToken {
	id: number;
	/** The token as it stands in text, e.g. `<|im_end|>`. */
	content: string;
	/** Left out of decoded text by skipSpecialTokens. */
	special: boolean;
	/** Also takes the white space before it. */
	lstrip: boolean;
	/** Also takes the white space after it. */
	rstrip: boolean;
	/** Looked for in the normalized text, not in the raw text. */
	normalized: boolean;
	/** Only matches where no word character touches it. */
	singleWord: boolean;
}

export interface EncodeOptions {
	/**
	 * Add what the post-processor adds (often a beginning-of-sequence token). Default true, as in Hugging
	 * Face libraries. A rendered chat template has its own: give false, see shouldAddSpecialTokens.
	 */
	addSpecialTokens?: boolean;
}

export interface DecodeOptions {
	/** Leave out special tokens. Default true. */
	skipSpecialTokens?: boolean;
}

interface TokenizerJson {
	added_tokens?: Record<string, unknown>[];
	decoder?: unknown;
	normalizer?: unknown;
	pre_tokenizer?: unknown;
	post_processor?: unknown;
	model?: EncoderSections["model"];
}

/** Tokenizers kept for another load of the same content; each holds 40-250 MB for as long as it stays. */
const MAX_CACHED = 4;
const cache = new Map<string, Tokenizer>();

/** Bound on token ids: tables are as long as the highest id. */
const MAX_VOCABULARY = 4_000_000;

let native: typeof import("tokenizers") | undefined;

/**
 * A Hugging Face tokenizer (tokenizer.json). Immutable, so any number of requests share one.
 *
 * Text -> ids: byte-level BPE here, from a cache of words; everything else, and long texts, in the native library on
 * its own threads. Ids -> text is a table look-up here.
 */
export class Tokenizer {
	/** What each id adds to the text; shared by all detokenizers of this tokenizer. */
	readonly table: TokenTable;
	/** Entries of `added_tokens`, ascending by id. */
	readonly addedTokens: readonly AddedToken[];
	/** Contents of the special added tokens -> id. */
	readonly specialTokens: ReadonlyMap<string, number>;
	/** Ids that `encode` puts around the text with addSpecialTokens (from a TemplateProcessing step). */
	readonly templateTokens: { readonly before: readonly number[]; readonly after: readonly number[] };
	readonly #native: NativeTokenizer;
	/** Undefined until it has shown that it does what the native library does. */
	#encoder: ByteLevelEncoder | undefined;
	#checking: Promise<void> | undefined;
	readonly #processorOnlyAdds: boolean;

	private constructor(json: string) {
		native ??= createRequire(import.meta.url)("tokenizers") as typeof import("tokenizers");
		let parsed: TokenizerJson;
		try {
			parsed = JSON.parse(json);
			this.#native = native.Tokenizer.fromString(json);
		} catch (error) {
			throw new TokenizerError(`tokenizer.json cannot be loaded: ${(error as Error).message}`, { cause: error });
		}
		// A file made for training may cut or pad every text; a prompt is never changed in silence.
		this.#native.disableTruncation();
		this.#native.disablePadding();
		const plan = planDecoder(parsed.decoder);
		this.addedTokens = this.#readAddedTokens(parsed.added_tokens ?? []);
		this.specialTokens = new Map(this.addedTokens.filter((t) => t.special).map((t) => [t.content, t.id]));
		this.templateTokens = readTemplateTokens(parsed.post_processor);

		const tokens = readVocabulary(parsed.model?.vocab, this.addedTokens);
		const special = new Uint8Array(tokens.length);
		for (const id of this.specialTokens.values()) special[id] = 1;
		this.table = new TokenTable(tokens, special, plan);
		this.#processorOnlyAdds = onlyAddsTemplateTokens(parsed.post_processor);
		const encoder = ByteLevelEncoder.plan(parsed, this.addedTokens, (token) => this.tokenToId(token));
		if (encoder !== undefined) this.#checking = this.#check(encoder);
	}

	/** An encoder that the native library disagrees with on a text made to tell them apart is not used. */
	async #check(encoder: ByteLevelEncoder): Promise<void> {
		try {
			const expected = (await this.#native.encode(SELF_CHECK_TEXT, null, { addSpecialTokens: false })).getIds();
			const found = encoder.encode(SELF_CHECK_TEXT);
			if (found?.length === expected.length && found.every((id, i) => id === expected[i])) this.#encoder = encoder;
		} catch {
			// The native library is asked again, and its error told, with the first text.
		} finally {
			this.#checking = undefined;
		}
	}

	/**
	 * Loads tokenizer.json from its text or bytes (UTF-8). Blocks for about 2 ms per 1,000 tokens the first
	 * time; the same content again gives the same object (the four last used are kept).
	 *
	 * @throws TokenizerError when it is not a tokenizer.json, UnsupportedDecoderError when it cannot be streamed
	 */
	static fromJson(json: string | Uint8Array): Tokenizer {
		const key = createHash("sha256").update(json).digest("base64");
		let tokenizer = cache.get(key);
		if (tokenizer === undefined) {
			tokenizer = new Tokenizer(typeof json === "string" ? json : Buffer.from(json).toString("utf8"));
		}
		cache.delete(key);
		cache.set(key, tokenizer);
		if (cache.size > MAX_CACHED) cache.delete(cache.keys().next().value!);
		return tokenizer;
	}

	/**
	 * Loads a tokenizer.json file; see {@link Tokenizer.fromJson}.
	 *
	 * @throws TokenizerError that names the path
	 */
	static async fromFile(path: string): Promise<Tokenizer> {
		let bytes: Uint8Array;
		try {
			bytes = await readFile(path);
		} catch (error) {
			throw new TokenizerError(`${path}: cannot be read: ${(error as Error).message}`, { cause: error });
		}
		try {
			return Tokenizer.fromJson(bytes);
		} catch (error) {
			if (error instanceof TokenizerError) error.message = `${path}: ${error.message}`;
			throw error;
		}
	}

	/** Number of token ids, added tokens included (the highest id + 1). */
	get vocabSize(): number {
		return this.table.tokens.length;
	}

	/**
	 * Token ids of a text, where they can be had at once, without the native library: undefined for tokenizers other
	 * than byte-level BPE, for long texts and for characters whose classes changed between versions of Unicode.
	 */
	encodeNow(text: string, options: EncodeOptions = {}): number[] | undefined {
		const addSpecialTokens = options.addSpecialTokens ?? true;
		if (addSpecialTokens && !this.#processorOnlyAdds) return undefined;
		const ids = this.#encoder?.encode(text);
		if (ids === undefined || !addSpecialTokens) return ids;
		const { before, after } = this.templateTokens;
		return before.length + after.length === 0 ? ids : [...before, ...ids, ...after];
	}

	/**
	 * Token ids of a text: those of {@link encodeNow}, or else from the native library, off the main thread.
	 *
	 * @throws TokenizerError (as a rejection) when the library refuses the text
	 */
	async encode(text: string, options: EncodeOptions = {}): Promise<number[]> {
		if (text === "" && options.addSpecialTokens === false) return [];
		if (this.#checking !== undefined) await this.#checking;
		const ids = this.encodeNow(text, options);
		if (ids !== undefined) return ids;
		try {
			const encoding = await this.#native.encode(text, null, { addSpecialTokens: options.addSpecialTokens ?? true });
			return encoding.getIds();
		} catch (error) {
			throw new TokenizerError(`text cannot be encoded: ${(error as Error).message}`, { cause: error });
		}
	}

	/** Token ids of several texts, in their order; the library spreads them over its threads. */
	async encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Promise<number[][]> {
		if (texts.length === 0) return [];
		try {
			const encodings = await this.#native.encodeBatch([...texts], {
				addSpecialTokens: options.addSpecialTokens ?? true,
			});
			return encodings.map((encoding) => encoding.getIds());
		} catch (error) {
			throw new TokenizerError(`texts cannot be encoded: ${(error as Error).message}`, { cause: error });
		}
	}

	/** Text of token ids; ids that the vocabulary lacks add nothing. Same text as a stream's deltas together. */
	decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
		const detokenizer = this.detokenizer(options);
		return detokenizer.pushAll(ids) + detokenizer.flush();
	}

	/** A detokenizer for one stream of ids. */
	detokenizer(options?: IncrementalDetokenizerOptions): IncrementalDetokenizer {
		return new IncrementalDetokenizer(this, options);
	}

	/**
	 * Bytes that a token adds in the middle of a text (a SentencePiece `▁` is a space), e.g. for the `bytes`
	 * of logprobs; undefined when there is no such id.
	 */
	idToBytes(id: number): Uint8Array | undefined {
		const kind = this.table.kindOf(id);
		if (kind === TOKEN_TEXT) return Buffer.from(this.table.texts[id]!, "utf8");
		return kind === TOKEN_BYTES ? this.table.byteStrings[id] : undefined;
	}

	/** Vocabulary spelling of an id (`Ġthe`, `▁the`, `<0x0A>`); undefined when there is no such id. */
	idToToken(id: number): string | undefined {
		return this.table.tokens[id];
	}

	/** Id of a token in its vocabulary spelling; undefined when there is no such token. */
	tokenToId(token: string): number | undefined {
		return this.#native.tokenToId(token) ?? undefined;
	}

	/** True for ids that skipSpecialTokens leaves out. */
	isSpecial(id: number): boolean {
		return this.table.special[id] === 1;
	}

	#readAddedTokens(entries: Record<string, unknown>[]): AddedToken[] {
		const tokens: AddedToken[] = [];
		for (const entry of entries) {
			const content = String(entry.content ?? "");
			// The library gives a token that the vocabulary has the vocabulary's id, whatever the entry says.
			const id = this.#native.tokenToId(content);
			if (id === null) continue;
			tokens.push({
				id,
				content,
				special: entry.special === true,
				lstrip: entry.lstrip === true,
				rstrip: entry.rstrip === true,
				normalized: entry.normalized === true,
				singleWord: entry.single_word === true,
			});
		}
		return tokens.sort((a, b) => a.id - b.id);
	}
}

function readVocabulary(
	vocab: Record<string, number> | [string, number][] | undefined,
	added: readonly AddedToken[],
): (string | undefined)[] {
	let size = 0;
	if (Array.isArray(vocab)) size = vocab.length;
	else for (const token in vocab) size = Math.max(size, vocab[token]! + 1);
	for (const { id } of added) size = Math.max(size, id + 1);
	if (size > MAX_VOCABULARY) {
		throw new TokenizerError(
			`tokenizer.json has a token id of ${size - 1}; at most ${MAX_VOCABULARY - 1} is supported`,
		);
	}
	// Filled at once: an array that grows out of order can turn into a slow hash table.
	const tokens = new Array<string | undefined>(size).fill(undefined);
	if (Array.isArray(vocab)) for (let id = 0; id < vocab.length; id++) tokens[id] = vocab[id]![0];
	else for (const token in vocab) tokens[vocab[token]!] = token;
	for (const { id, content } of added) tokens[id] = content;
	return tokens;
}

/** True when all that the post-processor does to ids is adding {@link Tokenizer.templateTokens}. */
function onlyAddsTemplateTokens(processor: unknown): boolean {
	const node = processor as Record<string, unknown> | null | undefined;
	if (node === null || node === undefined) return true;
	if (node.type === "Sequence") return ((node.processors as unknown[]) ?? []).every(onlyAddsTemplateTokens);
	return node.type === "ByteLevel" || node.type === "TemplateProcessing";
}

/** The ids that a TemplateProcessing step (alone or in a Sequence) puts before and after a single text. */
function readTemplateTokens(processor: unknown): { before: number[]; after: number[] } {
	const before: number[] = [];
	const after: number[] = [];
	const node = processor as Record<string, unknown> | null | undefined;
	if (node?.type === "Sequence") {
		for (const step of (node.processors as unknown[]) ?? []) {
			const found = readTemplateTokens(step);
			before.unshift(...found.before);
			after.push(...found.after);
		}
	} else if (node?.type === "TemplateProcessing") {
		const special = node.special_tokens as Record<string, { ids: number[] }>;
		let side = before;
		for (const piece of node.single as Record<string, { id: string }>[]) {
			if (piece.Sequence !== undefined) side = after;
			else if (piece.SpecialToken !== undefined) side.push(...(special[piece.SpecialToken.id]?.ids ?? []));
		}
	}
	return { before, after };
}
