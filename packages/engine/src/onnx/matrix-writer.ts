// SPDX-License-Identifier: Apache-2.0
// Puts a weight matrix into the graph's files in the format that was chosen for it.

import type { Quantization } from "../model/model-runner.js";
import { blockLayout } from "../weights/gguf-blocks.js";
import type { WeightSource, WeightTensor } from "../weights/weight-source.js";
import { blocksPerRow, type QuantizedRows, quantize4, quantize8, repackBlocks, storedForm } from "./block-quantize.js";
import { type ExternalLocation, encodeFloats, type FloatType, type OnnxModel, OnnxType } from "./onnx-model.js";
import type { WeightsWriter } from "./weights-writer.js";

/** How a matrix is stored in the graph. */
export type MatrixFormat =
	| { readonly kind: "float" }
	| {
			readonly kind: "blocks";
			readonly bits: 4 | 8;
			readonly blockSize: number;
			/** The file's own blocks, unchanged; else they are made from the fp32 values. */
			readonly asStored: boolean;
			/** Each block also has a number that is added to its weights. */
			readonly offsets: boolean;
	  };

/** The device that a graph is for: fp32 on a CPU, half precision on CUDA. */
export type GraphTarget = "cpu" | "cuda";

/** Rows handled at a time are limited to this many weights: bounds the memory of a build. */
const CHUNK_WEIGHTS = 1 << 22;

/** A file's own blocks, unchanged. */
function asStored(type: WeightTensor["type"]): MatrixFormat | undefined {
	const layout = blockLayout(type);
	return layout && { kind: "blocks", asStored: true, ...storedForm(layout) };
}

const FLOAT: MatrixFormat = { kind: "float" };
const INT8: MatrixFormat = { kind: "blocks", bits: 8, blockSize: 64, asStored: false, offsets: false };
const INT4: MatrixFormat = { kind: "blocks", bits: 4, blockSize: 32, asStored: false, offsets: false };

/**
 * Chooses the format of a matrix.
 * - none: fp32, exact for every stored type;
 * - auto: blocks of the file exactly as stored, float weights as 8 bits in blocks of 64;
 * - int8: 8 bits in blocks of 64, Q8_0 as stored;
 * - int4: 4 bits in blocks of 32 and every stored block format as it is; embedding and output matrix stay at
 *   8 bits, since errors there reach the logits directly.
 *
 * On CUDA none and auto are half precision: its 8-bit kernels are slower than that from a few rows on.
 */
export function matrixFormat(
	type: WeightTensor["type"],
	quantization: Quantization,
	role: "layer" | "vocabulary",
	target: GraphTarget = "cpu",
): MatrixFormat {
	if (quantization === "none" || (quantization === "auto" && target === "cuda")) return FLOAT;
	if (quantization === "int8") return (type === "Q8_0" ? asStored(type) : undefined) ?? INT8;
	return asStored(type) ?? (quantization === "int4" && role === "layer" ? INT4 : INT8);
}

/** True where two formats can share one packed matrix. */
export function sameFormat(a: MatrixFormat, b: MatrixFormat): boolean {
	return JSON.stringify(a) === JSON.stringify(b);
}

/** True for a file's own blocks, whose weights are exact: then rounded activations are the only error. */
export function isAsStored(format: MatrixFormat): boolean {
	return format.kind === "blocks" && format.asStored;
}

/** A format in words: "fp32", "fp16", "int8", "int4" or e.g. "q4_1 as stored". */
export function formatName(type: WeightTensor["type"], format: MatrixFormat, target: GraphTarget = "cpu"): string {
	if (format.kind === "float") return target === "cpu" ? "fp32" : "fp16";
	return format.asStored ? `${type.toLowerCase()} as stored` : `int${format.bits}`;
}

