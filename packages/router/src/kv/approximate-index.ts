// SPDX-License-Identifier: Apache-2.0
// What workers probably hold when they do not tell: the prompts that went to them, for a while or while there is room.
import type { KvRequest } from "./kv-scheduler.js";
import type { RadixTree } from "./radix-tree.js";

/** Blocks that were assumed at the same time. */
interface Assumed {
	readonly slot: number;
	readonly hashes: readonly bigint[];
	readonly until: number;
}

/** Writes assumptions into a tree that gets no events. */
export class ApproximateIndex {
	/** Blocks that gave way for want of room, and how often some did. */
	readonly evicted = { blocks: 0, batches: 0 };
	readonly #tree: RadixTree;
	readonly #ttlMs: number;
	readonly #capacity: number;
	/** When each slot's blocks run out, by sequence hash. */
	readonly #until = new Map<number, Map<bigint, number>>();
	#queue: Assumed[] = [];
	#head = 0;

	/**
	 * @param ttlMs how long a prompt's blocks are believed to be there, milliseconds; infinite: until there is no room.
	 * @param capacity blocks of a worker's rank; those that were not used for longest give way.
	 */
	constructor(tree: RadixTree, ttlMs: number, capacity: number = Number.POSITIVE_INFINITY) {
		this.#tree = tree;
		this.#ttlMs = ttlMs;
		this.#capacity = capacity;
	}

	/** A prompt went to the worker: it is believed to hold its full blocks from now on, those it had for longer. */
	assume(slot: number, request: KvRequest, now: number): void {
		const { tokensHashes, sequenceHashes: hashes } = request;
		if (hashes.length === 0) return;
		const blocks = hashes.map((blockHash, i) => ({ blockHash, tokensHash: tokensHashes[i] as bigint }));
		this.#tree.apply(slot, "device", { type: "stored", parentHash: undefined, blocks });
		let ends = this.#until.get(slot);
		if (ends === undefined) {
			ends = new Map();
			this.#until.set(slot, ends);
		}
		const until = now + this.#ttlMs;
		// Kept in the order of use, a prompt's end before its beginning: what is before a block must outlive it.
		for (let i = hashes.length - 1; i >= 0; i--) {
			const hash = hashes[i] as bigint;
			ends.delete(hash);
			ends.set(hash, until);
		}
		if (ends.size > this.#capacity) this.#makeRoom(slot, ends);
		if (until !== Number.POSITIVE_INFINITY) this.#queue.push({ slot, hashes, until });
	}

	/** The worker is gone. */
	forget(slot: number): void {
		this.#until.delete(slot);
		this.#tree.clear(slot);
	}

	#makeRoom(slot: number, ends: Map<bigint, number>): void {
		const blockHashes: bigint[] = [];
		for (const hash of ends.keys()) {
			if (ends.size - blockHashes.length <= this.#capacity) break;
			blockHashes.push(hash);
		}
		for (const hash of blockHashes) ends.delete(hash);
		this.evicted.blocks += blockHashes.length;
		this.evicted.batches++;
		this.#tree.apply(slot, "device", { type: "removed", blockHashes });
	}

	/** Gives up what is too old. */
	expire(now: number): void {
		for (;;) {
			const oldest = this.#queue[this.#head];
			if (oldest === undefined || oldest.until > now) break;
			this.#head++;
			const ends = this.#until.get(oldest.slot);
			// Those that a later prompt brought again stay.
			const blockHashes = oldest.hashes.filter((hash) => (ends?.get(hash) ?? now + 1) <= now);
			for (const hash of blockHashes) ends?.delete(hash);
			if (ends?.size === 0) this.#until.delete(oldest.slot);
			this.#tree.apply(oldest.slot, "device", { type: "removed", blockHashes });
		}
		if (this.#head > 1024 && this.#head * 2 > this.#queue.length) {
			this.#queue = this.#queue.slice(this.#head);
			this.#head = 0;
		}
	}
}
