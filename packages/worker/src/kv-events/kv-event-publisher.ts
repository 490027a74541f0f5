// SPDX-License-Identifier: Apache-2.0
// Turns what an engine's cache tells into events for routers: numbers them from 1, publishes them on the topic
// `kv-events`, keeps the last ones and an index of all blocks, and answers routers that missed some.
import {
	type EndpointId,
	type EventSourceRecord,
	encodeRouterEvents,
	KV_EVENTS_TOPIC,
	type KvCacheEvent,
	METRICS,
	type RouterEvent,
	type RouterEventData,
	type StorageTier,
	type WorkerKvAnswer,
	type WorkerKvQuery,
	workerKvAnswerToWire,
	workerKvQueryEndpoint,
	workerKvQueryFromWire,
} from "@dynamo-ts/protocols/internal";
import type { Counter, DistributedRuntime, EndpointHandler, EventPublisher, ServedEndpoint } from "@dynamo-ts/runtime";
import { openCounter } from "@dynamo-ts/runtime/internal";
import { BlockIndex } from "./block-index.js";

export interface KvEventPublisherOptions {
	/** The endpoint whose worker it is. */
	readonly endpoint: EndpointId;
	/** Data-parallel rank; default 0. */
	readonly dpRank?: number | undefined;
	/** Tokens per block, as the model card says. */
	readonly blockSize: number;
	/** Events that can be asked for again; default 65536. */
	readonly bufferedEvents?: number | undefined;
	/** The worker that the blocks belong to, where that is another process than this one. */
	readonly workerId?: bigint | undefined;
	/** Of the metrics of the endpoint that answers routers. */
	readonly metricLabels?: Readonly<Record<string, string>> | undefined;
}

const DEFAULT_BUFFERED_EVENTS = 65_536;

/** A change of the cache with the tier that it happened in; absent: the device. */
export interface TieredChange {
	readonly data: RouterEventData;
	readonly tier?: StorageTier | undefined;
}

/** The device's blocks are what prefixes are found in; other tiers are told but not dumped as if they were the device. */
const TIERS = ["device", "host_pinned", "disk", "external"] as const satisfies readonly StorageTier[];

export class KvEventPublisher {
	readonly #workerId: bigint;
	readonly #dpRank: number;
	readonly #blockSize: number;
	readonly #limit: number;
	readonly #indices: Readonly<Record<StorageTier, BlockIndex>>;
	/** The last events, ids without a gap; a ring once it is full. */
	readonly #buffer: RouterEvent[] = [];
	#lastEventId = 0n;
	/** Id of the last clear: what came before it is of no use to anybody. */
	#barrier = 0n;
	#publisher: EventPublisher | undefined;
	#served: ServedEndpoint | undefined;
	#source: EventSourceRecord | undefined;
	readonly #runtime: DistributedRuntime;
	readonly #endpoint: EndpointId;
	readonly #metricLabels: Readonly<Record<string, string>>;
	readonly #engineDropped: Counter;
	#closing: Promise<void> | undefined;

	private constructor(runtime: DistributedRuntime, options: KvEventPublisherOptions) {
		this.#runtime = runtime;
		this.#endpoint = options.endpoint;
		this.#metricLabels = options.metricLabels ?? {};
		const { namespace, component } = options.endpoint;
		const { metrics } = runtime.namespace(namespace).component(component);
		this.#engineDropped = openCounter(metrics, METRICS.component.kvPublisherEnginesDroppedEventsTotal);
		this.#workerId = options.workerId ?? runtime.instanceId;
		this.#dpRank = options.dpRank ?? 0;
		this.#blockSize = options.blockSize;
		this.#limit = options.bufferedEvents ?? DEFAULT_BUFFERED_EVENTS;
		this.#indices = Object.fromEntries(TIERS.map((tier) => [tier, new BlockIndex()])) as unknown as Record<
			StorageTier,
			BlockIndex
		>;
	}

	/**
	 * Opens the publisher, serves the query endpoint and, last, announces the source: from then on routers can rely on
	 * getting every event.
	 * @throws DynamoError `Unavailable` when the event plane, the request plane or discovery cannot be used.
	 */
	static async open(runtime: DistributedRuntime, options: KvEventPublisherOptions): Promise<KvEventPublisher> {
		const publisher = new KvEventPublisher(runtime, options);
		try {
			await publisher.#announce();
		} catch (error) {
			await publisher.close();
			throw error;
		}
		return publisher;
	}

	/** Id of the newest event; 0 before the first. */
	get lastEventId(): bigint {
		return this.#lastEventId;
	}

	/** Names this publisher on the event plane. */
	get publisherId(): bigint {
		return this.#publisher?.publisherId ?? 0n;
	}

	/** Blocks on the device. */
	get blocks(): number {
		return this.#indices.device.size;
	}

	/** The engine made events that never came here. */
	countEngineDropped(events: number): void {
		this.#engineDropped.inc(events);
	}

	/** Messages that found no room on the event plane; routers find the gap and ask. */
	get dropped(): number {
		return this.#publisher?.dropped ?? 0;
	}

