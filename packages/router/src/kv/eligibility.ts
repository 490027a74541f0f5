// SPDX-License-Identifier: Apache-2.0
// Which workers may take a request at all, in Dynamo's order: allowed or pinned, rank, taints, and last how full they are.
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";

/** Limits above which a worker gets no more; an absent one is no limit. */
export interface BusyThresholds {
	/** Share of the worker's blocks in use, 0 to 1. */
	readonly activeDecodeBlocks?: number | undefined;
	/** Prompt tokens that are still to be computed. */
	readonly activePrefillTokens?: number | undefined;
	/** The same as a multiple of `max_num_batched_tokens`. */
	readonly activePrefillTokensFrac?: number | undefined;
}

/** What a worker tells of itself; an absent value is not compared. */
export interface WorkerFill {
	/** From its `kv_metrics`. */
	readonly kvUsedBlocks?: number | undefined;
	readonly activePrefillTokens?: number | undefined;
	/** From its card. */
	readonly totalKvBlocks?: number | undefined;
	readonly maxNumBatchedTokens?: number | undefined;
}

/** What a request demands. */
export interface Demands {
	/** Only this worker. */
	readonly pinned?: bigint | undefined;
	readonly allowed?: readonly bigint[] | undefined;
	readonly dpRank?: number | undefined;
	readonly requiredTaints?: readonly string[] | undefined;
}

/** What is known of the workers. */
export interface EligibilityFacts {
	/** Data-parallel ranks of each. */
	readonly firstRank: number;
	readonly rankCount: number;
	/** Words on its card (`runtime_config.taints`). */
	taintsOf(workerId: bigint): readonly string[];
	isBusy(workerId: bigint): boolean;
}

/** The demand or limit that left nobody. */
export type Refusal = "no_worker" | "not_allowed" | "dp_rank" | "taints" | "overloaded";

/** True above any limit; a worker at a limit is not busy. */
export function isBusy(thresholds: BusyThresholds, fill: WorkerFill): boolean {
	const { activeDecodeBlocks, activePrefillTokens, activePrefillTokensFrac } = thresholds;
	const above = (value: number | undefined, limit: number | undefined, of: number | undefined): boolean =>
		value !== undefined && limit !== undefined && of !== undefined && value > limit * of;
	return (
		above(fill.kvUsedBlocks, activeDecodeBlocks, fill.totalKvBlocks) ||
		above(fill.activePrefillTokens, activePrefillTokens, 1) ||
		above(fill.activePrefillTokens, activePrefillTokensFrac, fill.maxNumBatchedTokens)
	);
}

/** Those of `workers` that may take the request, or what left none. */
export function eligibleWorkers(
	workers: readonly EndpointRecord[],
	demands: Demands,
	facts: EligibilityFacts,
): readonly EndpointRecord[] | Refusal {
	const { pinned, allowed, dpRank, requiredTaints = [] } = demands;
	if (workers.length === 0) return "no_worker";
	let left = workers;
	if (pinned !== undefined) left = left.filter(({ instance_id }) => instance_id === pinned);
	if (allowed !== undefined) left = left.filter(({ instance_id }) => allowed.includes(instance_id));
	if (left.length === 0) return "not_allowed";
	if (dpRank !== undefined && (dpRank < facts.firstRank || dpRank >= facts.firstRank + facts.rankCount))
		return "dp_rank";
	if (requiredTaints.length > 0) {
		left = left.filter(({ instance_id }) => {
			const taints = facts.taintsOf(instance_id);
			return requiredTaints.every((taint) => taints.includes(taint));
		});
		if (left.length === 0) return "taints";
	}
	left = left.filter(({ instance_id }) => !facts.isBusy(instance_id));
	return left.length === 0 ? "overloaded" : left;
}
