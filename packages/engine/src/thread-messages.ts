// SPDX-License-Identifier: Apache-2.0
// What passes between the owner of an engine thread and the thread.

import type { EngineInfo, EngineRequest, KvLayout } from "./engine.js";
import type { SpeculativeOptions } from "./engine-core.js";
import type { SharedBlocks } from "./kv/kv-port.js";
import type { DeviceChoice } from "./model/choose-device.js";
import type { KvCacheDtype, ModelRunner, ModelRunnerOptions, Quantization } from "./model/model-runner.js";
import type { StepMessage } from "./step-outputs.js";

/** How the thread loads and runs its model. Plain data. */
export interface EngineThreadModel {
	/** A folder with config.json and safetensors, or a .gguf file. */
	readonly model: string;
	/** Folder for the graphs made from models. */
	readonly cacheDir: string;
	/** Default "auto". */
	readonly quantization?: Quantization | undefined;
	/** Where the model runs; default "cpu". */
	readonly device?: DeviceChoice | undefined;
	/** Folders in which ONNX Runtime with its CUDA provider is looked for; default none. */
	readonly cudaLibraryDirs?: readonly string[] | undefined;
	/** Share of a CUDA device's memory that may be used, weights included; default 0.9. */
	readonly gpuMemoryUtilization?: number | undefined;
	/** On CUDA: decode steps are not captured and replayed, but run like all others. Default false. */
	readonly enforceEager?: boolean | undefined;
	/** Sequences in one step; default 32 (on CUDA 64), or fewer where the cache of so many does not fit. */
	readonly maxNumSeqs?: number | undefined;
	/** Tokens of a sequence; default: what the model was made for, at most 4096 and what fits in memory. */
	readonly maxModelLen?: number | undefined;
	/** Tokens in one step; default 128 (on CUDA 2048), or as many as there may be sequences. */
	readonly maxNumBatchedTokens?: number | undefined;
	/** Tokens per block; default 16, on CUDA as its fastest attention wants it. */
	readonly blockSize?: number | undefined;
	/** Bytes for keys and values; default: by the machine's memory. */
	readonly kvCacheMemory?: number | undefined;
	/** Default "auto". */
	readonly kvCacheDtype?: KvCacheDtype | "auto" | undefined;
	/** Whether prompts share blocks with those before them; default true. */
	readonly enablePrefixCaching?: boolean | undefined;
	/** Absent: no tokens are guessed. */
	readonly speculative?: SpeculativeOptions | undefined;
	/** Threads that share one operator; default 1. */
	readonly intraOpThreads?: number | undefined;
	/** Whether those threads spin between operators; default false. */
	readonly spinning?: boolean | undefined;
	/** URL of a module with another `loadModelRunner`, e.g. the fake model's. */
	readonly runnerModule?: string | undefined;
	/** Whether to gather cache events; set by the owner of the thread. */
	readonly kvEvents?: boolean | undefined;
}

export interface EngineThreadData {
	readonly model: EngineThreadModel;
	/** See `createHeldStates`. */
	readonly held: SharedArrayBuffer;
	/** See `createStatsBuffer`. */
	readonly stats: SharedArrayBuffer;
}

/** What `runnerModule` exports. */
export interface RunnerModule {
	loadModelRunner(options: ModelRunnerOptions): Promise<ModelRunner>;
}

/** A sequence that has blocks for what it fetches. */
export interface FetchNotice {
	readonly handle: number;
	/** Tokens whose keys and values are wanted. */
	readonly tokens: number;
	readonly firstBlock: number;
	/** Ids of the blocks from `firstBlock` on. */
	readonly blocks: readonly number[];
}

/** Owner to thread. */
export type ToThread =
	| {
			readonly type: "submit";
			readonly handle: number;
			/** Plain data: what it fetches is told by `fetch`. */
			readonly request: EngineRequest;
			readonly fetch: boolean;
	  }
	/** All choices handle .. handle + count - 1. */
	| { readonly type: "abort"; readonly handle: number; readonly count: number }
	/** From now on each step is reported. */
	| { readonly type: "reportSteps" }
	/** Blocks kept for another engine, to be copied out. */
	| { readonly type: "readBlocks"; readonly read: number; readonly id: number; readonly blocks: readonly number[] }
	| { readonly type: "releaseHeld"; readonly id: number }
	/** Content for block number `index` of a sequence that fetches. */
	| { readonly type: "writeBlock"; readonly handle: number; readonly index: number; readonly data: ArrayBuffer }
	/** The sequence has what it fetches, or must do without. */
	| { readonly type: "fetched"; readonly handle: number; readonly complete: boolean }
	| { readonly type: "close" };

/** Thread to owner. */
export type FromThread =
	| { readonly type: "progress"; readonly stage: string; readonly fraction: number }
	| {
			readonly type: "ready";
			readonly info: EngineInfo;
			readonly layout: KvLayout;
			readonly sharedBlocks: SharedBlocks | undefined;
	  }
	/** Answer to "readBlocks"; without data when they are gone. */
	| { readonly type: "blocks"; readonly read: number; readonly data: ArrayBuffer | undefined }
	/** The model could not be loaded; the thread ends. */
	| { readonly type: "failed"; readonly message: string }
	| StepMessage;
