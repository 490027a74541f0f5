// SPDX-License-Identifier: Apache-2.0
// The policy "kv": the worker that has most of the prompt in its cache and the least to do.
import {
	blockTokensHashes,
	ENV,
	type EndpointId,
	type EndpointRecord,
	type RouterEvent,
	sequenceHashes,
	type WorkerRank,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, Logger } from "@dynamo-ts/runtime";
import { ACTIVE_REQUEST_EXPIRY_MS } from "./kv/active-sequences.js";
import { ApproximateIndex } from "./kv/approximate-index.js";
import { type CostWeights, DEFAULT_COST_WEIGHTS } from "./kv/cost.js";
import { type KvChoice, type KvRequest, KvScheduler } from "./kv/kv-scheduler.js";
import { type KvEventSink, KvEventSubscriber } from "./kv-events/kv-event-subscriber.js";
import type { RankLoad, Router, RoutingDecision, RoutingRequest } from "./router.js";

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
}

/** Dynamo's defaults. */
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
};

/** What the workers' card says. */
export interface KvWorkers {
	/** Tokens of a block. */
	readonly blockSize: number;
	/** Data-parallel ranks of each worker. */
	readonly firstRank: number;
	readonly rankCount: number;
	/** The workers tell what they hold. */
	readonly publishEvents: boolean;
}

/** A worker is asked for everything at most so often because its events did not fit, milliseconds. */
const RESYNC_PAUSE_MS = 10_000;

/** Workers that do not say in this time what they hold are not waited for, milliseconds. */
const FIRST_ANSWERS_MS = 2000;

/** What was worked out for a request when it was given to a worker. */
interface Plan {
	readonly request: RoutingRequest;
	readonly hashed: KvRequest;
	readonly instanceId: bigint;
	readonly choice: KvChoice;
}

/** Where Dynamo makes the spans of the same names. */
const HASHES = "dynamo_kv_router::services::selection::input";
const SCHEDULE = "dynamo_kv_router::services::selection::core::run";

/** Does one part of a choice, in a span of its own where choices are recorded. */
function within<T>(request: RoutingRequest, name: string, module: string, part: () => T): T {
	const span = request.span?.endedAt === undefined ? request.span : undefined;
	const child = span?.child(`kv_router.${name}`, { target: module, module });
	const result = part();
	child?.end();
	return result;
}

export class KvPolicy implements Router {
	readonly name = "kv";
	readonly scheduler: KvScheduler;
	readonly #options: KvRouterOptions;
	readonly #workers: KvWorkers;
	readonly #approximate: ApproximateIndex | undefined;
	#candidates: readonly EndpointRecord[] = [];
	/** Slots of all ranks of the candidates, and whose they are. */
	#slots: number[] = [];
	#records: EndpointRecord[] = [];
	#plan: Plan | undefined;
	#subscriber: KvEventSubscriber | undefined;
	#log: Logger | undefined;
	#deadline: NodeJS.Timeout | undefined;
	readonly #resyncedAt = new Map<number, number>();
	#onAnswer: (() => void) | undefined;
	#closed = false;

