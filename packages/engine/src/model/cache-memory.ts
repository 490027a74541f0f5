// SPDX-License-Identifier: Apache-2.0
// Whether the key/value cache of all slots, each full to its end, fits in memory beside the weights.

import { totalmem } from "node:os";
import type { ModelConfig } from "./model-runner.js";

/** The longest context that is taken without being asked for, in tokens. */
const DEFAULT_MAX_MODEL_LEN = 4096;
/** Of the memory: left to the runtime, the system and other processes. */
const RESERVED_SHARE = 0.1;

/** What the cache must fit. */
export interface CacheSizing {
	readonly config: Pick<ModelConfig, "numLayers" | "numKvHeads" | "headDim" | "maxPositionEmbeddings">;
	readonly numSlots: number;
	/** Size of the model's files. */
	readonly weightBytes: number;
	/** Bytes that the process may use; default: of the machine or, where that is less, of its control group. */
	readonly memoryBytes?: number;
}

/** Bytes of fp32 keys and values per token, over all layers. */
export function kvBytesPerToken(config: CacheSizing["config"]): number {
	return config.numLayers * 2 * config.numKvHeads * config.headDim * 4;
}

/** Bytes of memory that this process may use at most. */
function processMemory(): number {
	// 0 or an absurdly large number where nothing limits the process.
	const limit = process.constrainedMemory();
	return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

function gibibytes(bytes: number): string {
	return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}

/** Tokens per slot that fit in memory when all slots are full; may be 0. */
function fittingLength(sizing: CacheSizing): number {
	const memory = (sizing.memoryBytes ?? processMemory()) * (1 - RESERVED_SHARE);
	const room = Math.max(0, memory - sizing.weightBytes);
	return Math.floor(room / (kvBytesPerToken(sizing.config) * sizing.numSlots));
}

/**
 * Tokens per slot: as asked, or else what the model was made for, at most 4096 and what fits in memory.
 * @throws RangeError with the numbers when the model was made for less or the cache does not fit.
 */
export function chooseMaxModelLen(asked: number | undefined, sizing: CacheSizing): number {
	const { config, numSlots, weightBytes } = sizing;
	if (asked !== undefined && asked > config.maxPositionEmbeddings) {
		throw new RangeError(`maxModelLen is ${asked}; the model was made for ${config.maxPositionEmbeddings} tokens`);
	}
	const fitting = fittingLength(sizing);
	const wanted = asked ?? Math.min(DEFAULT_MAX_MODEL_LEN, config.maxPositionEmbeddings, Math.max(1, fitting));
	if (wanted <= fitting) return wanted;
	const cache = wanted * numSlots * kvBytesPerToken(config);
	throw new RangeError(
		`${numSlots} sequences of ${wanted} tokens need ${gibibytes(cache)} of cache ` +
			`(${kvBytesPerToken(config)} bytes per token) beside ${gibibytes(weightBytes)} of weights, more than the ` +
			`${gibibytes(sizing.memoryBytes ?? processMemory())} of memory allow; use fewer sequences (maxNumSeqs) or a shorter ` +
			`context (maxModelLen, at most ${fitting} with ${numSlots} sequences)`,
	);
}
