// SPDX-License-Identifier: Apache-2.0
// A request's sampling options with defaults filled in and limits checked, in the form the sampler reads.

import type { EngineRequest, SamplingOptions } from "./engine.js";
import { maskOf } from "./token-mask.js";

/** Below this a temperature means greedy. */
export const GREEDY_TEMPERATURE = 1e-5;
/** Choices per request; the limit of the OpenAI API. */
export const MAX_CHOICES = 128;
/** Log-probabilities per token; the limit of the OpenAI API. */
export const MAX_LOGPROBS = 20;

/** See `SamplingOptions` for the meaning; here 0 always means off, and `greedy` replaces a tiny temperature. */
export interface SamplingParams {
	readonly greedy: boolean;
	readonly temperature: number;
	readonly topP: number;
	readonly topK: number;
	readonly minP: number;
	readonly presencePenalty: number;
	readonly frequencyPenalty: number;
	readonly repetitionPenalty: number;
	readonly biasIds: Int32Array;
	readonly biasValues: Float32Array;
	/** Some bias or penalty can make a logit larger than the model gave it. */
	readonly mayRaise: boolean;
	/** The only tokens that may be drawn, as a mask; undefined = all. */
	readonly allowedTokens: Uint32Array | undefined;
}

/**
 * Checks the numbers of a request.
 * @returns what is wrong, or undefined.
 */
export function checkSampling(request: EngineRequest, vocabSize: number): string | undefined {
	const s = request.sampling;
	return (
		outside("temperature", s.temperature, 0, Number.MAX_VALUE) ??
		(s.topP === 0 ? "top_p must be above 0 and at most 1, got 0" : outside("top_p", s.topP, 0, 1)) ??
		outside("top_k", s.topK, -1, Number.MAX_SAFE_INTEGER) ??
		notWhole("top_k", s.topK) ??
		outside("min_p", s.minP, 0, 1) ??
		outside("presence_penalty", s.presencePenalty, -100, 100) ??
		outside("frequency_penalty", s.frequencyPenalty, -100, 100) ??
		(s.repetitionPenalty === 0
			? "repetition_penalty must be above 0, got 0"
			: outside("repetition_penalty", s.repetitionPenalty, 0, 1000)) ??
		(typeof s.seed === "number" ? notWhole("seed", s.seed) : undefined) ??
		outside("n", s.n, 1, MAX_CHOICES) ??
		notWhole("n", s.n) ??
		outside("logprobs", request.logprobs, 0, MAX_LOGPROBS) ??
		notWhole("logprobs", request.logprobs) ??
		(Number.isNaN(request.priority) ? "priority must be a number, got NaN" : undefined) ??
		outside("prompt_logprobs", request.promptLogprobs, 0, MAX_LOGPROBS) ??
		notWhole("prompt_logprobs", request.promptLogprobs) ??
		checkBias(s.logitBias, vocabSize) ??
		checkAllowed(s.allowedTokenIds, vocabSize) ??
		outside("max_tokens", request.stop.maxTokens, 0, Number.MAX_SAFE_INTEGER) ??
		notWhole("max_tokens", request.stop.maxTokens) ??
		outside("min_tokens", request.stop.minTokens, 0, Number.MAX_SAFE_INTEGER)
	);
}

/** Choices of a request; 1 where `n` is bad, so that exactly one error answers it. */
export function choiceCount(options: SamplingOptions): number {
	const n = options.n ?? 1;
	return Number.isInteger(n) && n >= 1 && n <= MAX_CHOICES ? n : 1;
}

function outside(name: string, value: number | undefined, low: number, high: number): string | undefined {
	if (value === undefined || (value >= low && value <= high)) return undefined;
	return `${name} must be ${high >= Number.MAX_SAFE_INTEGER ? `at least ${low}` : `from ${low} to ${high}`}, got ${value}`;
}

function notWhole(name: string, value: number | undefined): string | undefined {
	return value === undefined || Number.isInteger(value) ? undefined : `${name} must be a whole number, got ${value}`;
}

function checkBias(bias: SamplingOptions["logitBias"], vocabSize: number): string | undefined {
	for (const [id, value] of bias ?? []) {
		if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
			return `logit_bias names token id ${id}, which is not in the vocabulary of ${vocabSize} tokens`;
		}
		if (!Number.isFinite(value)) return `logit_bias of token id ${id} must be a finite number, got ${value}`;
	}
	return undefined;
}

function checkAllowed(ids: SamplingOptions["allowedTokenIds"], vocabSize: number): string | undefined {
	if (ids === undefined) return undefined;
	if (ids.length === 0) return "allowed_token_ids is empty: no token could be drawn";
	const strange = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
	if (strange === undefined) return undefined;
	return `allowed_token_ids names token id ${strange}, which is not in the vocabulary of ${vocabSize} tokens`;
}

/** Fills in defaults; the options must have passed `checkSampling`. */
export function resolveSampling(options: SamplingOptions): SamplingParams {
	const temperature = options.temperature ?? 1;
	const bias = [...(options.logitBias ?? [])];
	const presencePenalty = options.presencePenalty ?? 0;
	const frequencyPenalty = options.frequencyPenalty ?? 0;
	const repetitionPenalty = options.repetitionPenalty ?? 1;
	const lowers = presencePenalty >= 0 && frequencyPenalty >= 0 && repetitionPenalty >= 1;
	return {
		greedy: temperature < GREEDY_TEMPERATURE,
		temperature,
		topP: options.topP ?? 1,
		topK: Math.max(0, options.topK ?? 0),
		minP: options.minP ?? 0,
		presencePenalty,
		frequencyPenalty,
		repetitionPenalty,
		biasIds: Int32Array.from(bias, ([id]) => id),
		biasValues: Float32Array.from(bias, ([, value]) => value),
		mayRaise: !lowers || bias.some(([, value]) => value > 0),
		allowedTokens: options.allowedTokenIds === undefined ? undefined : maskOf(options.allowedTokenIds),
	};
}
