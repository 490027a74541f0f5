// SPDX-License-Identifier: Apache-2.0
// How requests get to a worker and its acknowledgements back; the answers come over a connection of their own.
import type { DynamoError, EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { OutgoingRequest } from "./request-plane.js";

/** Waits for the acknowledgement of one request, and then for the worker. */
export interface AckWaiter {
	/**
	 * @param text "" means accepted.
	 * @returns false when a loss of the way to the worker does not matter any more.
	 */
	onAck(text: string): boolean;
	/** The request did not get through, or the worker that acknowledged it may be gone. */
	onConnectionLost(error: DynamoError): void;
}

/** A request that was handed over and not heard of from the worker itself. */
export interface SentRequest {
	/** What the request fails with when no ack came within `timeoutMs`. */
	overdue(timeoutMs: number): DynamoError;
	/** Called after that failure: the way that the request took is in doubt. */
	giveUp(): void;
	/** Nothing of it is of interest any more: the worker answered otherwise, or the request is over. */
	settled(waiter: AckWaiter): void;
}

/** Sends requests to instances. */
export interface RequestCarrier {
	/** From sending to the acknowledgement, milliseconds, unless a request says otherwise. */
	readonly ackTimeoutMs: number;
	/** Where an instance takes requests, for messages. */
	targetOf(instance: EndpointRecord): string;
	/**
	 * @param message control header and body, as a two-part message.
	 * @throws DynamoError `CannotConnect` for an address of another request plane, `PayloadTooLarge` for a message that
	 * would not be taken, `Unavailable` when too much waits already.
	 */
	send(instance: EndpointRecord, request: OutgoingRequest, message: Buffer, waiter: AckWaiter): SentRequest;
	/** What is not acknowledged yet fails. */
	close(): Promise<void>;
}
