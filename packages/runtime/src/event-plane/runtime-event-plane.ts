// SPDX-License-Identifier: Apache-2.0
// The event plane over any transport: publishers with ids and sequence numbers, their records in discovery, and
// subscriptions that follow these records.
import { randomBytes } from "node:crypto";
import {
	DynamoError,
	type EventChannelRecord,
	type EventEnvelope,
	type EventScope,
	eventScopePath,
	eventSubject,
	METRICS,
	parseKey,
	publisherIdFrom,
	recordKey,
} from "@dynamo-ts/protocols/internal";
import type { Discovery, DiscoveryEvent, Watch } from "../discovery/discovery.js";
import type { Logger } from "../observability/logging.js";
import type { Counter, MetricsRegistry } from "../observability/metrics.js";
import { openCounterVec } from "../observability/open-family.js";
import { rateLimited } from "../observability/rate-limited-log.js";
import type {
	EventListener,
	EventPlane,
	EventPublisher,
	EventSubscription,
	EventTransportName,
} from "./event-plane.js";
import type { EventTransportDriver, TransportPublisher, TransportSubscriber } from "./event-transport.js";
import { SequenceTracker } from "./sequence-tracker.js";

/** Counters of one topic. */
interface EventCounters {
	readonly published: Counter;
	readonly dropped: Counter;
	readonly received: Counter;
	readonly lost: Counter;
	readonly malformed: Counter;
}

/** Makes the counters of the plane; the result gives those of a topic. */
function createCounters(metrics: MetricsRegistry): (topic: string) => EventCounters {
	const published = openCounterVec(metrics, METRICS.event.publishedTotal);
	const dropped = openCounterVec(metrics, METRICS.event.droppedTotal);
	const received = openCounterVec(metrics, METRICS.event.receivedTotal);
	const lost = openCounterVec(metrics, METRICS.event.lostTotal);
	const malformed = openCounterVec(metrics, METRICS.event.malformedTotal);
	return (topic) => ({
		published: published.withLabelValues(topic),
		dropped: dropped.withLabelValues(topic),
		received: received.withLabelValues(topic),
		lost: lost.withLabelValues(topic),
		malformed: malformed.withLabelValues(topic),
	});
}

export interface RuntimeEventPlaneOptions {
	readonly driver: EventTransportDriver;
	readonly discovery: Discovery;
	readonly metrics: MetricsRegistry;
	readonly log: Logger;
}

export class RuntimeEventPlane implements EventPlane {
	readonly transport: EventTransportName;
	readonly #options: RuntimeEventPlaneOptions;
	readonly #counters: (topic: string) => EventCounters;
	readonly #open = new Set<{ close(): Promise<void> }>();
	#closing: Promise<void> | undefined;

	constructor(options: RuntimeEventPlaneOptions) {
		this.#options = options;
		this.transport = options.driver.name;
		this.#counters = createCounters(options.metrics);
	}

	async createPublisher(scope: EventScope, topic: string): Promise<EventPublisher> {
		this.#refuseAfterClose();
		const { driver, discovery } = this.#options;
		const publisherId = publisherIdFrom(randomBytes(8).readBigUInt64BE());
		const sender = await driver.openPublisher(scope, topic, publisherId);
		const record: EventChannelRecord | undefined =
			sender.address === undefined
				? undefined
				: { type: "EventChannel", scope, topic, instance_id: publisherId, transport: sender.address };
		try {
			if (record !== undefined) await discovery.put(record);
			this.#refuseAfterClose();
		} catch (error) {
			await sender.close();
			throw error;
		}
		const publisher = new Publisher(
			scope,
			topic,
			publisherId,
			this.transport,
			sender,
			this.#counters(topic),
			async () => {
				this.#open.delete(publisher);
				if (record !== undefined) await discovery.delete(record).catch(() => {});
			},
		);
		this.#open.add(publisher);
		return publisher;
	}

