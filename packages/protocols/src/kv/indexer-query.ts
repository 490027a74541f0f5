// SPDX-License-Identifier: Apache-2.0
// Request and answers of the endpoints at which a router lets others ask its index: `kv_indexer_query`, and, where the
// index is fed by routing decisions, `kv_indexer_record_routing_decision`. As Dynamo 1.6.1 answers them.

import type { WorkerRank } from "../events/load-events.js";
import { FieldReader, isU32 } from "../field-reader.js";
import { isU64, normaliseId } from "../json.js";
import { STORAGE_TIERS, type StorageTier } from "./router-event.js";

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

/** The request's body. */
export function indexerQueryToWire({ modelName, tokensHashes, deviceOnly }: IndexerQuery): Record<string, unknown> {
	return { model_name: modelName, block_hashes: tokensHashes, device_only: deviceOnly };
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

/** The request's body. */
export function routingDecisionToWire(decision: RoutingDecision): Record<string, unknown> {
	return {
		model_name: decision.modelName,
		worker: rankToWire(decision.worker),
		local_hashes: decision.tokensHashes,
		sequence_hashes: decision.sequenceHashes,
	};
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

/**
 * Reads the response item. A tier that is not known counts for nothing.
 * @throws DynamoError InvalidArgument that names the member at fault, or says what the index had to say instead.
 */
export function tieredScoresFromWire(value: unknown): TieredScores {
	const item = new FieldReader(value, "indexer answer");
	refuseError(item);
	const scores = item.object("TieredScores");
	const pairs = (list: unknown): TierHits[] =>
		pairsOf(scores, list).map(([rank, blocks]) => ({
			worker: rankFromWire(new FieldReader(rank, "indexer answer: worker")),
			blocks: isU32(blocks) ? blocks : scores.fail("blocks must be an unsigned 32-bit integer"),
		}));
	const lowerTiers: { tier: StorageTier; hits: TierHits[] }[] = [];
	for (const [name, body] of pairsOf(scores, scores.member("lower_tier"))) {
		const tier = STORAGE_TIERS.find((known) => known === name);
		if (tier !== undefined) lowerTiers.push({ tier, hits: pairs(new FieldReader(body, `${name}`).member("hits")) });
	}
	return { device: pairs(scores.object("device").member("scores")), lowerTiers };
}

/** @throws DynamoError InvalidArgument when the item does not say that a {@link RoutingDecision} was taken in. */
export function recordedFromWire(value: unknown): void {
	if (value === ROUTING_DECISION_RECORDED) return;
	const item = new FieldReader(value, "indexer answer");
	refuseError(item);
	item.fail(`must be "${ROUTING_DECISION_RECORDED}"`);
}

function refuseError(item: FieldReader): void {
	if (item.has("Error")) item.fail(item.string("Error"));
}

/** Serde writes maps whose keys are no strings as lists of pairs. */
function pairsOf(body: FieldReader, list: unknown): [unknown, unknown][] {
	if (!Array.isArray(list) || list.some((pair) => !Array.isArray(pair) || pair.length !== 2)) {
		body.fail("must hold lists of pairs");
	}
	return list as [unknown, unknown][];
}

/** The response item of either endpoint when it cannot answer. */
export function indexerErrorToWire(message: string): Record<string, unknown> {
	return { Error: message };
}

/** The response item to a {@link RoutingDecision} that was taken in. */
export const ROUTING_DECISION_RECORDED = "Recorded";
