// SPDX-License-Identifier: Apache-2.0
// What every worker's cache holds, as a tree of blocks: a path from the root is a prompt's prefix. Edges are hashes of
// a block's tokens, which all engines compute alike; the engines' own names of blocks only find parents and what is removed.
import { type RouterEventData, STORAGE_TIERS, type StorageTier } from "@dynamo-ts/protocols/internal";
import { grown, KeyTable } from "./key-table.js";

const tierBit = (tier: StorageTier): number => 1 << STORAGE_TIERS.indexOf(tier);

/** A block with more holders than this has their tiers in an array by slot as well. */
const MANY_HOLDERS = 16;

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

/**
 * The index of a group of workers. Not for concurrent use by several threads.
 *
 * A node is a block in its place: number 0 is the root, the others are the keys (parent's number, tokens hash). A
 * holding is a slot's block under the engine's name for it: the keys (slot, block hash). The holdings of a node are a
 * chain through it.
 */
export class RadixTree {
	/** Blocks that were stored where they were already. */
	duplicates = 0;
	readonly #nodes = new KeyTable();
	/** The first holding of a node, 0: none; how many it has; and how many children. */
	#firstHolding = new Int32Array(64);
	#holdingCount = new Int32Array(64);
	#childCount = new Int32Array(64);
	/** Tiers by slot, of nodes with many holdings. */
	readonly #wide = new Map<number, Uint8Array>();
	readonly #holdings = new KeyTable();
	/** The node of a holding, its neighbours in that node's chain, and its {@link tierBit}s; 0: not in use. */
	#node = new Int32Array(64);
	#next = new Int32Array(64);
	#previous = new Int32Array(64);
	#tiers = new Uint8Array(64);
	/** Holdings by slot. */
	#blocks = new Int32Array(16);
	/** For the two halves of a hash. */
	readonly #hash = new BigUint64Array(1);
	readonly #halves = new Uint32Array(this.#hash.buffer);
	// The rest is for searches. By slot: the depth that the slot has matched to, counted from a number of the search's own.
	#reached = new Float64Array(16);
	#searches = 1;
	#alive = new Int32Array(16);
	#level = new Int32Array(16);
	#levelTiers = new Uint8Array(16);
	#matched = new Int32Array(16);
	#counts: Uint32Array[] = STORAGE_TIERS.map(() => new Uint32Array(16));
	#stage = new Uint8Array(16);
	/** The last search found blocks below the device. */
	#countedBelow = false;
	#found: PrefixMatches | undefined;

	/** Blocks that any worker holds, each prefix once; inner ones that only lead to others included. */
	get size(): number {
		return this.#nodes.size;
	}

	/** Blocks of all slots. */
	get holdings(): number {
		return this.#holdings.size;
	}

