// SPDX-License-Identifier: Apache-2.0
// Products with the matrices of a model, in whatever format each is stored, and the lookup in the embedding.

import type { Quantization } from "../model/model-runner.js";
import type { WeightTensor } from "../weights/weight-source.js";
import { blocksPerRow } from "./block-quantize.js";
import type { GraphTensors } from "./graph-tensors.js";
import {
	declareBlocks,
	type GraphTarget,
	isAsStored,
	type MatrixFormat,
	matrixFormat,
	type StoredMatrix,
	sameFormat,
	writeMatrix,
} from "./matrix-writer.js";
import { MICROSOFT, type OnnxModel, OnnxType } from "./onnx-model.js";

/** MatMulNBits: activations are rounded to 8 bits per row and block, the products summed as integers. */
const INT8_ACTIVATIONS = 4;

interface ProductOptions {
	/** Name of the result. */
	readonly output?: string;
	/** Adds the product with what the kernel's rounding of x to 8 bits leaves out. */
	readonly refined?: boolean;
	/** A constant [rows] that is added. */
	readonly bias?: string | undefined;
}

/** Adds products to a graph. Activations are [tokens, width]. */
export class MatrixProducts {
	readonly #model: OnnxModel;
	readonly #tensors: GraphTensors;
	readonly #quantization: Quantization;
	readonly #target: GraphTarget;
	/** Values that several matrices read: constants by name, and what is derived of an activation by its name. */
	readonly #shared = new Map<string, string>();

	constructor(model: OnnxModel, tensors: GraphTensors, quantization: Quantization, target: GraphTarget) {
		this.#model = model;
		this.#tensors = tensors;
		this.#quantization = quantization;
		this.#target = target;
	}

	#format(tensor: WeightTensor, role: "layer" | "vocabulary"): MatrixFormat {
		return matrixFormat(tensor.type, this.#quantization, role, this.#target);
	}

	#write(tensors: readonly WeightTensor[], format: MatrixFormat): StoredMatrix {
		return writeMatrix(this.#tensors.writer, this.#tensors.source, tensors, format, this.#model.floatType);
	}

