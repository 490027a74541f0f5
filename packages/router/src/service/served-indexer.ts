// SPDX-License-Identifier: Apache-2.0
// A router's index for others to ask, so that they need none of their own: `--serve-indexer` and `--use-remote-indexer`.
import {
	type EndpointId,
	indexerErrorToWire,
	indexerQueryFromWire,
	isDynamoError,
	KV_INDEXER_QUERY_ENDPOINT,
	KV_INDEXER_RECORD_ENDPOINT,
	ROUTING_DECISION_RECORDED,
	routingDecisionFromWire,
	type StorageTier,
	type TierHits,
	tieredScoresToWire,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EndpointHandler, ServedEndpoint } from "@dynamo-ts/runtime";
import type { KvPolicy } from "../kv-policy.js";
import type { WorkerGroup } from "./worker-group.js";

export class ServedIndexer {
	readonly #group: WorkerGroup;
	readonly #policy: () => Promise<KvPolicy>;

	/** @param policy whose index it is; rejects with why there is none. */
	constructor(group: WorkerGroup, policy: () => Promise<KvPolicy>) {
		this.#group = group;
		this.#policy = policy;
	}

	/**
	 * Serves the endpoints at the workers' component.
	 * @param canRecord the index lives on what routers decide: they can tell it.
	 */
	async serve(runtime: DistributedRuntime, workers: EndpointId, canRecord: boolean): Promise<ServedEndpoint[]> {
		const component = runtime.namespace(workers.namespace).component(workers.component);
		const served = [
			await component.endpoint(KV_INDEXER_QUERY_ENDPOINT).serve(answering((payload) => this.#find(payload))),
		];
		if (canRecord) {
			const record = component.endpoint(KV_INDEXER_RECORD_ENDPOINT);
			served.push(await record.serve(answering((payload) => this.#record(payload))));
		}
		return served;
	}

	async #find(payload: unknown): Promise<unknown> {
		const { modelName, tokensHashes, deviceOnly } = indexerQueryFromWire(payload);
		const policy = await this.#policyFor(modelName);
		const { slots, tree } = policy.scheduler;
		const found = tree.find(tokensHashes);
		const hits = (counts: Uint32Array): TierHits[] => {
			const list: TierHits[] = [];
			for (let i = 0; i < found.count; i++) {
				const slot = found.slots[i] as number;
				const worker = slots.workerOf(slot);
				const blocks = counts[slot] as number;
				if (worker !== undefined && blocks > 0) list.push({ worker, blocks });
			}
			return list;
		};
		const lower: [StorageTier, Uint32Array][] = deviceOnly
			? []
			: [
					["host_pinned", found.hostPinned],
					["disk", found.disk],
					["external", found.external],
				];
		return tieredScoresToWire({
			device: hits(found.device),
			lowerTiers: lower
				.map(([tier, counts]) => ({ tier, hits: hits(counts) }))
				.filter(({ hits: found }) => found.length > 0),
		});
	}

	async #record(payload: unknown): Promise<unknown> {
		const { modelName, worker, tokensHashes, sequenceHashes } = routingDecisionFromWire(payload);
		const policy = await this.#policyFor(modelName);
		if (this.#group.member(worker.workerId) === undefined) throw new Error(`there is no worker ${worker.workerId}`);
		policy.assume(worker, tokensHashes, sequenceHashes);
		return ROUTING_DECISION_RECORDED;
	}

	async #policyFor(modelName: string): Promise<KvPolicy> {
		const policy = await this.#policy();
		const names = this.#group.modelNames();
		if (!names.has(modelName)) {
			throw new Error(`this index is of ${[...names].join(", ") || "no model yet"}, not of ${modelName}`);
		}
		return policy;
	}
}

/** Whatever goes wrong is an answer: Dynamo's routers wait without end for one that cannot be read. */
function answering(handle: (payload: unknown) => Promise<unknown>): EndpointHandler {
	return async ({ payload }, response) => {
		let item: unknown;
		try {
			item = await handle(payload);
		} catch (error) {
			if (!isDynamoError(error) && !(error instanceof Error)) throw error;
			item = indexerErrorToWire(error.message);
		}
		response.send(item as Record<string, unknown>);
		response.end();
	};
}
