// SPDX-License-Identifier: Apache-2.0
// Walks JSON text to say where something is, or what is wrong with it, in serde_json's words. It runs on the error path
// only: JSON.parse has the fast one, but tells neither.

/** Deepest nesting that serde_json takes. */
export const MAX_JSON_DEPTH = 128;

/** A place in the text: `line` from 1; `column` in bytes from the line's start. */
export interface TextPosition {
	line: number;
	column: number;
}

/** What is wrong with a text. */
export interface JsonSyntaxError {
	message: string;
	position: TextPosition;
	/** Set for rubbish behind a whole value: where that value ends (UTF-16 units). */
	valueEnd?: number;
}

/** A member of the outermost object. Offsets in UTF-16 units. */
export interface MemberSpan {
	key: string;
	keyEnd: number;
	valueStart: number;
	valueEnd: number;
}

/** Line and column after the text's first `offset` units. */
export function positionAt(text: string, offset: number): TextPosition {
	let line = 1;
	let lineStart = 0;
	for (let at = text.indexOf("\n"); at >= 0 && at < offset; at = text.indexOf("\n", at + 1)) {
		line++;
		lineStart = at + 1;
	}
	return { line, column: Buffer.byteLength(text.slice(lineStart, offset)) };
}

class Failure extends Error {
	readonly offset: number;
	/** 1 when serde stands behind the first byte of the character at the offset. */
	readonly bytesIn: number;
	constructor(message: string, offset: number, bytesIn: number) {
		super(message);
		this.offset = offset;
		this.bytesIn = bytesIn;
	}
}

const isDigit = (code: number): boolean => code >= 0x30 && code <= 0x39;

class Scanner {
	readonly text: string;
	at = 0;
	#depth = 0;

	constructor(text: string) {
		this.text = text;
	}

