// SPDX-License-Identifier: Apache-2.0
// Decides what the next step computes: the next token of every sequence that generates, and chunks of prompts with what
// is left of the step's budget of tokens. No I/O, no clock, no model: sequences in, plain data out.

import type { BlockManager } from "./cache/block-manager.js";
import type { FinishReason } from "./engine.js";
import type { Sequence } from "./sequence.js";

/** Tokens of a chunk when the logits of each are wanted, which take 4 bytes per word of the vocabulary. */
const MAX_LOGITS_PER_CHUNK = 32;
/** No new prompt is begun before others while so many are half done. */
const MAX_PARTIAL_PROMPTS = 4;

export interface SchedulerOptions {
	/** Most sequences that hold blocks at a time. */
	readonly maxNumSeqs: number;
	/** Tokens per step. */
	readonly maxNumBatchedTokens: number;
	readonly blocks: BlockManager;
	/** Guesses tokens, see `DraftProposer`; absent: no guesses. */
	readonly drafts?: DraftProposer | undefined;
	/** Frees blocks that are only kept for others. @returns false when there are none. Absent: there never are. */
	readonly reclaim?: (() => boolean) | undefined;
}

/** Guesses what a sequence continues with. */
export interface DraftProposer {
	/** Guesses are made only while at most so many sequences generate. */
	readonly maxBatch: number;
	/**
	 * Writes guesses behind the sequence's last token.
	 * @param limit most guesses.
	 * @returns how many were made.
	 */
	propose(sequence: Sequence, limit: number): number;
}

/** One step. Lists are reused by the next `schedule`. */
export interface StepPlan {
	/** What to compute: `start`, `end`, `wanted` and `numDrafts` of each sequence say how much. Generating ones first. */
	readonly rows: readonly Sequence[];
	/** Sequences that lost their blocks to others and wait again. */
	readonly preempted: readonly Sequence[];
	/** Sequences whose blocks are to be filled by another engine. */
	readonly fetching: readonly Sequence[];
}

export class Scheduler {
	/**
	 * Prompt tokens per step while sequences generate: what bounds the time between their tokens. The owner may change it
	 * before each step.
	 */
	mixedPrefillTokens: number;
	/** Sequences that lost their blocks, ever. */
	numPreemptions = 0;
	private readonly options: SchedulerOptions;
	private readonly blocks: BlockManager;
	private readonly maxRunning: number;
	/** Highest priority first, then first come. */
	private readonly waiting: Sequence[] = [];
	/** In the order of admission. */
	private readonly running: Sequence[] = [];
	/** Sequences whose blocks somebody fills, finished ones too. */
	private readonly fetching = new Set<Sequence>();
	/** Sequences that have got what they fetched, the first one first. */
	private readonly fetched: Sequence[] = [];
	private readonly begun: Sequence[] = [];
	private readonly rows: Sequence[] = [];
	private readonly preempted: Sequence[] = [];
	private readonly prefilling: Sequence[] = [];
	private budget = 0;
	private arrivals = 0;
	private shortestFirst = false;

	constructor(options: SchedulerOptions) {
		this.options = options;
		this.blocks = options.blocks;
		// Every generating sequence gets its token in every step.
		this.maxRunning = Math.min(options.maxNumSeqs, options.maxNumBatchedTokens);
		this.mixedPrefillTokens = options.maxNumBatchedTokens;
	}

	/** Sequences that hold no blocks, the next one first. */
	get waitingSequences(): readonly Sequence[] {
		return this.waiting;
	}

	get numWaiting(): number {
		return this.waiting.length + this.fetching.size + this.fetched.length;
	}

	/** Sequences that are computed. */
	get numRunning(): number {
		return this.running.length;
	}

	get hasWork(): boolean {
		return this.waiting.length > 0 || this.running.length > 0 || this.fetched.length > 0;
	}

	/** Sequences that hold blocks, in the order of admission. */
	runningSequences(): readonly Sequence[] {
		return this.running;
	}

