// SPDX-License-Identifier: Apache-2.0
// Which sequence is in which slot of a cache whose decode batches are ranges of slots. A range may have gaps, slots of
// sequences that do not take part or of none; a row of the batch is wasted on each, until moving the last sequence into a
// gap has become the cheaper way. Pure bookkeeping.

/** Tokens of cache that can be copied in the time that one wasted row costs; measured on CPU. */
const GAP_COST_TOKENS = 200;

/** Move the first `length` tokens. */
export interface SlotMove {
	readonly from: number;
	readonly to: number;
	readonly length: number;
}

export class SlotTable {
	readonly numSlots: number;
	private readonly slots = new Map<number, number>();
	private readonly owners: (number | undefined)[];
	/** Valid tokens in each slot. */
	private readonly lengths: Int32Array;
	private wasted = 0;

	constructor(numSlots: number) {
		this.numSlots = numSlots;
		this.owners = new Array<number | undefined>(numSlots).fill(undefined);
		this.lengths = new Int32Array(numSlots);
	}

	/** Sequences that have a slot. */
	get size(): number {
		return this.slots.size;
	}

	/** The slot of a sequence, or undefined. */
	find(id: number): number | undefined {
		return this.slots.get(id);
	}

	/**
	 * Gives a sequence the first free slot.
	 * @throws RangeError when there is none.
	 */
	take(id: number): number {
		const slot = this.owners.indexOf(undefined);
		if (slot < 0) throw new RangeError(`more than ${this.numSlots} sequences at a time`);
		this.owners[slot] = id;
		this.slots.set(id, slot);
		this.lengths[slot] = 0;
		return slot;
	}

	/** Frees the slot of a sequence; unknown ones are ignored. */
	release(id: number): void {
		const slot = this.slots.get(id);
		if (slot === undefined) return;
		this.slots.delete(id);
		this.owners[slot] = undefined;
		this.lengths[slot] = 0;
	}

	/** Valid tokens in a slot; 0 in a free one. */
	length(slot: number): number {
		return this.lengths[slot]!;
	}

	setLength(slot: number, length: number): void {
		this.lengths[slot] = length;
	}

	/**
	 * Looks at the slots of a decode batch.
	 * @param members sequences of the batch, all of them with a slot.
	 * @returns a move that should be made before it (the table has it already), or undefined.
	 */
	closeGap(members: readonly { readonly id: number }[]): SlotMove | undefined {
		let last = -1;
		for (const { id } of members) last = Math.max(last, this.slots.get(id)!);
		const gaps = last + 1 - members.length;
		if (gaps === 0) {
			this.wasted = 0;
			return undefined;
		}
		this.wasted += gaps * GAP_COST_TOKENS;
		const to = this.owners.indexOf(undefined);
		const length = this.lengths[last]!;
		if (to < 0 || to > last || length > this.wasted) return undefined;
		this.wasted = 0;
		const id = this.owners[last]!;
		this.owners[last] = undefined;
		this.lengths[last] = 0;
		this.owners[to] = id;
		this.slots.set(id, to);
		this.lengths[to] = length;
		return { from: last, to, length };
	}
}
