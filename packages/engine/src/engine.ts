// SPDX-License-Identifier: Apache-2.0
// What a worker sees of an engine, real or simulated. Push-based: tokens arrive through one callback per
// request, all callbacks of a step in one turn of the event loop, with no promise per token.

import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";

/**
 * Why a sequence ended. "eos": an end-of-text id; "stop": one of the request's stop ids; "length": maxTokens or
 * the context is used up; "cancelled": aborted or the engine closed; "error": see `EngineOutput.error`.
 */
export type FinishReason = "stop" | "eos" | "length" | "cancelled" | "error";

/** What failed. The caller decides the status that a client sees. */
export type EngineErrorCode =
	/** The request cannot be run as it is; the text says what to change. */
	| "invalid_argument"
	/** The prompt leaves no room for a token in the context. */
	| "context_length_exceeded"
	/** More requests wait than the engine keeps. */
	| "overloaded"
	/** The step that held this sequence failed; the engine goes on. */
	| "internal"
	/** The engine is gone; the request may be tried elsewhere. */
	| "engine_failed";

export interface EngineError {
	readonly code: EngineErrorCode;
	/** Plain text without internals: may be shown to a client. */
	readonly message: string;
}

/** How tokens are picked. Every field may be absent. */
export interface SamplingOptions {
	/** 0 or below 1e-5: greedy. Default 1. */
	readonly temperature?: number | undefined;
	/** Nucleus mass in (0, 1]; default 1 (off). */
	readonly topP?: number | undefined;
	/** Number of most likely tokens kept; 0 or -1 is off (default). */
	readonly topK?: number | undefined;
	/** Tokens less likely than `minP` times the likeliest are dropped; [0, 1], default 0 (off). */
	readonly minP?: number | undefined;
	/** Any integer, taken modulo 2^64. The same seed gives the same text whatever the batch mates are. */
	readonly seed?: number | bigint | undefined;
	/** Subtracted once from the logit of each token of the output so far; default 0. */
	readonly presencePenalty?: number | undefined;
	/** Subtracted per occurrence in the output so far; default 0. */
	readonly frequencyPenalty?: number | undefined;
	/** Divides (positive) or multiplies (negative) logits of tokens in prompt and output; default 1. */
	readonly repetitionPenalty?: number | undefined;
	/** Token id to a number added to its logit. */
	readonly logitBias?: ReadonlyMap<number, number> | readonly (readonly [number, number])[] | undefined;
	/** The only tokens that may be drawn; absent: all. An end-of-text id that is not among them cannot end the text. */
	readonly allowedTokenIds?: readonly number[] | undefined;
	/** Choices to generate from the same prompt; default 1. Choice i uses seed + i. */
	readonly n?: number | undefined;
}

/** When a sequence ends. */
export interface StopOptions {
	/** Most tokens to generate. Absent: the rest of the context. */
	readonly maxTokens?: number | undefined;
	/** No end-of-text or stop id is sampled before this many tokens; default 0. */
	readonly minTokens?: number | undefined;
	/** End-of-text ids are ordinary tokens; default false. */
	readonly ignoreEos?: boolean | undefined;
	/** Ids that end the text with "stop". The id is part of the output; the caller shows or hides it. */
	readonly stopTokenIds?: readonly number[] | undefined;
	/** Ids that end the text with "eos". The id is part of the output. */
	readonly eosTokenIds?: readonly number[] | undefined;
}

export interface EngineRequest {
	/** Unique among the requests in the engine. */
	readonly requestId: string;
	/** The prompt; at least one token. */
	readonly tokenIds: readonly number[] | Uint32Array;
	/** Index of the first choice; default 0. */
	readonly index?: number | undefined;
	readonly sampling: SamplingOptions;
	readonly stop: StopOptions;
	/** Log-probabilities per token: absent = none, 0 = of the chosen token, n = also of the n likeliest. */
	readonly logprobs?: number | undefined;
	/**
	 * The same of the prompt's tokens: absent = none, 0 = of each token, n = also of the n likeliest in its place. Such a
	 * prompt is computed whole, whatever is in the cache.
	 */
	readonly promptLogprobs?: number | undefined;
	/** Higher runs sooner; default 0. Among equals: first come, first served. */
	readonly priority?: number | undefined;
	/** Prefixes are shared only between requests of the same salt. */
	readonly cacheSalt?: string | undefined;
	/**
	 * So many tokens at the end of the prompt were generated for the same request, by an engine that was lost: they count
	 * as output where penalties look at it. Default 0.
	 */
	readonly generatedTokens?: number | undefined;
	/**
	 * Keep the prompt's keys and values when the request has ended, for another engine: see `EngineOutput.held`. One choice
	 * only. Engines without `kv` ignore it.
	 */
	readonly holdKv?: boolean | undefined;
	/**
	 * The prompt's keys and values can be had from another engine: called once, when there is room for them, unless they
	 * are in the cache already or `promptLogprobs` wants all computed. Engines without `kv` ignore it.
	 */
	readonly fetchKv?: ((fetch: KvFetch) => void) | undefined;
}