	/**
	 * Queues a sequence. All of its tokens must fit the cache together with one more.
	 * Choices of one request need not be told apart: whoever comes second finds the blocks of the first.
	 */
	add(sequence: Sequence): void {
		sequence.arrival = this.arrivals++;
		this.enqueue(sequence);
	}

	/**
	 * The next step, or undefined when there is nothing to do before somebody fills or frees blocks. Call it again only after `computed` was told for each
	 * row, or `finish`.
	 */
	schedule(): StepPlan | undefined {
		const { rows, preempted } = this;
		rows.length = 0;
		preempted.length = 0;
		this.begun.length = 0;
		this.budget = this.options.maxNumBatchedTokens;
		this.planGeneration();
		if (rows.length > 0) this.budget = Math.min(this.budget, Math.max(1, this.mixedPrefillTokens));
		// By turns the oldest prompt comes first and the shortest, a new one included, so that neither waits long.
		this.shortestFirst = !this.shortestFirst;
		// Who has just lost its blocks must not get them back at once.
		const mayAdmit = preempted.length === 0;
		if (mayAdmit && this.shortestFirst && this.collectPrefilling() < MAX_PARTIAL_PROMPTS) this.admit();
		this.planPrompts();
		if (mayAdmit && preempted.length === 0) this.admit();
		if (rows.length === 0 && preempted.length === 0 && this.begun.length === 0) return undefined;
		return { rows, preempted, fetching: this.begun };
	}

	/**
	 * Ends what `StepPlan.fetching` began.
	 * @param complete false: the sequence goes back and is computed.
	 */
	endFetch(sequence: Sequence, complete: boolean): void {
		if (!this.fetching.delete(sequence)) return;
		if (sequence.status === "finished") {
			this.blocks.release(sequence);
		} else if (complete) {
			sequence.status = "fetched";
			sequence.numComputed = sequence.length - 1;
			// The content is there already.
			this.blocks.nameFull(sequence, sequence.hashes, sequence.numComputed, () => {});
			this.fetched.push(sequence);
		} else {
			this.blocks.release(sequence);
			sequence.status = "waiting";
			sequence.numComputed = 0;
			this.enqueue(sequence);
		}
	}

	/**
	 * Tells that a row was computed up to `computed` tokens of the sequence, guesses that were right included, and makes
	 * its full blocks findable.
	 * @param persist see `BlockManager.nameFull`.
	 */
	computed(sequence: Sequence, computed: number, persist: (index: number, block: number) => void): void {
		sequence.numComputed = computed;
		this.blocks.nameFull(sequence, sequence.hashes, computed, persist);
	}

	/** Ends a sequence in any state and frees its blocks. Does nothing to a finished one. */
	finish(sequence: Sequence, reason: FinishReason): void {
		if (sequence.status === "finished") return;
		if (sequence.status !== "fetching") {
			const list = this.listOf(sequence.status);
			list.splice(list.indexOf(sequence), 1);
			this.blocks.release(sequence);
		}
		sequence.status = "finished";
		sequence.finishReason = reason;
	}

	private listOf(status: "waiting" | "fetched" | "running"): Sequence[] {
		if (status === "waiting") return this.waiting;
		return status === "running" ? this.running : this.fetched;
	}

