// SPDX-License-Identifier: Apache-2.0
// The seam between scheduling and computing: the engine thread decides which tokens to run, a
// ModelRunner runs them. Calls are synchronous because the engine has a thread of its own.

import type { ModelFamily } from "./families.js";

/** How the matrices are stored in the graph. See `matrixFormat` for what each picks. */
export type Quantization = "auto" | "none" | "int8" | "int4";

/** Position scaling of rotary embeddings, as `rope_scaling` of a config.json says it. */
export type RopeScaling =
	| { readonly type: "linear"; readonly factor: number }
	/** Divisors of each rotary frequency [rotaryDim / 2], as GGUF files carry them in place of settings. */
	| { readonly type: "factors"; readonly factors: readonly number[] }
	| {
			readonly type: "llama3";
			readonly factor: number;
			readonly lowFreqFactor: number;
			readonly highFreqFactor: number;
			readonly originalMaxPositionEmbeddings: number;
	  }
	/** The base grows with the longest context that is served, where that is longer than the original one. */
	| { readonly type: "dynamic"; readonly factor: number; readonly originalMaxPositionEmbeddings: number }
	| {
			readonly type: "yarn";
			readonly factor: number;
			readonly originalMaxPositionEmbeddings: number;
			/** Turns over the original context above which a pair keeps its speed, and below which it is slowed down. */
			readonly betaFast: number;
			readonly betaSlow: number;
			/** Whether the borders between pairs are rounded to whole pairs. */
			readonly truncate: boolean;
			/** Multiplies cosines and sines. */
			readonly attentionFactor: number;
	  }
	/** Divisors of each frequency: the short ones where at most the original context is served, else the long ones. */
	| {
			readonly type: "longrope";
			readonly shortFactors: readonly number[];
			readonly longFactors: readonly number[];
			readonly originalMaxPositionEmbeddings: number;
			/** Multiplies cosines and sines. */
			readonly attentionFactor: number;
	  };

/** How fast the pairs of a head turn. */
export interface RotarySettings {
	/** Base of the frequencies. */
	readonly theta: number;
	readonly scaling: RopeScaling | null;
}

/** What differs between the attention of layers. */
export interface LayerAttention {
	/** Tokens that a token sees, itself included; null where it sees all before it. */
	readonly window: number | null;
	/** Which rotary embedding turns queries and keys; "none" where they carry no position. */
	readonly rope: "global" | "local" | "none";
}

/** The architecture of a model, whatever file it was read from. */
export interface ModelConfig {
	/** What its layers are made of: see FAMILIES. */
	readonly family: ModelFamily;
	/** Rows of the embedding, and logits per token. */
	readonly vocabSize: number;
	readonly hiddenSize: number;
	/** Width of the feed-forward layer. */
	readonly intermediateSize: number;
	readonly numLayers: number;
	/** Query heads. */
	readonly numHeads: number;
	/** Key/value heads; divides `numHeads`. The same in every layer. */
	readonly numKvHeads: number;
	readonly headDim: number;
	/** The first so many numbers of a head turn with the position; even, at most `headDim`. */
	readonly rotaryDim: number;
	readonly rope: RotarySettings;
	/** Of the layers that say "local". */
	readonly localRope: RotarySettings | null;
	/** One entry per layer. */
	readonly layers: readonly LayerAttention[];
	/** Factor of the products of queries and keys. */
	readonly attentionScale: number;
	/** Scores x become cap * tanh(x / cap). */
	readonly attentionSoftcap: number | null;
	/** The same for logits. */
	readonly logitSoftcap: number | null;
	/** Factor of the embedding where it enters the first layer. */
	readonly embeddingScale: number;
	readonly rmsNormEps: number;
	/** Added to the weights of all norms. */
	readonly normOffset: number;
	/** The longest context that the model was made for, in tokens. */
	readonly maxPositionEmbeddings: number;
	/** True where the output matrix is the embedding. */
	readonly tieWordEmbeddings: boolean;
	/** Ids that begin and end a text, where the file names them. */
	readonly bosTokenId: number | null;
	readonly eosTokenIds: readonly number[];
}

/** Executes a model over KV slots. Owned by one thread; no call may overlap another. */
export interface ModelRunner {
	readonly config: ModelConfig;
	/** KV slots; slot numbers run from 0. */
	readonly numSlots: number;
	/** Tokens that fit one slot. */
	readonly maxModelLen: number;
	/** Bytes of key and value cache per token, over all layers. */
	readonly kvBytesPerToken: number;
	/** How the matrices are held, e.g. "q4_1 as stored" or "int8"; most weights first. */
	readonly weightFormats: readonly string[];
	/**
	 * Runs `tokenIds` at positions `start`.. of `slot`, whose first `start` tokens must be there already.
	 * @returns logits [vocabSize] of the last token when `wantLogits`; a view that the next call overwrites.
	 */
	prefill(slot: number, tokenIds: Int32Array, start: number, wantLogits: boolean): Float32Array | undefined;
	/**
	 * As `prefill`, with the logits of every token: [tokenIds.length * vocabSize], a view that the next call
	 * overwrites. For teacher forcing and prompt logprobs.
	 */
	prefillAllLogits(slot: number, tokenIds: Int32Array, start: number): Float32Array;
	/**
	 * One decode step for slots 0..batch-1: `tokenIds[i]` goes to position `lengths[i]` of slot i.
	 * @returns logits [batch * vocabSize]; a view that the next call overwrites.
	 */
	decode(batch: number, tokenIds: Int32Array, lengths: Int32Array): Float32Array;
	/** Copies the first `length` tokens of keys and values from one slot to another. */
	copySlot(from: number, to: number, length: number): void;
	/** Frees the session and the cache. The runner may not be used after it. */
	close(): void;
}

/** What `loadModelRunner` needs. */
export interface ModelRunnerOptions {
	/** A folder with config.json and safetensors, or a .gguf file. */
	readonly model: string;
	readonly numSlots: number;
	/** Tokens per slot; default: what the model was made for, at most 4096 and what fits in memory. */
	readonly maxModelLen?: number | undefined;
	readonly quantization: Quantization;
	/** Threads that share one operator; default 1. */
	readonly intraOpThreads?: number;
	/** Whether those threads spin between operators: faster on idle cores, burns them. Default false. */
	readonly spinning?: boolean;
	/** Folder for the ONNX graphs made from models. */
	readonly cacheDir: string;
	/** Called while a graph is built and loaded; `fraction` runs from 0 to 1 within a stage. */
	onProgress?(stage: string, fraction: number): void;
}
