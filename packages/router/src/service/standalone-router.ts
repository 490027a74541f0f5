// SPDX-License-Identifier: Apache-2.0
// A router that is a process of its own: any worker's endpoint behind an endpoint that picks by cache and load, with the
// endpoints, bodies and answers of Dynamo's `dynamo.router`.
import {
	BEST_WORKER_ENDPOINT,
	blockHashes,
	DynamoError,
	type EndpointId,
	type EndpointRecord,
	isJsonObject,
	isU32,
	isU64,
	type ModelDeploymentCard,
	normaliseId,
	OVERLAP_SCORES_ENDPOINT,
	overlapQuestionFromWire,
	overlapScoresToWire,
	ROUTER_COMPONENT,
	type RoutingHints,
	tokenIdsFromWire,
} from "@dynamo-ts/protocols/internal";
import type {
	DistributedRuntime,
	EndpointHandler,
	IngressRequest,
	Logger,
	ResponseWriter,
	ServedEndpoint,
} from "@dynamo-ts/runtime";
import type { GroupPlace } from "../group-metrics.js";
import { matchesOf } from "../kv/remote-index.js";
import type { WorkerSlots } from "../kv/worker-slots.js";
import type { KvRouterOptions, KvWorkers } from "../kv-options.js";
import { KvPolicy } from "../kv-policy.js";
import type { RoutingOverrides, RoutingRequest } from "../router.js";
import { RouterMetrics } from "../router-metrics.js";
import { RoutingGroup } from "../routing-group.js";
import { type ForwardedBody, ForwardedRequest, workerIds } from "./forwarded-request.js";
import { type IndexOwner, ServedIndexers } from "./served-indexer.js";
import { WorkerGroup } from "./worker-group.js";

export interface StandaloneRouterOptions {
	/** The workers'. */
	readonly endpoint: EndpointId;
	/** Where the router registers; default: the workers' namespace. */
	readonly namespace?: string | undefined;
	/** Tokens of a block; undefined: what the first worker's model card says. */
	readonly blockSize?: number | undefined;
	readonly kv?: Partial<KvRouterOptions> | undefined;
}

/** Requests under way may finish in this time when the router leaves, milliseconds. */
const DRAIN_MS = 5000;
/** First and longest wait before the workers' events are subscribed to again, milliseconds. */
const RETRY_MIN_MS = 250;
const RETRY_MAX_MS = 10_000;

export class StandaloneRouter {
	readonly #runtime: DistributedRuntime;
	readonly #options: StandaloneRouterOptions;
	readonly #log: Logger;
	readonly #served: ServedEndpoint[] = [];
	readonly #indexers: ServedIndexers;
	#group!: WorkerGroup;
	/** The policy with who counts what it does. */
	#router: RoutingGroup | undefined;
	readonly #metrics: RouterMetrics;
	/** The policy once it follows the workers. */
	#ready: Promise<KvPolicy> | undefined;
	#closed = false;

	private constructor(runtime: DistributedRuntime, options: StandaloneRouterOptions) {
		this.#runtime = runtime;
		this.#options = options;
		this.#indexers = new ServedIndexers(runtime);
		this.#log = runtime.log.child("dynamo_llm::kv_router");
		this.#metrics = new RouterMetrics(runtime);
	}

	/**
	 * Serves `<namespace>.router.{generate,best_worker_id,get_overlap_scores}`; before that it has heard what the
	 * workers hold that are there.
	 * @throws DynamoError `Unavailable` when a plane cannot be used, `InvalidArgument` when the workers have blocks of
	 * another size, `Conflict` when this process serves a router already.
	 */
	static async start(runtime: DistributedRuntime, options: StandaloneRouterOptions): Promise<StandaloneRouter> {
		const router = new StandaloneRouter(runtime, options);
		try {
			await router.#start();
			return router;
		} catch (error) {
			await router.close();
			throw error;
		}
	}

