// SPDX-License-Identifier: Apache-2.0
// The workers that a standalone router chooses among: the instances of one endpoint whose model card fits.
import {
	DynamoError,
	type EndpointId,
	type EndpointRecord,
	type ModelDeploymentCard,
	type ModelRecord,
	parseKey,
	type RoutingHints,
} from "@dynamo-ts/protocols/internal";
import type {
	DiscoveryEvent,
	DistributedRuntime,
	EndpointClient,
	IngressRequest,
	Logger,
	Watch,
} from "@dynamo-ts/runtime";
import type { KvWorkers } from "../kv-options.js";
import { kvWorkersOf } from "../kv-workers.js";
import { type RouteLogs, type RouteTrace, routeLogs } from "../route-span.js";

export interface WorkerGroupOptions {
	/** Tokens of a block; undefined: what the first card says. */
	readonly blockSize: number | undefined;
	/** The first worker that fits is there; called once. */
	readonly onFirst: (workers: KvWorkers, card: ModelDeploymentCard) => void;
}

export class WorkerGroup {
	readonly client: EndpointClient;
	readonly #endpoint: EndpointId;
	readonly #options: WorkerGroupOptions;
	readonly #log: Logger;
	readonly #routeLogs: RouteLogs;
	/** Cards that fit, by the key of their record. */
	readonly #cards = new Map<string, ModelRecord>();
	readonly #members = new Set<bigint>();
	#refused: DynamoError | undefined;
	#kv: KvWorkers | undefined;
	#seen: readonly EndpointRecord[] | undefined;
	#candidates: readonly EndpointRecord[] = [];
	#watch: Watch | undefined;

	private constructor(
		client: EndpointClient,
		endpoint: EndpointId,
		options: WorkerGroupOptions,
		runtime: DistributedRuntime,
	) {
		this.client = client;
		this.#endpoint = endpoint;
		this.#options = options;
		this.#log = runtime.log.child("dynamo_llm::kv_router");
		this.#routeLogs = routeLogs(runtime);
	}

	/** Where attempts of a request that is passed on belong; undefined where requests have no spans. */
	traceOf({ id, span }: IngressRequest, routing: RoutingHints | null | undefined): RouteTrace | undefined {
		if (span === undefined) return undefined;
		const [first] = this.#cards.values();
		const type = first?.card_json.worker_type;
		const decode = type === "decode" || (routing?.prefill_worker_id ?? undefined) !== undefined;
		const phase = type === "prefill" ? "Prefill" : decode ? "Decode" : "Aggregated";
		return { parent: span, phase, logs: this.#routeLogs, requestId: id, cancelSignal: "kill" };
	}

	/**
	 * Follows the workers of `endpoint`; knows those that are there when the promise resolves.
	 * @throws DynamoError `Unavailable` when discovery cannot be used, `InvalidArgument` when there are workers and all
	 * have blocks of another size.
	 */
	static async open(
		runtime: DistributedRuntime,
		endpoint: EndpointId,
		options: WorkerGroupOptions,
	): Promise<WorkerGroup> {
		const client = await runtime
			.namespace(endpoint.namespace)
			.component(endpoint.component)
			.endpoint(endpoint.name)
			.client();
		const group = new WorkerGroup(client, endpoint, options, runtime);
		try {
			group.#watch = await runtime.discovery.watch("v1/mdc", (event) => group.#onCard(event));
			if (group.#refused !== undefined && group.#cards.size === 0) throw group.#refused;
		} catch (error) {
			group.close();
			throw error;
		}
		return group;
	}

	/** What the cards say; undefined before the first worker. */
	get kv(): KvWorkers | undefined {
		return this.#kv;
	}

	/** Names under which the workers' model is known. */
	modelNames(): ReadonlySet<string> {
		return new Set([...this.#cards.values()].map(({ card_json }) => card_json.display_name));
	}

	/** Workers that are live and have not failed lately; the same array until something changes. */
	candidates(): readonly EndpointRecord[] {
		const available = this.client.available();
		if (available !== this.#seen) {
			this.#seen = available;
			this.#candidates = available.filter(({ instance_id }) => this.#members.has(instance_id));
		}
		return this.#candidates;
	}

	/** All that are live. */
	members(): readonly EndpointRecord[] {
		return this.client.instances().filter(({ instance_id }) => this.#members.has(instance_id));
	}

	/** A live worker by its id. */
	member(instanceId: bigint): EndpointRecord | undefined {
		if (!this.#members.has(instanceId)) return undefined;
		return this.client.instances().find(({ instance_id }) => instance_id === instanceId);
	}

	/** For requests that nobody can take. */
	noWorkerError(): DynamoError {
		const { namespace, component, name } = this.#endpoint;
		return new DynamoError(
			"Unavailable",
			`no worker of ${namespace}.${component}.${name} can be reached: start one, or name the workers' endpoint with --endpoint`,
			{ reason: "backend.unavailable" },
		);
	}

	close(): void {
		this.#watch?.close();
		this.client.close();
	}

	#onCard(event: DiscoveryEvent): void {
		if (event.type === "delete") {
			this.#forget(event.key);
			return;
		}
		const key = parseKey(event.key);
		if (key?.bucket !== "v1/mdc" || event.record.type !== "Model") return;
		const { record } = event;
		if (record.namespace !== this.#endpoint.namespace || record.component !== this.#endpoint.component) return;
		if (record.endpoint !== this.#endpoint.name || this.#cards.has(event.key)) return;
		const workers = kvWorkersOf(record.card_json);
		const problem = this.#problem(workers);
		if (problem !== undefined) {
			this.#refused = new DynamoError(
				"InvalidArgument",
				`worker ${record.instance_id} of model ${record.card_json.display_name} gets no requests: ${problem}`,
			);
			this.#log.error(this.#refused.message, { instance_id: record.instance_id });
			return;
		}
		this.#cards.set(event.key, record);
		this.#members.add(record.instance_id);
		this.#seen = undefined;
		if (this.#kv !== undefined) return;
		this.#kv = workers;
		this.#options.onFirst(workers, record.card_json);
	}

	/** Why a worker cannot be routed to. */
	#problem(workers: KvWorkers): string | undefined {
		const blockSize = this.#options.blockSize ?? this.#kv?.blockSize ?? workers.blockSize;
		if (workers.blockSize !== blockSize) {
			return `its model card says blocks of ${workers.blockSize} tokens, the router counts in blocks of ${blockSize}; start it with --router-block-size ${workers.blockSize}, or one router for each size`;
		}
		const { firstRank = workers.firstRank, rankCount = workers.rankCount } = this.#kv ?? {};
		if (workers.firstRank === firstRank && workers.rankCount === rankCount) return undefined;
		return `it has ${workers.rankCount} data-parallel ranks from ${workers.firstRank}, the others ${rankCount} from ${firstRank}`;
	}

	#forget(key: string): void {
		const record = this.#cards.get(key);
		if (record === undefined) return;
		this.#cards.delete(key);
		for (const { instance_id } of this.#cards.values()) if (instance_id === record.instance_id) return;
		this.#members.delete(record.instance_id);
		this.#seen = undefined;
	}
}
