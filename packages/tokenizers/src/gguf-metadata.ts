// SPDX-License-Identifier: Apache-2.0
import { GgufTokenizerError } from "./errors.js";

/** Key-values of a GGUF file, as a reader gives them: strings, numbers, bigints, booleans, arrays, typed arrays. */
export type GgufMetadata = ReadonlyMap<string, unknown> | Readonly<Record<string, unknown>>;

/** Typed look-ups in GGUF metadata; a value of the wrong type is an error that names its key. */
export class GgufFields {
	readonly #get: (key: string) => unknown;
	readonly #keys: () => Iterable<string>;

	constructor(metadata: GgufMetadata) {
		if (metadata instanceof Map) {
			this.#get = (key) => metadata.get(key);
			this.#keys = () => metadata.keys();
		} else {
			const record = metadata as Readonly<Record<string, unknown>>;
			this.#get = (key) => (Object.hasOwn(record, key) ? record[key] : undefined);
			this.#keys = () => Object.keys(record);
		}
	}

	/** Keys that begin with a prefix, sorted. */
	keysWith(prefix: string): string[] {
		return [...this.#keys()].filter((key) => key.startsWith(prefix)).sort();
	}

	string(key: string): string | undefined {
		const value = this.#get(key);
		if (value === undefined || typeof value === "string") return value;
		throw wrongType(key, "a string", value);
	}

	boolean(key: string): boolean | undefined {
		const value = this.#get(key);
		if (value === undefined || typeof value === "boolean") return value;
		throw wrongType(key, "true or false", value);
	}

	/** A number; 64-bit integers are narrowed. */
	number(key: string): number | undefined {
		const value = this.#get(key);
		if (value === undefined || typeof value === "number") return value;
		if (typeof value === "bigint") return Number(value);
		throw wrongType(key, "a number", value);
	}

	/** A 32-bit float in the shortest decimal form that still means it: 1e-05, not 0.000009999999747. */
	float(key: string): number | undefined {
		const value = this.number(key);
		return value === undefined ? undefined : shortestFloat(value);
	}

	/** A number, or a list of equal ones (some files give one per layer); undefined where layers differ. */
	uniformNumber(key: string): number | undefined {
		const value = this.#get(key);
		if (!isList(value)) return this.number(key);
		const first = value[0];
		for (let i = 1; i < value.length; i++) if (value[i] !== first) return undefined;
		return first === undefined ? undefined : Number(first);
	}

	strings(key: string): readonly string[] | undefined {
		const value = this.#get(key);
		if (value === undefined) return undefined;
		if (!Array.isArray(value)) throw wrongType(key, "a list of strings", value);
		for (const item of value) if (typeof item !== "string") throw wrongType(key, "a list of strings", item);
		return value as string[];
	}

	numbers(key: string): ArrayLike<number> | undefined {
		const value = this.#get(key);
		if (value === undefined) return undefined;
		if (!isList(value)) throw wrongType(key, "a list of numbers", value);
		const first = value[0];
		if (typeof first === "bigint") return Array.from(value as ArrayLike<bigint>, Number);
		if (first !== undefined && typeof first !== "number") throw wrongType(key, "a list of numbers", first);
		return value as ArrayLike<number>;
	}
}

function isList(value: unknown): value is ArrayLike<unknown> {
	return Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView));
}

function wrongType(key: string, wanted: string, value: unknown): GgufTokenizerError {
	return new GgufTokenizerError(
		`GGUF key ${key} should be ${wanted}, but is ${value === null ? "null" : typeof value}`,
	);
}

function shortestFloat(value: number): number {
	if (!Number.isFinite(value) || Math.fround(value) !== value) return value;
	for (let digits = 1; digits <= 9; digits++) {
		const short = Number(value.toPrecision(digits));
		if (Math.fround(short) === value) return short;
	}
	return value;
}
