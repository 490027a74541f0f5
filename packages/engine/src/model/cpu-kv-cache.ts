// SPDX-License-Identifier: Apache-2.0
// Keys and values on the CPU, in two places. ONNX Runtime's attention wants each sequence in one piece, so running
// sequences have slots: per layer and side an array [slots, kvHeads, maxModelLen, headDim]. What shall outlive a sequence
// is copied block by block into a pool: per block [layers, 2, kvHeads, blockSize, headDim].
// Memory comes zeroed and its pages are only committed when first written, so unused length costs nothing.

import type { SharedBlocks } from "../kv/kv-port.js";
import type { CacheGeometry } from "./cache-memory.js";

/**
 * Arrays are carved out of buffers of at least this size, bytes: an allocator maps such a size anew, where a
 * smaller one may be recycled memory that has to be cleared, and so committed, at once.
 */
const MIN_BUFFER_BYTES = 64 * 2 ** 20;
/** Most bytes of one buffer of the pool. */
const POOL_BUFFER_BYTES = 2 ** 30;

export interface CpuKvCacheOptions extends CacheGeometry {
	readonly numSlots: number;
	readonly maxModelLen: number;
	readonly numBlocks: number;
	readonly blockSize: number;
}

/** Slots and pool; see the head of the file. */
export class CpuKvCache {
	/** Keys of layer 0, values of layer 0, keys of layer 1 ...: bytes of [slots, kvHeads, maxModelLen, headDim]. */
	readonly slots: readonly Uint8Array[];
	/** Bytes of one slot in one array. */
	readonly slotBytes: number;
	/** Bytes of one block in the pool. */
	readonly blockBytes: number;
	/** The pool; other threads may read and write blocks of theirs. */
	readonly shared: SharedBlocks;
	private readonly pool: readonly Uint8Array[];
	private readonly blocksPerBuffer: number;
	private readonly heads: number;
	private readonly blockSize: number;
	/** Bytes of one token of one head on one side of one layer. */
	private readonly tokenBytes: number;
	/** Bytes of one head of a slot. */
	private readonly headBytes: number;

	/** @throws RangeError when the memory cannot be reserved. */
	constructor(options: CpuKvCacheOptions) {
		const { numSlots, maxModelLen, numBlocks, blockSize } = options;
		this.heads = options.numKvHeads;
		this.blockSize = blockSize;
		this.tokenBytes = options.headDim * options.bytesPerElement;
		this.headBytes = maxModelLen * this.tokenBytes;
		this.slotBytes = this.heads * this.headBytes;
		const sides = options.numLayers * 2;
		this.blockBytes = sides * this.heads * blockSize * this.tokenBytes;
		this.blocksPerBuffer = Math.max(1, Math.floor(POOL_BUFFER_BYTES / this.blockBytes));
		try {
			this.slots = carve(sides, numSlots * this.slotBytes);
			const pool: SharedArrayBuffer[] = [];
			for (let left = numBlocks; left > 0; left -= this.blocksPerBuffer) {
				const count = Math.min(left, this.blocksPerBuffer);
				pool.push(new SharedArrayBuffer(Math.max(count * this.blockBytes, MIN_BUFFER_BYTES)));
			}
			this.pool = pool.map((buffer) => new Uint8Array(buffer));
			this.shared = { buffers: pool, blocksPerBuffer: this.blocksPerBuffer, blockBytes: this.blockBytes };
		} catch (cause) {
			const bytes = sides * numSlots * this.slotBytes + numBlocks * this.blockBytes;
			throw new RangeError(
				`${numSlots} sequences of ${maxModelLen} tokens and ${numBlocks} blocks need ${bytes} bytes of cache, ` +
					"which cannot be reserved; use fewer sequences (maxNumSeqs), a shorter context (maxModelLen) or less cache " +
					"memory (kvCacheMemory)",
				{ cause },
			);
		}
	}

	/** The bytes of a block in the pool. */
	block(block: number): Uint8Array {
		const buffer = this.pool[Math.floor(block / this.blocksPerBuffer)]!;
		const at = (block % this.blocksPerBuffer) * this.blockBytes;
		return buffer.subarray(at, at + this.blockBytes);
	}

	/** Copies block number `index` of a slot into the pool, also where the slot ends within it. */
	store(slot: number, index: number, block: number): void {
		const target = this.block(block);
		const piece = this.blockSize * this.tokenBytes;
		const length = Math.min(piece, this.headBytes - index * piece);
		let to = 0;
		for (const array of this.slots) {
			for (let head = 0; head < this.heads; head++) {
				const from = slot * this.slotBytes + head * this.headBytes + index * piece;
				target.set(array.subarray(from, from + length), to);
				to += piece;
			}
		}
	}

	/** Copies a block of the pool into a slot, as its block number `index`, as far as the slot reaches. */
	load(block: number, slot: number, index: number): void {
		const source = this.block(block);
		const piece = this.blockSize * this.tokenBytes;
		const length = Math.min(piece, this.headBytes - index * piece);
		let from = 0;
		for (const array of this.slots) {
			for (let head = 0; head < this.heads; head++) {
				const to = slot * this.slotBytes + head * this.headBytes + index * piece;
				array.set(source.subarray(from, from + length), to);
				from += piece;
			}
		}
	}

	/** Copies tokens 0 .. length - 1 of one slot to another. */
	copySlot(from: number, to: number, length: number): void {
		const bytes = length * this.tokenBytes;
		for (const array of this.slots) {
			for (let head = 0; head < this.heads; head++) {
				const source = from * this.slotBytes + head * this.headBytes;
				array.copyWithin(to * this.slotBytes + head * this.headBytes, source, source + bytes);
			}
		}
	}
}

/** `count` arrays of `size` bytes, several to a buffer where they are small. */
function carve(count: number, size: number): Uint8Array[] {
	const arrays: Uint8Array[] = [];
	const perBuffer = Math.ceil(MIN_BUFFER_BYTES / size);
	let buffer = new ArrayBuffer(0);
	for (let i = 0; i < count; i++) {
		if (i % perBuffer === 0) buffer = new ArrayBuffer(perBuffer * size);
		arrays.push(new Uint8Array(buffer, (i % perBuffer) * size, size));
	}
	return arrays;
}
