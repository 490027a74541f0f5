// SPDX-License-Identifier: Apache-2.0
// The block types of GGUF files. All have one form: integers of a few bits, in groups along a row that share a scale
// and, in some types, an offset: weight = scale * (q - zero) + offset. Layouts: ggml's block_* structures.

import { halfToFloatTable } from "./float-formats.js";

/** What the raw bytes of blocks hold. */
export interface UnpackedBlocks {
	/** One integer per weight, from 0 up. */
	readonly q: Uint8Array;
	/** One per group. */
	readonly scales: Float32Array;
	/** One per group, for types that have them. */
	readonly offsets: Float32Array | undefined;
}

/** Layout of a type. */
export interface BlockLayout {
	/** Weights in a block. */
	readonly weights: number;
	/** Bytes of a block. */
	readonly bytes: number;
	/** Weights that share a scale. */
	readonly group: 16 | 32;
	/** Of the integers as they are unpacked. */
	readonly bits: 2 | 3 | 4 | 5 | 6 | 8;
	/** The integer that stands for no weight at all, but for the offset. */
	readonly zero: number;
	/** Whether groups have offsets. */
	readonly offsets: boolean;
	/** Reads the block at `at`, the `block`th one. */
	readonly unpack: (raw: Uint8Array, at: number, block: number, out: UnpackedBlocks) => void;
}

const half = halfToFloatTable();

/** The half-precision number at `at`. */
function halfAt(raw: Uint8Array, at: number): number {
	return half[raw[at]! | (raw[at + 1]! << 8)]!;
}

/** Low nibbles are the first `count` weights, high ones the next. */
function nibbles(raw: Uint8Array, at: number, count: number, q: Uint8Array, to: number): void {
	for (let i = 0; i < count; i++) {
		const byte = raw[at + i]!;
		q[to + i] = byte & 15;
		q[to + count + i] = byte >> 4;
	}
}

/** Adds bit i of 32 as the fifth bit of weight i. */
function fifthBits(raw: Uint8Array, at: number, q: Uint8Array, to: number): void {
	for (let i = 0; i < 32; i++) q[to + i]! |= ((raw[at + (i >> 3)]! >> (i & 7)) & 1) << 4;
}

/** A type of 32 weights with one scale: [scale][offset][fifth bits][nibbles]. */
function simple(bits: 4 | 5, offsets: boolean): BlockLayout {
	const header = offsets ? 4 : 2;
	const nibblesAt = header + (bits === 5 ? 4 : 0);
	return {
		weights: 32,
		bytes: nibblesAt + 16,
		group: 32,
		bits,
		zero: offsets ? 0 : 1 << (bits - 1),
		offsets,
		unpack: (raw, at, block, out) => {
			out.scales[block] = halfAt(raw, at);
			if (out.offsets) out.offsets[block] = halfAt(raw, at + 2);
			nibbles(raw, at + nibblesAt, 16, out.q, block * 32);
			if (bits === 5) fifthBits(raw, at + header, out.q, block * 32);
		},
	};
}

const Q8_0: BlockLayout = {
	weights: 32,
	bytes: 34,
	group: 32,
	bits: 8,
	zero: 128,
	offsets: false,
	unpack: (raw, at, block, { q, scales }) => {
		scales[block] = halfAt(raw, at);
		// Two's complement with its sign bit turned counts from -128 up.
		for (let i = 0; i < 32; i++) q[block * 32 + i] = raw[at + 2 + i]! ^ 128;
	},
};

/** Scales and offsets of the eight groups of Q4_K and Q5_K, six bits each in twelve bytes. */
function sixBitPairs(raw: Uint8Array, at: number, block: number, scales: Float32Array, offsets: Float32Array): void {
	const d = halfAt(raw, at);
	const dmin = halfAt(raw, at + 2);
	for (let group = 0; group < 8; group++) {
		const low = at + 4 + (group & 3);
		let scale: number;
		let minimum: number;
		if (group < 4) {
			scale = raw[low]! & 63;
			minimum = raw[low + 4]! & 63;
		} else {
			scale = (raw[low + 8]! & 15) | ((raw[low]! >> 6) << 4);
			minimum = (raw[low + 8]! >> 4) | ((raw[low + 4]! >> 6) << 4);
		}
		scales[block * 8 + group] = d * scale;
		offsets[block * 8 + group] = -dmin * minimum;
	}
}

