// SPDX-License-Identifier: Apache-2.0
// Weights in the form that the operators MatMulNBits and GatherBlockQuantized read: unsigned integers of 8 or 4
// bits in blocks along a row, one fp32 scale per block. Weight = scale * (q - zero point); without zero points
// that is 128 or 8.

import { type BlockLayout, unpackBlocks } from "../weights/gguf-blocks.js";

/** Rows of a quantized matrix. */
export interface QuantizedRows {
	/** [rows, blocks, blockSize * bits / 8]; of two 4-bit weights in a byte the earlier is the low one. */
	readonly packed: Uint8Array;
	/** [rows, blocks] */
	readonly scales: Float32Array;
	/** [rows, blocks / 2 rounded up]: 4-bit zero points, the earlier block's in the low half; 8 where absent. */
	readonly zeroPoints?: Uint8Array;
	/** [rows, blocks]: what is added to every weight of a block, for formats that have it. */
	readonly offsets?: Float32Array;
}

/** Blocks in a row; the last one may be padded. */
export function blocksPerRow(columns: number, blockSize: number): number {
	return Math.ceil(columns / blockSize);
}

/**
 * Quantizes to 8 bits: the largest magnitude of a block becomes 127.
 * @param values [rows * columns]
 */
export function quantize8(values: Float32Array, columns: number, blockSize: number): QuantizedRows {
	const rows = values.length / columns;
	const blocks = blocksPerRow(columns, blockSize);
	const packed = new Uint8Array(rows * blocks * blockSize).fill(128);
	const scales = new Float32Array(rows * blocks);
	for (let row = 0; row < rows; row++) {
		for (let block = 0; block < blocks; block++) {
			const from = row * columns + block * blockSize;
			const count = Math.min(blockSize, columns - block * blockSize);
			let max = 0;
			for (let i = 0; i < count; i++) {
				const magnitude = Math.abs(values[from + i]!);
				if (magnitude > max) max = magnitude;
			}
			const to = (row * blocks + block) * blockSize;
			scales[row * blocks + block] = max / 127;
			const scale = scales[row * blocks + block]!;
			if (scale === 0) continue;
			const inverse = 1 / scale;
			// The sum is positive, so truncation rounds to the nearest.
			for (let i = 0; i < count; i++) packed[to + i] = values[from + i]! * inverse + 128.5;
		}
	}
	return { packed, scales };
}

/** Shares of a block's range that are tried: cutting the extremes off a little may fit the other weights better. */
const RANGE_SHARES_4 = [1, 0.94, 0.88, 0.82] as const;

/** Squared error of a block under one scale and zero point. */
function blockError4(values: Float32Array, from: number, count: number, scale: number, zero: number): number {
	const inverse = 1 / scale;
	let error = 0;
	for (let i = from; i < from + count; i++) {
		const value = values[i]!;
		// Truncation of a sum that is kept positive rounds to the nearest.
		const q = Math.max(0, Math.min(15, ((value * inverse + zero + 16.5) | 0) - 16));
		const difference = value - (q - zero) * scale;
		error += difference * difference;
	}
	return error;
}

/**
 * Quantizes to 4 bits with a zero point per block, so that lopsided blocks use all 16 levels. Of several ranges
 * the one with the smallest squared error is taken.
 * @param values [rows * columns]
 */
export function quantize4(values: Float32Array, columns: number, blockSize: number): QuantizedRows {
	const rows = values.length / columns;
	const blocks = blocksPerRow(columns, blockSize);
	const zeroBytes = Math.ceil(blocks / 2);
	const packed = new Uint8Array((rows * blocks * blockSize) / 2);
	const scales = new Float32Array(rows * blocks);
	const zeroPoints = new Uint8Array(rows * zeroBytes);
	for (let row = 0; row < rows; row++) {
		for (let block = 0; block < blocks; block++) {
			const from = row * columns + block * blockSize;
			const count = Math.min(blockSize, columns - block * blockSize);
			// Zero must have a level of its own, so the range always holds it.
			let low = 0;
			let high = 0;
			for (let i = from; i < from + count; i++) {
				const value = values[i]!;
				if (value < low) low = value;
				else if (value > high) high = value;
			}
			if (low === high) continue;
			let best = Number.POSITIVE_INFINITY;
			let scale = 0;
			let zero = 0;
			for (const share of RANGE_SHARES_4) {
				const triedScale = Math.fround(((high - low) * share) / 15);
				const triedZero = Math.max(0, Math.min(15, Math.round((-low * share) / triedScale)));
				const error = blockError4(values, from, count, triedScale, triedZero);
				if (error >= best) continue;
				best = error;
				scale = triedScale;
				zero = triedZero;
			}
			scales[row * blocks + block] = scale;
			zeroPoints[row * zeroBytes + (block >> 1)]! |= zero << ((block & 1) * 4);
			const inverse = 1 / scale;
			const to = ((row * blocks + block) * blockSize) / 2;
			for (let i = 0; i < blockSize; i++) {
				const value = i < count ? values[from + i]! : 0;
				const q = Math.max(0, Math.min(15, ((value * inverse + zero + 16.5) | 0) - 16));
				packed[to + (i >> 1)]! |= q << ((i & 1) * 4);
			}
		}
	}
	return { packed, scales, zeroPoints };
}

/** How a block type of GGUF files lies in the blocks of the operators without a change of its weights. */
export interface StoredForm {
	readonly bits: 4 | 8;
	readonly blockSize: number;
	/** Whether blocks need offsets. */
	readonly offsets: boolean;
}

/** The integer that lies in the middle of a type's range: it becomes the operators' zero point. */
function middle(layout: BlockLayout): number {
	return layout.offsets ? 1 << (layout.bits - 1) : layout.zero;
}

/** Form of a block type: integers of up to 4 bits stay 4-bit ones, longer ones become 8-bit ones. */
export function storedForm(layout: BlockLayout): StoredForm {
	return { bits: layout.bits <= 4 ? 4 : 8, blockSize: layout.group, offsets: layout.offsets };
}

/**
 * Blocks of a GGUF type as they are: scale * (q - zero) + offset = scale * (q - middle) + (offset + scale *
 * (middle - zero)), the last term as offset. Exact but for the rounding of that term.
 */
export function repackBlocks(layout: BlockLayout, raw: Uint8Array): QuantizedRows {
	const { q, scales, offsets } = unpackBlocks(layout, raw);
	const { bits } = storedForm(layout);
	const center = middle(layout);
	if (offsets) {
		for (let i = 0; i < offsets.length; i++) offsets[i]! += scales[i]! * (center - layout.zero);
	}
	if (bits === 8) {
		const shift = 128 - center;
		if (shift !== 0) for (let i = 0; i < q.length; i++) q[i]! += shift;
		return { packed: q, scales, ...(offsets && { offsets }) };
	}
	const shift = 8 - center;
	const packed = new Uint8Array(q.length / 2);
	for (let i = 0; i < packed.length; i++) packed[i] = (q[2 * i]! + shift) | ((q[2 * i + 1]! + shift) << 4);
	return { packed, scales, ...(offsets && { offsets }) };
}
