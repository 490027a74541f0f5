// SPDX-License-Identifier: Apache-2.0
// The mass of a whole row to within a percent, several times as fast as exactly: most draws need no more, because the
// likeliest few tokens, which are known exactly, have most of it.

/** Steps of the table for each factor of e, and how many factors it covers. */
const STEPS_PER_NAT = 64;
const NATS = 32;
/** e^-x in the middle of each step. */
const STEPS = Float64Array.from({ length: STEPS_PER_NAT * NATS }, (_, i) => Math.exp(-(i + 0.5) / STEPS_PER_NAT));
/** How far e^-x can be from the table, as a factor, rounding included. */
export const ROUGH_FACTOR: number = Math.exp(0.5 / STEPS_PER_NAT) * (1 + 1e-9);
/** Most that a token beyond the table can have, relative to the likeliest. */
export const ROUGH_REST: number = Math.exp(-NATS);

/**
 * Sum of e^((logit - max) / temperature), each off by at most `ROUGH_FACTOR`; without the tokens that have at most
 * `ROUGH_REST` each, and without NaN.
 * @param mask see `TokenMask`.
 */
export function roughMass(
	logits: Float32Array,
	offset: number,
	length: number,
	max: number,
	temperature: number,
	mask: Uint32Array | undefined,
): number {
	const limit = NATS * temperature;
	const scale = STEPS_PER_NAT / temperature;
	if (mask === undefined) return sumOf(logits, offset, length, max, limit, scale);
	let sum = 0;
	for (let first = 0, word = 0; first < length; first += 32, word++) {
		const bits = mask[word] ?? 0;
		if (bits === 0) continue;
		const size = Math.min(32, length - first);
		if (bits === 0xffff_ffff) {
			sum += sumOf(logits, offset + first, size, max, limit, scale);
			continue;
		}
		for (let i = 0; i < size; i++) {
			if (((bits >>> i) & 1) === 1) sum += roughOne(max - logits[offset + first + i]!, limit, scale);
		}
	}
	return sum;
}

/** What one token adds to `roughMass`. */
export function roughOf(logit: number, max: number, temperature: number): number {
	return roughOne(max - logit, NATS * temperature, STEPS_PER_NAT / temperature);
}

function roughOne(depth: number, limit: number, scale: number): number {
	// False for NaN, too.
	return depth < limit ? STEPS[(depth * scale) | 0]! : 0;
}

/** Two sums side by side, because one would wait for itself each time. */
function sumOf(
	logits: Float32Array,
	offset: number,
	length: number,
	max: number,
	limit: number,
	scale: number,
): number {
	let a = 0;
	let b = 0;
	let i = offset;
	const end = offset + length;
	for (; i < end - 1; i += 2) {
		const v = max - logits[i]!;
		const w = max - logits[i + 1]!;
		if (v < limit) a += STEPS[(v * scale) | 0]!;
		if (w < limit) b += STEPS[(w * scale) | 0]!;
	}
	if (i < end) a += roughOne(max - logits[i]!, limit, scale);
	return a + b;
}
