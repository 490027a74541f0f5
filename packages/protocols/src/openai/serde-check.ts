// SPDX-License-Identifier: Apache-2.0
// Type checks of parsed JSON that fail with the words of Rust's serde, because clients and their tests know them.
import { isJsonObject, U64_MAX } from "../json.js";
import { MAX_JSON_DEPTH } from "./json-scanner.js";

/** What a position in the text points at: a value, the key of an unknown member, or the end of an object. */
export type SerdePlace = "value" | "key" | "end";

/** A value of the wrong type. The message has no position; `path` leads to the place. */
export class SerdeError extends Error {
	readonly path: (string | number)[] = [];
	readonly place: SerdePlace;

	constructor(message: string, place: SerdePlace = "value") {
		super(message);
		this.name = "SerdeError";
		this.place = place;
	}
}

/** Throws a SerdeError unless the value has the type. */
export type Check = (value: unknown) => void;

/** Longest part of a client's own string that an error repeats. */
const MAX_ECHO = 256;

/** A string in Rust's debug form. */
function quoted(text: string): string {
	const part = text.length > MAX_ECHO ? `${text.slice(0, MAX_ECHO)}...` : text;
	return JSON.stringify(part).replace(
		/\\u00([0-9a-f]{2})/g,
		(_, hex: string) => `\\u{${Number.parseInt(hex, 16).toString(16)}}`,
	);
}

function float(value: number): string {
	if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
	const size = Math.abs(value);
	if (size !== 0 && (size >= 1e16 || size < 1e-5)) return value.toExponential();
	return Number.isInteger(value) ? `${value}.0` : String(value);
}

/** A number that the text writes as a float though its value is an integer (`5.0`, `1e3`): no integer to serde. */
export class FloatLexeme {
	readonly value: number;
	constructor(value: number) {
		this.value = value;
	}
}

const I64_MIN = -0x8000_0000_0000_0000n;

const isInteger = (value: unknown): value is number | bigint =>
	(typeof value === "number" && Number.isInteger(value) && Math.abs(value) < 2 ** 63) ||
	(typeof value === "bigint" && value >= I64_MIN && value <= U64_MAX);

/** "integer `5`", "string \"x\"", "map" and so on. */
export function unexpected(value: unknown): string {
	if (value === null || value === undefined) return "null";
	if (isInteger(value)) return `integer \`${value}\``;
	if (value instanceof FloatLexeme) return `floating point \`${float(value.value)}\``;
	switch (typeof value) {
		case "number":
		case "bigint":
			return `floating point \`${float(Number(value))}\``;
		case "boolean":
			return `boolean \`${value}\``;
		case "string":
			return `string ${quoted(value)}`;
		default:
			return Array.isArray(value) ? "sequence" : "map";
	}
}

/** @throws SerdeError always. */
export function invalidType(value: unknown, expected: string): never {
	throw new SerdeError(`invalid type: ${unexpected(value)}, expected ${expected}`);
}

const words = (names: readonly string[]): string => {
	const ticked = names.map((name) => `\`${name}\``);
	return ticked.length < 3 ? ticked.join(" or ") : `one of ${ticked.join(", ")}`;
};

export const string: Check = (value) => {
	if (typeof value !== "string") invalidType(value, "a string");
};

export const boolean: Check = (value) => {
	if (typeof value !== "boolean") invalidType(value, "a boolean");
};

const integerOf = (name: string, min: bigint, max: bigint): Check => {
	const low = Number(min);
	const high = Number(max);
	return (value) => {
		if (typeof value === "number" && Number.isSafeInteger(value) && value >= low && value <= high) return;
		if (!isInteger(value)) invalidType(value, name);
		const exact = BigInt(value as number);
		if (exact < min || exact > max) throw new SerdeError(`invalid value: ${unexpected(value)}, expected ${name}`);
	};
};

export const u8 = integerOf("u8", 0n, 0xffn);
export const u32 = integerOf("u32", 0n, 0xffff_ffffn);
export const u64 = integerOf("u64", 0n, U64_MAX);
export const i32 = integerOf("i32", -0x8000_0000n, 0x7fff_ffffn);
export const i64 = integerOf("i64", I64_MIN, 0x7fff_ffff_ffff_ffffn);

const floatOf =
	(name: string): Check =>
	(value) => {
		if (typeof value !== "number" && typeof value !== "bigint") invalidType(value, name);
	};
export const f32 = floatOf("f32");
export const f64 = floatOf("f64");

