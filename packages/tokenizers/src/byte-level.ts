// SPDX-License-Identifier: Apache-2.0

/**
 * The printable stand-ins that byte-level BPE vocabularies (GPT-2 and its descendants) use for bytes:
 * the bytes 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for themselves (as Latin-1 characters), the other
 * 68 bytes, in ascending order, for U+0100 and up.
 */
const CHAR_TO_BYTE: Int16Array = buildCharToByte();

/** Byte -> its stand-in. */
export const BYTE_TO_CHAR: readonly string[] = buildByteToChar();

function buildByteToChar(): string[] {
	const chars = new Array<string>(256);
	for (const [code, byte] of CHAR_TO_BYTE.entries()) if (byte >= 0) chars[byte] = String.fromCharCode(code);
	return chars;
}

function buildCharToByte(): Int16Array {
	const table = new Int16Array(256 + 68).fill(-1);
	let next = 256;
	for (let byte = 0; byte < 256; byte++) {
		const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
		table[printable ? byte : next++] = byte;
	}
	return table;
}

/**
 * Bytes of a byte-level vocabulary token, or undefined where one of its characters is not a stand-in
 * (an added token such as one with a plain space, which then means its own UTF-8).
 */
export function byteLevelBytes(token: string): Uint8Array | undefined {
	const bytes = new Uint8Array(token.length);
	for (let i = 0; i < token.length; i++) {
		const byte = CHAR_TO_BYTE[token.charCodeAt(i)];
		if (byte === undefined || byte < 0) return undefined;
		bytes[i] = byte;
	}
	return bytes;
}
