// SPDX-License-Identifier: Apache-2.0
// The k largest of many, by a bounded heap: one comparison for nearly every element, no sort of the whole.

import { isAllowed } from "./token-mask.js";

/** Reusable scratch; after `select`, `ids` and `values` hold the result, largest first. */
export class TopKSelector {
	ids: Int32Array = new Int32Array(64);
	values: Float32Array = new Float32Array(64);
	/** Elements that the last `select` found. */
	size = 0;

	/**
	 * The k largest of `source[offset .. offset + length - 1]`; `ids` are positions relative to `offset`. Among equal
	 * values the lower position wins. NaN, and positions that `mask` (see `TokenMask`) does not have, count as
	 * -Infinity.
	 */
	select(source: Float32Array, offset: number, length: number, k: number, mask?: Uint32Array): void {
		const size = Math.min(k, length);
		if (size > this.ids.length) {
			const capacity = Math.max(size, this.ids.length * 2);
			this.ids = new Int32Array(capacity);
			this.values = new Float32Array(capacity);
		}
		this.size = size;
		if (size === 0) return;
		const { ids, values } = this;
		for (let i = 0; i < size; i++) {
			const value = source[offset + i]!;
			ids[i] = i;
			values[i] = Number.isNaN(value) || !isAllowed(mask, i) ? Number.NEGATIVE_INFINITY : value;
		}
		for (let i = (size >> 1) - 1; i >= 0; i--) siftDown(ids, values, i, size);
		let smallest = values[0]!;
		let i = size;
		while (i < length) {
			if (mask !== undefined && (i & 31) === 0 && (mask[i >> 5] ?? 0) === 0) {
				i += 32;
				continue;
			}
			const at = offset + i;
			// Four at a time: nearly all lose, and one branch for four costs a third of four.
			if (
				(i & 3) === 0 &&
				i + 4 <= length &&
				!(source[at]! > smallest) &&
				!(source[at + 1]! > smallest) &&
				!(source[at + 2]! > smallest) &&
				!(source[at + 3]! > smallest)
			) {
				i += 4;
				continue;
			}
			// The mask is asked only about those that would win. An equal one loses by position.
			for (const end = Math.min((i | 3) + 1, length); i < end; i++) {
				const value = source[offset + i]!;
				if (!(value > smallest) || !isAllowed(mask, i)) continue;
				ids[0] = i;
				values[0] = value;
				siftDown(ids, values, 0, size);
				smallest = values[0]!;
			}
		}
		for (let end = size - 1; end > 0; end--) {
			const id = ids[0]!;
			const value = values[0]!;
			ids[0] = ids[end]!;
			values[0] = values[end]!;
			ids[end] = id;
			values[end] = value;
			siftDown(ids, values, 0, end);
		}
	}
}

/** Restores the heap (smallest on top; among equals the highest position) below `i`. */
function siftDown(ids: Int32Array, values: Float32Array, i: number, size: number): void {
	const id = ids[i]!;
	const value = values[i]!;
	let hole = i;
	for (;;) {
		let child = 2 * hole + 1;
		if (child >= size) break;
		const right = child + 1;
		if (right < size && isBefore(ids[right]!, values[right]!, ids[child]!, values[child]!)) child = right;
		if (!isBefore(ids[child]!, values[child]!, id, value)) break;
		ids[hole] = ids[child]!;
		values[hole] = values[child]!;
		hole = child;
	}
	ids[hole] = id;
	values[hole] = value;
}

function isBefore(idA: number, valueA: number, idB: number, valueB: number): boolean {
	return valueA < valueB || (valueA === valueB && idA > idB);
}
