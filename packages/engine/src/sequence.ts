// SPDX-License-Identifier: Apache-2.0
// One choice of one request inside the engine: its tokens, how far its cache reaches, how it samples and ends.

import type { EngineRequest, FinishReason } from "./engine.js";
import { randomSeed, Xoshiro128 } from "./prng.js";
import type { SamplerInput } from "./sampler.js";
import { resolveSampling, type SamplingParams } from "./sampling-params.js";
import { TokenCounts } from "./token-counts.js";

export type SequenceStatus = "waiting" | "prefilling" | "running" | "finished";

const NO_IDS: readonly number[] = [];

/** Mutable; owned by the scheduler. Implements what the sampler reads. */
export class Sequence implements SamplerInput {
	/** Names the sequence between the threads; unique in the engine. */
	readonly handle: number;
	/** Handle of choice 0 of the same request: choices of one request share its prefill. */
	readonly group: number;
	readonly priority: number;
	/** Prefixes are shared only under the same salt. */
	readonly cacheSalt: string;
	readonly promptLength: number;
	/** Tokens that may be generated, context limit included. */
	readonly maxTokens: number;
	readonly params: SamplingParams;
	readonly random: Xoshiro128;
	readonly tokenCounts: TokenCounts | undefined;
	/** Log-probabilities of so many likeliest tokens per token; -1 = none at all. */
	readonly logprobs: number;

	status: SequenceStatus = "waiting";
	finishReason: FinishReason | undefined;
	/** KV slot; -1 while waiting and when finished. */
	slot = -1;
	/** Tokens whose keys and values are in the slot. */
	numComputed = 0;
	/** Prompt tokens that were in the cache at admission. */
	numCached = 0;
	/** Prompt and output. Longer than `length`: room to grow. */
	tokens: Int32Array;
	/** Tokens in `tokens`. */
	length: number;

	private readonly minTokens: number;
	private readonly eosTokenIds: readonly number[];
	private readonly stopTokenIds: readonly number[];
	private readonly endIds: readonly number[];

	/**
	 * @param request one that passed `checkRequest`.
	 * @param choice 0 .. n-1.
	 * @param maxModelLen tokens of prompt and output together.
	 */
	constructor(handle: number, choice: number, request: EngineRequest, maxModelLen: number) {
		this.handle = handle;
		this.group = handle - choice;
		this.priority = request.priority ?? 0;
		this.cacheSalt = request.cacheSalt ?? "";
		this.promptLength = request.tokenIds.length;
		this.maxTokens = Math.min(request.stop.maxTokens ?? Number.MAX_SAFE_INTEGER, maxModelLen - this.promptLength);
		this.params = resolveSampling(request.sampling);
		const { seed } = request.sampling;
		this.random = new Xoshiro128(seed === undefined ? randomSeed() : BigInt(seed) + BigInt(choice));
		this.logprobs = request.logprobs ?? -1;
		this.minTokens = request.stop.minTokens ?? 0;
		this.eosTokenIds = request.stop.ignoreEos === true ? NO_IDS : (request.stop.eosTokenIds ?? NO_IDS);
		this.stopTokenIds = request.stop.stopTokenIds ?? NO_IDS;
		this.endIds = [...this.eosTokenIds, ...this.stopTokenIds];
		this.tokens = new Int32Array(this.promptLength + Math.min(this.maxTokens, 256));
		this.tokens.set(request.tokenIds);
		this.length = this.promptLength;
		this.tokenCounts = countsFor(this.params, request.tokenIds);
	}

	/** Tokens generated so far. */
	get outputLength(): number {
		return this.length - this.promptLength;
	}

	/** Ids that may not be drawn now: what would end the text before its least length. */
	get maskedIds(): readonly number[] {
		return this.outputLength < this.minTokens ? this.endIds : NO_IDS;
	}

	/** Whether the sequence ends when this token is drawn. */
	isEndId(token: number): boolean {
		return this.endIds.length > 0 && this.endIds.includes(token);
	}

	/**
	 * Adds a generated token.
	 * @returns why the sequence ends with it, or undefined.
	 */
	append(token: number): FinishReason | undefined {
		if (this.length === this.tokens.length) {
			const grown = new Int32Array(Math.min(this.length * 2, this.promptLength + this.maxTokens));
			grown.set(this.tokens);
			this.tokens = grown;
		}
		this.tokens[this.length++] = token;
		this.tokenCounts?.addOutputToken(token);
		if (this.eosTokenIds.length > 0 && this.eosTokenIds.includes(token)) return "eos";
		if (this.stopTokenIds.length > 0 && this.stopTokenIds.includes(token)) return "stop";
		return this.outputLength >= this.maxTokens ? "length" : undefined;
	}
}

function countsFor(params: SamplingParams, prompt: Iterable<number>): TokenCounts | undefined {
	const repeats = params.repetitionPenalty !== 1;
	if (!repeats && params.presencePenalty === 0 && params.frequencyPenalty === 0) return undefined;
	const counts = new TokenCounts();
	// Presence and frequency look at the output only, so the prompt is noted only for the repetition penalty.
	if (repeats) for (const id of prompt) counts.addPromptToken(id);
	return counts;
}
