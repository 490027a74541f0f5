// SPDX-License-Identifier: Apache-2.0
// Typed access to the settings of a model file, and the checks that every architecture passes.

import { readFileSync } from "node:fs";
import { ModelFileError } from "../weights/model-file-error.js";
import type { ModelConfig } from "./model-runner.js";

/** Heads, and the part of them that turns, must be a multiple of this wide: so wants ONNX Runtime's attention. */
const HEAD_GRAIN = 16;

/** Typed access to settings of one file, with errors that name the file and the key. */
export class Settings {
	readonly path: string;
	readonly #get: (key: string) => unknown;
	readonly #prefix: string;

	/** @param prefix stands before the keys in messages */
	constructor(path: string, get: (key: string) => unknown, prefix = "") {
		this.path = path;
		this.#get = get;
		this.#prefix = prefix;
	}

	/** The value, or undefined where it is absent or null. */
	get(key: string): unknown {
		return this.#get(key) ?? undefined;
	}

	/** @throws ModelFileError that names the key */
	fail(key: string, problem: string): never {
		throw new ModelFileError(this.path, `${this.#prefix}${key} ${problem}`);
	}

	/** A positive number. */
	number(key: string, fallback?: number): number {
		const value = this.get(key) ?? fallback;
		if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
			this.fail(key, `is ${JSON.stringify(value) ?? "missing"}; a positive number is needed`);
		}
		return value;
	}

	/** A positive number, or null where there is none (0 stands for none, too). */
	optionalNumber(key: string): number | null {
		const value = this.get(key);
		return value === undefined || value === 0 ? null : this.number(key);
	}

	/** A positive whole number. */
	size(key: string, fallback?: number): number {
		const value = this.number(key, fallback);
		if (!Number.isInteger(value)) this.fail(key, `is ${value}; a whole number is needed`);
		return value;
	}

	/** Positive numbers, as many as told. */
	numbers(key: string, count: number): number[] {
		const value = this.get(key);
		const good = Array.isArray(value) && value.every((item) => typeof item === "number" && item > 0);
		if (!good) this.fail(key, "is not a list of positive numbers");
		if (value.length !== count) this.fail(key, `has ${value.length} numbers; ${count} are needed`);
		return value as number[];
	}
}

/** Refuses head counts and sizes that cannot be computed. */
export function checkedConfig(path: string, config: ModelConfig): ModelConfig {
	const { numHeads, numKvHeads, headDim, rotaryDim } = config;
	if (numHeads % numKvHeads !== 0) {
		throw new ModelFileError(path, `${numHeads} heads cannot share ${numKvHeads} key/value heads`);
	}
	if (headDim % 2 !== 0 || !Number.isInteger(headDim)) {
		throw new ModelFileError(path, `heads of ${headDim} have no rotary pairs`);
	}
	if (headDim % HEAD_GRAIN !== 0) {
		throw new ModelFileError(path, `heads of ${headDim} do not work; multiples of ${HEAD_GRAIN} do`);
	}
	if (rotaryDim % HEAD_GRAIN !== 0 || rotaryDim > headDim) {
		throw new ModelFileError(
			path,
			`${rotaryDim} of the ${headDim} numbers of a head turn; multiples of ${HEAD_GRAIN} work`,
		);
	}
	return config;
}

/** Token ids out of one id or a list. */
export function tokenIds(value: unknown): number[] {
	const list = Array.isArray(value) || ArrayBuffer.isView(value) ? [...(value as Iterable<unknown>)] : [value];
	return list.filter((id): id is number => Number.isInteger(id));
}

/**
 * Reads one of a model's files.
 * @throws ModelFileError when it is not a JSON object.
 */
export function readModelJson(path: string): Record<string, unknown> {
	try {
		const json: unknown = JSON.parse(readFileSync(path, "utf8"));
		if (typeof json === "object" && json !== null && !Array.isArray(json)) return json as Record<string, unknown>;
	} catch (cause) {
		throw new ModelFileError(path, `cannot be read as JSON: ${(cause as Error).message}`, { cause });
	}
	throw new ModelFileError(path, "is not a JSON object");
}