/** What the blocks of two engines must have in common for one to be able to use the other's. */
export interface KvLayout {
	/** Of the model's weights and everything else that keys and values depend on. */
	readonly modelSum: string;
	/** How keys and values are held. */
	readonly dtype: string;
	/** The order of numbers in a block. */
	readonly order: string;
	/** Tokens per block. */
	readonly blockSize: number;
	/** Bytes per block. */
	readonly blockBytes: number;
	readonly numLayers: number;
	readonly numKvHeads: number;
	readonly headDim: number;
}

/** Keys and values of a prompt whose request has ended. */
export interface HeldKv {
	/** Names them to the engine's `kv`. */
	readonly id: number;
	/** Tokens whose keys and values are kept: the prompt. */
	readonly tokens: number;
	/** Ids of the blocks, in the order of their tokens; the last may be partly filled. */
	readonly blocks: readonly number[];
}

/**
 * Blocks of a prompt that are to be filled with what another engine computed. The memory is the caller's until `finish`,
 * which must be called exactly once, also after `signal`; the engine goes on with other sequences meanwhile.
 */
export interface KvFetch {
	/** Keys and values of so many tokens, from the first, are wanted. */
	readonly tokens: number;
	/** The blocks before this one are there already. */
	readonly firstBlock: number;
	/** Blocks to fill, from `firstBlock` on. */
	readonly numBlocks: number;
	/** Aborted when nobody waits for them any more. */
	readonly signal: AbortSignal;
	/** Where the bytes of block `index` of the prompt go. @throws Error when it is not wanted, or after `finish`. */
	memory(index: number): Uint8Array;
	/** Block `index` is complete; its memory may not be touched any more. */
	written(index: number): void;
	/** @param complete false: the prompt is computed. */
	finish(complete: boolean): void;
}

/** The way to an engine's blocks from outside. */
export interface KvPort {
	readonly layout: KvLayout;
	/** Begins to read what is kept: it stays until `close`. @returns false when it is gone. */
	open(id: number): boolean;
	/**
	 * Reads between `open` and `close`; the views are valid as long.
	 * @param blocks of `HeldKv.blocks`.
	 * @returns undefined when it is gone.
	 */
	read(id: number, blocks: readonly number[]): Promise<Uint8Array[] | undefined>;
	close(id: number): void;
	/** Frees what is kept, after the last reader. Unknown ids are ignored. */
	release(id: number): void;
	/** `callback` gets the id of what the engine had to give up for want of room. */
	onGivenUp(callback: (id: number) => void): void;
}

export interface TopLogprob {
	/** 1 = the likeliest. */
	readonly rank: number;
	readonly tokenId: number;
	readonly logprob: number;
}

/** Log-probability of one token of the prompt, by what stands before it. */
export interface PromptLogprob {
	readonly tokenId: number;
	readonly logprob: number;
	/** 1 = the likeliest; among equals the best. */
	readonly rank: number;
	/** The likeliest tokens in its place, likeliest first. */
	readonly top: readonly TopLogprob[];
}

/** What one step gave one choice of a request. The last one of a choice has a `finishReason`. */
export interface EngineOutput {
	/** Choice: `EngineRequest.index` + 0..n-1. */
	readonly index: number;
	/** New tokens only, the ending id included. */
	readonly tokenIds: number[];
	readonly finishReason: FinishReason | undefined;
	/** The stop id, when `finishReason` is "stop". */
	readonly stopReason: number | undefined;
	/** Set when `finishReason` is "error". */
	readonly error: EngineError | undefined;
	/** Natural logarithm of the model's probability (before penalties and temperature), one per token id. */
	readonly logProbs: number[] | undefined;
	/** The likeliest tokens, likeliest first, one list per token id. */
	readonly topLogprobs: TopLogprob[][] | undefined;
	/**
	 * One per token of the prompt, null for the first; set on the first output of the request's first choice when
	 * `EngineRequest.promptLogprobs` asks for it.
	 */
	readonly promptLogprobs?: readonly (PromptLogprob | null)[] | undefined;
	/** Set on the first and on the last output of a choice. */
	readonly promptTokens: number | undefined;
	/** Tokens generated so far; set on the first and on the last output of a choice. */
	readonly completionTokens: number | undefined;
	/** Prompt tokens that were not computed anew; set on the first and on the last output of a choice. */
	readonly cachedTokens: number | undefined;
	/**
	 * Seconds from the step that first held the choice to its first token; set on the first output of a choice. What
	 * passed since `submit` beside it was waiting.
	 */
	readonly prefillSeconds?: number | undefined;
	/** Set on the last output of a request with `EngineRequest.holdKv`, unless there was no room. */
	readonly held?: HeldKv | undefined;
}

