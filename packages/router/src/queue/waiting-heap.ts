// SPDX-License-Identifier: Apache-2.0

/** A binary heap: the first by `before` is on top. */
export class WaitingHeap<T> {
	readonly #items: T[] = [];
	readonly #before: (a: T, b: T) => boolean;

	/** @param before true when a goes before b; never for both orders. */
	constructor(before: (a: T, b: T) => boolean) {
		this.#before = before;
	}

	get size(): number {
		return this.#items.length;
	}

	/** All, in no order. */
	values(): readonly T[] {
		return this.#items;
	}

	/** The first; undefined when empty. */
	peek(): T | undefined {
		return this.#items[0];
	}

	push(item: T): void {
		const items = this.#items;
		let at = items.push(item) - 1;
		while (at > 0) {
			const parent = (at - 1) >> 1;
			if (!this.#before(item, items[parent] as T)) break;
			items[at] = items[parent] as T;
			at = parent;
		}
		items[at] = item;
	}

	/** Takes the first out. */
	pop(): T | undefined {
		const items = this.#items;
		const top = items[0];
		const last = items.pop();
		if (items.length === 0 || last === undefined) return top;
		let at = 0;
		for (;;) {
			let child = 2 * at + 1;
			if (child >= items.length) break;
			if (child + 1 < items.length && this.#before(items[child + 1] as T, items[child] as T)) child++;
			if (!this.#before(items[child] as T, last)) break;
			items[at] = items[child] as T;
			at = child;
		}
		items[at] = last;
		return top;
	}

	/** Drops those that are not to be kept. */
	retain(keep: (item: T) => boolean): void {
		const kept = this.#items.filter(keep);
		this.#items.length = 0;
		for (const item of kept) this.push(item);
	}
}
