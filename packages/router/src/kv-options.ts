// SPDX-License-Identifier: Apache-2.0
// What the policy "kv" is told: by flags, and by the workers' card.
import { ACTIVE_REQUEST_EXPIRY_MS } from "./kv/active-sequences.js";
import { type CostWeights, DEFAULT_COST_WEIGHTS } from "./kv/cost.js";
import { PolicyProfile } from "./queue/policy-profile.js";

/** Settings of the policy "kv"; `--router-*` flags. */
export interface KvRouterOptions {
	readonly weights: CostWeights;
	/** 0: always the cheapest worker. */
	readonly temperature: number;
	/** Learn from workers' events what they hold; false: assume it from the prompts that went to them. */
	readonly useKvEvents: boolean;
	/** Without events: how long a prompt's blocks are believed to be there, milliseconds. */
	readonly ttlMs: number;
	readonly trackActiveBlocks: boolean;
	readonly trackPrefillTokens: boolean;
	/** Requests under way share blocks; false: each has blocks of its own. */
	readonly assumeKvReuse: boolean;
	/** A request that never ends counts no more after this long, milliseconds. */
	readonly expiryMs: number;
	/** No event so long after the first prompt is an error, milliseconds. */
	readonly eventsDeadlineMs: number;
	/** Without events: what gives way first, blocks that are too old, or those unused for longest when there is no room. */
	readonly approximateCachePolicy: "ttl" | "lru";
	/** With events: how long a prompt's blocks are believed to be there before the worker tells; undefined: not at all. */
	readonly predictedTtlMs: number | undefined;
	/** Count blocks that requests generate. */
	readonly trackOutputBlocks: boolean;
	/** Ask another process what workers hold, instead of keeping an index. */
	readonly useRemoteIndexer: boolean;
	/** Let others ask the index, at an endpoint of the workers' component. */
	readonly serveIndexer: boolean;
	/** Tell other routers of the same workers what was given to them, and hear it from them. */
	readonly replicaSync: boolean;
	/** Which requests wait, and in what order, while workers have much to compute. */
	readonly profile: PolicyProfile;
	/** Longest wait, milliseconds. */
	readonly queueDeadlineMs: number;
	/** Longest wait for a worker that holds much more of the prompt than the cheapest, milliseconds; 0: none. */
	readonly cacheWaitMs: number;
}

/** Dynamo's defaults; the wait for a cache is ours. */
export const DEFAULT_KV_ROUTER_OPTIONS: KvRouterOptions = {
	weights: DEFAULT_COST_WEIGHTS,
	temperature: 0,
	useKvEvents: true,
	ttlMs: 120_000,
	trackActiveBlocks: true,
	trackPrefillTokens: true,
	assumeKvReuse: true,
	expiryMs: ACTIVE_REQUEST_EXPIRY_MS,
	eventsDeadlineMs: 10_000,
	approximateCachePolicy: "ttl",
	predictedTtlMs: undefined,
	trackOutputBlocks: false,
	useRemoteIndexer: false,
	serveIndexer: false,
	replicaSync: false,
	profile: PolicyProfile.single("fcfs", undefined),
	queueDeadlineMs: 300_000,
	cacheWaitMs: 10,
};

/** What the workers' card says. */
export interface KvWorkers {
	/** The model's name; an index of another process is asked by it. */
	readonly model?: string | undefined;
	/** Tokens of a block. */
	readonly blockSize: number;
	/** Data-parallel ranks of each worker. */
	readonly firstRank: number;
	readonly rankCount: number;
	/** The workers tell what they hold. */
	readonly publishEvents: boolean;
	/** Others compute their prompts, so that nothing is amiss when they do not tell. */
	readonly decodeOnly?: boolean;
	/** Their engines look one token ahead, and so do the hashes of their blocks. */
	readonly eagle?: boolean | undefined;
	/** Blocks of a rank, and tokens of a step of its engine; undefined: unknown. */
	readonly totalKvBlocks?: number | undefined;
	readonly maxNumBatchedTokens?: number | undefined;
}
