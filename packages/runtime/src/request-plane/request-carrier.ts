// SPDX-License-Identifier: Apache-2.0
// How requests get to a worker and its acknowledgements back; the answers come over a connection of their own.
import type { DynamoError, EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { OutgoingRequest } from "./request-plane.js";

/** Waits for the acknowledgement of one request. Exactly one of the two is called, unless the request settles first. */
export interface AckWaiter {
	/** The ack's text; "" means accepted. */
	onAck(text: string): void;
	/** The request did not get through, or nothing is known of it any more. */
	onConnectionLost(error: DynamoError): void;
}

/** A request that was handed over and is not acknowledged yet. */
export interface SentRequest {
	/** What the request fails with when no ack came within `timeoutMs`. */
	overdue(timeoutMs: number): DynamoError;
	/** Called after that failure: the way that the request took is in doubt. */
	giveUp(): void;
	/** The ack is of no interest any more: the worker answered otherwise, or the request is over. */
	settled(): void;
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
