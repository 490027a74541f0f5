// SPDX-License-Identifier: Apache-2.0
// Events: small messages from one process to all that listen, unacknowledged. What must not be lost is recovered by other
// means (a gap shows in the sequence numbers).
import type { EventEnvelope, EventScope } from "@dynamo-ts/protocols/internal";

/** How events travel: ZeroMQ or NATS between processes, memory within one. */
export type EventTransportName = "zmq" | "nats" | "mem";

/** Publishes one topic of one scope. */
export interface EventPublisher {
	readonly scope: EventScope;
	readonly topic: string;
	/** Random, below 2^53; names this publisher, also in discovery. */
	readonly publisherId: bigint;
	readonly transport: EventTransportName;
	/** Messages given to {@link publish}. */
	readonly published: number;
	/** Of these, the ones that found no room. */
	readonly dropped: number;
	/** Sends a payload (msgpack). Never waits and never throws: without room the message is dropped and counted. */
	publish(payload: Buffer): void;
	/** Waits until what was published is handed to the network, as long as `timeoutMs` milliseconds. */
	flush(timeoutMs: number): Promise<void>;
	/** Leaves discovery and frees the socket. Idempotent. */
	close(): Promise<void>;
}

/** Receives events; the callbacks must not throw. */
export interface EventListener {
	/** One event; per publisher in order of sequence, unless one was overtaken by others on its way. */
	onEvent(event: EventEnvelope): void;
	/** Messages `from` .. `to` (both included) of a publisher did not come. One may still come late. */
	onGap?(publisherId: bigint, from: bigint, to: bigint): void;
	/** A publisher appeared in discovery, and its events are on their way. Not told behind a broker. */
	onPublisher?(publisherId: bigint): void;
	/** A publisher left discovery, or became another under the same id. Not told behind a broker. */
	onPublisherGone?(publisherId: bigint): void;
}

/** A running subscription. */
export interface EventSubscription {
	/** Messages delivered. */
	readonly received: number;
	/** Messages that are missing by their sequence numbers. */
	readonly lost: number;
	/** Messages that could not be read, or were of nobody's subscription. */
	readonly malformed: number;
	/** Publishers that it listens to; 0 behind a broker, where nobody knows. */
	readonly publishers: number;
	/** Ends it; nothing is delivered after the call. Idempotent. */
	close(): Promise<void>;
}

/** The event plane of a runtime. */
export interface EventPlane {
	readonly transport: EventTransportName;
	/**
	 * Opens a publisher and, unless a broker is between, writes its EventChannel record.
	 * @throws DynamoError `Unavailable` when the socket or the record cannot be made, `InvalidArgument` for a bad host.
	 */
	createPublisher(scope: EventScope, topic: string): Promise<EventPublisher>;
	/**
	 * Listens to all publishers of a topic and scope, those that come later included.
	 * @throws DynamoError `Unavailable` when the network or discovery cannot be used.
	 */
	subscribe(scope: EventScope, topic: string, listener: EventListener): Promise<EventSubscription>;
	/** Closes all publishers and subscriptions. Idempotent. */
	close(): Promise<void>;
}
