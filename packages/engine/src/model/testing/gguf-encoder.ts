// SPDX-License-Identifier: Apache-2.0
// Writes GGUF files. For tests: small and plain, not fast.

import type { WeightType } from "../../weights/weight-source.js";
import { encodeWeights } from "./weight-encoders.js";

/** A matrix or vector. */
export interface TinyTensor {
	readonly shape: readonly number[];
	readonly data: Float32Array;
}

/** Puts the two halves of each head side by side, as llama.cpp's converter does for q and k of some families; of a matrix or a bias. */
export function pairRows({ shape, data }: TinyTensor, heads: number): TinyTensor {
	const [rows, columns = 1] = shape as [number, number?];
	const head = rows / heads;
	const out = new Float32Array(data.length);
	for (let h = 0; h < heads; h++) {
		for (let half = 0; half < 2; half++) {
			for (let i = 0; i < head / 2; i++) {
				const from = h * head + half * (head / 2) + i;
				out.set(data.subarray(from * columns, (from + 1) * columns), (h * head + 2 * i + half) * columns);
			}
		}
	}
	return { shape, data: out };
}

/** Value of a GGUF metadata entry that the writer can write. */
export type TinyGgufValue = string | number | { readonly float: number } | readonly string[] | readonly number[];

/** Writes GGUF structures. */
export class GgufEncoder {
	readonly #parts: Uint8Array[] = [];

	u32(value: number): this {
		const bytes = Buffer.alloc(4);
		bytes.writeUInt32LE(value);
		this.#parts.push(bytes);
		return this;
	}

	u64(value: number): this {
		const bytes = Buffer.alloc(8);
		bytes.writeBigUInt64LE(BigInt(value));
		this.#parts.push(bytes);
		return this;
	}

	f32(value: number): this {
		const bytes = Buffer.alloc(4);
		bytes.writeFloatLE(value);
		this.#parts.push(bytes);
		return this;
	}

	bytes(value: Uint8Array): this {
		this.#parts.push(value);
		return this;
	}

	string(value: string): this {
		const bytes = Buffer.from(value);
		return this.u64(bytes.length).bytes(bytes);
	}

	/** Type and value: strings, unsigned integers, floats, arrays of strings and of int32. */
	value(value: TinyGgufValue): this {
		if (typeof value === "string") return this.u32(8).string(value);
		if (typeof value === "number") return this.u32(4).u32(value);
		if ("float" in value) return this.u32(6).f32(value.float);
		const strings = typeof value[0] === "string";
		this.u32(9)
			.u32(strings ? 8 : 5)
			.u64(value.length);
		for (const item of value) typeof item === "string" ? this.string(item) : this.u32(item >>> 0);
		return this;
	}

	finish(): Buffer {
		return Buffer.concat(this.#parts);
	}
}

/** ggml's numbers of the types. */
export const GGML_TYPE_NUMBERS: Readonly<Record<WeightType, number>> = {
	F32: 0,
	F16: 1,
	Q4_0: 2,
	Q4_1: 3,
	Q5_0: 6,
	Q5_1: 7,
	Q8_0: 8,
	Q2_K: 10,
	Q3_K: 11,
	Q4_K: 12,
	Q5_K: 13,
	Q6_K: 14,
	IQ4_NL: 20,
	IQ4_XS: 23,
	BF16: 30,
};

/** A tensor of a file in the making; raw bytes may stand in place of numbers. */
export interface GgufTensor {
	readonly name: string;
	readonly shape: readonly number[];
	readonly type: WeightType;
	readonly data: Float32Array | Uint8Array;
}

/** Bytes of a GGUF file. */
export function encodeGgufFile(
	metadata: Readonly<Record<string, TinyGgufValue>>,
	tensors: readonly GgufTensor[],
	version: 2 | 3 = 3,
): Buffer {
	const header = new GgufEncoder().bytes(Buffer.from("GGUF")).u32(version);
	header.u64(tensors.length).u64(Object.keys(metadata).length);
	for (const [key, value] of Object.entries(metadata)) header.string(key).value(value);
	const data: Uint8Array[] = [];
	let offset = 0;
	for (const { name, shape, type, data: values } of tensors) {
		const bytes = values instanceof Float32Array ? encodeWeights(type, values) : values;
		header.string(name).u32(shape.length);
		for (const size of [...shape].reverse()) header.u64(size);
		header.u32(GGML_TYPE_NUMBERS[type]).u64(offset);
		const padding = (32 - (bytes.length % 32)) % 32;
		data.push(bytes, new Uint8Array(padding));
		offset += bytes.length + padding;
	}
	const head = header.finish();
	return Buffer.concat([head, new Uint8Array((32 - (head.length % 32)) % 32), ...data]);
}
