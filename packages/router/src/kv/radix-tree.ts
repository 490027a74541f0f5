// SPDX-License-Identifier: Apache-2.0
// What every worker's cache holds, as a tree of blocks: a path from the root is a prompt's prefix. Edges are hashes of
// a block's tokens, which all engines compute alike; the engines' own names of blocks only find parents and what is removed.
import { type RouterEventData, STORAGE_TIERS, type StorageTier } from "@dynamo-ts/protocols/internal";

/** A block in its place. Most have one child and few holders, so both begin without a map. */
class BlockNode {
	readonly parent: BlockNode | undefined;
	readonly hash: bigint;
	/** The only child, or with `children` unused. */
	child: BlockNode | undefined;
	children: Map<bigint, BlockNode> | undefined;
	/** The only holder and its tiers; -1: none, or they are in `holders`. */
	holder = -1;
	tiers = 0;
	/** Bits of {@link tierBit} by slot. */
	holders: Map<number, number> | undefined;

	constructor(parent: BlockNode | undefined, hash: bigint) {
		this.parent = parent;
		this.hash = hash;
	}

	find(hash: bigint): BlockNode | undefined {
		if (this.children !== undefined) return this.children.get(hash);
		return this.child?.hash === hash ? this.child : undefined;
	}

	add(node: BlockNode): void {
		if (this.children !== undefined) this.children.set(node.hash, node);
		else if (this.child === undefined) this.child = node;
		else {
			this.children = new Map([
				[this.child.hash, this.child],
				[node.hash, node],
			]);
			this.child = undefined;
		}
	}

	drop(node: BlockNode): void {
		if (this.children !== undefined) {
			this.children.delete(node.hash);
			if (this.children.size === 0) this.children = undefined;
		} else if (this.child === node) this.child = undefined;
	}

	get isUnused(): boolean {
		return this.holder < 0 && this.holders === undefined && this.child === undefined && this.children === undefined;
	}

	tiersOf(slot: number): number {
		if (this.holder === slot) return this.tiers;
		return this.holders?.get(slot) ?? 0;
	}

	setTiers(slot: number, tiers: number): void {
		if (this.holders !== undefined) {
			if (tiers !== 0) this.holders.set(slot, tiers);
			else if (this.holders.delete(slot) && this.holders.size === 0) this.holders = undefined;
		} else if (this.holder === slot || this.holder < 0) {
			this.holder = tiers === 0 ? -1 : slot;
			this.tiers = tiers;
		} else if (tiers !== 0) {
			this.holders = new Map([
				[this.holder, this.tiers],
				[slot, tiers],
			]);
			this.holder = -1;
			this.tiers = 0;
		}
	}
}

const tierBit = (tier: StorageTier): number => 1 << STORAGE_TIERS.indexOf(tier);

/** Blocks of a prompt that workers hold, by slot. The arrays belong to the tree and are overwritten by its next search. */
export interface PrefixMatches {
	/** Slots with any match; the first {@link count} entries count. */
	readonly slots: Int32Array;
	count: number;
	/** Leading blocks in device memory. */
	device: Uint32Array;
	/** Blocks in pinned host memory that go on where those end; then on disk; then elsewhere. */
	hostPinned: Uint32Array;
	disk: Uint32Array;
	external: Uint32Array;
}

/** The index of a group of workers. Not for concurrent use by several threads. */
export class RadixTree {
	readonly #root = new BlockNode(undefined, 0n);
	/** Each slot's blocks by the engine's name. */
	readonly #blocks: (Map<bigint, BlockNode> | undefined)[] = [];
	#nodes = 0;
	#alive = new Int32Array(16);
	#matched = new Int32Array(16);
	#counts: Uint32Array[] = STORAGE_TIERS.map(() => new Uint32Array(16));
	#stage = new Uint8Array(16);
	#found: PrefixMatches | undefined;

	/** Blocks that any worker holds, each prefix once; inner ones that only lead to others included. */
	get size(): number {
		return this.#nodes;
	}

	/** Blocks of one slot, by the engine's names. */
	blocksOf(slot: number): number {
		return this.#blocks[slot]?.size ?? 0;
	}

	/**
	 * Takes a change in.
	 * @returns false for blocks behind a parent that this worker is not known to hold: they are left out, and the
	 * index is at odds with the worker.
	 */
	apply(slot: number, tier: StorageTier, data: RouterEventData): boolean {
		switch (data.type) {
			case "cleared":
				this.clear(slot);
				return true;
			case "removed":
				for (const hash of data.blockHashes) this.#remove(slot, hash, tierBit(tier));
				return true;
			case "stored":
				return this.#store(slot, tierBit(tier), data);
		}
	}

