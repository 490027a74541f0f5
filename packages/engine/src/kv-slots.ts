// SPDX-License-Identifier: Apache-2.0
// Which sequence is in which KV slot. Decode rows are slots 0..B-1 without holes; a prompt is prefilled in the first
// slot behind them and joins them; a finished row is filled from the end. Pure bookkeeping: what must be copied is
// returned as a list, and the owner of the model does it.

import type { Sequence } from "./sequence.js";

/** Copy the first `length` tokens of keys and values. Lists are executed in order. */
export interface SlotCopy {
	readonly from: number;
	readonly to: number;
	readonly length: number;
}

/** Prompt tokens whose keys and values a slot still holds, whether its sequence lives or not. */
interface SlotPrefix {
	tokens: Int32Array;
	length: number;
	cacheSalt: string;
}

function nothing(): SlotPrefix {
	return { tokens: new Int32Array(0), length: 0, cacheSalt: "" };
}

export class KvSlots {
	readonly numSlots: number;
	private readonly chunkSize: number;
	private readonly rows: (Sequence | undefined)[] = [];
	private prefixes: SlotPrefix[];
	private holes = 0;

	/** @param chunkSize prefill chunk, in tokens: the grain in which prefixes are shared. */
	constructor(numSlots: number, chunkSize: number) {
		this.numSlots = numSlots;
		this.chunkSize = chunkSize;
		this.prefixes = Array.from({ length: numSlots }, nothing);
	}

	/** Decode rows, after `compact` all of them live. */
	get batchSize(): number {
		return this.rows.length;
	}

	/** Rows that are not holes. */
	get numLive(): number {
		return this.rows.length - this.holes;
	}

	/** Whether one more sequence finds a slot. */
	get hasFree(): boolean {
		return this.rows.length < this.numSlots;
	}

	/** The sequence of a row. Valid between `compact` and the next `release`. */
	row(index: number): Sequence {
		const sequence = this.rows[index];
		if (sequence === undefined) throw new Error(`slot ${index} holds no sequence`);
		return sequence;
	}

	/** The rows that are not holes, in order. */
	liveRows(): Sequence[] {
		return this.rows.filter((sequence) => sequence !== undefined);
	}

	/**
	 * Gives a sequence the first slot behind the batch for its prefill, with what some slot already holds of its
	 * prompt (whole chunks, and never the last token, whose logits are needed). Sets slot, numComputed, numCached.
	 */
	beginPrefill(sequence: Sequence, copies: SlotCopy[]): void {
		const slot = this.rows.length;
		if (slot >= this.numSlots) throw new Error("no free KV slot");
		let best = -1;
		let reused = 0;
		for (let i = 0; i < this.numSlots; i++) {
			const length = this.sharedPrefix(this.prefixes[i]!, sequence);
			// In place is free of charge, so it wins among equals.
			if (length > reused || (length === reused && length > 0 && i === slot)) {
				best = i;
				reused = length;
			}
		}
		if (reused > 0 && best !== slot) copies.push({ from: best, to: slot, length: reused });
		this.prefixes[slot] = { tokens: sequence.tokens, length: reused, cacheSalt: sequence.cacheSalt };
		sequence.slot = slot;
		sequence.numComputed = reused;
		sequence.numCached = reused;
	}

	/** Notes that the model has computed the prompt up to `numComputed`. */
	advancePrefill(sequence: Sequence): void {
		this.prefixes[sequence.slot]!.length = sequence.numComputed;
	}

	/** Makes a prefilled sequence the next decode row. There must be no holes. */
	join(sequence: Sequence, copies: SlotCopy[]): void {
		this.place(sequence, sequence.slot, sequence.numComputed, copies);
	}

	/** Makes `sequence` a decode row with the cache of `leader`, a row with the same prompt fully computed. */
	joinFork(sequence: Sequence, leader: Sequence, copies: SlotCopy[]): void {
		sequence.numComputed = leader.promptLength;
		sequence.numCached = leader.numCached;
		this.place(sequence, leader.slot, leader.promptLength, copies);
	}

	/** Frees the slot of a row or of a sequence in prefill. Rows keep their places until `compact`. */
	release(sequence: Sequence): void {
		if (this.rows[sequence.slot] === sequence) {
			this.rows[sequence.slot] = undefined;
			this.holes++;
		}
		sequence.slot = -1;
	}

	/** Closes the holes that finished rows left. */
	compact(copies: SlotCopy[]): void {
		if (this.holes === 0) return;
		const { rows } = this;
		let hole = 0;
		for (;;) {
			while (rows.length > 0 && rows[rows.length - 1] === undefined) rows.pop();
			while (hole < rows.length && rows[hole] !== undefined) hole++;
			if (hole >= rows.length) break;
			const last = rows.pop()!;
			copies.push({ from: last.slot, to: hole, length: last.numComputed });
			this.copyPrefix(last.slot, hole);
			rows[hole] = last;
			last.slot = hole;
		}
		this.holes = 0;
	}

	/** Forgets what the slots hold, when a failed copy or step leaves that in doubt. */
	forgetPrefixes(): void {
		this.prefixes = Array.from({ length: this.numSlots }, nothing);
	}

	private place(sequence: Sequence, from: number, length: number, copies: SlotCopy[]): void {
		if (this.holes > 0) throw new Error("the decode rows have holes");
		const row = this.rows.length;
		if (row >= this.numSlots) throw new Error("no free KV slot");
		if (from !== row) {
			copies.push({ from, to: row, length });
			this.copyPrefix(from, row);
		}
		this.rows.push(sequence);
		sequence.slot = row;
	}

	private copyPrefix(from: number, to: number): void {
		const source = this.prefixes[from]!;
		this.prefixes[to] = { tokens: source.tokens, length: source.length, cacheSalt: source.cacheSalt };
	}

	private sharedPrefix(prefix: SlotPrefix, sequence: Sequence): number {
		if (prefix.cacheSalt !== sequence.cacheSalt) return 0;
		const limit = Math.min(prefix.length, sequence.promptLength - 1);
		let same = 0;
		while (same < limit && prefix.tokens[same] === sequence.tokens[same]) same++;
		// Only whole chunks hold the numbers that this prompt would get by itself.
		return same - (same % this.chunkSize);
	}
}
