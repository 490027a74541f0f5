// SPDX-License-Identifier: Apache-2.0
// Weights in the form that the operators MatMulNBits and GatherBlockQuantized read: unsigned integers of 8 or 4
// bits in blocks along a row, one fp32 scale per block, zero point 128 or 8. Weight = scale * (q - zero point).

import { halfToFloatTable } from "../weights/float-formats.js";

/** Rows of a quantized matrix. */
export interface QuantizedRows {
	/** [rows, blocks, blockSize * bits / 8]; of two 4-bit weights in a byte the earlier is the low one. */
	readonly packed: Uint8Array;
	/** [rows, blocks] */
	readonly scales: Float32Array;
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

/** Scales of a 4-bit block that are tried, as what the weight of largest magnitude becomes. */
const LEVELS_4 = [-8, -7.6, -7.2, -6.8, 7, 7.4] as const;

/**
 * Quantizes to 4 bits. Of several scales the one with the smallest squared error is taken.
 * @param values [rows * columns]
 */
export function quantize4(values: Float32Array, columns: number, blockSize: number): QuantizedRows {
	const rows = values.length / columns;
	const blocks = blocksPerRow(columns, blockSize);
	const packed = new Uint8Array((rows * blocks * blockSize) / 2).fill(0x88);
	const scales = new Float32Array(rows * blocks);
	for (let row = 0; row < rows; row++) {
		for (let block = 0; block < blocks; block++) {
			const from = row * columns + block * blockSize;
			const count = Math.min(blockSize, columns - block * blockSize);
			let extreme = 0;
			for (let i = 0; i < count; i++) {
				if (Math.abs(values[from + i]!) > Math.abs(extreme)) extreme = values[from + i]!;
			}
			if (extreme === 0) continue;
			let best = Number.POSITIVE_INFINITY;
			let scale = 0;
			for (const level of LEVELS_4) {
				const tried = Math.fround(extreme / level);
				const inverse = 1 / tried;
				let error = 0;
				for (let i = 0; i < count; i++) {
					const value = values[from + i]!;
					const q = Math.max(-8, Math.min(7, Math.round(value * inverse)));
					const difference = value - q * tried;
					error += difference * difference;
				}
				if (error < best) {
					best = error;
					scale = tried;
				}
			}
			scales[row * blocks + block] = scale;
			const inverse = 1 / scale;
			const to = ((row * blocks + block) * blockSize) / 2;
			for (let i = 0; i < count; i++) {
				const q = Math.max(0, Math.min(15, Math.round(values[from + i]! * inverse) + 8));
				const shift = (i & 1) * 4;
				packed[to + (i >> 1)] = (packed[to + (i >> 1)]! & (0xf0 >> shift)) | (q << shift);
			}
		}
	}
	return { packed, scales };
}

/** GGUF's Q8_0 as it is: int8 becomes uint8 with zero point 128, the half scale becomes fp32. Both are exact. */
export function repackQ8_0(raw: Uint8Array): QuantizedRows {
	const half = halfToFloatTable();
	const blocks = raw.length / 34;
	const packed = new Uint8Array(blocks * 32);
	const scales = new Float32Array(blocks);
	for (let block = 0; block < blocks; block++) {
		const at = block * 34;
		scales[block] = half[raw[at]! | (raw[at + 1]! << 8)]!;
		for (let i = 0; i < 32; i++) packed[block * 32 + i] = raw[at + 2 + i]! ^ 128;
	}
	return { packed, scales };
}

/** Turns 16 bytes of GGUF nibbles (low: weights 0-15, high: 16-31) into pairs of neighbours. */
function repackNibbles(raw: Uint8Array, at: number, packed: Uint8Array, to: number): void {
	for (let pair = 0; pair < 8; pair++) {
		const even = raw[at + 2 * pair]!;
		const odd = raw[at + 2 * pair + 1]!;
		packed[to + pair] = (even & 15) | ((odd & 15) << 4);
		packed[to + 8 + pair] = (even >> 4) | (odd & 0xf0);
	}
}

/** GGUF's Q4_0 as it is: d * (q - 8). */
export function repackQ4_0(raw: Uint8Array): QuantizedRows {
	const half = halfToFloatTable();
	const blocks = raw.length / 18;
	const packed = new Uint8Array(blocks * 16);
	const scales = new Float32Array(blocks);
	for (let block = 0; block < blocks; block++) {
		const at = block * 18;
		scales[block] = half[raw[at]! | (raw[at + 1]! << 8)]!;
		repackNibbles(raw, at + 2, packed, block * 16);
	}
	return { packed, scales };
}

/** GGUF's Q4_1 as it is: d * q + m = d * (q - 8) + (m + 8 d), the last term as offset. */
export function repackQ4_1(raw: Uint8Array): QuantizedRows {
	const half = halfToFloatTable();
	const blocks = raw.length / 20;
	const packed = new Uint8Array(blocks * 16);
	const scales = new Float32Array(blocks);
	const offsets = new Float32Array(blocks);
	for (let block = 0; block < blocks; block++) {
		const at = block * 20;
		const d = half[raw[at]! | (raw[at + 1]! << 8)]!;
		const m = half[raw[at + 2]! | (raw[at + 3]! << 8)]!;
		scales[block] = d;
		offsets[block] = m + 8 * d;
		repackNibbles(raw, at + 4, packed, block * 16);
	}
	return { packed, scales, offsets };
}
