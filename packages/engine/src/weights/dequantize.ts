// SPDX-License-Identifier: Apache-2.0
// Stored weights to fp32, bit for bit as ggml does it: scales are half precision, arithmetic is fp32.

import { decodeBF16, decodeF16, decodeF32, halfToFloatTable } from "./float-formats.js";
import type { WeightType } from "./weight-source.js";

/** Block of Q8_0: half scale d, 32 int8 q; weight = d * q. */
function dequantizeQ8_0(bytes: Uint8Array, out: Float32Array): void {
	const half = halfToFloatTable();
	const blocks = bytes.length / 34;
	for (let block = 0; block < blocks; block++) {
		const at = block * 34;
		const d = half[bytes[at]! | (bytes[at + 1]! << 8)]!;
		const to = block * 32;
		for (let i = 0; i < 32; i++) out[to + i] = d * ((bytes[at + 2 + i]! << 24) >> 24);
	}
}

/** Block of Q4_0: half scale d, 16 bytes; the low nibbles are weights 0-15, the high ones 16-31; weight = d * (q - 8). */
function dequantizeQ4_0(bytes: Uint8Array, out: Float32Array): void {
	const half = halfToFloatTable();
	const blocks = bytes.length / 18;
	for (let block = 0; block < blocks; block++) {
		const at = block * 18;
		const d = half[bytes[at]! | (bytes[at + 1]! << 8)]!;
		const to = block * 32;
		for (let i = 0; i < 16; i++) {
			const q = bytes[at + 2 + i]!;
			out[to + i] = d * ((q & 15) - 8);
			out[to + 16 + i] = d * ((q >> 4) - 8);
		}
	}
}

/** Block of Q4_1: half scale d, half minimum m, 16 bytes as in Q4_0; weight = d * q + m. */
function dequantizeQ4_1(bytes: Uint8Array, out: Float32Array): void {
	const half = halfToFloatTable();
	const blocks = bytes.length / 20;
	for (let block = 0; block < blocks; block++) {
		const at = block * 20;
		const d = half[bytes[at]! | (bytes[at + 1]! << 8)]!;
		const m = half[bytes[at + 2]! | (bytes[at + 3]! << 8)]!;
		const to = block * 32;
		for (let i = 0; i < 16; i++) {
			const q = bytes[at + 4 + i]!;
			// The product of a half and a nibble is exact, so the sum is rounded once, as in fp32.
			out[to + i] = d * (q & 15) + m;
			out[to + 16 + i] = d * (q >> 4) + m;
		}
	}
}

const DECODERS: Readonly<Record<WeightType, (bytes: Uint8Array, out: Float32Array) => void>> = {
	F32: decodeF32,
	F16: decodeF16,
	BF16: decodeBF16,
	Q8_0: dequantizeQ8_0,
	Q4_0: dequantizeQ4_0,
	Q4_1: dequantizeQ4_1,
};

/** Decodes whole rows (or blocks) of a stored type into `out`, which must have room for them. */
export function dequantize(type: WeightType, bytes: Uint8Array, out: Float32Array): void {
	DECODERS[type](bytes, out);
}
