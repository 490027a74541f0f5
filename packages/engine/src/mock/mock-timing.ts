// SPDX-License-Identifier: Apache-2.0
// How long a step of the simulated engine takes. The shape is that of a mid-size model on one data-centre GPU: a floor
// per step, a linear term for the matrices, and attention that grows with the context. Chosen for plausible size (a
// 1,000-token prompt in about 30 ms, a decode step in 6 to 30 ms), not fitted to any device.

/** Milliseconds that a step with prompt tokens takes at least. */
const PREFILL_BASE_MS = 10;
const PREFILL_MS_PER_TOKEN = 0.02;
/** Per pair of a new token and a token that it looks at. */
const PREFILL_MS_PER_PAIR = 4e-7;
const DECODE_BASE_MS = 6;
const DECODE_MS_PER_SEQUENCE = 0.01;
/** Per token of context that the step reads. */
const DECODE_MS_PER_CONTEXT_TOKEN = 2.5e-5;

/**
 * Time for the prompt part of a step, in milliseconds.
 * @param tokens prompt tokens computed in the step, over all sequences.
 * @param pairs sum over these tokens of the context each of them sees.
 */
export function prefillMilliseconds(tokens: number, pairs: number): number {
	return tokens === 0 ? 0 : PREFILL_BASE_MS + PREFILL_MS_PER_TOKEN * tokens + PREFILL_MS_PER_PAIR * pairs;
}

/**
 * Time for the decode part of a step, in milliseconds.
 * @param sequences sequences that decode a token.
 * @param contextTokens tokens in their caches together.
 */
export function decodeMilliseconds(sequences: number, contextTokens: number): number {
	if (sequences === 0) return 0;
	return DECODE_BASE_MS + DECODE_MS_PER_SEQUENCE * sequences + DECODE_MS_PER_CONTEXT_TOKEN * contextTokens;
}
