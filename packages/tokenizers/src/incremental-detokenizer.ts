// SPDX-License-Identifier: Apache-2.0
import { TOKEN_BYTES, TOKEN_TEXT, type TokenTable } from "./token-decoder.js";
import { Utf8Assembler } from "./utf8-assembler.js";

export interface IncrementalDetokenizerOptions {
	/** Leave out special tokens (bos, eos, ...). Default true. */
	skipSpecialTokens?: boolean;
	/**
	 * The ids continue text that came before them (a prompt), so the space that SentencePiece models put
	 * before the first word is text and stays. Default false: the ids are the whole text, as for `decode`.
	 */
	continuation?: boolean;
}

/**
 * Turns the token ids of one stream into text, id by id.
 *
 * The deltas put together are the text that decoding all ids at once gives. A character whose bytes are
 * spread over several tokens comes out with its last byte; U+FFFD comes out only for bytes that can never
 * become a character. It knows nothing of the prompt, so prompt text cannot appear.
 *
 * One difference from decoding in one go with byte-fallback vocabularies: there, one wrong byte turns
 * every byte of its unbroken run of byte tokens into U+FFFD, also characters that were complete. Here a
 * complete character stays one, since it may already have been sent.
 */
export class IncrementalDetokenizer {
	readonly #table: TokenTable;
	readonly #skipSpecial: boolean;
	readonly #assembler: Utf8Assembler;
	/** No token was taken yet. */
	#first: boolean;
	/** Leading strip characters still to be dropped. */
	#strip: number;
	/** True when a whole-character token needs no more than a table look-up. */
	#plain: boolean;

	/** @param source a Tokenizer, or its table */
	constructor(source: { readonly table: TokenTable }, options: IncrementalDetokenizerOptions = {}) {
		const table = source.table;
		this.#table = table;
		this.#skipSpecial = options.skipSpecialTokens ?? true;
		this.#assembler = new Utf8Assembler(table.plan.bytes === "byte-fallback");
		const fresh = options.continuation !== true;
		this.#first = fresh && table.plan.firstDiffers;
		this.#strip = fresh ? (table.plan.strip?.count ?? 0) : 0;
		this.#plain = !this.#first && this.#strip === 0;
	}

	/**
	 * Takes one token id and returns the text that is now certain, often "" in the middle of a character.
	 * An id that the vocabulary lacks adds nothing.
	 */
	push(id: number): string {
		const table = this.#table;
		const kind = table.kindOf(id);
		if (this.#plain && kind === TOKEN_TEXT) {
			return this.#skipSpecial && table.special[id] === 1 ? "" : table.texts[id]!;
		}
		return this.#pushSlow(id, kind);
	}

	/** Takes several ids (one engine step) and returns the text that is now certain. */
	pushAll(ids: ArrayLike<number>): string {
		let text = "";
		for (let i = 0; i < ids.length; i++) text += this.push(ids[i]!);
		return text;
	}

	/** Ends the stream: returns U+FFFD for bytes of a character that never became complete, else "". */
	flush(): string {
		const text = this.#assembler.flush();
		this.#updatePlain();
		return text;
	}

	#pushSlow(id: number, kind: number): string {
		const table = this.#table;
		if (kind !== TOKEN_TEXT && kind !== TOKEN_BYTES) return "";
		if (this.#skipSpecial && table.special[id] === 1) return "";
		let text: string;
		if (kind === TOKEN_BYTES) {
			text = this.#assembler.push(table.byteStrings[id]!);
			if (table.plan.afterBytes !== undefined) text = table.plan.afterBytes(text);
		} else {
			text = this.#first ? table.firstText(id) : table.texts[id]!;
			// Whole characters never begin with a continuation byte, so what is held is lost. (An empty
			// byte-level token is no bytes at all and changes nothing.)
			if (text !== "" || table.plan.bytes !== "byte-level") text = this.#assembler.flush() + text;
		}
		this.#first = false;
		if (this.#strip > 0) text = this.#stripStart(text);
		this.#updatePlain();
		return text;
	}

	#stripStart(text: string): string {
		const content = this.#table.plan.strip!.content;
		let from = 0;
		while (this.#strip > 0 && text.startsWith(content, from)) {
			from += content.length;
			this.#strip--;
		}
		if (from < text.length) this.#strip = 0;
		return from === 0 ? text : text.slice(from);
	}

	#updatePlain(): void {
		this.#plain = !this.#first && this.#strip === 0 && !this.#assembler.pending;
	}
}
