// SPDX-License-Identifier: Apache-2.0
// The common face of weight files. Tensors carry the names that Hugging Face gives them
// (`model.layers.0.self_attn.q_proj.weight`) whatever the file calls them.

/** Storage types that can be read. Q types are GGUF's, in blocks of 32 weights. */
export type WeightType = "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0" | "Q4_1";

/** The types as one readable list, for messages. */
export const READABLE_WEIGHT_TYPES: readonly WeightType[] = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"];

/** Weights in one block of a Q type. */
export const BLOCK_WEIGHTS = 32;

const BLOCK_BYTES = { Q8_0: 34, Q4_0: 18, Q4_1: 20 } as const;

/** Bytes of one row of `columns` weights; the columns of a Q type are a multiple of 32. */
export function rowBytes(type: WeightType, columns: number): number {
	switch (type) {
		case "F32":
			return columns * 4;
		case "F16":
		case "BF16":
			return columns * 2;
		default:
			return (columns / BLOCK_WEIGHTS) * BLOCK_BYTES[type];
	}
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
