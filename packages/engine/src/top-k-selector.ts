// SPDX-License-Identifier: Apache-2.0
// The k largest of many, by a bounded heap: one comparison for nearly every element, no sort of the whole.

/** Reusable scratch; after `select`, `ids` and `values` hold the result, largest first. */
export class TopKSelector {
	ids: Int32Array = new Int32Array(64);
	values: Float32Array = new Float32Array(64);
	/** Elements that the last `select` found. */
	size = 0;

	/**
	 * The k largest of `source[offset .. offset + length - 1]`; `ids` are positions relative to `offset`. Among equal
	 * values the lower position wins. NaN counts as -Infinity.
	 */
	select(source: Float32Array, offset: number, length: number, k: number): void {
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
			values[i] = Number.isNaN(value) ? Number.NEGATIVE_INFINITY : value;
		}
		for (let i = (size >> 1) - 1; i >= 0; i--) siftDown(ids, values, i, size);
		let smallest = values[0]!;
		// A later element that only equals the smallest loses by position.
		const consider = (i: number): void => {
			const value = source[offset + i]!;
			if (value <= smallest || Number.isNaN(value)) return;
			ids[0] = i;
			values[0] = value;
			siftDown(ids, values, 0, size);
			smallest = values[0]!;
		};
		let i = size;
		// Four at a time: nearly all lose, and one branch for four costs a third of four.
		for (const end = length - 3; i < end; i += 4) {
			const at = offset + i;
			if (
				source[at]! > smallest ||
				source[at + 1]! > smallest ||
				source[at + 2]! > smallest ||
				source[at + 3]! > smallest
			) {
				consider(i);
				consider(i + 1);
				consider(i + 2);
				consider(i + 3);
			}
		}
		for (; i < length; i++) consider(i);
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
