// SPDX-License-Identifier: Apache-2.0
// A process's indexes for others to ask, so that they need none of their own: `--serve-indexer` and `--use-remote-indexer`.
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
	type TieredScores,
	type TierHits,
	tieredScoresToWire,
} from "@dynamo-ts/protocols/internal";
import type { Component, DistributedRuntime, EndpointHandler, ServedEndpoint } from "@dynamo-ts/runtime";
import type { KvPolicy } from "../kv-policy.js";

/** Whose index it is. */
export interface IndexOwner {
	/** Names under which the workers' model is known. */
	modelNames(): ReadonlySet<string>;
	/** Rejects with why there is no index yet. */
	policy(): Promise<KvPolicy>;
	/** True for a worker whose blocks the index has. */
	isMember(workerId: bigint): boolean;
	/** The index lives on what routers decide: they can tell it. */
	readonly canRecord: boolean;
}

/** What one component's endpoints answer for. */
interface Service {
	readonly key: string;
	readonly component: Component;
	readonly owners: Set<IndexOwner>;
	readonly canRecord: boolean;
	/** Settled in the order in which owners came and went. */
	change: Promise<void>;
	served: ServedEndpoint[];
}

export class ServedIndexers {
	readonly #runtime: DistributedRuntime;
	readonly #services = new Map<string, Service>();

	constructor(runtime: DistributedRuntime) {
		this.#runtime = runtime;
	}

	/**
	 * Serves an index at the workers' component. The same owner twice does nothing.
	 * @throws Error when indexes of the component live on other news than this one; DynamoError `Unavailable` when the
	 * endpoints cannot be served now, may be called again then.
	 */
	async add(workers: EndpointId, owner: IndexOwner): Promise<void> {
		const key = keyOf(workers);
		const { canRecord } = owner;
		let service = this.#services.get(key);
		if (service === undefined) {
			const component = this.#runtime.namespace(workers.namespace).component(workers.component);
			service = { key, component, owners: new Set(), canRecord, change: Promise.resolve(), served: [] };
			this.#services.set(key, service);
		}
		if (service.canRecord !== canRecord) {
			throw new Error(`an index of ${key} cannot live on events and another one on decisions`);
		}
		service.owners.add(owner);
		await this.#settle(service);
	}

	/** Ends what {@link add} began; the endpoints go with the component's last owner. Never rejects. */
	async remove(workers: EndpointId, owner: IndexOwner): Promise<void> {
		const service = this.#services.get(keyOf(workers));
		if (service?.owners.delete(owner) === true) await this.#settle(service).catch(() => {});
	}

	async close(): Promise<void> {
		await Promise.all(
			[...this.#services.values()].map((service) => {
				service.owners.clear();
				return this.#settle(service).catch(() => {});
			}),
		);
	}

	/** Serves while there is an owner, one change after the other. */
	#settle(service: Service): Promise<void> {
		const changed = service.change
			.catch(() => {})
			.then(async () => {
				if (service.owners.size > 0) {
					if (service.served.length === 0) await serve(service);
					return;
				}
				await Promise.all(service.served.splice(0).map((served) => served.stop()));
				if (service.owners.size === 0 && this.#services.get(service.key) === service)
					this.#services.delete(service.key);
			});
		service.change = changed;
		return changed;
	}
}

function keyOf({ namespace, component }: EndpointId): string {
	return `${namespace}.${component}`;
}

async function serve(service: Service): Promise<void> {
	const served: ServedEndpoint[] = [];
	const add = async (endpoint: string, handle: (payload: unknown) => Promise<unknown>): Promise<void> => {
		served.push(await service.component.endpoint(endpoint).serve(answering(handle)));
	};
	try {
		await add(KV_INDEXER_QUERY_ENDPOINT, (payload) => find(service, payload));
		if (service.canRecord) await add(KV_INDEXER_RECORD_ENDPOINT, (payload) => record(service, payload));
	} catch (error) {
		await Promise.all(served.map((one) => one.stop()));
		throw error;
	}
	service.served = served;
}

async function find(service: Service, payload: unknown): Promise<unknown> {
	const { modelName, tokensHashes, deviceOnly } = indexerQueryFromWire(payload);
	const { scheduler } = await ownerOf(service, modelName).policy();
	const { slots, tree } = scheduler;
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
	const scores: TieredScores = {
		device: hits(found.device),
		lowerTiers: lower.map(([tier, counts]) => ({ tier, hits: hits(counts) })).filter(({ hits }) => hits.length > 0),
	};
	return tieredScoresToWire(scores);
}

async function record(service: Service, payload: unknown): Promise<unknown> {
	const { modelName, worker, tokensHashes, sequenceHashes } = routingDecisionFromWire(payload);
	const owner = ownerOf(service, modelName);
	const policy = await owner.policy();
	if (!owner.isMember(worker.workerId)) throw new Error(`there is no worker ${worker.workerId}`);
	policy.assume(worker, tokensHashes, sequenceHashes);
	return ROUTING_DECISION_RECORDED;
}

function ownerOf({ owners }: Service, modelName: string): IndexOwner {
	const known = new Set<string>();
	for (const owner of owners) {
		const names = owner.modelNames();
		if (names.has(modelName)) return owner;
		for (const name of names) known.add(name);
	}
	throw new Error(`this index is of ${[...known].join(", ") || "no model yet"}, not of ${modelName}`);
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