	/** One row for each sequence that generates, oldest first; the newest and least urgent give way for room. */
	private planGeneration(): void {
		const { running, rows } = this;
		let generating = 0;
		for (const sequence of running) if (!sequence.isPrefilling) generating++;
		const forPrompts = running.length > generating || this.waiting.length > 0 ? 1 : 0;
		const { drafts } = this.options;
		const guess = drafts !== undefined && generating <= drafts.maxBatch;
		// Preemption takes sequences out of the list, the one at hand or later ones.
		for (let i = 0; i < running.length; ) {
			const sequence = running[i]!;
			if (sequence.isPrefilling) {
				i++;
				continue;
			}
			if (!this.makeRoom(sequence, sequence.length)) continue;
			i = running.indexOf(sequence) + 1;
			let numDrafts = 0;
			if (guess) {
				// The last token that may be generated needs no guess, and others need the budget, too.
				const left = sequence.maxTokens - sequence.outputLength - 1;
				const limit = Math.min(left, this.budget - forPrompts - (generating - rows.length));
				if (limit > 0) numDrafts = drafts.propose(sequence, limit);
				if (numDrafts > 0 && !this.blocks.grow(sequence, this.blocks.blocksFor(sequence.length + numDrafts))) {
					numDrafts = 0;
				}
			}
			sequence.start = sequence.numComputed;
			sequence.end = sequence.length + numDrafts;
			sequence.numDrafts = numDrafts;
			sequence.wanted = numDrafts + 1;
			this.budget -= sequence.end - sequence.start;
			rows.push(sequence);
		}
	}

	/** Chunks of prompts that have begun. */
	private planPrompts(): void {
		const { prefilling } = this;
		if (this.collectPrefilling() > 1 && this.shortestFirst) {
			prefilling.sort((a, b) => remaining(a) - remaining(b) || a.arrival - b.arrival);
		}
		for (const sequence of prefilling) {
			if (this.budget === 0) return;
			// One that was let in a moment ago has its chunk.
			if (!this.rows.includes(sequence)) this.planChunk(sequence);
		}
	}

	/** Finds the sequences whose prompt is not all computed, the oldest first. @returns how many there are. */
	private collectPrefilling(): number {
		const { prefilling, running } = this;
		prefilling.length = 0;
		for (const sequence of running) if (sequence.isPrefilling) prefilling.push(sequence);
		return prefilling.length;
	}

	private planChunk(sequence: Sequence): void {
		const needsAll = sequence.promptLogprobs >= 0 && sequence.outputLength === 0;
		const count = Math.min(remaining(sequence), this.budget, needsAll ? MAX_LOGITS_PER_CHUNK : this.budget);
		sequence.start = sequence.numComputed;
		sequence.end = sequence.start + count;
		sequence.numDrafts = 0;
		const isLast = sequence.end === sequence.length;
		sequence.wanted = needsAll ? count : isLast ? 1 : 0;
		this.budget -= count;
		this.rows.push(sequence);
	}

	/** Lets waiting sequences in, in their order, as long as there is budget and room for their whole prompt. */
	private admit(): void {
		const { waiting, running, blocks } = this;
		this.admitFetched();
		if (waiting.length === 0) return;
		let underWay: Set<bigint> | undefined;
		for (let i = 0; i < waiting.length; ) {
			const sequence = waiting[i]!;
			const { hashes, length } = sequence;
			const full = running.length >= this.maxRunning || this.budget === 0;
			// Whoever fetches needs room, but no part of this step.
			if (sequence.wantsFetch ? this.fetching.size + this.fetched.length >= this.maxRunning : full) return;
			// The last token's logits are needed, so it is always computed; log-probabilities need those of all.
			const limit = sequence.promptLogprobs >= 0 ? 0 : Math.floor((length - 1) / blocks.blockSize);
			const cached = blocks.countCached(hashes, limit);
			if (blocks.enablePrefixCaching && cached < limit) {
				underWay ??= this.blocksUnderWay();
				// Somebody computes the very block that comes next: a little later it is there for nothing.
				if (underWay.has(hashes.sequenceHash(cached))) {
					i++;
					continue;
				}
			}
			const fetches = sequence.wantsFetch && cached * blocks.blockSize < length - 1;
			if (!fetches && full) return;
			const total = blocks.blocksFor(length);
			// What runs will soon need blocks to grow into; taking them would only lead to preemption.
			const spare = running.length + this.fetching.size + this.fetched.length;
			if (!blocks.canAdmit(hashes, cached, total + spare)) {
				// With nothing under way nobody else would ever make room.
				if (spare === 0 && this.options.reclaim?.() === true) continue;
				const victim = this.leastUrgent();
				if (victim !== undefined && victim.priority < sequence.priority) {
					this.preempt(victim);
					i = waiting.indexOf(sequence);
					continue;
				}
				// Nobody overtakes: a long prompt would wait for ever behind short ones.
				return;
			}
			waiting.splice(i, 1);
			blocks.admit(sequence, hashes, cached, total);
			sequence.numComputed = cached * blocks.blockSize;
			sequence.prefillEnd = length;
			if (sequence.numCached < 0) {
				sequence.numCached = sequence.numComputed;
				sequence.admittedAt = performance.now();
			}
			// Only once: what could not be fetched is computed.
			sequence.wantsFetch = false;
			if (fetches) {
				sequence.status = "fetching";
				this.fetching.add(sequence);
				this.begun.push(sequence);
			} else this.run(sequence);
			if (underWay !== undefined) this.addBlocksUnderWay(sequence, underWay);
		}
	}

