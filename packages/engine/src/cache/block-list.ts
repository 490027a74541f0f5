// SPDX-License-Identifier: Apache-2.0
// A list of block ids in which each id is at most once: taken from the front, added at either end, removed from the
// middle, all in constant time and without allocation.

const NONE = -1;

export class BlockList {
	private readonly next: Int32Array;
	private readonly previous: Int32Array;
	private readonly isMember: Uint8Array;
	private front = NONE;
	private back = NONE;
	private count = 0;

	/** @param numBlocks ids are 0 .. numBlocks - 1. */
	constructor(numBlocks: number) {
		this.next = new Int32Array(numBlocks).fill(NONE);
		this.previous = new Int32Array(numBlocks).fill(NONE);
		this.isMember = new Uint8Array(numBlocks);
	}

	get size(): number {
		return this.count;
	}

	has(block: number): boolean {
		return this.isMember[block] === 1;
	}

	/** @throws Error when the block is in the list. */
	pushBack(block: number): void {
		this.enter(block);
		this.previous[block] = this.back;
		this.next[block] = NONE;
		if (this.back === NONE) this.front = block;
		else this.next[this.back] = block;
		this.back = block;
	}

	/** @throws Error when the block is in the list. */
	pushFront(block: number): void {
		this.enter(block);
		this.next[block] = this.front;
		this.previous[block] = NONE;
		if (this.front === NONE) this.back = block;
		else this.previous[this.front] = block;
		this.front = block;
	}

	/** @throws Error when the list is empty. */
	popFront(): number {
		const block = this.front;
		if (block === NONE) throw new Error("the list of blocks is empty");
		this.remove(block);
		return block;
	}

	/** @throws Error when the block is not in the list. */
	remove(block: number): void {
		if (this.isMember[block] !== 1) throw new Error(`block ${block} is not in the list`);
		const before = this.previous[block]!;
		const after = this.next[block]!;
		if (before === NONE) this.front = after;
		else this.next[before] = after;
		if (after === NONE) this.back = before;
		else this.previous[after] = before;
		this.isMember[block] = 0;
		this.count--;
	}

	private enter(block: number): void {
		if (this.isMember[block] !== 0) throw new Error(`block ${block} is in the list already`);
		this.isMember[block] = 1;
		this.count++;
	}
}
