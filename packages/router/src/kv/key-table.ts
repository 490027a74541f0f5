// SPDX-License-Identifier: Apache-2.0
// Numbers for keys that consist of a number and a hash of 64 bits, in typed arrays: a million of them are a few arrays
// to the garbage collector, and none of them is an object.

/** Load above which the table grows. */
const MAX_LOAD = 0.7;
const FIRST_CAPACITY = 64;

/** A copy with room for `size` elements. */
export function grown<A extends Int32Array | Uint32Array | Uint8Array>(array: A, size: number): A {
	const larger = new (array.constructor as new (length: number) => A)(size);
	larger.set(array);
	return larger;
}

/** Gives each key a number from 1 on; the number of one that was deleted goes to a later one. */
export class KeyTable {
	/** The keys by number; those of deleted ones mean nothing. */
	owner = new Int32Array(FIRST_CAPACITY);
	low = new Uint32Array(FIRST_CAPACITY);
	high = new Uint32Array(FIRST_CAPACITY);
	/** Numbers in places that the keys' hashes give; 0: free. */
	#table = new Int32Array(2 * FIRST_CAPACITY);
	#mask = 2 * FIRST_CAPACITY - 1;
	#size = 0;
	/** One more than the highest number that was ever given. */
	#end = 1;
	/** A chain through {@link owner} of numbers to be given again; 0: none. */
	#free = 0;

	/** Keys in the table. */
	get size(): number {
		return this.#size;
	}

	/** Numbers are smaller than this; it only grows. */
	get end(): number {
		return this.#end;
	}

	/** Length of the arrays that are indexed by number. */
	get capacity(): number {
		return this.owner.length;
	}

	/** Bytes of all arrays. */
	get bytes(): number {
		return this.owner.byteLength + this.low.byteLength + this.high.byteLength + this.#table.byteLength;
	}

	/** The key's number; 0 when it is not there. */
	find(owner: number, low: number, high: number): number {
		const { owner: owners, low: lows, high: highs } = this;
		const table = this.#table;
		const mask = this.#mask;
		for (let at = mixed(owner, low, high) & mask; ; at = (at + 1) & mask) {
			const number = table[at] as number;
			if (number === 0) return 0;
			if (lows[number] === low && highs[number] === high && owners[number] === owner) return number;
		}
	}

	/** Adds a key that is not there. @returns its number. */
	add(owner: number, low: number, high: number): number {
		if (this.#size + 1 > this.#table.length * MAX_LOAD) this.#rebuild();
		let number = this.#free;
		if (number !== 0) this.#free = this.owner[number] as number;
		else {
			number = this.#end++;
			if (number >= this.owner.length) {
				const size = Math.ceil(this.owner.length * 1.5);
				this.owner = grown(this.owner, size);
				this.low = grown(this.low, size);
				this.high = grown(this.high, size);
			}
		}
		this.owner[number] = owner;
		this.low[number] = low;
		this.high[number] = high;
		this.#size++;
		this.#put(number);
		return number;
	}

	/** Takes a key out. */
	delete(number: number): void {
		const table = this.#table;
		const mask = this.#mask;
		let hole = this.#home(number);
		while (table[hole] !== number) hole = (hole + 1) & mask;
		// Those behind it move up, so that no search ends before them.
		for (let at = (hole + 1) & mask; table[at] !== 0; at = (at + 1) & mask) {
			const home = this.#home(table[at] as number);
			const stays = hole <= at ? hole < home && home <= at : hole < home || home <= at;
			if (stays) continue;
			table[hole] = table[at] as number;
			hole = at;
		}
		table[hole] = 0;
		this.owner[number] = this.#free;
		this.#free = number;
		this.#size--;
	}

	#home(number: number): number {
		return mixed(this.owner[number] as number, this.low[number] as number, this.high[number] as number) & this.#mask;
	}

	#put(number: number): void {
		const table = this.#table;
		const mask = this.#mask;
		let at = this.#home(number);
		while (table[at] !== 0) at = (at + 1) & mask;
		table[at] = number;
	}

	#rebuild(): void {
		const old = this.#table;
		this.#table = new Int32Array(old.length * 2);
		this.#mask = this.#table.length - 1;
		for (const number of old) if (number !== 0) this.#put(number);
	}
}

/** Some engines count instead of hashing: all bits of the key have a say in the low ones. */
function mixed(owner: number, low: number, high: number): number {
	let hash = Math.imul(low ^ ((high << 16) | (high >>> 16)), 0x9e3779b1) + Math.imul(owner, 0x85ebca77);
	hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
	return hash ^ (hash >>> 13);
}
