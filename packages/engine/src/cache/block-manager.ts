// SPDX-License-Identifier: Apache-2.0
// Who owns which KV block, and what can be found in them. Blocks are counted, named by Dynamo's chained hashes, shared
// by reference, and evicted least recently used first. Every change of what can be found is told here and nowhere else.
// Pure bookkeeping: no memory is touched.

import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";
import { BlockList } from "./block-list.js";
import type { PromptHashes } from "./prompt-hashes.js";

export interface BlockManagerOptions {
	/** Block ids are 0 .. numBlocks - 1. */
	readonly numBlocks: number;
	/** Tokens per block. */
	readonly blockSize: number;
	/** Whether full blocks can be found by later sequences; default true. */
	readonly enablePrefixCaching?: boolean | undefined;
	/** Told of each change of what can be found, in order. */
	readonly onEvent?: ((event: KvCacheEvent) => void) | undefined;
}

/** What a sequence is to the block manager. */
export interface BlockOwner {
	/** Ids of the blocks held, in the order of their tokens; only the first `numBlocks` count. */
	blocks: Int32Array;
	numBlocks: number;
	/** Blocks, from the first, that were found or have been named. */
	numNamed: number;
}

export class BlockManager {
	readonly numBlocks: number;
	readonly blockSize: number;
	readonly enablePrefixCaching: boolean;
	private readonly onEvent: ((event: KvCacheEvent) => void) | undefined;
	private readonly references: Int32Array;
	/** Name of each block; undefined where it cannot be found. */
	private readonly names: (bigint | undefined)[];
	private readonly byName = new Map<bigint, number>();
	/** Blocks without an owner, the next to be taken first; those with a name can still be found. */
	private readonly free: BlockList;

	/** @throws RangeError for sizes that are not whole numbers of at least 1. */
	constructor(options: BlockManagerOptions) {
		const { numBlocks, blockSize } = options;
		if (!Number.isInteger(numBlocks) || numBlocks < 1) throw new RangeError(`numBlocks is ${numBlocks}`);
		if (!Number.isInteger(blockSize) || blockSize < 1) throw new RangeError(`blockSize is ${blockSize}`);
		this.numBlocks = numBlocks;
		this.blockSize = blockSize;
		this.enablePrefixCaching = options.enablePrefixCaching ?? true;
		this.onEvent = options.onEvent;
		this.references = new Int32Array(numBlocks);
		this.names = new Array<bigint | undefined>(numBlocks).fill(undefined);
		this.free = new BlockList(numBlocks);
		for (let block = 0; block < numBlocks; block++) this.free.pushBack(block);
	}

	/** Blocks that nobody owns, the findable ones included. */
	get numFree(): number {
		return this.free.size;
	}

	/** Blocks with an owner. */
	get numUsed(): number {
		return this.numBlocks - this.free.size;
	}

	/** Blocks that can be found by name, owned or not. */
	get numCached(): number {
		return this.byName.size;
	}

	/** Whether a block can be found by name. */
	isNamed(block: number): boolean {
		return this.names[block] !== undefined;
	}

	/** Names of all blocks that can be found, in no order. */
	cachedNames(): bigint[] {
		return [...this.byName.keys()];
	}

	/** Blocks that hold `tokens` tokens. */
	blocksFor(tokens: number): number {
		return Math.ceil(tokens / this.blockSize);
	}

	/**
	 * How many blocks of a prompt can be found, from its first; at most `limit`.
	 * Looks only: nothing is owned or touched by it.
	 */
	countCached(hashes: PromptHashes, limit: number): number {
		if (!this.enablePrefixCaching) return 0;
		let found = 0;
		while (found < limit && this.byName.has(hashes.sequenceHash(found))) found++;
		return found;
	}

	/** Whether `owner` can be given the first `cached` blocks of `hashes` and fresh ones up to `total` blocks. */
	canAdmit(hashes: PromptHashes, cached: number, total: number): boolean {
		// Findable blocks without an owner are taken off the free list, too.
		let needed = total - cached;
		for (let i = 0; i < cached; i++) {
			if (this.references[this.byName.get(hashes.sequenceHash(i))!] === 0) needed++;
		}
		return needed <= this.free.size;
	}