const Q4_K: BlockLayout = {
	weights: 256,
	bytes: 144,
	group: 32,
	bits: 4,
	zero: 0,
	offsets: true,
	unpack: (raw, at, block, { q, scales, offsets }) => {
		sixBitPairs(raw, at, block, scales, offsets!);
		for (let part = 0; part < 4; part++) nibbles(raw, at + 16 + part * 32, 32, q, block * 256 + part * 64);
	},
};

const Q5_K: BlockLayout = {
	weights: 256,
	bytes: 176,
	group: 32,
	bits: 5,
	zero: 0,
	offsets: true,
	unpack: (raw, at, block, { q, scales, offsets }) => {
		sixBitPairs(raw, at, block, scales, offsets!);
		for (let part = 0; part < 4; part++) {
			const to = block * 256 + part * 64;
			nibbles(raw, at + 48 + part * 32, 32, q, to);
			// Bit g of byte i is the fifth bit of weight i of group g.
			for (let i = 0; i < 32; i++) {
				const high = raw[at + 16 + i]! >> (2 * part);
				q[to + i]! |= (high & 1) << 4;
				q[to + 32 + i]! |= (high & 2) << 3;
			}
		}
	},
};

const Q6_K: BlockLayout = {
	weights: 256,
	bytes: 210,
	group: 16,
	bits: 6,
	zero: 32,
	offsets: false,
	unpack: (raw, at, block, { q, scales }) => {
		const d = halfAt(raw, at + 208);
		for (let group = 0; group < 16; group++) {
			scales[block * 16 + group] = d * ((raw[at + 192 + group]! << 24) >> 24);
		}
		for (let part = 0; part < 2; part++) {
			const to = block * 256 + part * 128;
			nibbles(raw, at + part * 64, 64, q, to);
			// nibbles() gives 64 low and 64 high ones: weights 0-63 and 64-127, as the type has them.
			for (let i = 0; i < 32; i++) {
				const high = raw[at + 128 + part * 32 + i]!;
				q[to + i]! |= (high & 3) << 4;
				q[to + 32 + i]! |= (high & 12) << 2;
				q[to + 64 + i]! |= high & 48;
				q[to + 96 + i]! |= (high & 192) >> 2;
			}
		}
	},
};

/** Pairs of bits in 64 bytes: each 32 bytes hold 128 weights, 32 for each of the four pairs of a byte. */
function bitPairs(raw: Uint8Array, at: number, q: Uint8Array, to: number): void {
	for (let i = 0; i < 64; i++) {
		const from = to + (i >> 5) * 128 + (i & 31);
		const byte = raw[at + i]!;
		q[from] = byte & 3;
		q[from + 32] = (byte >> 2) & 3;
		q[from + 64] = (byte >> 4) & 3;
		q[from + 96] = byte >> 6;
	}
}

const Q2_K: BlockLayout = {
	weights: 256,
	bytes: 84,
	group: 16,
	bits: 2,
	zero: 0,
	offsets: true,
	unpack: (raw, at, block, { q, scales, offsets }) => {
		const d = halfAt(raw, at + 80);
		const dmin = halfAt(raw, at + 82);
		for (let group = 0; group < 16; group++) {
			const byte = raw[at + group]!;
			scales[block * 16 + group] = d * (byte & 15);
			offsets![block * 16 + group] = -dmin * (byte >> 4);
		}
		bitPairs(raw, at + 16, q, block * 256);
	},
};

