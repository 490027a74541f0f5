// SPDX-License-Identifier: Apache-2.0
// Request and answers of the endpoints at which a router lets others ask its index: `kv_indexer_query`, and, where the
// index is fed by routing decisions, `kv_indexer_record_routing_decision`. As Dynamo 1.6.1 answers them.

import type { WorkerRank } from "../events/load-events.js";
import { FieldReader } from "../field-reader.js";
import { isU64, normaliseId } from "../json.js";
import type { StorageTier } from "./router-event.js";

/** Both are endpoints of the workers' component. */
export const KV_INDEXER_QUERY_ENDPOINT = "kv_indexer_query";
export const KV_INDEXER_RECORD_ENDPOINT = "kv_indexer_record_routing_decision";

export interface IndexerQuery {
	readonly modelName: string;
	/** Hashes of the prompt's full blocks by their tokens alone, in order. */
	readonly tokensHashes: readonly bigint[];
	/** Leave out what lies below device memory. */
	readonly deviceOnly: boolean;
}

/** Blocks of a prompt that a worker's rank holds in a tier. */
export interface TierHits {
	readonly worker: WorkerRank;
	readonly blocks: number;
}

/** The answer: leading blocks in device memory, and those that go on below it. Ranks without any are left out. */
export interface TieredScores {
	readonly device: readonly TierHits[];
	readonly lowerTiers: readonly { readonly tier: StorageTier; readonly hits: readonly TierHits[] }[];
}

/** A prompt went to a worker: what that one will hold. */
export interface RoutingDecision {
	readonly modelName: string;
	readonly worker: WorkerRank;
	readonly tokensHashes: readonly bigint[];
	readonly sequenceHashes: readonly bigint[];
}

function hashes(body: FieldReader, name: string): bigint[] {
	const list = body.member(name);
	if (!Array.isArray(list)) return body.fail(`${name} must be an array`);
	return list.map((hash) =>
		isU64(hash) ? normaliseId(hash) : body.fail(`${name} must hold unsigned 64-bit integers only`),
	);
}

const rankToWire = ({ workerId, dpRank }: WorkerRank): Record<string, unknown> => ({
	worker_id: workerId,
	dp_rank: dpRank,
});

function rankFromWire(body: FieldReader): WorkerRank {
	return { workerId: body.u64("worker_id"), dpRank: body.optionalU32("dp_rank") ?? 0 };
}

/** @throws DynamoError InvalidArgument that names the member at fault. */
export function indexerQueryFromWire(value: unknown): IndexerQuery {
	const body = new FieldReader(value, "indexer query");
	return {
		modelName: body.string("model_name"),
		tokensHashes: hashes(body, "block_hashes"),
		deviceOnly: body.has("device_only") && body.boolean("device_only"),
	};
}

/** @throws DynamoError InvalidArgument that names the member at fault. */
export function routingDecisionFromWire(value: unknown): RoutingDecision {
	const body = new FieldReader(value, "routing decision");
	const decision = {
		modelName: body.string("model_name"),
		worker: rankFromWire(body.object("worker")),
		tokensHashes: hashes(body, "local_hashes"),
		sequenceHashes: hashes(body, "sequence_hashes"),
	};
	if (decision.tokensHashes.length !== decision.sequenceHashes.length) {
		body.fail("local_hashes and sequence_hashes must be equally long");
	}
	return decision;
}

/** The response item. */
export function tieredScoresToWire(scores: TieredScores): Record<string, unknown> {
	const pairs = (hits: readonly TierHits[]): unknown => hits.map(({ worker, blocks }) => [rankToWire(worker), blocks]);
	return {
		TieredScores: {
			device: { scores: pairs(scores.device), frequencies: [] },
			lower_tier: scores.lowerTiers.map(({ tier, hits }) => [tier, { hits: pairs(hits) }]),
		},
	};
}

/** The response item of either endpoint when it cannot answer. */
export function indexerErrorToWire(message: string): Record<string, unknown> {
	return { Error: message };
}

/** The response item to a {@link RoutingDecision} that was taken in. */
export const ROUTING_DECISION_RECORDED = "Recorded";
