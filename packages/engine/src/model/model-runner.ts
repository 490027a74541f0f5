// SPDX-License-Identifier: Apache-2.0
// The seam between scheduling and computing: the engine thread decides which tokens to run, a
// ModelRunner runs them. Calls are synchronous because the engine has a thread of its own.

import type { SharedBlocks } from "../kv/kv-port.js";
import type { DeviceChoice } from "./choose-device.js";
import type { ModelFamily } from "./families.js";

/** How the matrices are stored in the graph. See `matrixFormat` for what each picks. */
export type Quantization = "auto" | "none" | "int8" | "int4";

/** How keys and values are held: see docs/engine.md for what each costs. */
export type KvCacheDtype = "fp32" | "fp16" | "int8";

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

/** What a runner needs to know of a model, whoever made its graph. */
export interface ModelShape {
	/** Rows of the embedding, and logits per token. */
	readonly vocabSize: number;
	readonly numLayers: number;
	/** Key/value heads, the same in every layer. */
	readonly numKvHeads: number;
	readonly headDim: number;
	/** The longest context that the model was made for, in tokens. */
	readonly maxPositionEmbeddings: number;
	/** Ids that begin and end a text, where the file names them. */
	readonly bosTokenId: number | null;
	readonly eosTokenIds: readonly number[];
}

/** The architecture of a model, whatever file it was read from. */
export interface ModelConfig extends ModelShape {
	/** What its layers are made of: see FAMILIES. */
	readonly family: ModelFamily;
	readonly hiddenSize: number;
	/** Width of the feed-forward layer. */
	readonly intermediateSize: number;
	/** Query heads; a multiple of `numKvHeads`. */
	readonly numHeads: number;
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
	/** True where the output matrix is the embedding. */
	readonly tieWordEmbeddings: boolean;
}

/** One sequence's share of a step. */
export interface RunnerRow {
	/** Names the sequence; the same in every step until `release`. */
	readonly id: number;
	/** All tokens of the sequence; `start` .. `end` - 1 are computed now, those before are in the cache. */
	readonly tokens: Int32Array;
	readonly start: number;
	readonly end: number;
	/** Block ids: block i of the list holds tokens i * blockSize ..; at least ceil(end / blockSize) are valid. */
	readonly blocks: Int32Array;
	/** Logits are wanted of so many last tokens: none, one, or more (guesses to check, log-probabilities of a prompt). */
	readonly wanted: number;
	/** True for a part of a prompt, also of one token: it is computed as prompts are, whatever it was cut into. */
	readonly isPrefill: boolean;
}

/** The likeliest tokens of each wanted token, found on the device. */
export interface TopLogits {
	/** Tokens per wanted token. */
	readonly k: number;
	/** [wanted tokens * k], likeliest first. */
	readonly ids: Int32Array;
	/** Their raw logits. */
	readonly logits: Float32Array;
	/** Logarithm of the sum of exp(logit) over the whole vocabulary, per wanted token. */
	readonly logSumExp: Float32Array;
}

/** The logits of one step: of the wanted tokens, in the order of their rows. Valid until the next `execute`. */
export interface StepLogits {
	/** Raw logits [vocabSize] of wanted token `i`. On a device this fetches one row. */
	row(i: number): Float32Array;
	/** Absent where the device does not look for them. */
	readonly top?: TopLogits | undefined;
}

