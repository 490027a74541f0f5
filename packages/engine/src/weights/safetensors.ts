// SPDX-License-Identifier: Apache-2.0
// Safetensors: u64 header length, JSON header, data. One file, or shards named by model.safetensors.index.json.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { dequantize } from "./dequantize.js";
import { FileReader } from "./file-reader.js";
import { ModelFileError } from "./model-file-error.js";
import { rowBytes, type WeightSource, type WeightTensor, type WeightType } from "./weight-source.js";

/** Longest header that the format allows, bytes. */
const MAX_HEADER_BYTES = 100_000_000;
const TYPES: readonly string[] = ["F32", "F16", "BF16"];

/** Canonical name of a tensor: the text part of a model that sees images too stands in a module of its own. */
function canonicalName(name: string): string {
	return name.replace(/^(language_model\.model|model\.language_model)\./, "model.").replace(/^language_model\./, "");
}

interface StoredTensor extends WeightTensor {
	/** From the start of the file, bytes. */
	readonly offset: number;
	readonly file: FileReader;
}

/** What the header of one file lists. */
interface Table {
	readonly tensors: StoredTensor[];
	/** Name and type of tensors that cannot be read. */
	readonly unreadable: [string, string][];
}

interface HeaderEntry {
	dtype?: unknown;
	shape?: unknown;
	data_offsets?: unknown;
}

function isSizes(value: unknown): value is number[] {
	return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}

/**
 * Reads and checks the table of one file.
 * @throws ModelFileError when the header is too long, not JSON, or names bytes that are not there or are shared.
 */
function readTable(file: FileReader): Table {
	const fail = (message: string, cause?: unknown): never => {
		throw new ModelFileError(file.path, `is not a usable safetensors file: ${message}`, { cause });
	};
	if (file.size < 8) fail("it is shorter than 8 bytes");
	const length = Number(file.read(0, 8, "the header length").readBigUInt64LE(0));
	if (length > MAX_HEADER_BYTES) fail(`its header of ${length} bytes is longer than ${MAX_HEADER_BYTES}`);
	if (8 + length > file.size) fail("it ends inside its header; the file is cut short");
	let header: Record<string, HeaderEntry>;
	try {
		header = JSON.parse(file.read(8, length, "the header").toString("utf8"));
	} catch (cause) {
		return fail("its header is not JSON", cause);
	}
	if (typeof header !== "object" || header === null || Array.isArray(header)) fail("its header is not an object");
	const dataOffset = 8 + length;
	const tensors: StoredTensor[] = [];
	const unreadable: [string, string][] = [];
	for (const [stored, entry] of Object.entries(header)) {
		if (stored === "__metadata__") continue;
		const name = canonicalName(stored);
		const { dtype, shape, data_offsets: offsets } = entry ?? {};
		if (typeof dtype !== "string" || !isSizes(shape) || !isSizes(offsets) || offsets.length !== 2) {
			return fail(`tensor ${name} has a broken entry`);
		}
		const [begin, end] = offsets as [number, number];
		if (begin > end || dataOffset + end > file.size) {
			fail(`tensor ${name} lies at ${begin}-${end} but there are ${file.size - dataOffset} bytes of data`);
		}
		// Tensors of other types (masks, position ids) may be there; they only matter when something reads them.
		if (!TYPES.includes(dtype)) {
			unreadable.push([name, dtype]);
			continue;
		}
		const type = dtype as WeightType;
		const columns = shape.at(-1) ?? 1;
		const rows = shape.slice(0, -1).reduce((product, size) => product * size, 1);
		const bytes = rows * rowBytes(type, columns);
		if (bytes !== end - begin) fail(`tensor ${name} needs ${bytes} bytes but has ${end - begin}`);
		tensors.push({ name, type, shape, rows, columns, offset: dataOffset + begin, file });
	}
	const sorted = [...tensors].sort((a, b) => a.offset - b.offset);
	for (let i = 1; i < sorted.length; i++) {
		const before = sorted[i - 1]!;
		if (before.offset + before.rows * rowBytes(before.type, before.columns) > sorted[i]!.offset) {
			fail(`tensors ${before.name} and ${sorted[i]!.name} overlap`);
		}
	}
	return { tensors, unreadable };
}

const INDEX_FILE = "model.safetensors.index.json";
const SINGLE_FILE = "model.safetensors";

/** Whether a model folder has weights in this format, in one file or in shards. */
export function hasSafetensors(folder: string): boolean {
	return existsSync(join(folder, INDEX_FILE)) || existsSync(join(folder, SINGLE_FILE));
}

/**
 * The weight files of a model folder.
 * @throws ModelFileError when there are none or the index is broken.
 */
export function safetensorsFiles(folder: string): string[] {
	const indexPath = join(folder, INDEX_FILE);
	if (existsSync(indexPath)) {
		let map: Record<string, unknown> | undefined;
		try {
			map = JSON.parse(readFileSync(indexPath, "utf8")).weight_map;
		} catch (cause) {
			throw new ModelFileError(indexPath, "is not JSON", { cause });
		}
		const names = new Set(Object.values(map ?? {}));
		for (const name of names) {
			if (typeof name !== "string" || !/^[^/\\]+\.safetensors$/.test(name)) {
				throw new ModelFileError(indexPath, `weight_map names the file ${JSON.stringify(name)}`);
			}
		}
		if (names.size === 0) throw new ModelFileError(indexPath, "has no weight_map");
		return ([...names] as string[]).sort().map((name) => join(folder, name));
	}
	const single = join(folder, SINGLE_FILE);
	if (existsSync(single)) return [single];
	throw new ModelFileError(folder, `has neither ${SINGLE_FILE} nor ${INDEX_FILE}`);
}

/** Reads tensors of a folder of safetensors files. */
export class SafetensorsWeights implements WeightSource {
	readonly tensors: ReadonlyMap<string, StoredTensor>;
	readonly unreadable: ReadonlyMap<string, string>;
	readonly #files: FileReader[] = [];
	readonly #folder: string;

	/** @throws ModelFileError when a file is missing or broken, or two files hold the same tensor. */
	constructor(folder: string) {
		this.#folder = folder;
		const tensors = new Map<string, StoredTensor>();
		const unreadable = new Map<string, string>();
		try {
			for (const path of safetensorsFiles(folder)) {
				const file = new FileReader(path);
				this.#files.push(file);
				const table = readTable(file);
				for (const [name, type] of table.unreadable) unreadable.set(name, type);
				for (const tensor of table.tensors) {
					if (tensors.has(tensor.name)) throw new ModelFileError(path, `tensor ${tensor.name} is in another file too`);
					tensors.set(tensor.name, tensor);
				}
			}
		} catch (error) {
			this.close();
			throw error;
		}
		this.tensors = tensors;
		this.unreadable = unreadable;
	}

	#tensor(name: string): StoredTensor {
		const tensor = this.tensors.get(name);
		if (!tensor) throw new ModelFileError(this.#folder, `has no tensor ${name} of type ${TYPES.join(", ")}`);
		return tensor;
	}

	readRaw(name: string, firstRow: number, rowCount: number): Uint8Array {
		const { type, columns, offset, file } = this.#tensor(name);
		const stride = rowBytes(type, columns);
		return file.read(offset + firstRow * stride, rowCount * stride, `tensor ${name}`);
	}

	readRows(name: string, firstRow: number, rowCount: number): Float32Array {
		const { type, columns } = this.#tensor(name);
		const out = new Float32Array(rowCount * columns);
		dequantize(type, this.readRaw(name, firstRow, rowCount), out);
		return out;
	}

	close(): void {
		for (const file of this.#files) file.close();
	}
}
