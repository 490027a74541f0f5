// SPDX-License-Identifier: Apache-2.0
import { counter, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const ROUTER = [MORE_LABELS.routerId];
/** From a microsecond on, each twice the one before; milliseconds. */
const HASHING_MS = Array.from({ length: 15 }, (_, i) => 2 ** i / 1000);
/** From ten microseconds on, each three times the one before, with the tails of that arithmetic; milliseconds. */
const DECISION_MS = [0.01];
while (DECISION_MS.length < 17) DECISION_MS.push((DECISION_MS.at(-1) as number) * 3);

/** What the choice of a worker costs by the KV router, below `dynamo_router`. */
export const ROUTER_FAMILIES = {
	overheadBlockHashingMs: histogram(
		"overhead_block_hashing_ms",
		"Time to hash the blocks of a prompt, milliseconds",
		ROUTER,
		HASHING_MS,
	),
	overheadIndexerFindMatchesMs: histogram(
		"overhead_indexer_find_matches_ms",
		"Time to look a prompt up in the index, milliseconds",
		ROUTER,
		DECISION_MS,
	),
	overheadSchedulingMs: histogram(
		"overhead_scheduling_ms",
		"Time to choose a worker, milliseconds",
		ROUTER,
		DECISION_MS,
	),
	overheadSeqHashingMs: histogram(
		"overhead_seq_hashing_ms",
		"Time to hash the sequence of a prompt's blocks, milliseconds",
		ROUTER,
		HASHING_MS,
	),
	overheadSharedCacheQueryMs: histogram(
		"overhead_shared_cache_query_ms",
		"Always empty: there is no cache that workers share",
		ROUTER,
		DECISION_MS,
	),
	overheadTotalMs: histogram("overhead_total_ms", "Time of a whole decision, milliseconds", ROUTER, DECISION_MS),
	sharedCacheErrorsTotal: counter(
		"shared_cache_errors_total",
		"Always 0: there is no cache that workers share",
		ROUTER,
	),
} as const satisfies Record<string, MetricFamily>;
