// SPDX-License-Identifier: Apache-2.0
// The simulated cache: a fixed number of blocks. A full block is known by a hash of its tokens and all before them, is
// shared while in use, and stays as idle cache afterwards until its place is needed. A block that is not full yet is
// only counted.

/** Names a block in its place: Dynamo's sequence hash. */
export type BlockHash = bigint;

export class MockBlockPool {
	readonly capacity: number;
	/** Sequences per block in use. */
	private readonly active = new Map<BlockHash, number>();
	/** In the order of eviction: longest idle first. */
	private readonly idle = new Set<BlockHash>();
	private unnamed = 0;
	private readonly onEvicted: (hash: BlockHash) => void;

	/**
	 * @param capacity blocks.
	 * @param onEvicted told of each block that can no longer be found.
	 */
	constructor(capacity: number, onEvicted: (hash: BlockHash) => void = () => {}) {
		this.capacity = capacity;
		this.onEvicted = onEvicted;
	}

	/** Blocks of running sequences. */
	get used(): number {
		return this.active.size + this.unnamed;
	}

	/** Blocks whose content stays for later requests. */
	get numIdle(): number {
		return this.idle.size;
	}

	/** Blocks that can be found, in use or idle. */
	get numNamed(): number {
		return this.active.size + this.idle.size;
	}

	/** How many of the first hashes are in the cache, and how many of these are idle. */
	findPrefix(hashes: readonly BlockHash[]): { found: number; idle: number } {
		let found = 0;
		let idle = 0;
		for (const hash of hashes) {
			if (this.idle.has(hash)) idle++;
			else if (!this.active.has(hash)) break;
			found++;
		}
		return { found, idle };
	}

	/** Uses a block that `findPrefix` found. */
	share(hash: BlockHash): void {
		const uses = this.active.get(hash);
		if (uses === undefined && !this.idle.delete(hash)) throw new Error(`block ${hash} is not in the cache`);
		this.active.set(hash, (uses ?? 0) + 1);
	}

	/** Takes `count` blocks for tokens to come, evicting idle ones. @returns false, taking none, when too few are left. */
	allocate(count: number): boolean {
		if (this.used + count > this.capacity) return false;
		this.unnamed += count;
		for (const hash of this.idle) {
			if (this.used + this.idle.size <= this.capacity) break;
			this.idle.delete(hash);
			this.onEvicted(hash);
		}
		return true;
	}

	/**
	 * Names a block taken by `allocate`, now that it is full; two of the same content become one.
	 * @returns true when no block had the name before.
	 */
	name(hash: BlockHash): boolean {
		this.unnamed--;
		const uses = this.active.get(hash) ?? 0;
		const known = this.idle.delete(hash) || uses > 0;
		this.active.set(hash, uses + 1);
		return !known;
	}

	/** Gives back a sequence's blocks: the named ones in order from its start, and how many have no name. */
	release(hashes: readonly BlockHash[], unnamed: number): void {
		this.unnamed -= unnamed;
		// From the end, so that tails are evicted before the prefixes that they need.
		for (let i = hashes.length - 1; i >= 0; i--) {
			const hash = hashes[i]!;
			const uses = this.active.get(hash);
			if (uses === undefined) throw new Error(`block ${hash} is not in use`);
			if (uses > 1) this.active.set(hash, uses - 1);
			else {
				this.active.delete(hash);
				this.idle.add(hash);
			}
		}
	}
}

/** A number out of a text: the seed of a request that has none. */
export function hashText(text: string): number {
	let low = 0x9e3779b1 | 0;
	let high = 0x85ebca6b | 0;
	for (let i = 0; i < text.length; i++) {
		low = Math.imul(low ^ text.charCodeAt(i), 0x01000193);
		low ^= low >>> 15;
		high = Math.imul(high ^ text.charCodeAt(i) ^ low, 0x5bd1e995);
		high ^= high >>> 13;
	}
	return (high & 0x1fffff) * 4294967296 + (low >>> 0);
}
