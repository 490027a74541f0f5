// SPDX-License-Identifier: Apache-2.0
// One choice of one request inside the engine: its tokens, how far its cache reaches, how it samples and ends.

import type { BlockOwner } from "./cache/block-manager.js";
import { PromptHashes } from "./cache/prompt-hashes.js";
import type { EngineRequest, FinishReason, PromptLogprob } from "./engine.js";
import type { RunnerRow } from "./model/model-runner.js";
import { randomSeed, Xoshiro128 } from "./prng.js";
import type { SamplerInput } from "./sampler.js";
import { resolveSampling, type SamplingParams } from "./sampling-params.js";
import { TokenCounts } from "./token-counts.js";
import { intersect, type TokenMask } from "./token-mask.js";

/**
 * "running": it holds blocks, whether its prompt is being computed or its answer. "fetching": it holds blocks that somebody
 * else fills; they stay its own until that has ended, also when the sequence has. "fetched": they are filled.
 */
export type SequenceStatus = "waiting" | "fetching" | "fetched" | "running" | "finished";

const NO_IDS: readonly number[] = [];

/**
 * Mutable; owned by the scheduler. It is also what the sampler reads, what owns blocks, and, between `schedule` and the
 * end of the step, its own row of the step: one object per sequence, none per token.
 */
export class Sequence implements SamplerInput, BlockOwner, RunnerRow {
	/** Names the sequence between the threads; unique in the engine. */
	readonly handle: number;
	readonly priority: number;
	/** Names of its full blocks; the salt keeps those of different tenants apart. */
	readonly hashes: PromptHashes;
	readonly promptLength: number;
	/** Tokens that may be generated, context limit included. */
	readonly maxTokens: number;
	readonly params: SamplingParams;
	readonly random: Xoshiro128;
	readonly tokenCounts: TokenCounts | undefined;
	/** Log-probabilities of so many likeliest tokens per token; -1 = none at all. */
	readonly logprobs: number;
	/** The same for each token of the prompt; -1 = none at all. */
	readonly promptLogprobs: number;

	/** Its blocks are kept for another engine when it has ended. */
	readonly holdsKv: boolean;
	/** The prompt's keys and values are to be had from another engine. */
	wantsFetch = false;
	status: SequenceStatus = "waiting";
	finishReason: FinishReason | undefined;
	/** Place in the order of arrival. */
	arrival = 0;
	/** Ids of its blocks; the first `numBlocks` are held. */
	blocks: Int32Array = new Int32Array(8);
	numBlocks = 0;
	numNamed = 0;
	/** Tokens whose keys and values are in its blocks. */
	numComputed = 0;
	/** Tokens that are prompt to the model: what is known at admission, after a preemption the answer so far, too. */
	prefillEnd = 0;
	/** Prompt tokens that were in the cache at the first admission; -1 before it. */
	numCached = -1;
	/** `performance.now()` at the first admission. */
	admittedAt = 0;
	/** This step computes tokens `start` .. `end` - 1. */
	start = 0;
	end = 0;
	/** Of so many last tokens of the step logits are wanted. */
	wanted = 0;
	/** Tokens of the step, from its last, that are only guessed. */
	numDrafts = 0;
	/** Log-probabilities of the prompt so far, when they are asked for. */
	promptEntries: (PromptLogprob | null)[] = [];
	/** Restricts what may be said; undefined: nothing does. */
	tokenMask: TokenMask | undefined;
	/** Prompt and output. Longer than `length`: room to grow. */
	tokens: Int32Array;
	/** Tokens in `tokens`. */
	length: number;

	/** What `allowedTokens` is while the sequence has `maskedAt` tokens. */
	private mask: Uint32Array | undefined;
	private maskedAt = -1;
	private bothMasks: Uint32Array | undefined;
	private readonly minTokens: number;
	private readonly eosTokenIds: readonly number[];
	private readonly stopTokenIds: readonly number[];
	private readonly endIds: readonly number[];