export interface EngineInfo {
	/** Name the model's files give it, where they do. */
	readonly modelName: string | undefined;
	/** Tokens of prompt and output together. */
	readonly maxModelLen: number;
	/** Tokens per block. */
	readonly blockSize: number;
	readonly totalBlocks: number;
	/** Sequences in one step. */
	readonly maxNumSeqs: number;
	/** Tokens in one step. */
	readonly maxNumBatchedTokens: number;
	readonly vocabSize: number;
	readonly device: "cpu" | "cuda" | "mock";
	/** Why it is not CUDA, where that was not excluded; with words of the loader or the CUDA runtime. */
	readonly deviceNote?: string | undefined;
	/** As it was asked for; "none" for the simulated engine. */
	readonly quantization: string;
	/**
	 * What that means for this model's matrices, e.g. ["q4_1 as stored", "q8_0 as stored"], ["int8"] or ["fp32"], most
	 * weights first; absent for the simulated engine.
	 */
	readonly weightFormats?: readonly string[] | undefined;
	/** Bytes of cache per token; 0 for the simulated engine. */
	readonly kvBytesPerToken: number;
	/** How keys and values are held; "none" for the simulated engine. */
	readonly kvCacheDtype: string;
	/** End-of-text ids that the model's files name. */
	readonly eosTokenIds: readonly number[];
	/** Seconds that `start` took. */
	readonly loadSeconds: number;
}

/** Gauges (running, waiting, usedBlocks, totalBlocks) and counters since `start`. */
export interface EngineStats {
	/** Sequences that are computed: those that generate and those whose prompt is being computed. */
	running: number;
	/** Sequences that wait to be computed, for blocks or for keys and values from another engine. */
	waiting: number;
	/** Blocks of running sequences, of those kept for other engines and of those that wait for such, the partly filled ones included; a shared one counts once. */
	usedBlocks: number;
	totalBlocks: number;
	/** Blocks that a prompt with the same beginning would find, whether a sequence uses them or not. */
	cachedBlocks: number;
	/** Prompt tokens computed. */
	prefillTokens: number;
	/** Tokens generated. */
	decodeTokens: number;
	steps: number;
	/** Time in steps, in seconds. */
	stepSeconds: number;
	/** Time in the model alone, in seconds. */
	modelSeconds: number;
	/** Sequences that lost their blocks to others and were computed anew. */
	preemptions: number;
	/** Prompt tokens of admitted sequences. */
	cacheQueryTokens: number;
	/** Of these, the ones found in the cache. */
	cacheHitTokens: number;
	/** Tokens that were guessed by speculation. */
	draftTokens: number;
	/** Of these, the ones that were right. */
	acceptedTokens: number;
	/** Blocks kept for other engines; part of usedBlocks. */
	heldBlocks: number;
}

/** How many requests there are of a kind, and how long they are, in tokens. */
export interface LengthSummary {
	readonly requests: number;
	/** Sum of the lengths. */
	readonly tokens: number;
	/** Variance of the lengths. */
	readonly variance: number;
}

/** What one step held, and what waited when it ended. */
export interface StepReport {
	/** How long it took. */
	readonly seconds: number;
	/** Prompt tokens computed, and the tokens of these requests that were in the cache already. */
	readonly prefill: LengthSummary & { readonly cachedTokens: number };
	/** Sequences that got a token, by the length of what they hold in the cache. */
	readonly decode: LengthSummary;
	readonly waitingPrefill: LengthSummary;
	/** Sequences that had to give way. */
	readonly waitingDecode: LengthSummary;
}

/** One engine; `createEngineThread` and `createMockEngine` make them. */
export interface Engine {
	/**
	 * Loads the model. Call once, before `submit`.
	 * @throws Error when the model cannot be loaded; the engine is closed then.
	 */
	start(): Promise<EngineInfo>;
	/**
	 * Queues a request. `onOutput` is never called before `submit` returns, and for each choice ends with exactly
	 * one output that has a `finishReason`; a bad request gets it with an `error`. It must not throw: if it does,
	 * the request is aborted and the error becomes a process warning.
	 * @throws Error when the engine was never started or is closed.
	 */
	submit(request: EngineRequest, onOutput: (output: EngineOutput) => void): void;
	/**
	 * Ends a request in any state within one step. Each unfinished choice gets a last output "cancelled" once its
	 * slot is free, and no token after this call. Unknown ids are ignored.
	 */
	abort(requestId: string): void;
	/** A fresh snapshot; cheap enough for every scrape. */
	stats(): EngineStats;
	/**
	 * `callback` gets each change of what the cache holds, in order. Register it before `start`: an engine that nobody
	 * listens to at its start gathers none.
	 */
	onKvEvents(callback: (events: readonly KvCacheEvent[]) => void): void;
	/** `callback` gets a report of each step. Absent: this engine makes none. */
	onStep?(callback: (report: StepReport) => void): void;
	/** Hand-over of keys and values, once the engine has started. Absent: this engine has none. */
	readonly kv?: KvPort | undefined;
	/** `callback` runs once if the engine dies by itself; pending requests have had their error by then. */
	onFailure(callback: (error: Error) => void): void;
	/** Ends pending requests with "cancelled" and frees everything. May be called twice. */
	close(): Promise<void>;
}
