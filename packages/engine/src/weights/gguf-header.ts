// SPDX-License-Identifier: Apache-2.0
// GGUF header: metadata and tensor table, versions 2 and 3, little endian.
// Layout: "GGUF", u32 version, u64 tensor count, u64 metadata count, metadata, tensor infos, padding, data.

import type { FileReader } from "./file-reader.js";
import { ModelFileError } from "./model-file-error.js";

/** A metadata value. 64-bit integers are numbers where exact, else bigints. */
export type GgufValue = string | number | bigint | boolean | GgufArray;
/** Strings, or one typed array, or nested arrays. */
export type GgufArray =
	| string[]
	| boolean[]
	| Uint8Array
	| Int8Array
	| Uint16Array
	| Int16Array
	| Uint32Array
	| Int32Array
	| Float32Array
	| Float64Array
	| BigUint64Array
	| BigInt64Array
	| GgufArray[];

/** A row of the tensor table. */
export interface GgufTensorInfo {
	readonly name: string;
	/** Row-major, outermost first: the reverse of what the file holds. */
	readonly shape: readonly number[];
	/** Number of the ggml type. */
	readonly type: number;
	/** From the start of the file, bytes. */
	readonly offset: number;
}

/** What stands before the data of a GGUF file. */
export interface GgufHeader {
	readonly version: number;
	readonly metadata: ReadonlyMap<string, GgufValue>;
	readonly tensors: readonly GgufTensorInfo[];
	/** Bytes from the start of the file to the first tensor. */
	readonly dataOffset: number;
}

const FIXED_SIZES: Record<number, number> = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 };
const STRING = 8;
const ARRAY = 9;
/** No header of a real model is larger; a corrupt count must not make us read for ever. */
const MAX_HEADER_BYTES = 1 << 30;
const MAX_NESTING = 4;

/** Parses the header out of a buffer that grows by reading on. */
class Cursor {
	readonly #file: FileReader;
	#buffer: Buffer = Buffer.alloc(0);
	at = 0;

	constructor(file: FileReader) {
		this.#file = file;
	}

