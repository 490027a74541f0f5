// SPDX-License-Identifier: Apache-2.0
// Sets of tokens as bit masks, and where a grammar enters the engine.

/**
 * Decides which tokens may come next in one sequence; guided decoding plugs in here. The engine alternates: `mask`
 * before a draw, `accept` after it. Drafts of speculative decoding are told only once they are part of the text.
 */
export interface TokenMask {
	/**
	 * Tokens that may be drawn now: bit `i & 31` of word `i >> 5` set = token i may; tokens beyond the last word may
	 * not. Undefined: any may. The words are read before the next call and never written.
	 */
	mask(): Uint32Array | undefined;
	/** Told of each token that became part of the text. */
	accept(token: number): void;
}

/** @returns a mask with just these tokens; as short as they allow. */
export function maskOf(ids: readonly number[]): Uint32Array {
	let largest = -1;
	for (const id of ids) if (id > largest) largest = id;
	const mask = new Uint32Array((largest >> 5) + 1);
	for (const id of ids) mask[id >> 5]! |= 1 << (id & 31);
	return mask;
}

/** Whether the mask has a token; an absent mask has all. */
export function isAllowed(mask: Uint32Array | undefined, id: number): boolean {
	return mask === undefined || ((mask[id >> 5]! >>> (id & 31)) & 1) === 1;
}

/** Writes the tokens that are in both into `into`, which is at least as long as the shorter. @returns that part of it. */
export function intersect(a: Uint32Array, b: Uint32Array, into: Uint32Array): Uint32Array {
	const length = Math.min(a.length, b.length);
	for (let i = 0; i < length; i++) into[i] = a[i]! & b[i]!;
	return length === into.length ? into : into.subarray(0, length);
}