	async #start(): Promise<void> {
		const { endpoint, namespace = endpoint.namespace, blockSize, kv } = this.#options;
		this.#group = await WorkerGroup.open(this.#runtime, endpoint, {
			blockSize,
			onFirst: (workers, card) => {
				this.#ready = this.#openPolicy(workers, card);
			},
		});
		await this.#ready;
		const component = this.#runtime.namespace(namespace).component(ROUTER_COMPONENT);
		const serve = async (name: string, handler: EndpointHandler): Promise<void> => {
			this.#served.push(await component.endpoint(name).serve(handler));
		};
		await serve("generate", (request, response) => this.#generate(request, response));
		await serve(BEST_WORKER_ENDPOINT, async ({ payload }, response) => {
			const routing = { tokenIds: tokenIdsFromWire(payload, "token_ids") };
			const policy = await this.#policyNow();
			await policy.lookUp(routing);
			const record = this.#pick(policy, routing);
			answer(response, { data: record.instance_id });
		});
		await serve(OVERLAP_SCORES_ENDPOINT, async ({ payload }, response) => {
			answer(response, { data: await this.#overlapScores(payload) });
		});
		if (kv?.serveIndexer === true) await this.#indexers.add(endpoint, this.#indexOwner(kv.useKvEvents === false));
	}

	#indexOwner(canRecord: boolean): IndexOwner {
		return {
			modelNames: () => this.#group.modelNames(),
			policy: () => this.#policyNow(),
			isMember: (workerId) => this.#group.member(workerId) !== undefined,
			canRecord,
		};
	}

	/** The policy, following the workers; tries until it does. */
	async #openPolicy(workers: KvWorkers, card: ModelDeploymentCard): Promise<KvPolicy> {
		const policy = new KvPolicy(workers, this.#options.kv);
		const { firstRank, rankCount } = workers;
		const router = new RoutingGroup({ model: card.display_name, policy, firstRank, rankCount });
		router.knowMembers(() => this.#group?.members() ?? []);
		this.#metrics.add(router, placeOf(this.#options.endpoint, card));
		this.#router = router;
		for (let delayMs = RETRY_MIN_MS; !this.#closed; delayMs = Math.min(delayMs * 2, RETRY_MAX_MS)) {
			try {
				await policy.open(this.#runtime, this.#options.endpoint);
				break;
			} catch (error) {
				this.#log.warn("The workers' KV events cannot be followed; it is tried again", { error, retry_ms: delayMs });
				await new Promise((resolve) => setTimeout(resolve, delayMs).unref());
			}
		}
		return policy;
	}

	#policyNow(): Promise<KvPolicy> {
		return this.#ready ?? Promise.reject(this.#group.noWorkerError());
	}

	#pick(policy: KvPolicy, routing: RoutingRequest): EndpointRecord {
		const record = policy.pick(this.#group.candidates(), routing);
		if (record === undefined) throw this.#group.noWorkerError();
		return record;
	}

	async #generate(request: IngressRequest, response: ResponseWriter): Promise<void> {
		const { body, routing: hints, pinned } = this.#read(request.payload);
		const routing: RoutingRequest = { ...hints, requestId: request.id };
		const policy = await this.#policyNow();
		if (response.closed) return;
		if (asksOnlyWhere(body)) {
			await policy.lookUp(routing);
			const { instance_id: id } = pinned ?? this.#pick(policy, routing);
			const rank = policy.explain(id, routing).dpRank;
			const routingData = { worker_id: workerIds(id, rank, body.routing), token_ids: routing.tokenIds };
			answer(response, { data: { token_ids: [], finish_reason: null, routing_data: routingData } });
			return;
		}
		new ForwardedRequest(
			this.#group,
			policy,
			this.#router as RoutingGroup,
			request,
			response,
			body,
			routing,
			pinned,
		).start();
	}

	/** @throws DynamoError `InvalidArgument` for what cannot be routed. */
	#read(payload: unknown): {
		readonly body: ForwardedBody;
		readonly routing: RoutingRequest;
		readonly pinned: EndpointRecord | undefined;
	} {
		if (!isJsonObject(payload)) throw invalid("a request must be a map with token_ids");
		const given = isJsonObject(payload.routing) ? (payload.routing as RoutingHints) : undefined;
		// Older callers name the rank beside the hints.
		const rank = given === undefined ? payload.dp_rank : given.dp_rank;
		if (rank !== undefined && rank !== null && !isU32(rank)) throw invalid("dp_rank must be an unsigned integer");
		const hints: RoutingHints | undefined =
			given ?? (rank === undefined || rank === null ? undefined : { dp_rank: rank });
		const body: ForwardedBody = hints === given ? payload : { ...payload, routing: hints };
		const pin = hints?.backend_instance_id ?? hints?.decode_worker_id ?? undefined;
		if (pin !== undefined && pin !== null && !isU64(pin)) throw invalid("a worker's id must be an unsigned integer");
		const pinned = pin === undefined || pin === null ? undefined : this.#group.member(normaliseId(pin));
		if (pin !== undefined && pin !== null && pinned === undefined) {
			throw invalid(`there is no worker ${pin} behind this router`);
		}
		return {
			body: typeof payload.model === "string" ? body : { ...body, model: "unknown" },
			pinned,
			routing: {
				tokenIds: tokenIdsFromWire(payload.token_ids, "token_ids"),
				loraName: hints?.lora_name ?? undefined,
				cacheSalt: hints?.cache_salt ?? undefined,
				dpRank: rank ?? undefined,
				expectedOutputTokens: hints?.expected_output_tokens ?? undefined,
				strictPriority: hints?.strict_priority ?? undefined,
				priorityJump: hints?.priority_jump ?? undefined,
				overrides: overridesOf(payload.router_config_override),
			},
		};
	}

	async #overlapScores(payload: unknown): Promise<Record<string, unknown>> {
		const { tokenIds, loraName, cacheSalt, mmHashes } = overlapQuestionFromWire(payload);
		const { scheduler, remote } = await this.#policyNow();
		const { blockSize, slots, tree } = scheduler;
		const { tokensHashes } = blockHashes(tokenIds, blockSize, { loraName, cacheSalt, mmHashes });
		const found =
			remote === undefined
				? tree.find(tokensHashes)
				: matchesOf(await remote.find(tokensHashes), this.#knownSlots(slots));
		const { firstRank = 0, rankCount = 1 } = this.#group.kv ?? {};
		const workers = this.#group.candidates().flatMap(({ instance_id: workerId }) =>
			Array.from({ length: rankCount }, (_, i) => {
				const dpRank = firstRank + i;
				const slot = slots.find(workerId, dpRank) ?? -1;
				const { device, hostPinned, disk } = found;
				return {
					workerId,
					dpRank,
					device: device[slot] ?? 0,
					hostPinned: hostPinned[slot] ?? 0,
					disk: disk[slot] ?? 0,
				};
			}),
		);
		workers.sort((a, b) => Number(a.workerId - b.workerId) || a.dpRank - b.dpRank);
		return overlapScoresToWire(blockSize, Math.floor(tokenIds.length / blockSize), workers);
	}

	/** Numbers for all workers that answers can name. */
	#knownSlots(slots: WorkerSlots): WorkerSlots {
		const { firstRank = 0, rankCount = 1 } = this.#group.kv ?? {};
		for (const { instance_id } of this.#group.candidates()) {
			for (let i = 0; i < rankCount; i++) slots.obtain(instance_id, firstRank + i);
		}
		return slots;
	}

	/** Leaves discovery, lets requests under way finish, and stops. Idempotent. */
	async close(): Promise<void> {
		if (this.#closed) return;
		this.#closed = true;
		await Promise.all(this.#served.map((served) => served.drain(DRAIN_MS)));
		await Promise.all(this.#served.map((served) => served.stop()));
		await this.#indexers.close();
		this.#group?.close();
		if (this.#router === undefined) return;
		this.#metrics.remove(this.#router);
		await this.#router.close();
	}
}

/** What is known of the workers, for labels. */
function placeOf(
	{ namespace, component, name }: EndpointId,
	{ display_name, worker_type }: ModelDeploymentCard,
): GroupPlace {
	const prefill = worker_type === "prefill";
	return {
		model: display_name,
		namespace,
		component,
		targetComponent: component,
		targetEndpoint: name,
		workerType: prefill ? "prefill" : "decode",
		phase: prefill ? "prefill" : "aggregated",
	};
}

/** The client wants to know who would answer, and no answer. */
function asksOnlyWhere({ annotations }: ForwardedBody): boolean {
	return (
		Array.isArray(annotations) &&
		annotations.some((one) => typeof one === "string" && one.startsWith("query_instance_id"))
	);
}

/** What the caller wants otherwise for this request; members that are not known are ignored, as Dynamo does. */
function overridesOf(given: unknown): RoutingOverrides | undefined {
	if (!isJsonObject(given)) return undefined;
	const { overlap_score_credit: credit, assume_kv_reuse: reuse, track_prefill_tokens: track } = given;
	const { prefill_load_scale: scale, router_temperature: temperature } = given;
	return {
		...(isWeight(credit) ? { overlapScoreCredit: credit } : {}),
		...(isWeight(scale) ? { prefillLoadScale: scale } : {}),
		...(isWeight(temperature) ? { temperature } : {}),
		...(typeof reuse === "boolean" ? { assumeKvReuse: reuse } : {}),
		...(typeof track === "boolean" ? { trackPrefillTokens: track } : {}),
	};
}

function isWeight(value: unknown): value is number {
	return typeof value === "number" && Number.isFinite(value) && value >= 0;
}

function answer(response: ResponseWriter, item: Parameters<ResponseWriter["send"]>[0]): void {
	response.send(item);
	response.end();
}

function invalid(message: string): DynamoError {
	return new DynamoError("InvalidArgument", message, { publicMessage: message, reason: "backend.invalid_argument" });
}
