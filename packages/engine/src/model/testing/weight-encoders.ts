// SPDX-License-Identifier: Apache-2.0
// Writes weights in the stored types that the readers know. For tests: small and plain, not fast.

import { dequantize } from "../../weights/dequantize.js";
import { BLOCK_LAYOUTS, type BlockType } from "../../weights/gguf-blocks.js";
import type { WeightType } from "../../weights/weight-source.js";

const scratch = new DataView(new ArrayBuffer(4));

/** Nearest half-precision pattern of a number of moderate size. */
export function toHalf(value: number): number {
	const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
	const magnitude = Math.abs(value);
	if (magnitude < 2 ** -14) return sign | Math.round(magnitude * 2 ** 24);
	const exponent = Math.floor(Math.log2(magnitude));
	const mantissa = Math.round((magnitude / 2 ** exponent - 1) * 1024);
	return sign | (((exponent + 15) << 10) + mantissa);
}

/** Value of a half-precision pattern, by the definition of the format. */
export function fromHalf(bits: number): number {
	const sign = bits & 0x8000 ? -1 : 1;
	const exponent = (bits >> 10) & 31;
	const fraction = (bits & 1023) / 1024;
	return exponent === 0 ? sign * fraction * 2 ** -14 : sign * (1 + fraction) * 2 ** (exponent - 15);
}

function toBfloat(value: number): number {
	scratch.setFloat32(0, value);
	const bits = scratch.getUint32(0);
	return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function block(type: "Q8_0" | "Q4_0" | "Q4_1", values: Float32Array): Uint8Array {
	const out = Buffer.alloc(type === "Q8_0" ? 34 : type === "Q4_0" ? 18 : 20);
	const low = Math.min(...values);
	const high = Math.max(...values);
	if (type === "Q8_0") {
		const d = Math.max(-low, high) / 127;
		out.writeUInt16LE(toHalf(d), 0);
		for (let i = 0; i < 32; i++) out.writeInt8(d === 0 ? 0 : Math.round(values[i]! / d), 2 + i);
		return out;
	}
	const d = type === "Q4_0" ? Math.max(-low, high) / 7 : (high - low) / 15;
	const zero = type === "Q4_0" ? -8 * d : low;
	const q = (i: number) => (d === 0 ? 0 : Math.max(0, Math.min(15, Math.round((values[i]! - zero) / d))));
	out.writeUInt16LE(toHalf(d), 0);
	const at = type === "Q4_0" ? 2 : 4;
	if (type === "Q4_1") out.writeUInt16LE(toHalf(low), 2);
	for (let i = 0; i < 16; i++) out[at + i] = q(i) | (q(i + 16) << 4);
	return out;
}

/** Byte offsets of the half-precision numbers in a block. */
const SCALES_AT: Readonly<Record<BlockType, readonly number[]>> = {
	Q8_0: [0],
	Q4_0: [0],
	Q4_1: [0, 2],
	Q5_0: [0],
	Q5_1: [0, 2],
	Q2_K: [80, 82],
	Q3_K: [108],
	Q4_K: [0, 2],
	Q5_K: [0, 2],
	Q6_K: [208],
	IQ4_NL: [0],
	IQ4_XS: [0],
};

/** Sets the half-precision numbers of blocks, the `i`th of them to `value(i)`. */
export function setScales(type: BlockType, blocks: Uint8Array, value: (i: number) => number): Uint8Array {
	const { bytes } = BLOCK_LAYOUTS[type];
	const view = new DataView(blocks.buffer, blocks.byteOffset, blocks.byteLength);
	let i = 0;
	for (let block = 0; block < blocks.length; block += bytes) {
		for (const at of SCALES_AT[type]) view.setUint16(block + at, toHalf(value(i++)), true);
	}
	return blocks;
}

/**
 * Blocks of random integers that stand for weights of about the size `spread`.
 * @param random gives numbers in -1..1
 */
export function randomBlocks(type: BlockType, weights: number, spread: number, random: () => number): Uint8Array {
	const layout = BLOCK_LAYOUTS[type];
	const raw = Uint8Array.from({ length: (weights / layout.weights) * layout.bytes }, () => (random() + 1) * 127.99);
	// A scale of one shows how large the integers are.
	const unit = new Float32Array(weights);
	dequantize(
		type,
		setScales(type, raw.slice(), () => 1),
		unit,
	);
	const size = Math.sqrt(unit.reduce((sum, value) => sum + value ** 2, 0) / weights);
	return setScales(type, raw, () => ((1 + random() / 2) * spread) / size);
}

/** Bytes of numbers in a stored type; the count is a multiple of 32 for Q types. */
export function encodeWeights(type: WeightType, values: Float32Array): Uint8Array {
	switch (type) {
		case "F32":
			return new Uint8Array(values.slice().buffer);
		case "F16":
			return new Uint8Array(Uint16Array.from(values, toHalf).buffer);
		case "BF16":
			return new Uint8Array(Uint16Array.from(values, toBfloat).buffer);
		case "Q8_0":
		case "Q4_0":
		case "Q4_1": {
			const blocks: Uint8Array[] = [];
			for (let i = 0; i < values.length; i += 32) blocks.push(block(type, values.subarray(i, i + 32)));
			return Buffer.concat(blocks);
		}
		default:
			throw new TypeError(`weights cannot be written as ${type}; take random blocks`);
	}
}