	/**
	 * Gives an owner without blocks the first `cached` blocks of its prompt (as `countCached` found them) and fresh
	 * ones up to `total` blocks. `canAdmit` must have said yes.
	 */
	admit(owner: BlockOwner, hashes: PromptHashes, cached: number, total: number): void {
		if (owner.numBlocks !== 0) throw new Error("the sequence holds blocks already");
		this.reserve(owner, total);
		for (let i = 0; i < cached; i++) {
			const block = this.byName.get(hashes.sequenceHash(i))!;
			if (this.references[block]!++ === 0) this.free.remove(block);
			owner.blocks[owner.numBlocks++] = block;
		}
		owner.numNamed = cached;
		if (!this.grow(owner, total)) throw new Error("a sequence was admitted without room for it");
	}

	/**
	 * Extends an owner to `total` blocks.
	 * @returns false, with nothing changed, when there are too few free ones.
	 */
	grow(owner: BlockOwner, total: number): boolean {
		const needed = total - owner.numBlocks;
		if (needed <= 0) return true;
		if (needed > this.free.size) return false;
		this.reserve(owner, total);
		const evicted: bigint[] = [];
		for (let i = 0; i < needed; i++) {
			const block = this.free.popFront();
			const name = this.names[block];
			if (name !== undefined) {
				this.names[block] = undefined;
				this.byName.delete(name);
				evicted.push(name);
			}
			this.references[block] = 1;
			owner.blocks[owner.numBlocks++] = block;
		}
		if (evicted.length > 0) this.onEvent?.({ type: "removed", blockHashes: evicted });
		return true;
	}

	/**
	 * Makes the blocks of an owner findable whose tokens have all been computed.
	 * @param computed tokens whose keys and values are final.
	 * @param persist called with the place in the sequence and the id of each block that got a name, before it can be
	 *   found by others.
	 */
	nameFull(
		owner: BlockOwner,
		hashes: PromptHashes,
		computed: number,
		persist: (index: number, block: number) => void,
	): void {
		if (!this.enablePrefixCaching) return;
		const full = Math.floor(computed / this.blockSize);
		if (full <= owner.numNamed) return;
		// A block is found only behind those before it. Where another's copy of one of them was named and is gone by now,
		// our own takes its place.
		while (owner.numNamed > 0 && !this.byName.has(hashes.sequenceHash(owner.numNamed - 1))) owner.numNamed--;
		let first = owner.numNamed;
		for (; owner.numNamed < full; owner.numNamed++) {
			const index = owner.numNamed;
			const name = hashes.sequenceHash(index);
			// Another sequence computed the same at the same time: one copy is enough, and the later stays unnamed.
			if (this.byName.has(name)) {
				this.tellStored(hashes, first, index);
				first = index + 1;
				continue;
			}
			const block = owner.blocks[index]!;
			persist(index, block);
			this.names[block] = name;
			this.byName.set(name, block);
		}
		this.tellStored(hashes, first, full);
	}

	/** Gives all blocks of an owner back. Named ones can be found until they are taken. */
	release(owner: BlockOwner): void {
		// The end of a sequence is the first to be evicted: its beginning serves more prompts, and a block is of no use
		// without those before it.
		for (let i = owner.numBlocks - 1; i >= 0; i--) {
			const block = owner.blocks[i]!;
			if (--this.references[block]! > 0) continue;
			if (this.names[block] === undefined) this.free.pushFront(block);
			else this.free.pushBack(block);
		}
		owner.numBlocks = 0;
		owner.numNamed = 0;
	}

	/** Makes nothing findable any more; owners keep their blocks. */
	clear(): void {
		if (this.byName.size === 0) return;
		this.byName.clear();
		this.names.fill(undefined);
		this.onEvent?.({ type: "cleared" });
	}

	private tellStored(hashes: PromptHashes, from: number, to: number): void {
		if (this.onEvent === undefined || from >= to) return;
		const blocks = [];
		for (let i = from; i < to; i++) {
			blocks.push({ blockHash: hashes.sequenceHash(i), tokensHash: hashes.tokensHash(i) });
		}
		this.onEvent({
			type: "stored",
			parentHash: from === 0 ? undefined : hashes.sequenceHash(from - 1),
			blocks,
			tokenIds: hashes.tokens(from, to),
			blockSize: this.blockSize,
			...(hashes.cacheSalt === "" ? {} : { cacheSalt: hashes.cacheSalt }),
		});
	}

	private reserve(owner: BlockOwner, total: number): void {
		if (owner.blocks.length >= total) return;
		const grown = new Int32Array(Math.max(total, owner.blocks.length * 2, 8));
		grown.set(owner.blocks.subarray(0, owner.numBlocks));
		owner.blocks = grown;
	}
}
