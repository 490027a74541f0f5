// SPDX-License-Identifier: Apache-2.0
import { parse as parseLossless, stringify as stringifyLossless } from "lossless-json";

// A number of 16 or more digits directly after something that can stand before a JSON number. It may also match
// inside a string: that costs time, never a digit.
const LONG_NUMBER = /(?:^|[:,[\s])-?\d{16}/;
const LONG = 16;

const isDigit = (code: number): boolean => code >= 0x30 && code <= 0x39;

/** True when a number that JSON.parse may garble can be in the text. Any run of 16 digits covers one of every 16 places. */
function mayHaveLongNumber(text: string): boolean {
	for (let at = LONG - 1; at < text.length; at += LONG) {
		if (!isDigit(text.charCodeAt(at))) continue;
		let start = at;
		while (start > 0 && isDigit(text.charCodeAt(start - 1))) start--;
		let end = at + 1;
		while (end < text.length && isDigit(text.charCodeAt(end))) end++;
		if (end - start >= LONG) return LONG_NUMBER.test(text);
	}
	return false;
}

const INTEGER = /^-?\d+$/;

/** The largest u64. */
export const U64_MAX = 0xffff_ffff_ffff_ffffn;

function parseNumber(text: string): number | bigint {
	const value = Number(text);
	return !Number.isSafeInteger(value) && INTEGER.test(text) ? BigInt(text) : value;
}

const LOSSLESS_OPTIONS = {
	parseNumber,
	// As JSON.parse: the last one wins.
	onDuplicateKey: ({ newValue }: { newValue: unknown }) => newValue,
};

/**
 * Parses JSON without losing digits: integers beyond ±(2^53-1) become bigint, every other number a number.
 * A text with no run of 16 digits goes through JSON.parse. A key `__proto__` becomes an own property.
 *
 * @throws SyntaxError for anything that is not one JSON value.
 */
export function parseJson(text: string | Uint8Array): unknown {
	const string = typeof text === "string" ? text : bufferOf(text).toString("utf8");
	return mayHaveLongNumber(string) ? parseLossless(string, undefined, LOSSLESS_OPTIONS) : JSON.parse(string);
}

function bufferOf(bytes: Uint8Array): Buffer {
	return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * Writes compact JSON; bigints are written bare, as integers. Members that are undefined are left out.
 *
 * @throws TypeError for cycles and for a value that JSON cannot write (undefined, a function).
 */
export function stringifyJson(value: unknown): string {
	let text: string | undefined;
	try {
		text = JSON.stringify(value);
	} catch (error) {
		// JSON.stringify finds a bigint itself; looking for one first would cost each ordinary value a walk.
		if (!(error instanceof TypeError && error.message.includes("BigInt"))) throw error;
		text = stringifyLossless(value);
	}
	if (text === undefined) throw new TypeError(`a value of type ${typeof value} cannot be written as JSON`);
	return text;
}

/**
 * The one form of a u64 id: bigint, whichever form the codec gave.
 *
 * @throws RangeError when x is not an integer from 0 to 2^64-1, or is a number that may have lost digits.
 */
export function normaliseId(x: number | bigint): bigint {
	if (typeof x === "number" && !Number.isSafeInteger(x)) {
		throw new RangeError(`id ${x} is not an integer below 2^53; larger ids must arrive as bigint`);
	}
	const id = BigInt(x);
	if (id < 0n || id > U64_MAX) throw new RangeError(`id ${x} is not an unsigned 64-bit integer`);
	return id;
}

/** True for a number or bigint that is an unsigned 64-bit integer. */
export function isU64(x: unknown): x is number | bigint {
	return typeof x === "number" ? Number.isSafeInteger(x) && x >= 0 : typeof x === "bigint" && x >= 0n && x <= U64_MAX;
}

/** True for a JSON object (not null, not an array). */
export function isJsonObject(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}