	#fail(message: string, offset: number, bytesIn = 0): never {
		const atEnd = offset >= this.text.length;
		throw new Failure(message, Math.min(offset, this.text.length), atEnd ? 0 : bytesIn);
	}

	skipSpace(): void {
		const { text } = this;
		for (; this.at < text.length; this.at++) {
			const code = text.charCodeAt(this.at);
			if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
		}
	}

	/** Reads one value; `onMember` hears of the members of an object that is the value itself. */
	value(onMember?: (member: MemberSpan) => void, onItem?: (start: number, end: number) => void): void {
		this.skipSpace();
		const { text } = this;
		if (this.at >= text.length) this.#fail("EOF while parsing a value", text.length);
		switch (text[this.at]) {
			case "{":
				this.#enter();
				this.#object(onMember);
				this.#depth--;
				return;
			case "[":
				this.#enter();
				this.#array(onItem);
				this.#depth--;
				return;
			case '"':
				this.#string();
				return;
			case "t":
				this.#ident("true");
				return;
			case "f":
				this.#ident("false");
				return;
			case "n":
				this.#ident("null");
				return;
			default:
				this.#number();
		}
	}

	#enter(): void {
		this.at++;
		if (++this.#depth >= MAX_JSON_DEPTH) this.#fail("recursion limit exceeded", this.at);
	}

	#object(onMember?: (member: MemberSpan) => void): void {
		const { text } = this;
		for (let first = true; ; first = false) {
			this.skipSpace();
			if (this.at >= text.length) this.#fail("EOF while parsing an object", text.length);
			if (text[this.at] === "}") {
				this.at++;
				return;
			}
			if (!first) {
				if (text[this.at] !== ",") this.#fail("expected `,` or `}`", this.at, 1);
				this.at++;
				this.skipSpace();
				if (this.at >= text.length) this.#fail("EOF while parsing a value", text.length);
				if (text[this.at] === "}") this.#fail("trailing comma", this.at, 1);
			}
			if (text[this.at] !== '"') this.#fail("key must be a string", this.at, 1);
			const keyStart = this.at;
			this.#string();
			const keyEnd = this.at;
			this.skipSpace();
			if (this.at >= text.length) this.#fail("EOF while parsing an object", text.length);
			if (text[this.at] !== ":") this.#fail("expected `:`", this.at, 1);
			this.at++;
			this.skipSpace();
			const valueStart = this.at;
			this.value();
			if (onMember !== undefined) {
				const key = JSON.parse(text.slice(keyStart, keyEnd)) as string;
				onMember({ key, keyEnd, valueStart, valueEnd: this.at });
			}
		}
	}

	#array(onItem?: (start: number, end: number) => void): void {
		const { text } = this;
		for (let first = true; ; first = false) {
			this.skipSpace();
			if (this.at >= text.length) this.#fail("EOF while parsing a list", text.length);
			if (text[this.at] === "]") {
				this.at++;
				return;
			}
			if (!first) {
				if (text[this.at] !== ",") this.#fail("expected `,` or `]`", this.at, 1);
				this.at++;
				this.skipSpace();
				if (this.at >= text.length) this.#fail("EOF while parsing a value", text.length);
				if (text[this.at] === "]") this.#fail("trailing comma", this.at, 1);
			}
			const start = this.at;
			this.value();
			onItem?.(start, this.at);
		}
	}

	#ident(word: string): void {
		for (let i = 0; i < word.length; i++, this.at++) {
			if (this.at >= this.text.length) this.#fail("EOF while parsing a value", this.text.length);
			if (this.text[this.at] !== word[i]) this.#fail("expected ident", this.at, 1);
		}
	}

	#digits(): number {
		const start = this.at;
		while (isDigit(this.text.charCodeAt(this.at))) this.at++;
		return this.at - start;
	}

	#badNumber(): never {
		if (this.at >= this.text.length) this.#fail("EOF while parsing a value", this.text.length);
		return this.#fail("invalid number", this.at, 1);
	}

	#number(): void {
		const { text } = this;
		const start = this.at;
		if (text[this.at] === "-") this.at++;
		else if (!isDigit(text.charCodeAt(this.at))) this.#fail("expected value", this.at, 1);
		if (text[this.at] === "0") {
			this.at++;
			if (isDigit(text.charCodeAt(this.at))) this.#badNumber();
		} else if (this.#digits() === 0) this.#badNumber();
		if (text[this.at] === ".") {
			this.at++;
			if (this.#digits() === 0) this.#badNumber();
		}
		if (text[this.at] === "e" || text[this.at] === "E") {
			this.at++;
			if (text[this.at] === "+" || text[this.at] === "-") this.at++;
			if (this.#digits() === 0) this.#badNumber();
		}
		if (!Number.isFinite(Number(text.slice(start, this.at)))) this.#fail("number out of range", this.at);
	}

	#hex4(): number {
		const hex = this.text.slice(this.at, this.at + 4);
		if (hex.length < 4) this.#fail("EOF while parsing a string", this.text.length);
		if (!/^[0-9a-fA-F]{4}$/.test(hex)) this.#fail("invalid escape", this.at + 4);
		this.at += 4;
		return Number.parseInt(hex, 16);
	}

	#unicodeEscape(): void {
		const unit = this.#hex4();
		if (unit >= 0xdc00 && unit <= 0xdfff) this.#fail("lone leading surrogate in hex escape", this.at);
		if (unit < 0xd800 || unit > 0xdbff) return;
		if (this.text[this.at] !== "\\") this.#fail("unexpected end of hex escape", this.at, 1);
		this.at++;
		if (this.text[this.at] !== "u") this.#fail("unexpected end of hex escape", this.at, 1);
		this.at++;
		const low = this.#hex4();
		if (low < 0xdc00 || low > 0xdfff) this.#fail("lone leading surrogate in hex escape", this.at);
	}

	#string(): void {
		const { text } = this;
		this.at++;
		for (;;) {
			if (this.at >= text.length) this.#fail("EOF while parsing a string", text.length);
			const code = text.charCodeAt(this.at++);
			if (code === 0x22) return;
			if (code < 0x20) this.#fail("control character (\\u0000-\\u001F) found while parsing a string", this.at);
			if (code !== 0x5c) continue;
			if (this.at >= text.length) this.#fail("EOF while parsing a string", text.length);
			const escaped = text[this.at++] as string;
			if (escaped === "u") this.#unicodeEscape();
			else if (!'"\\/bfnrt'.includes(escaped)) this.#fail("invalid escape", this.at);
		}
	}
}