	fail(message: string): never {
		throw new ModelFileError(this.#file.path, `is not a usable GGUF file: ${message}`);
	}

	/** Makes `count` bytes available at `at` and returns the buffer. */
	need(count: number, what: string): Buffer {
		const end = this.at + count;
		if (end > this.#buffer.length) {
			if (!Number.isSafeInteger(end) || end > this.#file.size) {
				this.fail(`it ends at byte ${this.#file.size}, inside ${what}; the file is cut short or corrupt`);
			}
			if (end > MAX_HEADER_BYTES) this.fail(`${what} would make the header longer than 1 GiB`);
			const size = Math.min(this.#file.size, MAX_HEADER_BYTES, Math.max(end, this.#buffer.length * 4, 1 << 20));
			const rest = this.#file.read(this.#buffer.length, size - this.#buffer.length, what);
			this.#buffer = this.#buffer.length === 0 ? rest : Buffer.concat([this.#buffer, rest]);
		}
		return this.#buffer;
	}

	u32(what: string): number {
		const value = this.need(4, what).readUInt32LE(this.at);
		this.at += 4;
		return value;
	}

	/** A u64 that counts or measures something. */
	size(what: string): number {
		const buffer = this.need(8, what);
		const value = buffer.readUInt32LE(this.at) + buffer.readUInt32LE(this.at + 4) * 2 ** 32;
		this.at += 8;
		if (!Number.isSafeInteger(value)) this.fail(`${what} is ${value}`);
		return value;
	}

	string(what: string): string {
		const length = this.size(what);
		const text = this.need(length, what).toString("utf8", this.at, this.at + length);
		this.at += length;
		return text;
	}

	/** Copies `count` numbers of a fixed-size type into a typed array. */
	fixedArray(type: number, count: number, what: string): GgufArray {
		const bytes = count * FIXED_SIZES[type]!;
		const buffer = this.need(bytes, what);
		const copy = new Uint8Array(bytes);
		copy.set(buffer.subarray(this.at, this.at + bytes));
		this.at += bytes;
		switch (type) {
			case 0:
				return copy;
			case 1:
				return new Int8Array(copy.buffer);
			case 2:
				return new Uint16Array(copy.buffer);
			case 3:
				return new Int16Array(copy.buffer);
			case 4:
				return new Uint32Array(copy.buffer);
			case 5:
				return new Int32Array(copy.buffer);
			case 6:
				return new Float32Array(copy.buffer);
			case 7:
				return Array.from(copy, (byte) => byte !== 0);
			case 10:
				return new BigUint64Array(copy.buffer);
			case 11:
				return new BigInt64Array(copy.buffer);
			default:
				return new Float64Array(copy.buffer);
		}
	}

	value(type: number, what: string, depth = 0): GgufValue {
		if (type === STRING) return this.string(what);
		if (type === ARRAY) {
			if (depth >= MAX_NESTING) this.fail(`${what} is nested too deeply`);
			const inner = this.u32(what);
			const count = this.size(what);
			if (inner in FIXED_SIZES) return this.fixedArray(inner, count, what);
			if (inner !== STRING && inner !== ARRAY) this.fail(`${what} has the unknown type ${inner}`);
			// Every string takes 8 bytes at least: a corrupt count fails here and not in an allocation.
			this.need(count * 8, what);
			const items: GgufValue[] = [];
			for (let i = 0; i < count; i++) items.push(this.value(inner, what, depth + 1));
			return items as GgufArray;
		}
		if (!(type in FIXED_SIZES)) this.fail(`${what} has the unknown type ${type}`);
		const [value] = this.fixedArray(type, 1, what) as ArrayLike<number | bigint | boolean> & Iterable<number | bigint>;
		if (typeof value === "bigint") {
			const number = Number(value);
			return Number.isSafeInteger(number) ? number : value;
		}
		return value!;
	}
}

/**
 * Reads the header of an open GGUF file.
 * @throws ModelFileError when it is cut short, corrupt, big endian or of another version.
 */
export function readGgufHeader(file: FileReader): GgufHeader {
	const cursor = new Cursor(file);
	if (file.size < 24 || cursor.need(4, "the magic").toString("latin1", 0, 4) !== "GGUF") {
		cursor.fail('it does not begin with "GGUF"');
	}
	cursor.at = 4;
	const version = cursor.u32("the version");
	if (version !== 2 && version !== 3) {
		if (version >>> 16) cursor.fail("it is big endian; only little-endian files can be read");
		cursor.fail(`version ${version}; versions 2 and 3 can be read`);
	}
	const tensorCount = cursor.size("the tensor count");
	const metadataCount = cursor.size("the metadata count");
	const metadata = new Map<string, GgufValue>();
	for (let i = 0; i < metadataCount; i++) {
		const key = cursor.string(`metadata key ${i}`);
		const type = cursor.u32(`metadata ${key}`);
		metadata.set(key, cursor.value(type, `metadata ${key}`));
	}
	const raw: { name: string; shape: number[]; type: number; offset: number }[] = [];
	for (let i = 0; i < tensorCount; i++) {
		const name = cursor.string(`tensor ${i}`);
		const dimensions = cursor.u32(`tensor ${name}`);
		if (dimensions < 1 || dimensions > 4) cursor.fail(`tensor ${name} has ${dimensions} dimensions`);
		const shape: number[] = [];
		for (let d = 0; d < dimensions; d++) shape.unshift(cursor.size(`tensor ${name}`));
		raw.push({ name, shape, type: cursor.u32(`tensor ${name}`), offset: cursor.size(`tensor ${name}`) });
	}
	const alignment = Number(metadata.get("general.alignment") ?? 32);
	if (!Number.isSafeInteger(alignment) || alignment < 1 || alignment % 8 !== 0) {
		cursor.fail(`general.alignment is ${alignment}`);
	}
	const dataOffset = Math.ceil(cursor.at / alignment) * alignment;
	for (const tensor of raw) {
		if (tensor.offset % alignment !== 0) cursor.fail(`tensor ${tensor.name} is not aligned`);
	}
	return {
		version,
		metadata,
		tensors: raw.map((tensor) => ({ ...tensor, offset: dataOffset + tensor.offset })),
		dataOffset,
	};
}