/** Any JSON, as deep as serde_json goes. */
export const anything: Check = (value) => checkDepth(value, 2);

function checkDepth(value: unknown, depth: number): void {
	if (typeof value !== "object" || value === null) return;
	if (depth >= MAX_JSON_DEPTH) throw new SerdeError("recursion limit exceeded");
	if (Array.isArray(value)) {
		for (const item of value) checkDepth(item, depth + 1);
	} else {
		for (const key in value) checkDepth((value as Record<string, unknown>)[key], depth + 1);
	}
}

/** null stands for "not given". */
export const option =
	(check: Check): Check =>
	(value) => {
		if (value !== null) check(value);
	};

export const sequence =
	(item: Check): Check =>
	(value) => {
		if (!Array.isArray(value)) invalidType(value, "a sequence");
		const items = value as unknown[];
		for (let i = 0; i < items.length; i++) {
			try {
				item(items[i]);
			} catch (error) {
				if (error instanceof SerdeError) error.path.unshift(i);
				throw error;
			}
		}
	};

export const map =
	(member: Check): Check =>
	(value) => {
		if (!isJsonObject(value)) invalidType(value, "a map");
		for (const key in value as Record<string, unknown>) checkMember(value as Record<string, unknown>, key, member);
	};

function checkMember(object: Record<string, unknown>, key: string, check: Check): void {
	try {
		check(object[key]);
	} catch (error) {
		if (error instanceof SerdeError) error.path.unshift(key);
		throw error;
	}
}

export function missing(field: string): SerdeError {
	return new SerdeError(`missing field \`${field}\``, "end");
}

export interface StructOptions {
	/** What serde calls it; default `struct <name>`. */
	expected?: string;
	/** Members that must be there, in the order in which their absence is told. */
	required?: readonly string[];
	/** Refuse members that are not known. */
	strict?: boolean;
}

/** An object; members are checked in the order of the text, then the missing ones told. An array is refused. */
export const struct = (name: string, members: Readonly<Record<string, Check>>, options: StructOptions = {}): Check => {
	const checks = new Map(Object.entries(members));
	const expected = options.expected ?? `struct ${name}`;
	return (value) => {
		if (!isJsonObject(value)) return invalidType(value, expected);
		for (const key in value) {
			const check = checks.get(key);
			if (check !== undefined) checkMember(value, key, check);
			else if (options.strict) {
				const error = new SerdeError(
					`unknown field \`${key.slice(0, MAX_ECHO)}\`, expected ${words([...checks.keys()])}`,
					"key",
				);
				error.path.unshift(key);
				throw error;
			}
		}
		for (const field of options.required ?? []) if (!Object.hasOwn(value, field)) throw missing(field);
	};
};

/** One of a few words. */
export const variant = (...names: string[]): Check => {
	return (value) => {
		if (typeof value === "string") {
			if (!names.includes(value)) {
				throw new SerdeError(`unknown variant \`${value.slice(0, MAX_ECHO)}\`, expected ${words(names)}`);
			}
		} else if (isJsonObject(value)) throw new SerdeError("invalid value: map, expected map with a single key");
		else invalidType(value, "string or map");
	};
};

/** True when the check passes. */
export function passes(check: Check, value: unknown): boolean {
	try {
		check(value);
		return true;
	} catch (error) {
		if (error instanceof SerdeError) return false;
		throw error;
	}
}

/** One of several forms; serde names the enum only, not what was wrong with each form. */
export const untagged = (name: string, ...forms: Check[]): Check => {
	return (value) => {
		if (!forms.some((form) => passes(form, value))) {
			throw new SerdeError(`data did not match any variant of untagged enum ${name}`);
		}
	};
};

/** An object whose `type` member (or another tag) says which form it has. */
export const tagged = (expected: string, tag: string, forms: Readonly<Record<string, Check>>): Check => {
	const names = Object.keys(forms);
	return (value) => {
		if (!isJsonObject(value)) return invalidType(value, expected);
		if (!Object.hasOwn(value, tag)) throw missing(tag);
		const kind = value[tag];
		if (typeof kind !== "string") return invalidType(kind, "variant identifier");
		const form = Object.hasOwn(forms, kind) ? forms[kind] : undefined;
		if (form === undefined) {
			throw new SerdeError(`unknown variant \`${kind.slice(0, MAX_ECHO)}\`, expected ${words(names)}`);
		}
		form(value);
	};
};