/** What serde_json would say of a text; undefined when the text is one JSON value. */
export function findSyntaxError(text: string): JsonSyntaxError | undefined {
	const scanner = new Scanner(text);
	try {
		scanner.value();
	} catch (error) {
		if (!(error instanceof Failure)) throw error;
		const { line, column } = positionAt(text, error.offset);
		return { message: error.message, position: { line, column: column + error.bytesIn } };
	}
	const valueEnd = scanner.at;
	scanner.skipSpace();
	if (scanner.at === text.length) return undefined;
	return { message: "trailing characters", position: positionAt(text, scanner.at + 1), valueEnd };
}

/**
 * How many members the outermost object has, and how many all objects have, doubles included. The text must be valid.
 * Strings are jumped over, so this is cheap enough for every request.
 */
export function countMembers(text: string): { outer: number; all: number } {
	let depth = 0;
	let outer = 0;
	let all = 0;
	for (let at = 0; at < text.length; at++) {
		switch (text.charCodeAt(at)) {
			case 0x22: // "
				at = endOfString(text, at);
				break;
			case 0x7b: // {
			case 0x5b: // [
				depth++;
				break;
			case 0x7d: // }
			case 0x5d: // ]
				depth--;
				break;
			case 0x3a: // :
				all++;
				if (depth === 1) outer++;
		}
	}
	return { outer, all };
}

/** Where the string that begins at `start` has its closing quote. */
function endOfString(text: string, start: number): number {
	for (let at = text.indexOf('"', start + 1); at >= 0; at = text.indexOf('"', at + 1)) {
		let backslashes = 0;
		while (text.charCodeAt(at - 1 - backslashes) === 0x5c) backslashes++;
		if (backslashes % 2 === 0) return at;
	}
	return text.length;
}

const CONTROLS = /[\0-\x1f]/g;

/**
 * The text with control characters in strings escaped. JSON forbids them, but clients that build JSON by hand send line
 * breaks and the like; Dynamo reads such bodies.
 */
export function escapeControls(text: string): string {
	return text.replace(/"(?:[^"\\]|\\[\s\S])*"/g, (string) =>
		string.replace(CONTROLS, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`),
	);
}

/** The items of an array that is a member of the outermost object. The text must be valid. */
export function itemsOf(text: string, key: string): { start: number; end: number }[] {
	const items: { start: number; end: number }[] = [];
	const member = membersOf(text).findLast((each) => each.key === key);
	if (member === undefined || text[member.valueStart] !== "[") return items;
	const scanner = new Scanner(text);
	scanner.at = member.valueStart;
	scanner.value(undefined, (start, end) => items.push({ start, end }));
	return items;
}

/** The members of the outermost object, in order, doubles included. The text must be valid. */
export function membersOf(text: string, start = 0): MemberSpan[] {
	const members: MemberSpan[] = [];
	const scanner = new Scanner(text);
	scanner.at = start;
	scanner.value((member) => members.push(member));
	return members;
}

/** Follows a path of keys and indexes through valid text; for a doubled key the last one counts. */
export function locate(text: string, path: readonly (string | number)[]): MemberSpan | undefined {
	let found: MemberSpan | undefined;
	let start = 0;
	for (const step of path) {
		let next: MemberSpan | undefined;
		if (typeof step === "string") next = membersOf(text, start).findLast((member) => member.key === step);
		else {
			let index = 0;
			const scanner = new Scanner(text);
			scanner.at = start;
			scanner.value(undefined, (valueStart, valueEnd) => {
				if (index++ === step) next = { key: String(step), keyEnd: valueStart, valueStart, valueEnd };
			});
		}
		if (next === undefined) return found;
		found = next;
		start = next.valueStart;
	}
	return found;
}