	/** Publishes what an engine's cache told, as one message. @throws RangeError for blocks of another size. */
	publish(events: readonly KvCacheEvent[]): void {
		this.publishChanges(events.map((event) => ({ data: this.#toData(event) })));
	}

	/** Publishes changes as one message. */
	publishChanges(changes: readonly TieredChange[]): void {
		if (changes.length === 0 || this.#closing !== undefined) return;
		const batch = changes.map(({ data, tier = "device" }): RouterEvent => {
			this.#lastEventId++;
			const event: RouterEvent = {
				workerId: this.#workerId,
				dpRank: this.#dpRank,
				eventId: this.#lastEventId,
				storageTier: tier,
				residencyDomain: "worker",
				data,
			};
			this.#remember(event);
			return event;
		});
		this.#publisher?.publish(encodeRouterEvents(batch));
	}

	#toData(event: KvCacheEvent): RouterEventData {
		switch (event.type) {
			case "stored":
				if (event.blockSize !== this.#blockSize) {
					throw new RangeError(
						`the engine's blocks hold ${event.blockSize} tokens, the model card says ${this.#blockSize}`,
					);
				}
				return { type: "stored", parentHash: event.parentHash, blocks: event.blocks };
			case "removed":
				return { type: "removed", blockHashes: event.blockHashes };
			case "cleared":
				return event;
		}
	}

	#remember(event: RouterEvent): void {
		// A clear means every tier of the worker.
		if (event.data.type === "cleared") {
			this.#barrier = event.eventId;
			for (const tier of TIERS) this.#indices[tier].apply(event.data);
		} else this.#indices[event.storageTier].apply(event.data);
		if (this.#buffer.length < this.#limit) this.#buffer.push(event);
		else this.#buffer[Number((event.eventId - 1n) % BigInt(this.#limit))] = event;
	}

	/** What a router asked for. */
	answer(query: WorkerKvQuery): WorkerKvAnswer {
		if (query.workerId !== this.#workerId || query.dpRank !== this.#dpRank) {
			const message = `this is worker ${this.#workerId} rank ${this.#dpRank}, asked was worker ${query.workerId} rank ${query.dpRank}`;
			return { type: "error", message };
		}
		const { startEventId: start, endEventId: end } = query;
		if (start === undefined) return this.#dump();
		if (end !== undefined && end < start) return { type: "invalid_range", startId: start, endId: end };
		const newest = this.#lastEventId;
		if (start > newest) return { type: "too_new", newestAvailable: newest };
		const oldest = newest - BigInt(this.#buffer.length) + 1n;
		// Too old: the dump says what is left of it.
		if (start < oldest || start < this.#barrier) return this.#dump();
		const last = end === undefined || end > newest ? newest : end;
		const events: RouterEvent[] = [];
		for (let id = start; id <= last; id++) {
			events.push(this.#buffer[Number((id - 1n) % BigInt(this.#limit))] as RouterEvent);
		}
		return { type: "events", events, lastEventId: last };
	}

	/** Ids count from 1, but never beyond the last event's: an id of the dump must not hide a later event. */
	#dump(): WorkerKvAnswer {
		let id = 0n;
		const events = TIERS.flatMap((tier) =>
			this.#indices[tier].dump().map((data): RouterEvent => {
				if (id < this.#lastEventId) id++;
				return {
					workerId: this.#workerId,
					dpRank: this.#dpRank,
					eventId: id,
					storageTier: tier,
					residencyDomain: "worker",
					data,
				};
			}),
		);
		return { type: "dump", events, lastEventId: this.#lastEventId };
	}

	readonly #handle: EndpointHandler = (request, response) => {
		const query = workerKvQueryFromWire(request.payload);
		response.send(workerKvAnswerToWire(this.answer(query), query) as Record<string, unknown>);
		response.end();
	};

	async #announce(): Promise<void> {
		const { discovery, events } = this.#runtime;
		const scope = { kind: "endpoint", endpoint: this.#endpoint } as const;
		this.#publisher = await events.createPublisher(scope, KV_EVENTS_TOPIC);
		const { publisherId } = this.#publisher;
		this.#served = await this.#runtime
			.namespace(this.#endpoint.namespace)
			.component(this.#endpoint.component)
			.endpoint(workerKvQueryEndpoint(publisherId))
			.serve(this.#handle, { instanceId: this.#workerId, metricLabels: this.#metricLabels });
		const { type: _type, ...recoveryTarget } = this.#served.record;
		this.#source = {
			type: "EventSource",
			scope,
			topic: KV_EVENTS_TOPIC,
			publisher_id: publisherId,
			metadata: {
				kv_state_endpoint: this.#endpoint,
				worker: { worker_id: this.#workerId, dp_rank: this.#dpRank },
				publisher_id: publisherId,
				recovery_target: recoveryTarget,
			},
		};
		await discovery.put(this.#source);
	}

	/** Takes the query endpoint out of discovery; who knows of it can still ask. */
	async leave(): Promise<void> {
		await this.#served?.unregister();
	}

	/** Takes the records back: routers forget this worker's blocks. Idempotent. */
	close(): Promise<void> {
		this.#closing ??= (async () => {
			if (this.#source !== undefined) await this.#runtime.discovery.delete(this.#source).catch(() => {});
			await this.#publisher?.close();
			await this.#served?.stop();
		})();
		return this.#closing;
	}
}