	#store(slot: number, bit: number, data: RouterEventData & { type: "stored" }): boolean {
		this.#makeRoom(slot);
		let blocks = this.#blocks[slot];
		let node = this.#root;
		if (data.parentHash !== undefined) {
			const parent = blocks?.get(data.parentHash);
			if (parent === undefined || parent.tiersOf(slot) === 0) return false;
			node = parent;
		}
		if (blocks === undefined) {
			blocks = new Map();
			this.#blocks[slot] = blocks;
		}
		for (const { blockHash, tokensHash } of data.blocks) {
			let next = node.find(tokensHash);
			if (next === undefined) {
				next = new BlockNode(node, tokensHash);
				node.add(next);
				this.#nodes++;
			}
			next.setTiers(slot, next.tiersOf(slot) | bit);
			const known = blocks.get(blockHash);
			if (known !== next) {
				blocks.set(blockHash, next);
				// The engine gave the name to another block: the old one is no longer there.
				if (known !== undefined) this.#letGo(slot, known);
			}
			node = next;
		}
		return true;
	}

	#remove(slot: number, blockHash: bigint, bit: number): void {
		const blocks = this.#blocks[slot];
		const node = blocks?.get(blockHash);
		if (blocks === undefined || node === undefined) return;
		const left = node.tiersOf(slot) & ~bit;
		if (left === 0) {
			blocks.delete(blockHash);
			this.#letGo(slot, node);
		} else node.setTiers(slot, left);
	}

	/** The slot holds the block no more; blocks that nobody needs go. */
	#letGo(slot: number, node: BlockNode): void {
		node.setTiers(slot, 0);
		for (let at = node; at.isUnused && at.parent !== undefined; at = at.parent) {
			// One that went before is under no parent any more.
			if (at.parent.find(at.hash) !== at) return;
			at.parent.drop(at);
			this.#nodes--;
		}
	}

	/** Forgets everything of a slot. */
	clear(slot: number): void {
		const blocks = this.#blocks[slot];
		if (blocks === undefined) return;
		this.#blocks[slot] = undefined;
		for (const node of blocks.values()) this.#letGo(slot, node);
	}

	/**
	 * Who holds how much of a prompt's beginning.
	 * @param hashes hashes of the prompt's full blocks by their tokens alone, in order.
	 */
	find(hashes: readonly bigint[]): PrefixMatches {
		const found = this.#begin();
		const { slots } = found;
		const alive = this.#alive;
		const stages = this.#stage;
		const counts = this.#counts;
		let node = hashes.length === 0 ? undefined : this.#root.find(hashes[0] as bigint);
		let left = 0;
		if (node !== undefined) {
			if (node.holder >= 0) alive[left++] = node.holder;
			else if (node.holders !== undefined) for (const slot of node.holders.keys()) alive[left++] = slot;
		}
		for (let i = 0; i < left; i++) {
			const slot = alive[i] as number;
			slots[i] = slot;
			stages[slot] = 0;
		}
		found.count = left;
		for (let at = 0; node !== undefined && left > 0; ) {
			let kept = 0;
			for (let i = 0; i < left; i++) {
				const slot = alive[i] as number;
				const tiers = node.tiersOf(slot);
				if (tiers === 0) continue;
				let stage = stages[slot] as number;
				while (stage < counts.length && (tiers & (1 << stage)) === 0) stage++;
				if (stage === counts.length) continue;
				stages[slot] = stage;
				(counts[stage] as Uint32Array)[slot]!++;
				alive[kept++] = slot;
			}
			left = kept;
			at++;
			node = at < hashes.length ? node.find(hashes[at] as bigint) : undefined;
		}
		return found;
	}

	/** Zeroes what the last search left. */
	#begin(): PrefixMatches {
		const last = this.#found;
		if (last !== undefined && last.slots === this.#matched) {
			for (let i = 0; i < last.count; i++) {
				for (const count of this.#counts) count[last.slots[i] as number] = 0;
			}
			last.count = 0;
			return last;
		}
		const [device, hostPinned, disk, external] = this.#counts as [Uint32Array, Uint32Array, Uint32Array, Uint32Array];
		this.#found = { slots: this.#matched, count: 0, device, hostPinned, disk, external };
		return this.#found;
	}

	#makeRoom(slot: number): void {
		const size = this.#alive.length;
		if (slot < size) return;
		const wanted = Math.max(slot + 1, size * 2);
		this.#alive = new Int32Array(wanted);
		this.#matched = new Int32Array(wanted);
		this.#stage = new Uint8Array(wanted);
		this.#counts = STORAGE_TIERS.map(() => new Uint32Array(wanted));
	}
}