	/**
	 * @param request one that passed `checkRequest`.
	 * @param choice 0 .. n-1.
	 * @param maxModelLen tokens of prompt and output together.
	 * @param blockSize tokens per KV block.
	 */
	constructor(handle: number, choice: number, request: EngineRequest, maxModelLen: number, blockSize: number) {
		this.handle = handle;
		this.priority = request.priority ?? 0;
		this.promptLength = request.tokenIds.length;
		this.maxTokens = Math.min(request.stop.maxTokens ?? Number.MAX_SAFE_INTEGER, maxModelLen - this.promptLength);
		this.params = resolveSampling(request.sampling);
		const { seed } = request.sampling;
		this.random = new Xoshiro128(seed === undefined ? randomSeed() : BigInt(seed) + BigInt(choice));
		this.logprobs = request.logprobs ?? -1;
		this.promptLogprobs = choice === 0 ? (request.promptLogprobs ?? -1) : -1;
		this.holdsKv = choice === 0 && request.holdKv === true;
		this.minTokens = request.stop.minTokens ?? 0;
		this.eosTokenIds = request.stop.ignoreEos === true ? NO_IDS : (request.stop.eosTokenIds ?? NO_IDS);
		this.stopTokenIds = request.stop.stopTokenIds ?? NO_IDS;
		this.endIds = [...this.eosTokenIds, ...this.stopTokenIds];
		this.tokens = new Int32Array(this.promptLength + Math.min(this.maxTokens, 256));
		this.tokens.set(request.tokenIds);
		this.length = this.promptLength;
		this.hashes = new PromptHashes(this, blockSize, request.cacheSalt ?? "");
		this.tokenCounts = countsFor(this.params, request.tokenIds, request.generatedTokens ?? 0);
	}

	/** The same as `handle`: names the row. */
	get id(): number {
		return this.handle;
	}

	/** Whether the step computes prompt, in the sense of `prefillEnd`. */
	get isPrefill(): boolean {
		return this.start < this.prefillEnd;
	}

	/** Whether its prompt is not all computed yet. */
	get isPrefilling(): boolean {
		return this.numComputed < this.prefillEnd;
	}

	/** Tokens generated so far. */
	get outputLength(): number {
		return this.length - this.promptLength;
	}

	/** Ids that may not be drawn now: what would end the text before its least length. */
	get maskedIds(): readonly number[] {
		return this.outputLength < this.minTokens ? this.endIds : NO_IDS;
	}

	/** The only tokens that may be drawn now; undefined: all. A grammar is asked once per token. */
	get allowedTokens(): Uint32Array | undefined {
		const own = this.params.allowedTokens;
		if (this.tokenMask === undefined) return own;
		if (this.maskedAt !== this.length) {
			this.maskedAt = this.length;
			const mask = this.tokenMask.mask();
			if (mask !== undefined && own !== undefined) {
				this.bothMasks ??= new Uint32Array(own.length);
				this.mask = intersect(mask, own, this.bothMasks);
			} else this.mask = mask ?? own;
		}
		return this.mask;
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
		this.reserve(1);
		this.tokens[this.length++] = token;
		this.tokenCounts?.addOutputToken(token);
		this.tokenMask?.accept(token);
		if (this.eosTokenIds.length > 0 && this.eosTokenIds.includes(token)) return "eos";
		if (this.stopTokenIds.length > 0 && this.stopTokenIds.includes(token)) return "stop";
		return this.outputLength >= this.maxTokens ? "length" : undefined;
	}

	/** Makes room in `tokens` for `count` more behind `length`. */
	reserve(count: number): void {
		if (this.length + count <= this.tokens.length) return;
		const grown = new Int32Array(Math.max(this.length * 2, this.length + count));
		grown.set(this.tokens);
		this.tokens = grown;
	}
}

function countsFor(
	params: SamplingParams,
	prompt: EngineRequest["tokenIds"],
	generated: number,
): TokenCounts | undefined {
	const repeats = params.repetitionPenalty !== 1;
	if (!repeats && params.presencePenalty === 0 && params.frequencyPenalty === 0) return undefined;
	const counts = new TokenCounts();
	// Presence and frequency look at the output only, so the prompt is noted only for the repetition penalty.
	const given = prompt.length - generated;
	if (repeats) for (let i = 0; i < given; i++) counts.addPromptToken(prompt[i]!);
	for (let i = given; i < prompt.length; i++) counts.addOutputToken(prompt[i]!);
	return counts;
}