const Q3_K: BlockLayout = {
	weights: 256,
	bytes: 110,
	group: 16,
	bits: 3,
	zero: 4,
	offsets: false,
	unpack: (raw, at, block, { q, scales }) => {
		const d = halfAt(raw, at + 108);
		for (let group = 0; group < 16; group++) {
			// Low halves of the scales in eight bytes, high pairs in the four after them.
			const low = raw[at + 96 + (group & 7)]! >> (group < 8 ? 0 : 4);
			const high = raw[at + 104 + (group & 3)]! >> (2 * (group >> 2));
			scales[block * 16 + group] = d * (((low & 15) | ((high & 3) << 4)) - 32);
		}
		const to = block * 256;
		bitPairs(raw, at + 32, q, to);
		for (let i = 0; i < 256; i++) q[to + i]! |= ((raw[at + (i & 31)]! >> (i >> 5)) & 1) << 2;
	},
};

/** The sixteen weights of the IQ4 types, counted from -128 up. */
const IQ4_LEVELS = Uint8Array.of(1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241);

function iq4Levels(raw: Uint8Array, at: number, q: Uint8Array, to: number): void {
	nibbles(raw, at, 16, q, to);
	for (let i = to; i < to + 32; i++) q[i] = IQ4_LEVELS[q[i]!]!;
}

const IQ4_NL: BlockLayout = {
	weights: 32,
	bytes: 18,
	group: 32,
	bits: 8,
	zero: 128,
	offsets: false,
	unpack: (raw, at, block, { q, scales }) => {
		scales[block] = halfAt(raw, at);
		iq4Levels(raw, at + 2, q, block * 32);
	},
};

const IQ4_XS: BlockLayout = {
	weights: 256,
	bytes: 136,
	group: 32,
	bits: 8,
	zero: 128,
	offsets: false,
	unpack: (raw, at, block, { q, scales }) => {
		const d = halfAt(raw, at);
		const high = raw[at + 2]! | (raw[at + 3]! << 8);
		for (let group = 0; group < 8; group++) {
			const low = (raw[at + 4 + (group >> 1)]! >> (4 * (group & 1))) & 15;
			scales[block * 8 + group] = d * ((low | (((high >> (2 * group)) & 3) << 4)) - 32);
			iq4Levels(raw, at + 8 + group * 16, q, block * 256 + group * 32);
		}
	},
};

/** Layouts by ggml's names. */
export const BLOCK_LAYOUTS = {
	Q8_0,
	Q4_0: simple(4, false),
	Q4_1: simple(4, true),
	Q5_0: simple(5, false),
	Q5_1: simple(5, true),
	Q2_K,
	Q3_K,
	Q4_K,
	Q5_K,
	Q6_K,
	IQ4_NL,
	IQ4_XS,
} as const satisfies Record<string, BlockLayout>;

/** A block type. */
export type BlockType = keyof typeof BLOCK_LAYOUTS;

/** The layout of a type; undefined for types without blocks. */
export function blockLayout(type: string): BlockLayout | undefined {
	return Object.hasOwn(BLOCK_LAYOUTS, type) ? BLOCK_LAYOUTS[type as BlockType] : undefined;
}

/** Unpacks whole blocks. */
export function unpackBlocks(layout: BlockLayout, raw: Uint8Array): UnpackedBlocks {
	const blocks = raw.length / layout.bytes;
	const groups = (blocks * layout.weights) / layout.group;
	const out: UnpackedBlocks = {
		q: new Uint8Array(blocks * layout.weights),
		scales: new Float32Array(groups),
		offsets: layout.offsets ? new Float32Array(groups) : undefined,
	};
	for (let block = 0; block < blocks; block++) layout.unpack(raw, block * layout.bytes, block, out);
	return out;
}

/** Decodes whole blocks to fp32, bit for bit as ggml does it. */
export function dequantizeBlocks(layout: BlockLayout, raw: Uint8Array, out: Float32Array): void {
	const { q, scales, offsets } = unpackBlocks(layout, raw);
	const { group, zero } = layout;
	for (let i = 0; i < scales.length; i++) {
		const scale = scales[i]!;
		const offset = offsets ? offsets[i]! : 0;
		// The product of a scale and a few bits is exact in double precision, so the sum is rounded once, as in fp32.
		for (let k = i * group; k < (i + 1) * group; k++) out[k] = scale * (q[k]! - zero) + offset;
	}
}