	/** x [tokens, columns] times a stored matrix [rows, columns] transposed. */
	#multiply(x: string, name: string, matrix: StoredMatrix, options: ProductOptions = {}): string {
		const model = this.#model;
		const { format, rows, columns } = matrix;
		const { bias } = options;
		const named = options.output ? { outputs: [options.output] } : {};
		if (format.kind === "float") {
			const weight = model.initializer(name, model.floatType, [rows, columns], matrix.data);
			return model.node("Gemm", [x, weight, ...(bias ? [bias] : [])], { ...named, attributes: { transB: 1 } });
		}
		const blocks = declareBlocks(model, name, matrix);
		const attributes = {
			K: columns,
			N: rows,
			bits: format.bits,
			block_size: format.blockSize,
			accuracy_level: INT8_ACTIVATIONS,
		};
		const refined = options.refined === true && columns % format.blockSize === 0;
		const biased = bias ? [...blocks, ...(blocks.length < 3 ? [""] : []), "", bias] : blocks;
		let product = model.node("MatMulNBits", [x, ...biased], {
			...(matrix.offsets || refined ? {} : named),
			domain: MICROSOFT,
			attributes,
		});
		if (refined) {
			const rest = this.#roundingRest(x, columns, format.blockSize);
			const correction = model.node("MatMulNBits", [rest, ...blocks], { domain: MICROSOFT, attributes });
			product = model.node("Add", [product, correction], matrix.offsets ? {} : named);
		}
		if (!matrix.offsets) return product;
		const numBlocks = blocksPerRow(columns, format.blockSize);
		const offsets = model.initializer(`${name}.offset`, model.floatType, [rows, numBlocks], matrix.offsets);
		const sums = this.#blockSum(x, numBlocks, format.blockSize);
		return model.node("Gemm", [sums, offsets, product], { ...named, attributes: { transB: 1 } });
	}

	/**
	 * x minus x as MatMulNBits rounds it: to 8 bits, with one scale per row and block. A product of each block with
	 * the identity gives the rounded x, whatever the kernel's way of rounding is.
	 */
	#roundingRest(x: string, columns: number, blockSize: number): string {
		const model = this.#model;
		const key = `${x}/rest/${blockSize}`;
		let rest = this.#shared.get(key);
		if (!rest) {
			const identity = `identity_${blockSize}`;
			if (!this.#shared.has(identity)) {
				// 1 with the zero point 128.
				const packed = new Uint8Array(blockSize * blockSize).fill(128);
				for (let i = 0; i < blockSize; i++) packed[i * blockSize + i] = 129;
				const { writer } = this.#tensors;
				const scales = new Float32Array(blockSize).fill(1);
				model.initializer(`${identity}.q`, OnnxType.UINT8, [blockSize, 1, blockSize], writer.tensor(packed));
				model.initializer(`${identity}.scale`, OnnxType.FLOAT, [blockSize, 1], writer.tensor(scales));
				this.#shared.set(identity, identity);
			}
			const blocks = model.node("Reshape", [x, this.rowsOf(blockSize)]);
			const rounded = model.node("MatMulNBits", [blocks, `${identity}.q`, `${identity}.scale`], {
				domain: MICROSOFT,
				attributes: { K: blockSize, N: blockSize, bits: 8, block_size: blockSize, accuracy_level: INT8_ACTIVATIONS },
			});
			rest = model.node("Sub", [x, model.node("Reshape", [rounded, this.rowsOf(columns)])]);
			this.#shared.set(key, rest);
		}
		return rest;
	}

	/** The constant shape [-1, width]. */
	rowsOf(width: number): string {
		const name = `rows_of_${width}`;
		if (!this.#shared.has(name)) {
			this.#model.int64Constant(name, [-1, width]);
			this.#shared.set(name, name);
		}
		return name;
	}

	/**
	 * Sums of an activation over each block of columns, [tokens, blocks]: a product with a matrix of zeros and ones,
	 * which is faster here than ReduceSum and, unlike it, keeps its shape when there are no tokens.
	 */
	#blockSum(x: string, blocks: number, blockSize: number): string {
		const key = `${x}/${blockSize}`;
		let sums = this.#shared.get(key);
		if (!sums) {
			const columns = blocks * blockSize;
			const name = `blocks_${columns}_${blockSize}`;
			if (!this.#shared.has(name)) {
				const ones = new Float32Array(blocks * columns);
				for (let block = 0; block < blocks; block++) {
					ones.fill(1, block * columns + block * blockSize, block * columns + (block + 1) * blockSize);
				}
				this.#shared.set(name, this.#tensors.constant(name, [blocks, columns], ones));
			}
			sums = this.#model.node("Gemm", [x, name], { attributes: { transB: 1 } });
			this.#shared.set(key, sums);
		}
		return sums;
	}

	/**
	 * Products with matrices of a layer: one for all of them, side by side, where their formats allow it, else one
	 * for each.
	 */
	products(x: string, name: string, tensors: readonly WeightTensor[], refine = false): string[] {
		const formats = tensors.map((tensor) => this.#format(tensor, "layer"));
		const product = (part: string, members: readonly WeightTensor[], format: MatrixFormat) =>
			this.#multiply(x, part, this.#write(members, format), {
				// Only the CPU's kernel rounds activations.
				refined: refine && isAsStored(format) && this.#target === "cpu",
				bias: this.#tensors.bias(part, members),
			});
		if (formats.every((format) => sameFormat(format, formats[0]!))) return [product(name, tensors, formats[0]!)];
		return tensors.map((tensor, i) => product(`${name}.${i}`, [tensor], formats[i]!));
	}

	/** The product with one matrix of a layer. */
	product(x: string, name: string, tensor: WeightTensor): string {
		return this.products(x, name, [tensor])[0]!;
	}

	/** Looks up token ids [tokens] and gives [tokens, width]. */
	#embed(matrix: StoredMatrix, ids: string): string {
		const model = this.#model;
		const { format, rows, columns } = matrix;
		if (format.kind === "float") {
			const weight = model.initializer("embedding", model.floatType, [rows, columns], matrix.data);
			return model.node("Gather", [weight, ids], { attributes: { axis: 0 } });
		}
		// The same bytes as the output matrix where that is shared, under the two-dimensional shape that this one wants.
		const packed = model.initializer("embedding.q", OnnxType.UINT8, [rows, (columns * format.bits) / 8], matrix.data);
		const blocks = blocksPerRow(columns, format.blockSize);
		const scales = model.initializer("embedding.scale", model.floatType, [rows, blocks], matrix.scales!);
		const values = model.node("GatherBlockQuantized", [packed, ids, scales], {
			domain: MICROSOFT,
			attributes: { gather_axis: 0, quantize_axis: 1, block_size: format.blockSize, bits: format.bits },
		});
		if (!matrix.offsets) return values;
		const offsets = model.initializer("embedding.offset", model.floatType, [rows, blocks], matrix.offsets);
		const gathered = model.node("Gather", [offsets, ids], { attributes: { axis: 0 } });
		const perBlock = model.int64Constant("embedding_blocks", [-1, blocks, format.blockSize]);
		const onePerBlock = model.int64Constant("embedding_offsets", [-1, blocks, 1]);
		const sum = model.node("Add", [
			model.node("Reshape", [values, perBlock]),
			model.node("Reshape", [gathered, onePerBlock]),
		]);
		return model.node("Reshape", [sum, this.rowsOf(columns)]);
	}

	/** Formats that the embedding lookup can read; others are looked up in fp32, which is as exact. */
	#embeddingFormat(tensor: WeightTensor): MatrixFormat {
		const format = this.#format(tensor, "vocabulary");
		const readable = format.kind === "blocks" && tensor.columns % format.blockSize === 0;
		return readable ? format : { kind: "float" };
	}

	/**
	 * Writes the embedding and the output matrix, once where they are the same.
	 * @returns the rows of `ids` [tokens, hidden], and a function that adds the product with the output matrix.
	 */
	vocabulary(
		ids: string,
		embedding: WeightTensor,
		output: WeightTensor,
	): { embedded: string; logits: (x: string, name: string | undefined) => string } {
		const embeddingFormat = this.#embeddingFormat(embedding);
		const outputFormat = this.#format(output, "vocabulary");
		const matrix = this.#write([embedding], embeddingFormat);
		const shared = embedding === output && sameFormat(outputFormat, embeddingFormat);
		return {
			embedded: this.#embed(matrix, ids),
			logits: (x, name) =>
				this.#multiply(x, "output", shared ? matrix : this.#write([output], outputFormat), {
					...(name !== undefined && { output: name }),
					bias: this.#tensors.bias("output", [output]),
				}),
		};
	}
}
