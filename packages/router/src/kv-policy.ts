// SPDX-License-Identifier: Apache-2.0
// The policy "kv": the worker that has most of the prompt in its cache and the least to do.
import {
	blockTokensHashes,
	type DynamoError,
	type EndpointId,
	type EndpointRecord,
	sequenceHashes,
	type TieredScores,
	type WorkerRank,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import { ApproximateIndex } from "./kv/approximate-index.js";
import { type KvChoice, type KvRequest, KvScheduler } from "./kv/kv-scheduler.js";
import { NO_SCORES, RemoteIndex } from "./kv/remote-index.js";
import { type ReplicaCounts, type ReplicaSink, ReplicaSync } from "./kv/replica-sync.js";
import { KvFeed } from "./kv-events/kv-feed.js";
import { DEFAULT_KV_ROUTER_OPTIONS, type KvRouterOptions, type KvWorkers } from "./kv-options.js";
import { Admission, type AdmissionHost, type Applicant, type Ticket } from "./queue/admission.js";
import { CacheWait, type CacheWaitHost } from "./queue/cache-wait.js";
import type { RankLoad, Router, RoutingDecision, RoutingRequest } from "./router.js";
import type { Selection } from "./routing-observer.js";

/** What was worked out for a request when it was given to a worker. */
interface Plan {
	readonly request: RoutingRequest;
	readonly hashed: KvRequest;
	readonly instanceId: bigint;
	/** Absent where somebody else chose the worker. */
	readonly record?: EndpointRecord | undefined;
	readonly choice: KvChoice;
}

/** What another process said of a prompt. */
interface LookUp {
	readonly tokensHashes: readonly bigint[];
	readonly scores: TieredScores;
	/** Milliseconds from question to answer. */
	readonly ms: number;
}

const NOTHING_EVICTED = { blocks: 0, batches: 0 };

/** Where Dynamo makes the spans of the same names. */
const HASHES = "dynamo_kv_router::services::selection::input";
const SCHEDULE = "dynamo_kv_router::services::selection::core::run";

/** A wait for a worker that holds fewer tokens more than another is not worth it: they are computed in that time. */
const LEAST_GAIN_TOKENS = 256;

export class KvPolicy implements Router {
	readonly name = "kv";
	readonly scheduler: KvScheduler;
	readonly admission: Admission;
	/** Undefined: no request waits for a worker's cache. */
	readonly cacheWait: CacheWait | undefined;
	readonly feed: KvFeed;
	/** Asked instead of the scheduler's own index; undefined: that one knows. */
	readonly remote: RemoteIndex | undefined;
	readonly #lookUps = new WeakMap<readonly number[], LookUp>();
	readonly #options: KvRouterOptions;
	readonly #workers: KvWorkers;
	/** Of what workers hold that do not tell, or of what they will tell. */
	readonly #approximate: ApproximateIndex | undefined;
	#candidates: readonly EndpointRecord[] = [];
	/** Slots of all ranks of the candidates, and whose they are. */
	#slots: number[] = [];
	#records: EndpointRecord[] = [];
	#plan: Plan | undefined;
	/** The plan is for these, made in this turn, and nobody has had more or less to do since. */
	#foreseen: readonly EndpointRecord[] | undefined;
	/** Of requests that wait. */
	readonly #hashes = new WeakMap<RoutingRequest, KvRequest>();
	#replicas: ReplicaSync | undefined;
	/** Requests under way as workers know them, by the attempt; only while other routers are told. */
	readonly #told = new Map<string, { readonly requestId: string; readonly worker: WorkerRank }>();
	#onLoad: ((load: RankLoad) => void) | undefined;
	#onSelection: ((selection: Selection) => void) | undefined;
	/** Parts of the last choice, milliseconds. */
	readonly #spent = { compute_block_hashes: 0, compute_seq_hashes: 0, schedule: 0 };
	#taintsOf: (workerId: bigint) => readonly string[] = () => [];
	#closed = false;

	/** @param random a source of numbers in [0, 1). */
	constructor(workers: KvWorkers, options: Partial<KvRouterOptions> = {}, random: () => number = Math.random) {
		this.#workers = workers;
		this.#options = { ...DEFAULT_KV_ROUTER_OPTIONS, ...options };
		const { useKvEvents, useRemoteIndexer, predictedTtlMs, profile, queueDeadlineMs, eventsDeadlineMs } = this.#options;
		this.remote = useRemoteIndexer ? new RemoteIndex(workers.model ?? "", !useKvEvents) : undefined;
		const predict = useKvEvents && predictedTtlMs !== undefined;
		this.scheduler = new KvScheduler({ ...this.#options, blockSize: workers.blockSize, random, predict });
		const { tree, slots, predicted, active } = this.scheduler;
		if (!useKvEvents && this.remote === undefined) this.#approximate = this.#approximation();
		else if (predicted !== undefined) this.#approximate = new ApproximateIndex(predicted, predictedTtlMs ?? 0);
		this.feed = new KvFeed(tree, slots, eventsDeadlineMs);
		const { maxNumBatchedTokens } = workers;
		this.admission = new Admission(this.#host, { profile, maxNumBatchedTokens, deadlineMs: queueDeadlineMs });
		const { cacheWaitMs, weights, temperature } = this.#options;
		// Where chance has a say, the cheapest is not wanted above all.
		const waits = cacheWaitMs > 0 && temperature === 0 && weights.overlapScoreCredit > 0;
		this.cacheWait = waits ? new CacheWait(this.#cacheHost, cacheWaitMs) : undefined;
		active.onChange = (slot, eased) => this.#onChange(slot, eased);
	}

	#approximation(): ApproximateIndex {
		const { approximateCachePolicy, ttlMs } = this.#options;
		const { totalKvBlocks } = this.#workers;
		// Without a known size there is nothing that gives way, as in Dynamo: then time decides.
		return approximateCachePolicy === "lru" && totalKvBlocks !== undefined
			? new ApproximateIndex(this.scheduler.tree, Number.POSITIVE_INFINITY, totalKvBlocks)
			: new ApproximateIndex(this.scheduler.tree, ttlMs);
	}

	/**
	 * Begins to listen to the workers of an endpoint, and to other routers if that is wanted. Resolves when those workers
	 * that are there have told what they hold, or after two seconds.
	 * @throws DynamoError `Unavailable` when the event plane or discovery cannot be used; may be called again then.
	 */
	async open(runtime: DistributedRuntime, endpoint: EndpointId): Promise<void> {
		if (this.#closed) return;
		const { replicaSync, useKvEvents } = this.#options;
		if (replicaSync && this.#replicas === undefined) {
			const replicas = await ReplicaSync.open(runtime, endpoint, this.#replicaSink);
			if (this.#closed) await replicas.close();
			else this.#replicas = replicas;
		}
		if (this.remote !== undefined) return this.remote.open(runtime, endpoint);
		const { publishEvents, decodeOnly } = this.#workers;
		if (useKvEvents && (publishEvents || decodeOnly !== true)) await this.feed.open(runtime, endpoint, publishEvents);
	}

	async close(): Promise<void> {
		this.#closed = true;
		this.admission.close();
		this.remote?.close();
		this.cacheWait?.close();
		await Promise.all([this.feed.close(), this.#replicas?.close()]);
	}

	/** Others may ask its index. */
	get servesIndex(): boolean {
		return this.#options.serveIndexer;
	}

	/** It believes workers to have what was given to them, instead of hearing of it. */
	get assumes(): boolean {
		return !this.#options.useKvEvents;
	}

	/** Words on a worker's card; requests can prefer some. */
	knowTaints(taintsOf: (workerId: bigint) => readonly string[]): void {
		this.#taintsOf = taintsOf;
	}

	/** What happens to blocks that no events tell of, as it was wished for and as it is. */
	get cachePolicy(): { readonly configured: "ttl" | "lru"; readonly effective: "ttl" | "lru" } {
		const configured = this.#options.approximateCachePolicy;
		return { configured, effective: this.#workers.totalKvBlocks === undefined ? "ttl" : configured };
	}

	/** Names the one listener that is told each choice once a request is given to its worker. */
	watchSelections(listener: (selection: Selection) => void): void {
		this.#onSelection = listener;
	}

	/** What the ranks of a worker have to do. */
	loadsOf(workerId: bigint): RankLoad[] {
		const { firstRank, rankCount } = this.#workers;
		const { active, slots } = this.scheduler;
		return Array.from({ length: rankCount }, (_, i) => {
			const dpRank = firstRank + i;
			const slot = slots.find(workerId, dpRank) ?? -1;
			return { workerId, dpRank, activeBlocks: active.blocksOf(slot), prefillTokens: active.prefillTokensOf(slot) };
		});
	}

	watchLoad(listener: (load: RankLoad) => void): void {
		this.#onLoad = listener;
	}

	admit(applicant: Applicant): Ticket | undefined {
		const asked = this.lookUp(applicant.request);
		return asked === undefined ? this.#enter(applicant) : this.#admitAfter(asked, applicant);
	}

	#enter(applicant: Applicant): Ticket | undefined {
		const ticket = this.admission.admit(applicant);
		return ticket !== undefined || applicant.settled === true ? ticket : this.cacheWait?.admit(applicant);
	}

	#admitAfter(asked: Promise<void>, applicant: Applicant): Ticket {
		let cancelled = false;
		let ticket: Ticket | undefined;
		void asked.then(() => {
			if (cancelled) return;
			try {
				ticket = this.#enter(applicant);
			} catch (error) {
				applicant.onRefused(error as DynamoError);
				return;
			}
			if (ticket === undefined) applicant.onTurn();
		});
		return {
			cancel: () => {
				cancelled = true;
				ticket?.cancel();
			},
		};
	}

	lookUp(request: RoutingRequest): Promise<void> | undefined {
		const { tokenIds, overrides } = request;
		const { remote } = this;
		if (remote === undefined || tokenIds === undefined || this.#lookUps.has(tokenIds)) return undefined;
		// The worker gets the prompt's blocks from another one: what it has itself is not asked.
		if (overrides?.overlapScoreCredit === 0) return undefined;
		const tokensHashes = this.#tokensHashes(request);
		const began = performance.now();
		const told = (scores: TieredScores): void => {
			this.#lookUps.set(tokenIds, { tokensHashes, scores, ms: performance.now() - began });
		};
		if (tokensHashes.length > 0) return remote.find(tokensHashes).then(told);
		told(NO_SCORES);
		return undefined;
	}

	/** Blocks that were believed to be at workers and gave way to others. */
	get evicted(): { readonly blocks: number; readonly batches: number } {
		return this.#approximate?.evicted ?? NOTHING_EVICTED;
	}

	/** What other routers told; undefined where they are not listened to. */
	replicaCounts(): ReplicaCounts | undefined {
		return this.#replicas?.counts();
	}

	/** Requests of other routers under way. */
	get replicaRequests(): number {
		return this.#replicas?.remote ?? 0;
	}

	pick(candidates: readonly EndpointRecord[], request: RoutingRequest): EndpointRecord | undefined {
		if (this.#foreseen !== candidates || this.#plan?.request !== request) this.#choose(candidates, request);
		this.#foreseen = undefined;
		return this.#plan?.record;
	}

	/** Makes a plan for the request, or none if there is nobody. @returns the slots that were in question. */
	#choose(candidates: readonly EndpointRecord[], request: RoutingRequest): readonly number[] {
		if (candidates !== this.#candidates) this.#learn(candidates);
		const now = performance.now();
		this.scheduler.active.expire(now);
		this.#approximate?.expire(now);
		let slots = this.#slots;
		let records = this.#records;
		if (request.dpRank !== undefined) {
			const own = slots.map((slot) => this.scheduler.slots.workerOf(slot)?.dpRank === request.dpRank);
			slots = slots.filter((_, i) => own[i]);
			records = records.filter((_, i) => own[i]);
		}
		const hashed = this.#hash(request);
		const factorOf = this.#factorOf(request);
		const choice = this.#within(request, "schedule", SCHEDULE, () => this.scheduler.choose(hashed, slots, factorOf));
		const record = choice === undefined ? undefined : (records[choice.index] as EndpointRecord);
		this.#plan = choice && record && { request, hashed, record, instanceId: record.instance_id, choice };
		return slots;
	}

	onStart(instanceId: bigint, requestId: string, request: RoutingRequest): void {
		const { hashed, choice } = this.#planFor(instanceId, request);
		const now = performance.now();
		this.#tellSelection(request, hashed, choice);
		const admitted = this.scheduler.admit(requestId, choice.slot, hashed, choice.effectivePrefillTokens, now);
		this.#approximate?.assume(choice.slot, hashed, now);
		this.#plan = undefined;
		if (hashed.tokensHashes.length > 0) this.feed.expectEvents();
		const worker = this.scheduler.slots.workerOf(choice.slot);
		if (worker !== undefined) this.remote?.record(worker, hashed.tokensHashes, hashed.sequenceHashes);
		if (this.#replicas === undefined || worker === undefined) return;
		const told = { requestId: request.requestId ?? requestId, worker };
		this.#told.set(requestId, told);
		const { hashes, prefillTokens } = admitted;
		const { expectedOutputTokens } = request;
		this.#replicas.tell(
			told.requestId,
			worker,
			{
				type: "add",
				tokenSequence: hashes,
				trackPrefillTokens: request.overrides?.trackPrefillTokens ?? this.#options.trackPrefillTokens,
				expectedOutputTokens: expectedOutputTokens === undefined ? undefined : BigInt(expectedOutputTokens),
				prefillLoadHint: prefillTokens === 0 ? undefined : { initialEffectivePrefillTokens: BigInt(prefillTokens) },
			},
			request.loraName,
		);
	}

	onFirstItem(requestId: string): void {
		this.scheduler.active.prefillDone(requestId);
		const told = this.#told.get(requestId);
		if (told !== undefined) this.#replicas?.tell(told.requestId, told.worker, { type: "prefill_completed" });
	}

	onTokens(requestId: string, tokens: number): void {
		if (this.#options.trackOutputBlocks) this.scheduler.active.grow(requestId, tokens);
	}

	onEnd(_instanceId: bigint, requestId: string): void {
		this.scheduler.active.free(requestId);
		const told = this.#told.get(requestId);
		if (told === undefined) return;
		this.#told.delete(requestId);
		this.#replicas?.tell(told.requestId, told.worker, { type: "free" });
	}

	/** There are other workers, or fewer: requests that wait may go to them. */
	recheck(): void {
		this.admission.recheck();
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
			queueDepth: this.admission.waiting,
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

	#hash(request: RoutingRequest): KvRequest {
		const kept = this.#hashes.get(request);
		if (kept !== undefined) return kept;
		const { tokenIds = [], expectedOutputTokens } = request;
		const known = this.remote === undefined ? undefined : this.#lookUps.get(tokenIds);
		const tokensHashes = known?.tokensHashes ?? this.#tokensHashes(request);
		return {
			promptTokens: tokenIds.length,
			tokensHashes,
			sequenceHashes: this.#within(request, "compute_seq_hashes", HASHES, () => sequenceHashes(tokensHashes)),
			expectedOutputTokens,
			overrides: request.overrides,
			scores: known?.scores,
		};
	}

	#tokensHashes(request: RoutingRequest): bigint[] {
		const { tokenIds = [], loraName, cacheSalt } = request;
		const { eagle } = this.#workers;
		return this.#within(request, "compute_block_hashes", HASHES, () =>
			blockTokensHashes(tokenIds, this.scheduler.blockSize, { loraName, cacheSalt, eagle }),
		);
	}

	/** Does one part of a choice, in a span of its own where choices are recorded. */
	#within<T>(
		request: RoutingRequest,
		name: "compute_block_hashes" | "compute_seq_hashes" | "schedule",
		module: string,
		part: () => T,
	): T {
		// One that waits is chosen for again and again; its first choice tells how long that takes.
		const recorded = request.span?.endedAt === undefined && !this.#hashes.has(request);
		const span = recorded ? request.span : undefined;
		const child = span?.child(`kv_router.${name}`, { target: module, module });
		const began = performance.now();
		const result = part();
		this.#spent[name] = performance.now() - began;
		child?.end();
		return result;
	}

	#tellSelection(
		{ tokenIds = [] }: RoutingRequest,
		{ promptTokens }: KvRequest,
		{ overlapBlocks, mostOverlapBlocks }: KvChoice,
	): void {
		if (this.#onSelection === undefined) return;
		const { blockSize, findMs } = this.scheduler;
		this.#onSelection({
			blockSize,
			promptBlocks: Math.ceil(promptTokens / blockSize),
			overlapBlocks,
			mostOverlapBlocks,
			blockHashingMs: this.#spent.compute_block_hashes,
			seqHashingMs: this.#spent.compute_seq_hashes,
			findMatchesMs: this.#lookUps.get(tokenIds)?.ms ?? findMs,
			schedulingMs: Math.max(0, this.#spent.schedule - findMs),
		});
	}

	/** What preferred words do to the cost: exp(-tanh(sum of the weights of those that the worker has)). */
	#factorOf({ preferredTaints }: RoutingRequest): ((slot: number) => number) | undefined {
		const wanted = Object.entries(preferredTaints ?? {});
		if (wanted.length === 0) return undefined;
		return (slot) => {
			const worker = this.scheduler.slots.workerOf(slot);
			const taints = worker === undefined ? [] : this.#taintsOf(worker.workerId);
			const sum = wanted.reduce((total, [taint, weight]) => total + (taints.includes(taint) ? weight : 0), 0);
			return Math.exp(-Math.tanh(sum));
		};
	}

	#onChange(slot: number, eased: boolean): void {
		this.#foreseen = undefined;
		this.admission.recheck();
		if (eased) this.cacheWait?.eased(slot);
		const worker = this.#onLoad === undefined ? undefined : this.scheduler.slots.workerOf(slot);
		if (worker === undefined) return;
		const { active } = this.scheduler;
		this.#onLoad?.({ ...worker, activeBlocks: active.blocksOf(slot), prefillTokens: active.prefillTokensOf(slot) });
	}

	/** Slots of the candidates' ranks that may take the request. */
	#slotsOf({ dpRank }: RoutingRequest, candidates: readonly EndpointRecord[]): number[] {
		const { firstRank, rankCount } = this.#workers;
		const slots: number[] = [];
		for (const { instance_id } of candidates) {
			for (let rank = firstRank; rank < firstRank + rankCount; rank++) {
				if (dpRank === undefined || dpRank === rank) slots.push(this.scheduler.slots.obtain(instance_id, rank));
			}
		}
		return slots;
	}

	readonly #host: AdmissionHost = {
		prefillTokens: (request, candidates) =>
			this.#slotsOf(request, candidates).map((slot) => this.scheduler.active.prefillTokensOf(slot)),
		cachedTokens: (request, candidates) => {
			const choice = this.scheduler.choose(this.#hash(request), this.#slotsOf(request, candidates));
			return (choice?.mostOverlapBlocks ?? 0) * this.scheduler.blockSize;
		},
	};

	readonly #cacheHost: CacheWaitHost = {
		betterFor: (request, candidates) => {
			const { overlapScoreCredit, temperature = 0 } = request.overrides ?? {};
			if (candidates.length < 2 || overlapScoreCredit === 0 || temperature > 0) return [];
			const slots = this.#choose(candidates, request);
			const plan = this.#plan;
			if (plan === undefined) return [];
			const least = Math.ceil(LEAST_GAIN_TOKENS / this.scheduler.blockSize);
			const better = this.scheduler.holdersBeyond(plan.choice, least, slots);
			// One that goes now is picked for in this turn; until one that waits goes, caches change.
			if (better.length === 0) this.#foreseen = candidates;
			else this.#hashes.set(request, plan.hashed);
			return better;
		},
	};

	readonly #replicaSink: ReplicaSink = {
		add: (key, { workerId, dpRank }, { tokenSequence, trackPrefillTokens, prefillLoadHint }) => {
			const { firstRank, rankCount } = this.#workers;
			if (dpRank < firstRank || dpRank >= firstRank + rankCount) return;
			const { scheduler } = this;
			const prefill = trackPrefillTokens ? Number(prefillLoadHint?.initialEffectivePrefillTokens ?? 0n) : 0;
			const hashes = this.#options.trackActiveBlocks ? (tokenSequence ?? []) : [];
			const tracked = this.#options.trackPrefillTokens ? prefill : 0;
			scheduler.active.add(key, scheduler.slots.obtain(workerId, dpRank), hashes, tracked, performance.now());
		},
		prefillDone: (key) => this.scheduler.active.prefillDone(key),
		free: (key) => this.scheduler.active.free(key),
		has: (key) => this.scheduler.active.has(key),
	};

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
}
