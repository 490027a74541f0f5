// SPDX-License-Identifier: Apache-2.0
// Follows the KV events of all workers of an endpoint: finds them in discovery, listens, asks again for what was lost, and
// hands on each worker's events in order and without a gap.
import { randomUUID } from "node:crypto";
import {
	type DynamoError,
	decodeRouterEvents,
	type EndpointId,
	type EndpointRecord,
	type EventEnvelope,
	type EventSourceRecord,
	eventScopePath,
	KV_EVENTS_TOPIC,
	parseKey,
	type RouterEvent,
	type WorkerKvAnswer,
	type WorkerRank,
	workerKvAnswerFromWire,
	workerKvQueryToWire,
} from "@dynamo-ts/protocols/internal";
import type { DiscoveryEvent, DistributedRuntime, EventPlane, EventSubscription, Watch } from "@dynamo-ts/runtime";
import { rateLimited } from "@dynamo-ts/runtime/internal";
import { SourceState } from "./source-state.js";

/** What happens to sources of events, by Dynamo's words for it, and a message taken in. */
export type KvIngressStep = "batch" | "started" | "preconnected" | "activated" | "stopped" | "payload_decode_error";

/** Takes what workers tell; the calls must not throw. */
export interface KvEventSink {
	/** Forget what was known of the worker's rank: what follows is all there is. */
	onReset(worker: WorkerRank): void;
	/** The next change; a parent always comes before its children. */
	onEvent(event: RouterEvent): void;
	/** The worker is gone: forget it. */
	onWorkerGone(worker: WorkerRank): void;
	onIngress?(step: KvIngressStep): void;
}

export interface KvEventSubscriberOptions {
	/** Where events come from; default: the runtime's event plane. */
	readonly events?: EventPlane | undefined;
	/** A worker that was silent for so long after an event is asked whether that was all, milliseconds; default 500. */
	readonly quietCheckMs?: number | undefined;
	/** So often a silent worker is asked anyway, milliseconds; default 30000. */
	readonly idleCheckMs?: number | undefined;
}

/** Numbers since the start. */
export interface KvEventCounts {
	applied: number;
	/** Messages or events that could not be read, or were of another worker than their source. */
	malformed: number;
	gaps: number;
	/** Questions, by what was asked for. */
	ranges: number;
	dumps: number;
	/** Questions without a usable answer. */
	failures: number;
}

const MAX_TRIES = 8;
const FIRST_RETRY_MS = 200;
const LONGEST_RETRY_MS = 10_000;
const MAX_PARALLEL_QUERIES = 16;
const QUERY_TIMEOUT_MS = 10_000;
const QUIET_CHECK_MS = 500;
const IDLE_CHECK_MS = 30_000;
/** After this many tries the worker is left alone for so long. */
const GIVE_UP_MS = 30_000;

/** One publisher that discovery calls a source. */
class Source {
	readonly record: EventSourceRecord;
	readonly worker: WorkerRank;
	/** The {@link rankKey} of {@link worker}. */
	readonly rank: string;
	readonly target: EndpointRecord | undefined;
	readonly state: SourceState;
	querying = false;
	tries = 0;
	/** When it was last heard or asked, on the clock of performance.now(). */
	heardAt = performance.now();
	/** An event came since it was last asked. */
	dirty = false;
	retry: NodeJS.Timeout | undefined;
	/** All that its worker held when it was found is known. */
	activated = false;
	closed = false;

	constructor(record: EventSourceRecord, state: SourceState) {
		const { worker, recovery_target: target } = record.metadata;
		this.record = record;
		this.worker = { workerId: worker.worker_id, dpRank: worker.dp_rank };
		this.rank = rankKey(this.worker);
		this.target = target === undefined ? undefined : { type: "Endpoint", ...target };
		this.state = state;
	}
}

const rankKey = ({ workerId, dpRank }: WorkerRank): string => `${workerId}/${dpRank}`;