/** Executes a model over a cache of KV blocks. Owned by one thread; no call may overlap another. */
export interface ModelRunner {
	readonly config: ModelShape;
	readonly device: "cpu" | "cuda";
	/** Why it is not CUDA, where that was not excluded. */
	readonly deviceNote?: string | undefined;
	/** Tokens of one sequence. */
	readonly maxModelLen: number;
	/** Rows of a step, and sequences between their first row and `release`. */
	readonly maxNumSeqs: number;
	/** Tokens per block. */
	readonly blockSize: number;
	/** Block ids are 0 .. numBlocks - 1. */
	readonly numBlocks: number;
	/** Bytes of key and value cache per token, over all layers. */
	readonly kvBytesPerToken: number;
	/** How keys and values are held: "fp32", "fp16", "int8". */
	readonly kvCacheDtype: KvCacheDtype;
	/** How the matrices are held, e.g. "q4_1 as stored" or "int8"; most weights first. */
	readonly weightFormats: readonly string[];
	/**
	 * Runs one step. A sequence's first row may start behind tokens that are in its blocks already (persisted or written, the
	 * last block in part perhaps); each later one starts at or before the end of the last.
	 * @throws when an operator fails; what the rows' blocks hold is in doubt then.
	 */
	execute(rows: readonly RunnerRow[]): StepLogits;
	/**
	 * From now on block `block` must hold, whatever becomes of the sequence, what was computed as block number `index`
	 * of sequence `id`.
	 */
	persist(id: number, index: number, block: number): void;
	/** The sequence has ended or lost its blocks: what is kept for it alone is forgotten. Unknown ids are ignored. */
	release(id: number): void;
	/** Sum of the weights and of everything else that keys and values depend on. */
	readonly modelSum: string;
	/** The order of the numbers in a block, as `readBlock` gives it: equal where blocks can be exchanged. */
	readonly blockOrder: string;
	/** The blocks, where they are memory that other threads can see: what `readBlock` reads and `writeBlock` writes. */
	readonly sharedBlocks?: SharedBlocks | undefined;
	/** Bytes of one block over all layers, as `readBlock` gives them. */
	readonly blockBytes: number;
	/** Copies the content of a persisted block, for another process. */
	readBlock(block: number, into: Uint8Array): void;
	/** Puts content that `readBlock` gave, of a runner with the same model and dtype, into a block. */
	writeBlock(block: number, content: Uint8Array): void;
	/** Frees the session and the cache. The runner may not be used after it. */
	close(): void;
}

/** What `loadModelRunner` needs. */
export interface ModelRunnerOptions {
	/** A folder with config.json and safetensors, one of onnxruntime-genai, or a .gguf file. */
	readonly model: string;
	/** Sequences in a step; default 32, or fewer where the cache of so many does not fit. */
	readonly maxNumSeqs?: number | undefined;
	/** Tokens of a sequence; default: what the model was made for, at most 4096 and what fits in memory. */
	readonly maxModelLen?: number | undefined;
	/** Tokens in one step; on CUDA memory is set aside for them. Default: by the device. */
	readonly maxNumBatchedTokens?: number | undefined;
	/** Tokens per block; default 16, on CUDA as its fastest attention wants it. */
	readonly blockSize?: number | undefined;
	/** Bytes for keys and values; default: by the machine's or the device's memory. */
	readonly kvCacheMemory?: number | undefined;
	readonly quantization: Quantization;
	/** Default "cpu". */
	readonly device?: DeviceChoice | undefined;
	/** Folders in which ONNX Runtime with its CUDA provider is looked for; default none. */
	readonly cudaLibraryDirs?: readonly string[] | undefined;
	/** Share of a CUDA device's memory that may be used, weights included; default 0.9. */
	readonly gpuMemoryUtilization?: number | undefined;
	/** On CUDA: decode steps are not captured and replayed, but run like all others. Default false. */
	readonly enforceEager?: boolean | undefined;
	/** How keys and values are held; default "auto", on a CPU fp32. */
	readonly kvCacheDtype?: KvCacheDtype | "auto" | undefined;
	/** Threads that share one operator; default 1. */
	readonly intraOpThreads?: number;
	/** Whether those threads spin between operators: faster on idle cores, burns them. Default false. */
	readonly spinning?: boolean;
	/** Folder for the ONNX graphs made from models. */
	readonly cacheDir: string;
	/** Called while a graph is built and loaded; `fraction` runs from 0 to 1 within a stage. */
	onProgress?(stage: string, fraction: number): void;
}