	/** Memory of the index, bytes. */
	get bytes(): number {
		let bytes = this.#nodes.bytes + this.#holdings.bytes;
		for (const array of [this.#firstHolding, this.#holdingCount, this.#childCount]) bytes += array.byteLength;
		for (const array of [this.#node, this.#next, this.#previous, this.#tiers]) bytes += array.byteLength;
		for (const array of this.#wide.values()) bytes += array.byteLength;
		return bytes;
	}

	/** Blocks of one slot, by the engine's names. */
	blocksOf(slot: number): number {
		return this.#blocks[slot] ?? 0;
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
		let node = 0;
		if (data.parentHash !== undefined) {
			const parent = this.#find(slot, data.parentHash);
			if (parent === 0) return false;
			node = this.#node[parent] as number;
		}
		for (const { blockHash, tokensHash } of data.blocks) {
			const child = this.#childOf(node, tokensHash);
			const holding = this.#find(slot, blockHash);
			if (holding === 0) this.#hold(child, slot, blockHash, bit);
			else if (this.#node[holding] === child) {
				const held = this.#tiers[holding] as number;
				if ((held & bit) !== 0) this.duplicates++;
				this.#setTiers(holding, held | bit);
			} else this.#move(holding, child, bit);
			node = child;
		}
		return true;
	}

	#remove(slot: number, blockHash: bigint, bit: number): void {
		const holding = this.#find(slot, blockHash);
		if (holding === 0) return;
		const left = (this.#tiers[holding] as number) & ~bit;
		if (left === 0) this.#letGo(holding);
		else this.#setTiers(holding, left);
	}

	/** Forgets everything of a slot. */
	clear(slot: number): void {
		if (this.blocksOf(slot) === 0) return;
		const { owner, end } = this.#holdings;
		for (let holding = 1; holding < end; holding++) {
			if (this.#tiers[holding] !== 0 && owner[holding] === slot) this.#letGo(holding);
		}
	}

	/** The slot's holding under that name; 0: none. */
	#find(slot: number, blockHash: bigint): number {
		this.#hash[0] = blockHash;
		return this.#holdings.find(slot, this.#halves[0] as number, this.#halves[1] as number);
	}

	/** The block behind `parent`, a new one where there is none. */
	#childOf(parent: number, tokensHash: bigint): number {
		this.#hash[0] = tokensHash;
		const [low, high] = [this.#halves[0] as number, this.#halves[1] as number];
		const known = this.#nodes.find(parent, low, high);
		if (known !== 0) return known;
		const node = this.#nodes.add(parent, low, high);
		const { capacity } = this.#nodes;
		if (this.#firstHolding.length < capacity) {
			this.#firstHolding = grown(this.#firstHolding, capacity);
			this.#holdingCount = grown(this.#holdingCount, capacity);
			this.#childCount = grown(this.#childCount, capacity);
		}
		this.#firstHolding[node] = 0;
		this.#holdingCount[node] = 0;
		this.#childCount[node] = 0;
		this.#childCount[parent]!++;
		return node;
	}

	#hold(node: number, slot: number, blockHash: bigint, tiers: number): void {
		this.#hash[0] = blockHash;
		const holding = this.#holdings.add(slot, this.#halves[0] as number, this.#halves[1] as number);
		const { capacity } = this.#holdings;
		if (this.#node.length < capacity) {
			this.#node = grown(this.#node, capacity);
			this.#next = grown(this.#next, capacity);
			this.#previous = grown(this.#previous, capacity);
			this.#tiers = grown(this.#tiers, capacity);
		}
		this.#blocks[slot]!++;
		this.#link(holding, node);
		this.#setTiers(holding, tiers);
	}

	/** The engine gave the name to another block: the old one is no longer there. */
	#move(holding: number, node: number, tiers: number): void {
		const old = this.#node[holding] as number;
		this.#setTiers(holding, 0);
		this.#unlink(holding);
		this.#link(holding, node);
		this.#setTiers(holding, tiers);
		this.#prune(old);
	}

	#link(holding: number, node: number): void {
		const first = this.#firstHolding[node] as number;
		this.#node[holding] = node;
		this.#next[holding] = first;
		this.#previous[holding] = 0;
		if (first !== 0) this.#previous[first] = holding;
		this.#firstHolding[node] = holding;
		this.#holdingCount[node]!++;
		if ((this.#holdingCount[node] as number) > MANY_HOLDERS && !this.#wide.has(node)) this.#widen(node);
	}

	#unlink(holding: number): void {
		const node = this.#node[holding] as number;
		const [previous, next] = [this.#previous[holding] as number, this.#next[holding] as number];
		if (previous === 0) this.#firstHolding[node] = next;
		else this.#next[previous] = next;
		if (next !== 0) this.#previous[next] = previous;
		this.#holdingCount[node]!--;
		if (this.#holdingCount[node] === MANY_HOLDERS) this.#wide.delete(node);
	}

	#setTiers(holding: number, tiers: number): void {
		this.#tiers[holding] = tiers;
		const node = this.#node[holding] as number;
		if ((this.#holdingCount[node] as number) <= MANY_HOLDERS) return;
		const wide = this.#wide.get(node);
		if (wide === undefined) return;
		// An engine can have the same block under several names.
		const { owner } = this.#holdings;
		const slot = owner[holding] as number;
		let all = tiers;
		if (all === 0 || wide[slot] !== 0) {
			for (let at = this.#firstHolding[node] as number; at !== 0; at = this.#next[at] as number) {
				if (owner[at] === slot) all |= this.#tiers[at] as number;
			}
		}
		wide[slot] = all;
	}

	/** The slot holds the block no more. */
	#letGo(holding: number): void {
		const node = this.#node[holding] as number;
		this.#setTiers(holding, 0);
		this.#unlink(holding);
		this.#blocks[this.#holdings.owner[holding] as number]!--;
		this.#holdings.delete(holding);
		this.#prune(node);
	}

	/** A block that nobody holds and that leads nowhere goes, and those before it that it alone kept. */
	#prune(from: number): void {
		let node = from;
		while (node !== 0 && this.#holdingCount[node] === 0 && this.#childCount[node] === 0) {
			const parent = this.#nodes.owner[node] as number;
			this.#nodes.delete(node);
			this.#childCount[parent]!--;
			node = parent;
		}
	}

	#widen(node: number): void {
		const wide = new Uint8Array(this.#blocks.length);
		const { owner } = this.#holdings;
		for (let at = this.#firstHolding[node] as number; at !== 0; at = this.#next[at] as number) {
			wide[owner[at] as number]! |= this.#tiers[at] as number;
		}
		this.#wide.set(node, wide);
	}

	/**
	 * Who holds how much of a prompt's beginning.
	 * @param hashes hashes of the prompt's full blocks by their tokens alone, in order.
	 */
	find(hashes: ArrayLike<bigint>): PrefixMatches {
		const found = this.#begin();
		const alive = this.#alive;
		const reached = this.#reached;
		const stages = this.#stage;
		const { slots, device } = found;
		// Depths of this search are larger than all of those before it.
		const base = this.#searches;
		this.#searches += hashes.length + 1;
		let left = 0;
		let node = 0;
		for (let depth = 0; depth < hashes.length; depth++) {
			this.#hash[0] = hashes[depth] as bigint;
			node = this.#nodes.find(node, this.#halves[0] as number, this.#halves[1] as number);
			if (node === 0) break;
			const wide = (this.#holdingCount[node] as number) > MANY_HOLDERS ? this.#wide.get(node) : undefined;
			const tiersOf = wide ?? this.#levelTiers;
			let here = left;
			let from = alive;
			if (wide === undefined) {
				here = this.#gather(node, base + depth, depth === 0);
				from = this.#level;
			} else if (depth === 0) {
				here = 0;
				for (let slot = 0; slot < wide.length; slot++) if (wide[slot] !== 0) alive[here++] = slot;
			}
			if (depth === 0) {
				for (let i = 0; i < here; i++) {
					const slot = from[i] as number;
					slots[i] = slot;
					stages[slot] = 0;
				}
				found.count = here;
			}
			left = 0;
			for (let i = 0; i < here; i++) {
				const slot = from[i] as number;
				const tiers = tiersOf[slot] as number;
				// Nearly all blocks are on the device, behind others that are.
				if ((tiers & 1) !== 0 && stages[slot] === 0) device[slot]!++;
				else if (!this.#countBelow(slot, tiers)) {
					reached[slot] = 0;
					continue;
				}
				reached[slot] = base + depth;
				alive[left++] = slot;
			}
			if (left === 0) break;
		}
		return found;
	}

	/** Slots that hold a node and its parent, into the level's arrays. @returns how many. */
	#gather(node: number, depth: number, isFirst: boolean): number {
		const { owner } = this.#holdings;
		const reached = this.#reached;
		const level = this.#level;
		const levelTiers = this.#levelTiers;
		const tiers = this.#tiers;
		const nexts = this.#next;
		let count = 0;
		for (let at = this.#firstHolding[node] as number; at !== 0; at = nexts[at] as number) {
			const slot = owner[at] as number;
			const before = reached[slot] as number;
			if (before === depth) levelTiers[slot]! |= tiers[at] as number;
			else if (isFirst || before === depth - 1) {
				reached[slot] = depth;
				levelTiers[slot] = tiers[at] as number;
				level[count++] = slot;
			}
		}
		return count;
	}

	/** Counts a block in the highest tier that it is in, at or below where the slot's last one was. @returns false: in none. */
	#countBelow(slot: number, tiers: number): boolean {
		if (tiers === 0) return false;
		const counts = this.#counts;
		let stage = this.#stage[slot] as number;
		while (stage < counts.length && (tiers & (1 << stage)) === 0) stage++;
		if (stage === counts.length) return false;
		this.#stage[slot] = stage;
		(counts[stage] as Uint32Array)[slot]!++;
		if (stage > 0) this.#countedBelow = true;
		return true;
	}

	/** Zeroes what the last search left. */
	#begin(): PrefixMatches {
		const last = this.#found;
		if (last !== undefined && last.slots === this.#matched) {
			const { slots, device } = last;
			for (let i = 0; i < last.count; i++) device[slots[i] as number] = 0;
			if (this.#countedBelow) {
				for (const counts of this.#counts) for (let i = 0; i < last.count; i++) counts[slots[i] as number] = 0;
			}
			this.#countedBelow = false;
			last.count = 0;
			return last;
		}
		const [device, hostPinned, disk, external] = this.#counts as [Uint32Array, Uint32Array, Uint32Array, Uint32Array];
		this.#found = { slots: this.#matched, count: 0, device, hostPinned, disk, external };
		return this.#found;
	}

	#makeRoom(slot: number): void {
		const size = this.#blocks.length;
		if (slot < size) return;
		const wanted = Math.max(slot + 1, size * 2);
		this.#blocks = grown(this.#blocks, wanted);
		for (const [node, wide] of this.#wide) this.#wide.set(node, grown(wide, wanted));
		this.#reached = new Float64Array(wanted);
		this.#alive = new Int32Array(wanted);
		this.#level = new Int32Array(wanted);
		this.#levelTiers = new Uint8Array(wanted);
		this.#matched = new Int32Array(wanted);
		this.#stage = new Uint8Array(wanted);
		this.#counts = STORAGE_TIERS.map(() => new Uint32Array(wanted));
	}
}