export class KvEventSubscriber {
	readonly counts: KvEventCounts = { applied: 0, malformed: 0, gaps: 0, ranges: 0, dumps: 0, failures: 0 };
	readonly #runtime: DistributedRuntime;
	readonly #scopePath: string;
	readonly #sink: KvEventSink;
	readonly #options: KvEventSubscriberOptions;
	/** By publisher id. */
	readonly #sources = new Map<bigint, Source>();
	/** Publishers whose channel is listened to. */
	readonly #connected = new Set<bigint>();
	/** Sources by worker and rank, the one that counts last: a publisher may be replaced before its record is gone. */
	readonly #ranks = new Map<string, Source[]>();
	readonly #log;
	#queries = 0;
	#queue: Source[] = [];
	#subscription: EventSubscription | undefined;
	#watch: Watch | undefined;
	#timer: NodeJS.Timeout | undefined;
	#closed = false;

	private constructor(
		runtime: DistributedRuntime,
		endpoint: EndpointId,
		sink: KvEventSink,
		options: KvEventSubscriberOptions,
	) {
		this.#runtime = runtime;
		this.#scopePath = eventScopePath({ kind: "endpoint", endpoint });
		this.#sink = sink;
		this.#options = options;
		this.#log = rateLimited(runtime.log.child("dynamo_llm::kv_router::subscriber"));
	}

	/**
	 * Follows the workers that serve `endpoint`.
	 * @throws DynamoError `Unavailable` when the event plane or discovery cannot be used.
	 */
	static async open(
		runtime: DistributedRuntime,
		endpoint: EndpointId,
		sink: KvEventSink,
		options: KvEventSubscriberOptions = {},
	): Promise<KvEventSubscriber> {
		const subscriber = new KvEventSubscriber(runtime, endpoint, sink, options);
		try {
			await subscriber.#start(endpoint);
		} catch (error) {
			await subscriber.close();
			throw error;
		}
		return subscriber;
	}

