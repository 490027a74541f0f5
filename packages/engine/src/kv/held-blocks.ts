// SPDX-License-Identifier: Apache-2.0
// Blocks of requests that have ended, kept for another engine to fetch: whose they are, and who may take them back. The
// engine thread keeps and gives up, the thread of its owner reads; a counter per place in shared memory lies between them,
// so that neither waits for the other.

import type { BlockManager, BlockOwner } from "../cache/block-manager.js";

/** Requests whose blocks can be kept at a time. */
export const MAX_HELD = 1024;
/** Low bits of a state: 0 = nothing kept, 1 = kept, 1 + n = read by n. The others count how often the place was used. */
const COUNT_BITS = 8;
const COUNT_MASK = (1 << COUNT_BITS) - 1;
const MOST_READERS = COUNT_MASK - 1;
/** Uses after which a place's counter begins anew. */
const USES = 2 ** 20;

/** Memory that both threads see, nothing kept. */
export function createHeldStates(): Int32Array {
	return new Int32Array(new SharedArrayBuffer(MAX_HELD * Int32Array.BYTES_PER_ELEMENT));
}

/** The place that an id names. */
function placeOf(id: number): number {
	return id % MAX_HELD;
}

/** Whether a state belongs to the id's use of its place, and something is kept. */
function isKept(state: number, id: number): boolean {
	return (state & COUNT_MASK) > 0 && state >> COUNT_BITS === Math.floor(id / MAX_HELD);
}

/**
 * Begins to read: the blocks stay until `unpin`.
 * @returns false when they were given up or released.
 */
export function pin(states: Int32Array, id: number): boolean {
	const place = placeOf(id);
	for (;;) {
		const state = Atomics.load(states, place);
		if (!isKept(state, id) || (state & COUNT_MASK) > MOST_READERS) return false;
		if (Atomics.compareExchange(states, place, state, state + 1) === state) return true;
	}
}

/** Ends what a successful `pin` began. */
export function unpin(states: Int32Array, id: number): void {
	Atomics.sub(states, placeOf(id), 1);
}

export interface HeldBlocksOptions {
	readonly blocks: BlockManager;
	readonly states: Int32Array;
	/** Most blocks kept: beyond it the oldest are given up. */
	readonly maxBlocks: number;
	/** Told of each that is given up for want of room. */
	onGivenUp(id: number): void;
}

/** The engine thread's side. Nobody else frees these blocks. */
export class HeldBlocks {
	private readonly options: HeldBlocksOptions;
	/** By id, the oldest first. */
	private readonly held = new Map<number, BlockOwner>();
	private readonly uses = new Int32Array(MAX_HELD);
	private numBlocks = 0;
	private next = 0;

	constructor(options: HeldBlocksOptions) {
		this.options = options;
	}

	/** Requests whose blocks are kept. */
	get size(): number {
		return this.held.size;
	}

	/** Blocks kept; one that two requests share counts twice. */
	get blockCount(): number {
		return this.numBlocks;
	}

	/**
	 * Takes over the first `count` blocks of an owner, which owns none afterwards.
	 * @returns the id; undefined when there is no room to keep them: the owner has all of its blocks still.
	 */
	keep(owner: BlockOwner, count: number): number | undefined {
		const { blocks, maxBlocks, states } = this.options;
		while (this.held.size === MAX_HELD || (this.held.size > 0 && this.numBlocks + count > maxBlocks)) {
			if (!this.giveUpOldest()) return undefined;
		}
		const place = this.freePlace();
		const rest: BlockOwner = {
			blocks: owner.blocks.subarray(count, owner.numBlocks),
			numBlocks: owner.numBlocks - count,
			numNamed: 0,
		};
		this.uses[place] = (this.uses[place]! + 1) % USES;
		const id = this.uses[place]! * MAX_HELD + place;
		this.held.set(id, { blocks: owner.blocks.slice(0, count), numBlocks: count, numNamed: 0 });
		this.numBlocks += count;
		owner.numBlocks = 0;
		owner.numNamed = 0;
		blocks.release(rest);
		Atomics.store(states, place, (this.uses[place]! << COUNT_BITS) | 1);
		return id;
	}

	/** The blocks of a request, in the order of their tokens; undefined when they are not kept any more. */
	find(id: number): Int32Array | undefined {
		return this.held.get(id)?.blocks;
	}

	/** Frees the blocks of a request that nobody reads. Unknown ids are ignored. */
	release(id: number): void {
		const owner = this.held.get(id);
		if (owner === undefined) return;
		Atomics.store(this.options.states, placeOf(id), 0);
		this.free(id, owner);
	}

	/**
	 * Frees the blocks of the request that was kept longest and is not being read.
	 * @returns false when there is none.
	 */
	giveUpOldest(): boolean {
		const { states } = this.options;
		for (const [id, owner] of this.held) {
			const place = placeOf(id);
			const kept = (this.uses[place]! << COUNT_BITS) | 1;
			if (Atomics.compareExchange(states, place, kept, 0) !== kept) continue;
			this.free(id, owner);
			this.options.onGivenUp(id);
			return true;
		}
		return false;
	}

	private free(id: number, owner: BlockOwner): void {
		this.held.delete(id);
		this.numBlocks -= owner.numBlocks;
		this.options.blocks.release(owner);
	}

	private freePlace(): number {
		// Fewer than MAX_HELD are held.
		while (Atomics.load(this.options.states, this.next) !== 0) this.next = (this.next + 1) % MAX_HELD;
		const place = this.next;
		this.next = (this.next + 1) % MAX_HELD;
		return place;
	}
}
