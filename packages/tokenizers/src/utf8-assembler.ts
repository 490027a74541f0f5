// SPDX-License-Identifier: Apache-2.0

const REPLACEMENT = "\uFFFD";

/**
 * Turns bytes that arrive in pieces into text, holding back at most the three bytes of an unfinished
 * character. A byte that can never be part of a character becomes U+FFFD at once.
 *
 * An unfinished character that is cut short becomes one U+FFFD (the "maximal subpart" rule of the Unicode
 * standard, which byte-level decoders follow), or one per byte with `perByte` (byte-fallback decoders).
 */
export class Utf8Assembler {
	readonly #perByte: boolean;
	/** Continuation bytes still wanted; 0: nothing is held. */
	#wanted = 0;
	/** Bytes held. */
	#held = 0;
	#codePoint = 0;
	/** Bounds of the next continuation byte (narrower after E0, ED, F0 and F4). */
	#lower = 0x80;
	#upper = 0xbf;

	constructor(perByte: boolean) {
		this.#perByte = perByte;
	}

	/** True while bytes of an unfinished character are held. */
	get pending(): boolean {
		return this.#wanted !== 0;
	}

	/** Adds bytes and returns the text that is now certain. */
	push(bytes: Uint8Array): string {
		let text = "";
		for (let i = 0; i < bytes.length; i++) text += this.#pushByte(bytes[i]!);
		return text;
	}

	/** Gives up on the held bytes: returns their U+FFFD, or "" when none are held. */
	flush(): string {
		if (this.#wanted === 0) return "";
		const text = this.#perByte ? REPLACEMENT.repeat(this.#held) : REPLACEMENT;
		this.#wanted = 0;
		this.#held = 0;
		return text;
	}

	#pushByte(byte: number): string {
		if (this.#wanted !== 0) {
			if (byte >= this.#lower && byte <= this.#upper) {
				this.#lower = 0x80;
				this.#upper = 0xbf;
				this.#codePoint = (this.#codePoint << 6) | (byte & 0x3f);
				this.#held++;
				if (--this.#wanted !== 0) return "";
				this.#held = 0;
				return String.fromCodePoint(this.#codePoint);
			}
			return this.flush() + this.#start(byte);
		}
		return this.#start(byte);
	}

	#start(byte: number): string {
		if (byte < 0x80) return String.fromCharCode(byte);
		if (byte >= 0xc2 && byte <= 0xdf) return this.#hold(byte & 0x1f, 1, 0x80, 0xbf);
		if (byte >= 0xe0 && byte <= 0xef)
			return this.#hold(byte & 0x0f, 2, byte === 0xe0 ? 0xa0 : 0x80, byte === 0xed ? 0x9f : 0xbf);
		if (byte >= 0xf0 && byte <= 0xf4)
			return this.#hold(byte & 0x07, 3, byte === 0xf0 ? 0x90 : 0x80, byte === 0xf4 ? 0x8f : 0xbf);
		return REPLACEMENT;
	}

	#hold(bits: number, wanted: number, lower: number, upper: number): string {
		this.#codePoint = bits;
		this.#wanted = wanted;
		this.#held = 1;
		this.#lower = lower;
		this.#upper = upper;
		return "";
	}
}