	/** @param random a source of numbers in [0, 1). */
	constructor(workers: KvWorkers, options: Partial<KvRouterOptions> = {}, random: () => number = Math.random) {
		this.#workers = workers;
		this.#options = { ...DEFAULT_KV_ROUTER_OPTIONS, ...options };
		this.scheduler = new KvScheduler({ ...this.#options, blockSize: workers.blockSize, random });
		if (!this.#options.useKvEvents) {
			this.#approximate = new ApproximateIndex(this.scheduler.tree, this.#options.ttlMs);
		}
	}

	/**
	 * Begins to listen to the workers of an endpoint; does nothing when routing goes without events. Resolves when
	 * those that are there have told what they hold, or after two seconds.
	 * @throws DynamoError `Unavailable` when the event plane or discovery cannot be used; may be called again then.
	 */
	async open(runtime: DistributedRuntime, endpoint: EndpointId): Promise<void> {
		if (!this.#options.useKvEvents || this.#subscriber !== undefined || this.#closed) return;
		this.#log ??= runtime.log.child("dynamo_llm::kv_router");
		if (!this.#workers.publishEvents) {
			this.#log.warn(
				`The workers' card says that they publish no KV events: requests go by load alone. ${this.#cure()}`,
				{ component: endpoint.component, endpoint: endpoint.name },
			);
			return;
		}
		const subscriber = await KvEventSubscriber.open(runtime, endpoint, this.#sink);
		if (this.#closed) {
			await subscriber.close();
			return;
		}
		this.#subscriber = subscriber;
		await this.#firstAnswers(subscriber);
	}

	async close(): Promise<void> {
		this.#closed = true;
		clearTimeout(this.#deadline);
		this.#onAnswer?.();
		try {
			await this.#subscriber?.close();
		} catch (error) {
			this.#log?.warn("The subscription to KV events could not be closed", { error });
		}
	}

	/** A router that is younger than its workers should not choose before it has heard what they hold. */
	#firstAnswers(subscriber: KvEventSubscriber): Promise<void> {
		return new Promise((resolve) => {
			const finish = (): void => {
				clearTimeout(timer);
				this.#onAnswer = undefined;
				resolve();
			};
			const timer = setTimeout(finish, FIRST_ANSWERS_MS);
			this.#onAnswer = () => {
				if (this.#closed || subscriber.workers().every(({ inSync }) => inSync)) finish();
			};
			this.#onAnswer();
		});
	}

	pick(candidates: readonly EndpointRecord[], request: RoutingRequest): EndpointRecord | undefined {
		if (candidates !== this.#candidates) this.#learn(candidates);
		const now = performance.now();
		this.scheduler.active.expire(now);
		this.#approximate?.expire(now);
		let slots = this.#slots;
		let records = this.#records;
		if (request.dpRank !== undefined && this.#workers.rankCount > 1) {
			const own = slots.map((slot) => this.scheduler.slots.workerOf(slot)?.dpRank === request.dpRank);
			slots = slots.filter((_, i) => own[i]);
			records = records.filter((_, i) => own[i]);
		}
		const hashed = this.#hash(request);
		const choice = within(request, "schedule", SCHEDULE, () => this.scheduler.choose(hashed, slots));
		if (choice === undefined) return undefined;
		const record = records[choice.index] as EndpointRecord;
		this.#plan = { request, hashed, instanceId: record.instance_id, choice };
		return record;
	}

	onStart(instanceId: bigint, requestId: string, request: RoutingRequest): void {
		const { hashed, choice } = this.#planFor(instanceId, request);
		const now = performance.now();
		this.scheduler.admit(requestId, choice.slot, hashed, choice.effectivePrefillTokens, now);
		this.#approximate?.assume(choice.slot, hashed, now);
		this.#plan = undefined;
		if (this.#deadline === undefined && hashed.tokensHashes.length > 0) this.#expectEvents();
	}

	onFirstItem(requestId: string): void {
		this.scheduler.active.prefillDone(requestId);
	}

	onEnd(_instanceId: bigint, requestId: string): void {
		this.scheduler.active.free(requestId);
	}

	rankFor(instanceId: bigint, request: RoutingRequest): number | undefined {
		if (this.#workers.rankCount < 2) return undefined;
		if (request.dpRank !== undefined) return request.dpRank;
		return this.scheduler.slots.workerOf(this.#planFor(instanceId, request).choice.slot)?.dpRank;
	}

	explain(instanceId: bigint, request: RoutingRequest): RoutingDecision {
		const { hashed, choice } = this.#planFor(instanceId, request);
		const { active, blockSize } = this.scheduler;
		return {
			dpRank: this.scheduler.slots.workerOf(choice.slot)?.dpRank ?? this.#workers.firstRank,
			promptBlocks: Math.ceil(hashed.promptTokens / blockSize),
			overlapBlocks: choice.overlapBlocks,
			cachedTokens: hashed.promptTokens - choice.effectivePrefillTokens,
			activePrefillTokens: active.prefillTokensOf(choice.slot),
			decodeBlocks: this.scheduler.potentialBlocks(choice.slot, hashed),
		};
	}

	/** Another router gave a prompt to a worker; does nothing where the index is fed by events. */
	assume({ workerId, dpRank }: WorkerRank, tokensHashes: readonly bigint[], sequenceHashes: readonly bigint[]): void {
		const promptTokens = tokensHashes.length * this.scheduler.blockSize;
		const slot = this.scheduler.slots.obtain(workerId, dpRank);
		this.#approximate?.assume(slot, { promptTokens, tokensHashes, sequenceHashes }, performance.now());
	}

	/** The choice that was just made, or one among the ranks of a worker that was chosen by somebody else. */
	#planFor(instanceId: bigint, request: RoutingRequest): Plan {
		const last = this.#plan;
		if (last?.request === request && last.instanceId === instanceId) return last;
		const hashed = this.#hash(request);
		const { firstRank, rankCount } = this.#workers;
		const all = Array.from({ length: rankCount }, (_, i) => firstRank + i);
		// A client can name any number: one that is no rank gets no slot, or slots would never end.
		const ranks = request.dpRank !== undefined && all.includes(request.dpRank) ? [request.dpRank] : all;
		const slots = ranks.map((rank) => this.scheduler.slots.obtain(instanceId, rank));
		const choice = this.scheduler.choose(hashed, slots) as KvChoice;
		const plan = { request, hashed, instanceId, choice };
		this.#plan = plan;
		return plan;
	}

	watchLoad(listener: (load: RankLoad) => void): void {
		const { active, slots } = this.scheduler;
		active.onChange = (slot) => {
			const worker = slots.workerOf(slot);
			if (worker === undefined) return;
			listener({ ...worker, activeBlocks: active.blocksOf(slot), prefillTokens: active.prefillTokensOf(slot) });
		};
	}

	#hash(request: RoutingRequest): KvRequest {
		const { tokenIds = [], loraName, cacheSalt } = request;
		const tokensHashes = within(request, "compute_block_hashes", HASHES, () =>
			blockTokensHashes(tokenIds, this.scheduler.blockSize, { loraName, cacheSalt }),
		);
		return {
			promptTokens: tokenIds.length,
			tokensHashes,
			sequenceHashes: within(request, "compute_seq_hashes", HASHES, () => sequenceHashes(tokensHashes)),
			overrides: request.overrides,
		};
	}

	#learn(candidates: readonly EndpointRecord[]): void {
		this.#candidates = candidates;
		this.#slots = [];
		this.#records = [];
		const { firstRank, rankCount } = this.#workers;
		for (const record of candidates) {
			for (let rank = firstRank; rank < firstRank + rankCount; rank++) {
				this.#slots.push(this.scheduler.slots.obtain(record.instance_id, rank));
				this.#records.push(record);
			}
		}
		this.scheduler.sweep(new Set(this.#slots));
	}

	readonly #sink: KvEventSink = {
		onReset: (worker) => {
			this.#forget(worker);
			// What the worker holds follows in the same turn.
			if (this.#onAnswer !== undefined) setImmediate(() => this.#onAnswer?.());
		},
		onWorkerGone: (worker) => {
			this.#forget(worker);
			// The slot may be another worker's next.
			const slot = this.scheduler.slots.find(worker.workerId, worker.dpRank);
			if (slot !== undefined) this.#resyncedAt.delete(slot);
		},
		onEvent: (event) => this.#apply(event),
	};

	#forget({ workerId, dpRank }: WorkerRank): void {
		const slot = this.scheduler.slots.find(workerId, dpRank);
		if (slot !== undefined) this.scheduler.tree.clear(slot);
	}

	#apply(event: RouterEvent): void {
		// A cache that outlives its worker is not the worker's to lose.
		if (event.residencyDomain === "cache_owner") return;
		const { workerId, dpRank } = event;
		const slot = this.scheduler.slots.obtain(workerId, dpRank);
		if (this.scheduler.tree.apply(slot, event.storageTier, event.data)) return;
		const now = performance.now();
		if (now - (this.#resyncedAt.get(slot) ?? Number.NEGATIVE_INFINITY) < RESYNC_PAUSE_MS) return;
		this.#resyncedAt.set(slot, now);
		this.#log?.warn("A worker's KV event names a parent block that is not known; it is asked for all blocks", {
			worker_id: workerId,
			dp_rank: dpRank,
		});
		this.#subscriber?.resync({ workerId, dpRank });
	}

	/** Routing by cache that knows of no cache must not go unnoticed. */
	#expectEvents(): void {
		const subscriber = this.#subscriber;
		if (subscriber === undefined) return;
		const { eventsDeadlineMs } = this.#options;
		this.#deadline = setTimeout(() => {
			if (this.#closed || subscriber.counts.applied > 0) return;
			this.#log?.error(
				`No KV event came within ${eventsDeadlineMs / 1000} s of a prompt: requests go by load alone. ${this.#cure()}`,
				{ sources: subscriber.workers().length, malformed: subscriber.counts.malformed },
			);
		}, eventsDeadlineMs);
		this.#deadline.unref();
	}

	#cure(): string {
		return (
			`Give all processes the same event plane (${ENV.DYN_EVENT_PLANE}), let the workers publish KV events, ` +
			`or route by assumption: --no-router-kv-events (${ENV.DYN_ROUTER_USE_KV_EVENTS}=false)`
		);
	}
}