	/** Sequences that have all but their last token need nothing but a row. */
	private admitFetched(): void {
		const { fetched, running } = this;
		while (fetched.length > 0 && running.length < this.maxRunning && this.budget > 0) this.run(fetched.shift()!);
	}

	/** A sequence with blocks gets its first row. */
	private run(sequence: Sequence): void {
		sequence.status = "running";
		this.running.push(sequence);
		this.planChunk(sequence);
	}

	/** Names of the prompt blocks that running sequences will compute, or others fill. */
	private blocksUnderWay(): Set<bigint> {
		const names = new Set<bigint>();
		for (const sequence of this.running) this.addBlocksUnderWay(sequence, names);
		for (const sequence of this.fetching) if (sequence.status !== "finished") this.addBlocksUnderWay(sequence, names);
		return names;
	}

	private addBlocksUnderWay(sequence: Sequence, names: Set<bigint>): void {
		const full = Math.floor(sequence.prefillEnd / this.blocks.blockSize);
		for (let i = sequence.numNamed; i < full; i++) names.add(sequence.hashes.sequenceHash(i));
	}

	/** Gives a sequence the blocks for `tokens` tokens, at the cost of others if need be. False: it lost its own. */
	private makeRoom(sequence: Sequence, tokens: number): boolean {
		while (!this.blocks.grow(sequence, this.blocks.blocksFor(tokens))) {
			if (this.options.reclaim?.() === true) continue;
			const victim = this.leastUrgent()!;
			this.preempt(victim);
			if (victim === sequence) return false;
		}
		return true;
	}

	/** Of the lowest priority, the last that came. */
	private leastUrgent(): Sequence | undefined {
		let found: Sequence | undefined;
		for (const sequence of this.running) {
			if (
				found === undefined ||
				sequence.priority < found.priority ||
				(sequence.priority === found.priority && sequence.arrival > found.arrival)
			) {
				found = sequence;
			}
		}
		return found;
	}

	/** Takes a sequence's blocks; it starts anew, from what is left of them in the cache. */
	private preempt(sequence: Sequence): void {
		this.running.splice(this.running.indexOf(sequence), 1);
		const row = this.rows.indexOf(sequence);
		if (row >= 0) {
			this.rows.splice(row, 1);
			this.budget += sequence.end - sequence.start;
		}
		this.blocks.release(sequence);
		sequence.status = "waiting";
		sequence.numComputed = 0;
		this.numPreemptions++;
		this.preempted.push(sequence);
		this.enqueue(sequence);
	}

	private enqueue(sequence: Sequence): void {
		const { waiting } = this;
		let place = waiting.length;
		while (place > 0 && comesBefore(sequence, waiting[place - 1]!)) place--;
		waiting.splice(place, 0, sequence);
	}
}

/** Tokens of the prompt that are not computed yet. */
function remaining(sequence: Sequence): number {
	return sequence.length - sequence.numComputed;
}

function comesBefore(a: Sequence, b: Sequence): boolean {
	return a.priority > b.priority || (a.priority === b.priority && a.arrival < b.arrival);
}