	/** Workers that are followed, and how far. */
	workers(): { readonly worker: WorkerRank; readonly lastEventId: bigint | undefined; readonly inSync: boolean }[] {
		return [...this.#ranks.values()].map((sources) => {
			const { worker, state } = sources.at(-1) as Source;
			return { worker, lastEventId: state.cursor, inSync: state.wanted === undefined };
		});
	}

	/** Asks for everything that a worker holds; for an index that found itself at odds with the events. */
	resync(worker: WorkerRank): void {
		const source = this.#ranks.get(rankKey(worker))?.at(-1);
		if (source === undefined) return;
		source.state.resync();
		this.#ask(source);
	}

	async #start(endpoint: EndpointId): Promise<void> {
		const plane = this.#options.events ?? this.#runtime.events;
		// Listen first: what is told while a dump is on its way must not be lost.
		this.#subscription = await plane.subscribe({ kind: "endpoint", endpoint }, KV_EVENTS_TOPIC, {
			onEvent: (envelope) => this.#onEnvelope(envelope),
			onPublisher: (id) => this.#onConnected(id),
			onPublisherGone: (id) => this.#connected.delete(id),
		});
		const watch = await this.#runtime.discovery.watch("v1/event_sources", (event) => this.#onSource(event));
		if (this.#closed) watch.close();
		else this.#watch = watch;
		this.#timer = setInterval(() => this.#tick(), (this.#options.quietCheckMs ?? QUIET_CHECK_MS) / 2);
		this.#timer.unref();
	}

	#onSource(event: DiscoveryEvent): void {
		if (this.#closed) return;
		const key = parseKey(event.key);
		if (key === undefined || !("topic" in key) || key.topic !== KV_EVENTS_TOPIC) return;
		if (eventScopePath(key.scope) !== this.#scopePath) return;
		if (event.type === "delete") {
			this.#removeSource(key.id);
			return;
		}
		if (event.record.type !== "EventSource") return;
		const known = this.#sources.get(key.id);
		if (known !== undefined) {
			if (JSON.stringify(known.record, bigintText) === JSON.stringify(event.record, bigintText)) return;
			this.#removeSource(key.id);
		}
		this.#addSource(event.record);
	}

	#addSource(record: EventSourceRecord): void {
		const state = new SourceState({
			reset: () => {
				if (this.#isActive(source)) this.#sink.onReset(source.worker);
			},
			apply: (event) => {
				if (!this.#isActive(source)) return;
				this.counts.applied++;
				this.#sink.onEvent(event);
			},
		});
		const source: Source = new Source(record, state);
		this.#sources.set(record.publisher_id, source);
		this.#sink.onIngress?.("started");
		if (this.#connected.has(record.publisher_id)) this.#sink.onIngress?.("preconnected");
		const sources = this.#ranks.get(source.rank);
		if (sources === undefined) this.#ranks.set(source.rank, [source]);
		else sources.push(source);
		this.#ask(source);
	}

	#removeSource(publisherId: bigint): void {
		const source = this.#sources.get(publisherId);
		if (source === undefined) return;
		this.#sources.delete(publisherId);
		this.#sink.onIngress?.("stopped");
		source.closed = true;
		clearTimeout(source.retry);
		const { rank } = source;
		const wasActive = this.#isActive(source);
		const left = (this.#ranks.get(rank) ?? []).filter((one) => one !== source);
		if (left.length > 0) {
			this.#ranks.set(rank, left);
			// The older publisher counts again; what it told meanwhile went nowhere.
			if (wasActive) this.resync(source.worker);
			return;
		}
		this.#ranks.delete(rank);
		this.#sink.onWorkerGone(source.worker);
	}

	#isActive(source: Source): boolean {
		return this.#ranks.get(source.rank)?.at(-1) === source;
	}

	/** Until its socket was connected, events went by; whatever was asked before that may be too old. */
	#onConnected(publisherId: bigint): void {
		this.#connected.add(publisherId);
		const source = this.#sources.get(publisherId);
		if (source === undefined) return;
		source.dirty = true;
		this.#sink.onIngress?.("preconnected");
	}

	#onEnvelope(envelope: EventEnvelope): void {
		const source = this.#sources.get(envelope.publisherId);
		// No source, no promise that anything could be recovered: Dynamo's routers take no such events either.
		if (source === undefined) return;
		let events: RouterEvent[];
		try {
			events = decodeRouterEvents(envelope.payload);
		} catch (error) {
			this.#malformed(source, error);
			return;
		}
		this.#sink.onIngress?.("batch");
		source.heardAt = performance.now();
		source.dirty = true;
		const { state } = source;
		const { gaps } = state;
		for (const event of events) {
			if (event.workerId !== source.worker.workerId || event.dpRank !== source.worker.dpRank) {
				this.#malformed(source, `an event of worker ${event.workerId} rank ${event.dpRank}`);
				continue;
			}
			state.take(event);
		}
		this.counts.gaps += state.gaps - gaps;
		if (state.takeSuspicion()) state.check();
		if (state.wanted !== undefined) this.#ask(source);
	}

	#malformed(source: Source, error: unknown): void {
		this.counts.malformed++;
		this.#sink.onIngress?.("payload_decode_error");
		this.#log.warn("KV events of a worker could not be read", {
			worker_id: source.worker.workerId,
			error,
		});
	}

	/** A lost event shows when the next one comes. After the last one there is none: ask. */
	#tick(): void {
		const now = performance.now();
		for (const source of this.#sources.values()) {
			const silent = now - source.heardAt;
			const isQuiet = source.dirty && silent >= (this.#options.quietCheckMs ?? QUIET_CHECK_MS);
			if (!isQuiet && silent < (this.#options.idleCheckMs ?? IDLE_CHECK_MS)) continue;
			source.state.check();
			this.#ask(source);
		}
	}

	/** Sees to it that what the source wants is asked for, once at a time. */
	#ask(source: Source): void {
		if (this.#closed || source.closed || source.querying || source.retry !== undefined) return;
		if (source.state.wanted !== undefined && source.target === undefined) source.state.acceptLoss();
		if (source.state.wanted === undefined) {
			if (!source.activated) this.#sink.onIngress?.("activated");
			source.activated = true;
			return;
		}
		source.querying = true;
		source.heardAt = performance.now();
		source.dirty = false;
		if (this.#queries < MAX_PARALLEL_QUERIES) void this.#query(source);
		else this.#queue.push(source);
	}

	async #query(source: Source): Promise<void> {
		this.#queries++;
		try {
			await this.#queryOnce(source);
		} finally {
			this.#queries--;
			source.querying = false;
			const next = this.#queue.shift();
			if (next !== undefined) void this.#query(next);
		}
		this.#ask(source);
	}

	async #queryOnce(source: Source): Promise<void> {
		const { state } = source;
		const { wanted } = state;
		if (this.#closed || source.closed || wanted === undefined) return;
		if (wanted.kind === "dump") this.counts.dumps++;
		else this.counts.ranges++;
		state.asked();
		let failure: unknown;
		try {
			const answer = await this.#send(source, wanted.kind === "range" ? wanted.from : undefined);
			if (this.#closed || source.closed) return;
			const helped = state.answer(answer);
			// A range that is no longer there is asked for as a dump at once; a dump that failed, later.
			if (helped || wanted.kind === "range") {
				if (helped) source.tries = 0;
				return;
			}
			failure = answer.type === "error" ? answer.message : answer.type;
		} catch (error) {
			failure = error;
		}
		if (this.#closed || source.closed) return;
		this.counts.failures++;
		source.tries++;
		const gaveUp = source.tries >= MAX_TRIES;
		if (gaveUp) {
			source.tries = 0;
			state.giveUp();
		}
		const pause = Math.min(FIRST_RETRY_MS * 2 ** (source.tries - 1), LONGEST_RETRY_MS);
		source.retry = setTimeout(
			() => {
				source.retry = undefined;
				this.#ask(source);
			},
			gaveUp ? GIVE_UP_MS : pause * (0.75 + Math.random() / 2),
		);
		source.retry.unref();
		this.#log.warn("a worker did not tell its KV blocks; it is asked again", {
			worker_id: source.worker.workerId,
			dp_rank: source.worker.dpRank,
			tries: source.tries,
			gave_up: gaveUp,
			error: failure,
		});
	}

	#send(source: Source, startEventId: bigint | undefined): Promise<WorkerKvAnswer> {
		const payload = workerKvQueryToWire({
			...source.worker,
			startEventId,
			endEventId: undefined,
			supportsTreeDumpFailed: false,
		});
		return new Promise((resolve, reject) => {
			let answer: WorkerKvAnswer | undefined;
			let unreadable: unknown;
			const sent = this.#runtime.send(
				source.target as EndpointRecord,
				{ id: randomUUID(), payload },
				{
					onItem: (item: unknown) => {
						try {
							answer ??= workerKvAnswerFromWire(item);
						} catch (error) {
							unreadable ??= error;
						}
					},
					onEnd: () => {
						if (answer !== undefined) resolve(answer);
						else reject(unreadable ?? new Error("the worker gave no answer"));
					},
					onError: (error: DynamoError) => reject(error),
				},
				{ firstResponseTimeoutMs: QUERY_TIMEOUT_MS, idleTimeoutMs: QUERY_TIMEOUT_MS },
			);
			sent.catch(reject);
		});
	}

	/** Nothing is handed on after the call. Idempotent. */
	async close(): Promise<void> {
		if (this.#closed) return;
		this.#closed = true;
		clearInterval(this.#timer);
		this.#watch?.close();
		this.#queue = [];
		for (const source of this.#sources.values()) {
			source.closed = true;
			clearTimeout(source.retry);
		}
		await this.#subscription?.close();
	}
}

const bigintText = (_key: string, value: unknown): unknown => (typeof value === "bigint" ? `${value}` : value);
