// SPDX-License-Identifier: Apache-2.0
// The key/value cache: per layer one array for keys and one for values, [slots, kvHeads, maxModelLen, headDim] fp32.
// Memory comes zeroed and its pages are only committed when first written, so unused length costs nothing.

import { kvBytesPerToken } from "./cache-memory.js";
import type { ModelConfig } from "./model-runner.js";

/**
 * Arrays are carved out of buffers of at least this size, bytes: an allocator maps such a size anew, where a
 * smaller one may be recycled memory that has to be cleared, and so committed, at once.
 */
const MIN_BUFFER_BYTES = 64 * 2 ** 20;

/** Keys and values of every layer and slot. */
export class KvMemory {
	/** Keys of layer 0, values of layer 0, keys of layer 1 ... */
	readonly arrays: readonly Float32Array[];
	readonly numSlots: number;
	readonly maxModelLen: number;
	/** Numbers of one slot in one array. */
	readonly slotSize: number;
	/** Bytes per token over all layers. */
	readonly bytesPerToken: number;
	readonly #heads: number;
	readonly #headDim: number;

	/** @throws RangeError when the memory cannot be reserved. */
	constructor(config: ModelConfig, numSlots: number, maxModelLen: number) {
		this.numSlots = numSlots;
		this.maxModelLen = maxModelLen;
		this.#heads = config.numKvHeads;
		this.#headDim = config.headDim;
		this.slotSize = config.numKvHeads * maxModelLen * config.headDim;
		this.bytesPerToken = kvBytesPerToken(config);
		const arrays: Float32Array[] = [];
		try {
			const size = numSlots * this.slotSize;
			const perBuffer = Math.ceil(MIN_BUFFER_BYTES / (size * 4));
			let buffer = new ArrayBuffer(0);
			for (let i = 0; i < config.numLayers * 2; i++) {
				if (i % perBuffer === 0) buffer = new ArrayBuffer(perBuffer * size * 4);
				arrays.push(new Float32Array(buffer, (i % perBuffer) * size * 4, size));
			}
		} catch (cause) {
			throw new RangeError(
				`${numSlots} slots of ${maxModelLen} tokens need ${numSlots * maxModelLen * this.bytesPerToken} bytes of cache, ` +
					"which cannot be reserved; use fewer slots or a shorter context",
				{ cause },
			);
		}
		this.arrays = arrays;
	}

	/** Copies tokens 0..length-1 of one slot to another. */
	copySlot(from: number, to: number, length: number): void {
		if (from === to || length === 0) return;
		const row = this.maxModelLen * this.#headDim;
		const count = length * this.#headDim;
		for (const array of this.arrays) {
			for (let head = 0; head < this.#heads; head++) {
				const source = from * this.slotSize + head * row;
				array.copyWithin(to * this.slotSize + head * row, source, source + count);
			}
		}
	}
}
