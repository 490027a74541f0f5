// SPDX-License-Identifier: Apache-2.0
// The loops that every draw is made of. Masks are those of `TokenMask`.

import { expNonPositive } from "./fast-exp.js";
import type { SamplingParams } from "./sampling-params.js";
import { isAllowed } from "./token-mask.js";

/** Tokens that come first, likeliest first, in the order of a draw from the whole vocabulary; the others by id. */
export const HEAD_SIZE = 64;

/** Index of the largest logit that the mask allows, the first of equals; -1 when none is finite. */
export function argmax(logits: Float32Array, offset: number, length: number, mask?: Uint32Array): number {
	if (mask !== undefined) return argmaxAllowed(logits, offset, length, mask);
	const max = largest(logits, offset, length);
	if (!Number.isFinite(max)) return -1;
	let i = offset;
	while (logits[i] !== max) i++;
	return i - offset;
}

function argmaxAllowed(logits: Float32Array, offset: number, length: number, mask: Uint32Array): number {
	let best = -1;
	let max = Number.NEGATIVE_INFINITY;
	for (let first = 0, word = 0; first < length; first += 32, word++) {
		if ((mask[word] ?? 0) === 0) continue;
		for (let i = first, end = Math.min(first + 32, length); i < end; i++) {
			if (!(logits[offset + i]! > max) || !isAllowed(mask, i)) continue;
			max = logits[offset + i]!;
			best = i;
		}
	}
	return Number.isFinite(max) ? best : -1;
}

/** The largest number; NaN is passed over. Four running maxima, because one would wait for itself each time. */
export function largest(logits: Float32Array, offset: number, length: number): number {
	let a = Number.NEGATIVE_INFINITY;
	let b = a;
	let c = a;
	let d = a;
	let i = offset;
	const end = offset + length;
	for (; i < end - 3; i += 4) {
		const v = logits[i]!;
		const w = logits[i + 1]!;
		const x = logits[i + 2]!;
		const y = logits[i + 3]!;
		if (v > a) a = v;
		if (w > b) b = w;
		if (x > c) c = x;
		if (y > d) d = y;
	}
	for (; i < end; i++) if (logits[i]! > a) a = logits[i]!;
	return Math.max(a, b, c, d);
}

/** The first place where the running mass passes `target`; rounding at the very end falls on the last one with mass. */
export function drawPlace(mass: Float64Array, size: number, target: number): number {
	let running = 0;
	for (let i = 0; i < size; i++) {
		running += mass[i]!;
		if (running > target) return i;
	}
	let last = size - 1;
	while (last > 0 && mass[last] === 0) last--;
	return last;
}

/**
 * Draws from candidates in order, after min_p and top_p among them.
 * @param values their logits, likeliest first, from `base` on; the first is finite.
 * @param mass scratch for `count` numbers.
 * @param uniform a random number in [0, 1).
 * @returns the place, counted from `base`.
 */
export function drawSorted(
	values: Float32Array,
	base: number,
	count: number,
	mass: Float64Array,
	params: SamplingParams,
	uniform: number,
): number {
	const max = values[base]!;
	const inverse = 1 / params.temperature;
	let size = 0;
	let sum = 0;
	for (; size < count; size++) {
		const own = expNonPositive((values[base + size]! - max) * inverse);
		if (own < params.minP) break;
		mass[size] = own;
		sum += own;
	}
	if (params.topP < 1) {
		const wanted = params.topP * sum;
		let kept = 0;
		let reached = 0;
		while (kept < size && reached < wanted) reached += mass[kept++]!;
		size = kept;
		sum = reached;
	}
	return drawPlace(mass, size, uniform * sum);
}

/**
 * Draws among the likeliest tokens, after top_p, where the mass of the whole row is known only to lie between two bounds.
 * @param mass of the first `size` tokens of the row, likeliest first.
 * @param uniform a random number in [0, 1).
 * @returns the place; -1 when the bounds leave it open, or it is not among these.
 */
export function placeWithin(
	mass: Float64Array,
	size: number,
	low: number,
	high: number,
	topP: number,
	uniform: number,
): number {
	let running = 0;
	if (topP < 1) {
		for (let i = 0; i < size; i++) {
			running += mass[i]!;
			if (running < topP * low) continue;
			return running < topP * high ? -1 : drawPlace(mass, i + 1, uniform * running);
		}
		return -1;
	}
	for (let i = 0; i < size; i++) {
		running += mass[i]!;
		if (running > uniform * low) return running > uniform * high ? i : -1;
	}
	return -1;
}
