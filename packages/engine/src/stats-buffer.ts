// SPDX-License-Identifier: Apache-2.0
// Statistics in shared memory: the engine thread writes them after each step, and a scrape reads them without a message.

import type { EngineStats } from "./engine.js";

const FIELDS = [
	"running",
	"waiting",
	"usedBlocks",
	"totalBlocks",
	"cachedBlocks",
	"prefillTokens",
	"decodeTokens",
	"steps",
	"stepSeconds",
	"modelSeconds",
	"preemptions",
	"cacheQueryTokens",
	"cacheHitTokens",
	"draftTokens",
	"acceptedTokens",
	"heldBlocks",
] as const satisfies readonly (keyof EngineStats)[];

/** Memory for `writeStats`, all zero. */
export function createStatsBuffer(): SharedArrayBuffer {
	return new SharedArrayBuffer(FIELDS.length * Float64Array.BYTES_PER_ELEMENT);
}

/** Each number is written whole; two numbers of one snapshot may be a step apart. */
export function writeStats(buffer: Float64Array, stats: EngineStats): void {
	for (let i = 0; i < FIELDS.length; i++) buffer[i] = stats[FIELDS[i]!];
}

export function readStats(buffer: Float64Array): EngineStats {
	return Object.fromEntries(FIELDS.map((field, i) => [field, buffer[i] ?? 0])) as unknown as EngineStats;
}