	async subscribe(scope: EventScope, topic: string, listener: EventListener): Promise<EventSubscription> {
		this.#refuseAfterClose();
		const { log } = this.#options;
		const subscription = new Subscription(scope, topic, listener, this.#counters(topic), log, () =>
			this.#open.delete(subscription),
		);
		this.#open.add(subscription);
		try {
			await subscription.start(this.#options);
			this.#refuseAfterClose();
		} catch (error) {
			await subscription.close();
			throw error;
		}
		return subscription;
	}

	close(): Promise<void> {
		this.#closing ??= this.#close();
		return this.#closing;
	}

	async #close(): Promise<void> {
		await Promise.all([...this.#open].map((one) => one.close()));
		await this.#options.driver.close();
	}

	#refuseAfterClose(): void {
		if (this.#closing !== undefined) throw new DynamoError("Unavailable", "the event plane is closed");
	}
}

class Publisher implements EventPublisher {
	published = 0;
	dropped = 0;
	#sequence = 0n;
	#closing: Promise<void> | undefined;

	constructor(
		readonly scope: EventScope,
		readonly topic: string,
		readonly publisherId: bigint,
		readonly transport: EventTransportName,
		readonly sender: TransportPublisher,
		readonly counters: EventCounters,
		readonly onClose: () => Promise<void>,
	) {}

	publish(payload: Buffer): void {
		if (this.#closing !== undefined) return;
		const { topic, publisherId, counters } = this;
		this.published++;
		counters.published.inc();
		const envelope = { publisherId, sequence: this.#sequence++, publishedAt: Date.now(), topic, payload };
		if (this.sender.send(envelope)) return;
		this.dropped++;
		counters.dropped.inc();
	}

	flush(timeoutMs: number): Promise<void> {
		return this.sender.flush(timeoutMs);
	}

	close(): Promise<void> {
		this.#closing ??= this.onClose().then(() => this.sender.close());
		return this.#closing;
	}
}

class Subscription implements EventSubscription {
	received = 0;
	lost = 0;
	malformed = 0;
	readonly #scope: EventScope;
	readonly #topic: string;
	readonly #listener: EventListener;
	readonly #counters: EventCounters;
	readonly #log: Logger;
	readonly #onClose: () => void;
	readonly #sequences = new SequenceTracker();
	/** Publishers by id, with the key and the address that each was first seen with. */
	readonly #channels = new Map<bigint, { readonly key: string; readonly address: string; fenced: boolean }>();
	#receiver: TransportSubscriber | undefined;
	#watch: Watch | undefined;
	#closing: Promise<void> | undefined;

	constructor(
		scope: EventScope,
		topic: string,
		listener: EventListener,
		counters: EventCounters,
		log: Logger,
		onClose: () => void,
	) {
		this.#scope = scope;
		this.#topic = topic;
		this.#listener = listener;
		this.#counters = counters;
		this.#log = rateLimited(log);
		this.#onClose = onClose;
	}

	get publishers(): number {
		return this.#channels.size;
	}

	async start({ driver, discovery }: RuntimeEventPlaneOptions): Promise<void> {
		const receiver = await driver.openSubscriber(this.#scope, this.#topic, {
			onEnvelope: (envelope) => this.#onEnvelope(envelope),
			onMalformed: (error) => this.#onMalformed(error),
		});
		this.#receiver = receiver;
		const watch = await discovery.watch("v1/event_channels", (event) => this.#onChannel(event));
		if (this.#closing === undefined) this.#watch = watch;
		else watch.close();
	}

	#onChannel(event: DiscoveryEvent): void {
		if (this.#closing !== undefined || this.#receiver === undefined) return;
		const key = parseKey(event.key);
		if (key === undefined || !("topic" in key) || key.topic !== this.#topic) return;
		if (eventScopePath(key.scope) !== eventScopePath(this.#scope)) return;
		if (event.type === "delete") {
			this.#removeChannel(key.id);
			return;
		}
		const { record } = event;
		if (record.type !== "EventChannel" || recordKey(record) !== event.key) return;
		const address = JSON.stringify(record.transport);
		const known = this.#channels.get(key.id);
		if (known?.address === address) return;
		if (known !== undefined) {
			// An id belongs to one socket for good: two addresses mean that two think it is theirs.
			if (!known.fenced) {
				known.fenced = true;
				this.#receiver.remove(key.id);
				this.#log.warn("a publisher of events changed its address; it is left aside until it leaves discovery", {
					publisher: key.id,
					topic: this.#topic,
				});
				this.#listener.onPublisherGone?.(key.id);
			}
			return;
		}
		const channel = { key: event.key, address, fenced: false };
		try {
			this.#receiver.add(key.id, record.transport);
		} catch (error) {
			channel.fenced = true;
			this.#log.warn("the address of a publisher of events cannot be used", { publisher: key.id, address, error });
		}
		this.#channels.set(key.id, channel);
		if (!channel.fenced) this.#listener.onPublisher?.(key.id);
	}

	#removeChannel(id: bigint): void {
		const channel = this.#channels.get(id);
		if (channel === undefined) return;
		this.#channels.delete(id);
		this.#sequences.forget(id);
		if (channel.fenced) return;
		this.#receiver?.remove(id);
		this.#listener.onPublisherGone?.(id);
	}

	#onEnvelope(envelope: EventEnvelope): void {
		if (this.#closing !== undefined) return;
		const verdict = this.#sequences.see(envelope.publisherId, envelope.sequence);
		if (verdict.kind === "duplicate") return;
		if (verdict.kind === "late") this.lost--;
		else if (verdict.gap !== undefined) {
			const { from, to } = verdict.gap;
			const missing = Number(to - from) + 1;
			this.lost += missing;
			this.#counters.lost.inc(missing);
			this.#listener.onGap?.(envelope.publisherId, from, to);
		}
		this.received++;
		this.#counters.received.inc();
		this.#listener.onEvent(envelope);
	}

	#onMalformed(error: unknown): void {
		if (this.#closing !== undefined) return;
		this.malformed++;
		this.#counters.malformed.inc();
		this.#log.warn("a message on the event plane could not be read", {
			subject: eventSubject(this.#scope, this.#topic),
			error,
		});
	}

	close(): Promise<void> {
		if (this.#closing === undefined) {
			this.#onClose();
			this.#closing = (async () => {
				this.#watch?.close();
				await this.#receiver?.close();
				this.#channels.clear();
			})();
		}
		return this.#closing;
	}
}
