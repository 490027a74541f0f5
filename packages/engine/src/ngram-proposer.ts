// SPDX-License-Identifier: Apache-2.0
// Guesses by prompt lookup: where the last few tokens stood before, what followed them then probably follows now. The
// number of guesses follows how many were right lately, since each costs time whether right or not.

import type { DraftProposer } from "./scheduler.js";
import type { Sequence } from "./sequence.js";

/** Tokens that must match before anything is guessed; two are the same by chance too often. */
const MATCH_TOKENS = 3;
/** Guesses of a sequence at its beginning. */
const FIRST_GUESSES = 3;
/** Tokens without a guess after `MAX_MISSES` steps whose guesses were all wrong. */
const PAUSE_TOKENS = 16;
const MAX_MISSES = 3;

export interface NgramOptions {
	/** Most guesses per step. */
	readonly numTokens: number;
	/** Guesses are made only while at most so many sequences generate. */
	readonly maxBatch: number;
}

/** What is known of one sequence. */
interface Lookup {
	/** Last place behind each run of `MATCH_TOKENS` tokens, by a hash of the run. */
	readonly places: Map<number, number>;
	/** Tokens that are in `places`. */
	indexed: number;
	/** Guesses that are made now. */
	guesses: number;
	misses: number;
	/** No guess before the sequence is so long. */
	resumeAt: number;
}

/** Speculation by n-grams; see the head of the file. */
export class NgramProposer implements DraftProposer {
	readonly maxBatch: number;
	private readonly numTokens: number;
	private readonly lookups = new WeakMap<Sequence, Lookup>();

	constructor(options: NgramOptions) {
		this.numTokens = options.numTokens;
		this.maxBatch = options.maxBatch;
	}

	propose(sequence: Sequence, limit: number): number {
		let lookup = this.lookups.get(sequence);
		if (lookup === undefined) {
			const guesses = Math.min(FIRST_GUESSES, this.numTokens);
			lookup = { places: new Map(), indexed: MATCH_TOKENS, guesses, misses: 0, resumeAt: 0 };
			this.lookups.set(sequence, lookup);
		}
		const { length } = sequence;
		if (length < MATCH_TOKENS) return 0;
		// The run at the very end is looked up before it is entered, or it would find itself.
		for (; lookup.indexed < length; lookup.indexed++) {
			lookup.places.set(hashBefore(sequence.tokens, lookup.indexed), lookup.indexed);
		}
		if (length < lookup.resumeAt) return 0;
		const place = lookup.places.get(hashBefore(sequence.tokens, length));
		if (place === undefined || !sameRun(sequence.tokens, place, length)) return 0;
		const count = Math.min(limit, lookup.guesses, length - place);
		sequence.reserve(count);
		sequence.tokens.copyWithin(length, place, place + count);
		return count;
	}

	/** Tells how many of a step's guesses were right. */
	learn(sequence: Sequence, guessed: number, right: number): void {
		const lookup = this.lookups.get(sequence);
		if (lookup === undefined) return;
		if (right === guessed) lookup.guesses = Math.min(this.numTokens, lookup.guesses * 2);
		else lookup.guesses = Math.max(1, right + 1);
		lookup.misses = right === 0 ? lookup.misses + 1 : 0;
		if (lookup.misses < MAX_MISSES) return;
		lookup.misses = 0;
		lookup.resumeAt = sequence.length + PAUSE_TOKENS;
	}
}

/** Hash of the run that ends before `end`. */
function hashBefore(tokens: Int32Array, end: number): number {
	let hash = 0;
	for (let i = end - MATCH_TOKENS; i < end; i++) hash = Math.imul(hash ^ tokens[i]!, 0x9e3779b1) ^ (hash >>> 13);
	return hash;
}

function sameRun(tokens: Int32Array, a: number, b: number): boolean {
	for (let i = 1; i <= MATCH_TOKENS; i++) if (tokens[a - i] !== tokens[b - i]) return false;
	return true;
}
