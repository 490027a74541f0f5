// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "./dynamo-error.js";
import { isJsonObject, isU64, normaliseId } from "./json.js";

function shown(value: unknown): string {
	if (value === null || typeof value === "number" || typeof value === "boolean") return String(value);
	if (typeof value === "bigint") return `${value}`;
	if (typeof value === "string")
		return value.length > 40 ? `${JSON.stringify(value.slice(0, 40))}...` : JSON.stringify(value);
	return Array.isArray(value) ? "an array" : `an ${typeof value}`;
}

/**
 * Reads members of a JSON object that came from elsewhere, each with its type; whatever does not fit throws a
 * DynamoError InvalidArgument that names the member by its path. "Optional" members may be absent or null.
 */
export class FieldReader {
	readonly value: Record<string, unknown>;
	readonly #path: string;

	constructor(value: unknown, path: string) {
		this.#path = path;
		this.value = isJsonObject(value) ? value : this.fail(`must be an object, got ${shown(value)}`);
	}

	fail(what: string): never {
		throw new DynamoError("InvalidArgument", `${this.#path}: ${what}`);
	}

	has(name: string): boolean {
		return this.value[name] !== undefined && this.value[name] !== null;
	}

	/** @throws when absent; null is a value. */
	member(name: string): unknown {
		const value = Object.hasOwn(this.value, name) ? this.value[name] : undefined;
		if (value === undefined) this.fail(`missing field \`${name}\``);
		return value;
	}

	#wrong(name: string, expected: string): never {
		return this.fail(`${name} must be ${expected}, got ${shown(this.value[name])}`);
	}

	string(name: string): string {
		const value = this.member(name);
		return typeof value === "string" ? value : this.#wrong(name, "a string");
	}

	optionalString(name: string): string | undefined {
		return this.has(name) ? this.string(name) : undefined;
	}

	strings(name: string): string[] {
		const value = this.member(name);
		if (!Array.isArray(value) || value.some((item) => typeof item !== "string"))
			this.#wrong(name, "an array of strings");
		return value as string[];
	}

	u64(name: string): bigint {
		const value = this.member(name);
		return isU64(value) ? normaliseId(value) : this.#wrong(name, "an unsigned 64-bit integer");
	}

	u32(name: string): number {
		const value = this.member(name);
		return isU32(value) ? value : this.#wrong(name, "an unsigned 32-bit integer");
	}

	optionalU32(name: string): number | undefined {
		return this.has(name) ? this.u32(name) : undefined;
	}

	boolean(name: string): boolean {
		const value = this.member(name);
		return typeof value === "boolean" ? value : this.#wrong(name, "a boolean");
	}

	word<const W extends string>(name: string, words: readonly W[]): W {
		const value = this.member(name);
		return words.includes(value as W) ? (value as W) : this.#wrong(name, `one of ${words.join(", ")}`);
	}

	optionalWord<const W extends string>(name: string, words: readonly W[]): W | undefined {
		return this.has(name) ? this.word(name, words) : undefined;
	}

	object(name: string): FieldReader {
		return new FieldReader(this.member(name), `${this.#path}: ${name}`);
	}
}

/** True for an integer from 0 to 2^32-1. */
export function isU32(value: unknown): value is number {
	return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff;
}
