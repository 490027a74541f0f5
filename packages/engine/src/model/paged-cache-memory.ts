// SPDX-License-Identifier: Apache-2.0
// How many blocks of cache a device has room for beside weights and a step's memory.

import { gibibytes } from "./cache-memory.js";
import type { ModelConfig } from "./model-runner.js";

/** ONNX Runtime's PagedAttention takes powers of two from here on. */
const MIN_BLOCK_SIZE = 16;

/**
 * Tokens per block: as asked, or the least for which ONNX Runtime picks FlashAttention.
 * @throws RangeError for a size that its PagedAttention refuses.
 */
export function pagedBlockSize({ headDim }: Pick<ModelConfig, "headDim">, asked: number | undefined): number {
	if (asked === undefined) return headDim <= 64 ? 256 : headDim <= 128 ? 128 : 64;
	if (Number.isInteger(asked) && asked >= MIN_BLOCK_SIZE && (asked & (asked - 1)) === 0) return asked;
	throw new RangeError(`blockSize is ${asked}; on CUDA it must be a power of two and at least ${MIN_BLOCK_SIZE}`);
}

/** Bytes of a block's keys and values over all layers, in half precision. */
export function pagedBlockBytes(
	config: Pick<ModelConfig, "numLayers" | "numKvHeads" | "headDim">,
	blockSize: number,
): number {
	return config.numLayers * 2 * config.numKvHeads * config.headDim * blockSize * 2;
}

/** What the cache must fit. */
export interface PagedSizing {
	readonly blockBytes: number;
	readonly blockSize: number;
	/** Bytes for all blocks; undefined: as many as there are. */
	readonly askedBytes: number | undefined;
	/** Tokens of the longest text; undefined: `longest`, or what fits. */
	readonly askedModelLen: number | undefined;
	/** The most tokens that a text may have. */
	readonly longest: number;
	/** Share of the device's memory that may be used, 0 to 1. */
	readonly utilization: number;
	/** With weights and the memory of a step in use. */
	readonly memory: { readonly free: number; readonly total: number };
	/** Blocks that are never handed out. */
	readonly scratchBlocks: number;
}

/**
 * Blocks of the cache and tokens of the longest text.
 * @throws RangeError with the numbers when not even one text of the longest length fits.
 */
export function chooseNumBlocks(sizing: PagedSizing): { numBlocks: number; maxModelLen: number } {
	const { blockBytes, blockSize, askedModelLen, longest, utilization, memory, scratchBlocks } = sizing;
	if (!(utilization > 0 && utilization <= 1)) {
		throw new RangeError(`gpuMemoryUtilization is ${utilization}; a share from above 0 to 1 is needed`);
	}
	const share = memory.free - memory.total * (1 - utilization);
	const room = Math.max(0, Math.min(share, sizing.askedBytes ?? share));
	const numBlocks = Math.max(0, Math.floor(room / blockBytes) - scratchBlocks);
	const needed = Math.ceil((askedModelLen ?? blockSize) / blockSize);
	if (numBlocks < needed || room < (sizing.askedBytes ?? 0)) {
		throw new RangeError(
			`the device has ${gibibytes(memory.total)}, of which ${gibibytes(memory.total - memory.free)} are in use with the ` +
				`weights; ${(utilization * 100).toFixed(0)} % of it (gpuMemoryUtilization) leave ${gibibytes(Math.max(0, share))} for ` +
				`the cache, ${numBlocks} blocks of ${blockSize} tokens and ${blockBytes} bytes with what was asked for; ${needed} are ` +
				`needed for one text of ${needed * blockSize} tokens` +
				(sizing.askedBytes === undefined
					? ""
					: `, and ${gibibytes(sizing.askedBytes)} were asked for (kvCacheMemory)`) +
				": use a shorter context (maxModelLen), a larger share, or a smaller model",
		);
	}
	return { numBlocks, maxModelLen: Math.min(longest, numBlocks * blockSize) };
}
