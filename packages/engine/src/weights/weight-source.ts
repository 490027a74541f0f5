// SPDX-License-Identifier: Apache-2.0
// The common face of weight files. Tensors carry the names that Hugging Face gives them
// (`model.layers.0.self_attn.q_proj.weight`) whatever the file calls them.

import { BLOCK_LAYOUTS, type BlockType } from "./gguf-blocks.js";

/** Storage types that can be read: floats, and GGUF's blocks of integers. */
export type WeightType = "F32" | "F16" | "BF16" | BlockType;

/** The types as one readable list, for messages. */
export const READABLE_WEIGHT_TYPES: readonly WeightType[] = [
	"F32",
	"F16",
	"BF16",
	...(Object.keys(BLOCK_LAYOUTS) as BlockType[]),
];

/** Bytes of one row of `columns` weights; the columns of a block type are a multiple of its block. */
export function rowBytes(type: WeightType, columns: number): number {
	if (type === "F32") return columns * 4;
	if (type === "F16" || type === "BF16") return columns * 2;
	const { weights, bytes } = BLOCK_LAYOUTS[type];
	return (columns / weights) * bytes;
}

/** One tensor of a model file, seen as a matrix (a vector has one row). */
export interface WeightTensor {
	/** Canonical name. */
	readonly name: string;
	readonly type: WeightType;
	/** Row-major shape, outermost dimension first. */
	readonly shape: readonly number[];
	/** Product of all dimensions but the last. */
	readonly rows: number;
	/** The last dimension. */
	readonly columns: number;
}

/** Tensors of a model, read in ranges of rows so that no tensor must fit memory twice. */
export interface WeightSource {
	/** By canonical name. */
	readonly tensors: ReadonlyMap<string, WeightTensor>;
	/** Tensors of types that cannot be read, which is no harm until one is needed: name to type. */
	readonly unreadable: ReadonlyMap<string, string>;
	/**
	 * Bytes as stored of rows `firstRow`..`firstRow + rowCount`.
	 * @throws ModelFileError for an unknown tensor or a file that ends too early.
	 */
	readRaw(name: string, firstRow: number, rowCount: number): Uint8Array;
	/** The same rows as fp32, [rowCount * columns]. */
	readRows(name: string, firstRow: number, rowCount: number): Float32Array;
	/** Closes the files. */
	close(): void;
}
