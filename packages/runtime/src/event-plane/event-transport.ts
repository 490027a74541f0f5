// SPDX-License-Identifier: Apache-2.0
// What a kind of event transport does for the plane: bytes in and out. Ids, sequence numbers, discovery and counting are
// the plane's.
import type { EventEnvelope, EventScope, EventTransport } from "@dynamo-ts/protocols/internal";
import type { EventTransportName } from "./event-plane.js";

/** The sending side of one publisher. */
export interface TransportPublisher {
	/** For the EventChannel record; undefined: none is written, subscribers need none. */
	readonly address: EventTransport | undefined;
	/** Queues a message. @returns false when there is no room. */
	send(envelope: EventEnvelope): boolean;
	/** Resolves when nothing is queued, or after `timeoutMs`. */
	flush(timeoutMs: number): Promise<void>;
	close(): Promise<void>;
}

/** The receiving side of one subscription. */
export interface TransportSubscriber {
	/** A publisher appeared. @throws Error when its address cannot be used. */
	add(publisherId: bigint, address: EventTransport): void;
	/** A publisher left. */
	remove(publisherId: bigint): void;
	close(): Promise<void>;
}

export interface TransportListener {
	onEnvelope(envelope: EventEnvelope): void;
	/** A message could not be read. */
	onMalformed(error: unknown): void;
}

export interface EventTransportDriver {
	readonly name: EventTransportName;
	openPublisher(scope: EventScope, topic: string, publisherId: bigint): Promise<TransportPublisher>;
	openSubscriber(scope: EventScope, topic: string, listener: TransportListener): Promise<TransportSubscriber>;
	close(): Promise<void>;
}

/** Messages that may wait for a socket, or for a listener within the process. */
export const MAX_QUEUED_MESSAGES = 10_000;

/** Most bytes of one message; larger ones are cut off by the receiving socket. */
export const MAX_EVENT_BYTES = 32 * 1024 * 1024;
