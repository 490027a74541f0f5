// SPDX-License-Identifier: Apache-2.0
// How much cache there is: sequences, their length, and blocks, chosen to fit in memory beside the weights, or refused
// with the numbers.

import { totalmem } from "node:os";
import type { KvCacheDtype } from "./model-runner.js";

/** The longest context that is taken without being asked for, in tokens. */
const DEFAULT_MAX_MODEL_LEN = 4096;
/** Sequences in a step unless asked for another number, by device. */
export const DEFAULT_MAX_NUM_SEQS = { cpu: 32, cuda: 64 } as const;
/**
 * Tokens in a step unless asked for another number, by device; never fewer than sequences. On a CPU larger chunks of
 * prompts are no faster per token.
 */
export const DEFAULT_BATCHED_TOKENS = { cpu: 128, cuda: 2048 } as const;
/** Tokens per block unless asked for another number. */
export const DEFAULT_BLOCK_SIZE = 16;
/** Of the memory: left to the runtime, the system and other processes. */
const RESERVED_SHARE = 0.1;

/** Bytes of one number in a cache. */
export const BYTES_PER_ELEMENT: Readonly<Record<KvCacheDtype, number>> = { fp32: 4, fp16: 2, int8: 1 };

/** What the size of a token's keys and values follows from. */
export interface CacheGeometry {
	readonly numLayers: number;
	readonly numKvHeads: number;
	readonly headDim: number;
	/** See BYTES_PER_ELEMENT. */
	readonly bytesPerElement: number;
}

/** What is asked for, and what there is. */
export interface CacheRequest {
	readonly geometry: CacheGeometry;
	/** Tokens that the model was made for. */
	readonly maxPositionEmbeddings: number;
	readonly maxNumSeqs?: number | undefined;
	readonly maxModelLen?: number | undefined;
	readonly blockSize?: number | undefined;
	/** Bytes for all keys and values. */
	readonly kvCacheMemory?: number | undefined;
	/** Bytes of the weights in memory. */
	readonly weightBytes: number;
	/** Bytes that the process may use; default: of the machine or, where that is less, of its control group. */
	readonly memoryBytes?: number | undefined;
}

export interface CacheSize {
	readonly maxNumSeqs: number;
	readonly maxModelLen: number;
	readonly blockSize: number;
	readonly numBlocks: number;
}

/** Bytes of keys and values per token, over all layers. */
export function kvBytesPerToken(geometry: CacheGeometry): number {
	return geometry.numLayers * 2 * geometry.numKvHeads * geometry.headDim * geometry.bytesPerElement;
}

/** Bytes of memory that this process may use at most. */
export function processMemory(): number {
	// 0 or an absurdly large number where nothing limits the process.
	const limit = process.constrainedMemory();
	return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

/** Bytes in words, for messages. */
export function gibibytes(bytes: number): string {
	return `${(bytes / 2 ** 30).toFixed(2)} GiB`;
}

/**
 * Sizes of a cache on the CPU: a slot of `maxModelLen` tokens for each of `maxNumSeqs` running sequences, and a pool of
 * blocks that keeps what outlives them. Both are counted in full, though memory is only committed for what is used.
 * @throws RangeError with the numbers when what is asked for does not fit, or the model was made for less.
 */
export function sizeCpuCache(request: CacheRequest): CacheSize {
	const { geometry, maxPositionEmbeddings, weightBytes } = request;
	const asked = request.maxModelLen;
	if (asked !== undefined && asked > maxPositionEmbeddings) {
		throw new RangeError(`maxModelLen is ${asked}; the model was made for ${maxPositionEmbeddings} tokens`);
	}
	const blockSize = request.blockSize ?? DEFAULT_BLOCK_SIZE;
	const perToken = kvBytesPerToken(geometry);
	const memory = request.memoryBytes ?? processMemory();
	const free = Math.max(0, memory * (1 - RESERVED_SHARE) - weightBytes);
	const budget = request.kvCacheMemory ?? free;
	const problem = (tokens: number, what: string): RangeError =>
		new RangeError(
			`${what} need ${gibibytes(tokens * perToken)} of cache (${perToken} bytes per token), more than the ` +
				(request.kvCacheMemory === undefined
					? `${gibibytes(free)} that ${gibibytes(memory)} of memory leave beside ${gibibytes(weightBytes)} of weights`
					: `${gibibytes(budget)} of kvCacheMemory`) +
				"; use fewer sequences (maxNumSeqs), a shorter context (maxModelLen) or more memory",
		);
	if (request.kvCacheMemory !== undefined && request.kvCacheMemory > free) {
		throw new RangeError(
			`kvCacheMemory is ${gibibytes(request.kvCacheMemory)}; ${gibibytes(memory)} of memory leave ` +
				`${gibibytes(free)} beside ${gibibytes(weightBytes)} of weights`,
		);
	}
	// Tokens in slots and pool together; one sequence needs its length in both.
	const tokens = Math.floor(budget / perToken);
	const roundUp = (length: number): number => Math.ceil(length / blockSize) * blockSize;
	const longest = Math.max(1, Math.floor((tokens - blockSize) / 2));
	const maxModelLen = asked ?? Math.min(DEFAULT_MAX_MODEL_LEN, maxPositionEmbeddings, longest);
	const leastPool = roundUp(maxModelLen);
	// Half for the slots: the pool then holds what runs and as much again.
	const fitting = Math.floor(Math.min(tokens / 2, tokens - leastPool) / maxModelLen);
	const maxNumSeqs = request.maxNumSeqs ?? Math.max(1, Math.min(DEFAULT_MAX_NUM_SEQS.cpu, fitting));
	const slotTokens = maxNumSeqs * maxModelLen;
	if (slotTokens + leastPool > tokens) {
		const count = `${maxNumSeqs} sequence${maxNumSeqs === 1 ? "" : "s"}`;
		throw problem(slotTokens + leastPool, `${count} of ${maxModelLen} tokens and blocks for one more`);
	}
	const poolTokens = Math.min(tokens - slotTokens, Math.max(leastPool, roundUp(slotTokens)));
	return { maxNumSeqs, maxModelLen, blockSize, numBlocks: Math.floor(poolTokens / blockSize) };
}
