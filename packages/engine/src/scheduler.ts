// SPDX-License-Identifier: Apache-2.0
// Decides what the next step computes: one prefill chunk or one decode step of all rows, in turn while there is both,
// so that neither starves the other. No I/O, no clock, no model: plain data out.

import type { FinishReason } from "./engine.js";
import { KvSlots, type SlotCopy } from "./kv-slots.js";
import type { Sequence } from "./sequence.js";

export interface SchedulerOptions {
	/** KV slots, which is also the most sequences in a step. */
	readonly numSlots: number;
	/** Tokens per slot. */
	readonly maxModelLen: number;
	/**
	 * Tokens per prefill chunk. Chunks end at multiples of it whatever the load is, so that a prompt's numbers do not
	 * depend on its batch mates.
	 */
	readonly chunkSize: number;
	/** Tokens per block, the unit in which capacity is reported. */
	readonly blockSize: number;
}

/** One step. `copies` come first, in order. */
export type StepPlan =
	| {
			readonly kind: "prefill";
			readonly sequence: Sequence;
			/** Compute tokens start .. end-1 of the prompt; the logits of the last are wanted when `isLast`. */
			readonly start: number;
			readonly end: number;
			readonly isLast: boolean;
			readonly copies: readonly SlotCopy[];
	  }
	| {
			/** Compute the last token of each row 0 .. batchSize-1. */
			readonly kind: "decode";
			readonly batchSize: number;
			readonly copies: readonly SlotCopy[];
	  };

export class Scheduler {
	private readonly options: SchedulerOptions;
	private readonly slots: KvSlots;
	/** Highest priority first, then first come. */
	private readonly waiting: Sequence[] = [];
	private prefilling: Sequence | undefined;
	private lastWasPrefill = false;

	constructor(options: SchedulerOptions) {
		this.options = options;
		this.slots = new KvSlots(options.numSlots, options.chunkSize);
	}

	get numWaiting(): number {
		return this.waiting.length;
	}

	/** Sequences that hold a slot. */
	get numRunning(): number {
		return this.slots.numLive + (this.prefilling === undefined ? 0 : 1);
	}

	get hasWork(): boolean {
		return this.waiting.length > 0 || this.numRunning > 0;
	}

	/** Blocks of the whole cache. */
	get totalBlocks(): number {
		return this.options.numSlots * Math.ceil(this.options.maxModelLen / this.options.blockSize);
	}

	/** Blocks of sequences that hold a slot. */
	get usedBlocks(): number {
		let blocks = this.prefilling === undefined ? 0 : this.blocksOf(this.prefilling);
		for (const sequence of this.slots.liveRows()) blocks += this.blocksOf(sequence);
		return blocks;
	}

	/** The sequence of decode row `index`. Valid from `schedule` until the next `finish`. */
	row(index: number): Sequence {
		return this.slots.row(index);
	}

	/** Queues a sequence. Choices of one request must be added one after the other, choice 0 first. */
	add(sequence: Sequence): void {
		const { waiting } = this;
		let place = waiting.length;
		while (place > 0 && waiting[place - 1]!.priority < sequence.priority) place--;
		waiting.splice(place, 0, sequence);
	}

	/**
	 * The next step, or undefined when there is nothing to do. Call it again only after the step has been computed and
	 * `completePrefill` (for a prefill chunk) or `finish` (for the rows that ended) have been told.
	 */
	schedule(): StepPlan | undefined {
		const copies: SlotCopy[] = [];
		const { slots } = this;
		slots.compact(copies);
		const canDecode = slots.batchSize > 0;
		const canPrefill = this.prefilling !== undefined || (this.waiting.length > 0 && slots.hasFree);
		if (canPrefill && !(canDecode && this.lastWasPrefill)) {
			this.lastWasPrefill = true;
			return this.planPrefill(copies);
		}
		this.lastWasPrefill = false;
		return canDecode ? { kind: "decode", batchSize: slots.batchSize, copies } : undefined;
	}

	/**
	 * Tells that a chunk has been computed. After the last one the sequence is a decode row and takes the waiting
	 * choices of its request with it, as many as find a slot (the others are prefilled later from the shared prefix).
	 * @param copies receives what to copy before the next step.
	 * @returns the sequences that now need a first token from the chunk's logits.
	 */
	completePrefill(plan: Extract<StepPlan, { kind: "prefill" }>, copies: SlotCopy[]): Sequence[] {
		const { sequence } = plan;
		sequence.numComputed = plan.end;
		this.slots.advancePrefill(sequence);
		if (!plan.isLast) return [];
		this.prefilling = undefined;
		sequence.status = "running";
		this.slots.join(sequence, copies);
		const joined = [sequence];
		for (let i = 0; i < this.waiting.length && this.slots.hasFree; ) {
			const fork = this.waiting[i]!;
			if (fork.group !== sequence.group) {
				i++;
				continue;
			}
			this.waiting.splice(i, 1);
			fork.status = "running";
			this.slots.joinFork(fork, sequence, copies);
			joined.push(fork);
		}
		return joined;
	}

	/** Ends a sequence in any state and frees its slot. Does nothing to a finished one. */
	finish(sequence: Sequence, reason: FinishReason): void {
		if (sequence.status === "finished") return;
		if (sequence.status === "waiting") this.waiting.splice(this.waiting.indexOf(sequence), 1);
		else {
			if (this.prefilling === sequence) this.prefilling = undefined;
			this.slots.release(sequence);
		}
		sequence.status = "finished";
		sequence.finishReason = reason;
	}

	/** Forgets shared prefixes, when a failure leaves in doubt what the slots hold. */
	forgetPrefixes(): void {
		this.slots.forgetPrefixes();
	}

	private planPrefill(copies: SlotCopy[]): StepPlan {
		if (this.prefilling === undefined) {
			const next = this.waiting.shift()!;
			next.status = "prefilling";
			this.slots.beginPrefill(next, copies);
			this.prefilling = next;
		}
		const sequence = this.prefilling;
		const { chunkSize } = this.options;
		const start = sequence.numComputed;
		const end = Math.min(sequence.promptLength, start - (start % chunkSize) + chunkSize);
		return { kind: "prefill", sequence, start, end, isLast: end === sequence.promptLength, copies };
	}

	private blocksOf(sequence: Sequence): number {
		return Math.ceil(sequence.length / this.options.blockSize);
	}
}