/** Where the parts of a matrix lie. */
export interface StoredMatrix {
	readonly format: MatrixFormat;
	readonly rows: number;
	readonly columns: number;
	/** Floats [rows, columns], or packed integers [rows, blocks, bytes]. */
	readonly data: ExternalLocation;
	/** [rows, blocks] of a block format. */
	readonly scales?: ExternalLocation;
	/** [rows, blocks / 2 rounded up] of 4-bit blocks that have zero points. */
	readonly zeroPoints?: ExternalLocation;
	/** [rows, blocks] of a block format with offsets. */
	readonly offsets?: ExternalLocation;
}

function quantizedRows(
	source: WeightSource,
	tensor: WeightTensor,
	format: MatrixFormat,
	first: number,
	count: number,
): QuantizedRows {
	if (format.kind === "float") throw new TypeError("a float matrix has no blocks");
	if (format.asStored) {
		return repackBlocks(blockLayout(tensor.type)!, source.readRaw(tensor.name, first, count));
	}
	const values = source.readRows(tensor.name, first, count);
	return format.bits === 8
		? quantize8(values, tensor.columns, format.blockSize)
		: quantize4(values, tensor.columns, format.blockSize);
}

/**
 * Writes the rows of one or more tensors, one below the other, as one matrix.
 * @throws ModelFileError when a tensor cannot be read.
 */
export function writeMatrix(
	writer: WeightsWriter,
	source: WeightSource,
	tensors: readonly WeightTensor[],
	format: MatrixFormat,
	floatType: FloatType = OnnxType.FLOAT,
): StoredMatrix {
	const columns = tensors[0]!.columns;
	const rows = tensors.reduce((sum, tensor) => sum + tensor.rows, 0);
	const chunkRows = Math.max(1, Math.floor(CHUNK_WEIGHTS / columns));
	const scales: Float32Array[] = [];
	const zeroPoints: Uint8Array[] = [];
	const offsets: Float32Array[] = [];
	writer.begin();
	for (const tensor of tensors) {
		for (let first = 0; first < tensor.rows; first += chunkRows) {
			const count = Math.min(chunkRows, tensor.rows - first);
			if (format.kind === "float") {
				writer.write(encodeFloats(floatType, source.readRows(tensor.name, first, count)));
				continue;
			}
			const quantized = quantizedRows(source, tensor, format, first, count);
			writer.write(quantized.packed);
			scales.push(quantized.scales);
			if (quantized.zeroPoints) zeroPoints.push(quantized.zeroPoints);
			if (quantized.offsets) offsets.push(quantized.offsets);
		}
	}
	const data = writer.end();
	const writeParts = (parts: readonly ArrayBufferView[]): ExternalLocation => {
		writer.begin();
		for (const part of parts) writer.write(part);
		return writer.end();
	};
	const encoded = (part: Float32Array) => encodeFloats(floatType, part);
	return {
		format,
		rows,
		columns,
		data,
		...(scales.length > 0 && { scales: writeParts(scales.map(encoded)) }),
		...(zeroPoints.length > 0 && { zeroPoints: writeParts(zeroPoints) }),
		...(offsets.length > 0 && { offsets: writeParts(offsets.map(encoded)) }),
	};
}

/** Declares packed integers, scales and zero points in the shapes and order that MatMulNBits takes them. */
export function declareBlocks(model: OnnxModel, name: string, matrix: StoredMatrix): string[] {
	const { format, rows, columns, data, scales, zeroPoints } = matrix;
	if (format.kind === "float") throw new TypeError("a float matrix has no blocks");
	const blocks = blocksPerRow(columns, format.blockSize);
	const blockBytes = (format.blockSize * format.bits) / 8;
	const inputs = [
		model.initializer(`${name}.q`, OnnxType.UINT8, [rows, blocks, blockBytes], data),
		model.initializer(`${name}.scale`, model.floatType, [rows, blocks], scales!),
	];
	if (zeroPoints) {
		inputs.push(model.initializer(`${name}.zero`, OnnxType.UINT8, [rows, Math.ceil(blocks / 2)], zeroPoints));
	}
	return inputs;
}
