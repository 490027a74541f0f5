// SPDX-License-Identifier: Apache-2.0
// Requests over NATS: one message each to the instance's subject, acknowledged on an inbox of this process.
import { DynamoError, ENV, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { Msg, MsgHdrs, Subscription } from "nats";
import type { NatsConnection } from "../net/nats-connection.js";
import type { Logger } from "../observability/logging.js";
import { rateLimited } from "../observability/rate-limited-log.js";
import { CallHomeClient, type CallHomeOptions } from "./call-home-client.js";
import { isNatsSubject } from "./nats-subject.js";
import type { AckWaiter, RequestCarrier, SentRequest } from "./request-carrier.js";
import { headersToSend } from "./request-headers.js";
import type { OutgoingRequest } from "./request-plane.js";

/** After NATS came back, a worker that does not listen may only be slower to come back itself, milliseconds. */
const RETURN_MS = 3000;
/** Pause between two tries to reach such a worker. */
const RETRY_MS = 100;
/** After NATS came back, what was sent before the loss is given this long to be answered, before it is sent again. */
const UNSURE_MS = 250;
/** Messages that wait for NATS to come back: bytes of all together. */
const MAX_WAITING_BYTES = 64 * 1024 * 1024;

export interface NatsCarrierOptions {
	readonly connection: NatsConnection;
	/** From sending to the acknowledgement, a wait for NATS included; milliseconds. */
	readonly ackTimeoutMs: number;
	readonly log: Logger;
}

/** A request whose acknowledgement is awaited. */
class Pending implements SentRequest {
	readonly carrier: NatsCarrier;
	/** Last part of the inbox that the acknowledgement comes to. */
	readonly token: string;
	readonly subject: string;
	readonly headers: MsgHdrs;
	readonly message: Buffer;
	readonly waiter: AckWaiter;
	/** False while it waits for NATS. */
	published = false;
	retry: NodeJS.Timeout | undefined;

	constructor(
		carrier: NatsCarrier,
		token: string,
		subject: string,
		headers: MsgHdrs,
		message: Buffer,
		waiter: AckWaiter,
	) {
		this.carrier = carrier;
		this.token = token;
		this.subject = subject;
		this.headers = headers;
		this.message = message;
		this.waiter = waiter;
	}

	overdue(timeoutMs: number): DynamoError {
		return this.carrier.overdue(this, timeoutMs);
	}

	giveUp(): void {
		this.carrier.forget(this);
	}

	settled(): void {
		this.carrier.forget(this);
	}
}

/**
 * Publishes requests. While NATS is away they wait, within the limits of time and bytes; what was on its way when NATS
 * went is sent again unless the worker has answered meanwhile. (A worker that gets it twice is told to drop the second
 * one when it calls home.)
 */
export class NatsCarrier implements RequestCarrier {
	readonly ackTimeoutMs: number;
	readonly #connection: NatsConnection;
	readonly #log: Logger;
	readonly #nats: typeof import("nats");
	readonly #inbox: string;
	readonly #acks: Subscription;
	readonly #pending = new Map<string, Pending>();
	readonly #stopListening: () => void;
	#waitingBytes = 0;
	#sent = 0;
	#returnedAt = Number.NEGATIVE_INFINITY;
	#resend: NodeJS.Timeout | undefined;

	private constructor(options: NatsCarrierOptions, nats: typeof import("nats")) {
		this.ackTimeoutMs = options.ackTimeoutMs;
		this.#connection = options.connection;
		this.#log = rateLimited(options.log);
		this.#nats = nats;
		this.#inbox = nats.createInbox();
		this.#acks = this.#connection.raw.subscribe(`${this.#inbox}.*`, {
			callback: (error, message) => this.#onAck(error, message),
		});
		this.#stopListening = this.#connection.onState((up) => this.#onState(up));
	}

	static async open(options: NatsCarrierOptions): Promise<NatsCarrier> {
		return new NatsCarrier(options, await import("nats"));
	}

	/** Requests whose acknowledgement is awaited. */
	get unacked(): number {
		return this.#pending.size;
	}

	targetOf({ transport, namespace, component, endpoint }: EndpointRecord): string {
		return "nats_tcp" in transport ? transport.nats_tcp : `${namespace}/${component}/${endpoint}`;
	}

	send(instance: EndpointRecord, request: OutgoingRequest, message: Buffer, waiter: AckWaiter): SentRequest {
		const { transport } = instance;
		const subject = "nats_tcp" in transport ? transport.nats_tcp : undefined;
		if (subject === undefined || !isNatsSubject(subject)) {
			const advice =
				"tcp" in transport ? `; it takes requests over TCP: set ${ENV.DYN_REQUEST_PLANE} alike everywhere` : "";
			throw new DynamoError(
				"CannotConnect",
				`the worker's address ${JSON.stringify(transport)} is no NATS subject${advice}`,
			);
		}
		const headers = this.#nats.headers();
		let bytes = message.length + "NATS/1.0\r\n\r\n".length;
		for (const [name, value] of Object.entries(headersToSend(request))) {
			headers.set(name, value);
			bytes += Buffer.byteLength(name) + Buffer.byteLength(value) + ": \r\n".length;
		}
		const { maxPayload } = this.#connection;
		if (bytes > maxPayload) {
			const text = `the request is too large to send to a worker: ${bytes} bytes, and the NATS server takes at most ${maxPayload}. Shorten it, raise max_payload in the NATS server's configuration, or set ${ENV.DYN_REQUEST_PLANE}=tcp`;
			throw new DynamoError("PayloadTooLarge", text, { publicMessage: text });
		}
		const pending = new Pending(this, (this.#sent++).toString(36), subject, headers, message, waiter);
		if (this.#connection.up) this.#publish(pending);
		else this.#wait(pending);
		this.#pending.set(pending.token, pending);
		return pending;
	}

	/** No acknowledgement of it is told any more. */
	forget(pending: Pending): void {
		if (!this.#pending.delete(pending.token)) return;
		clearTimeout(pending.retry);
		if (!pending.published) this.#waitingBytes -= pending.message.length;
	}

	/** What a request fails with that got no acknowledgement in time. */
	overdue(pending: Pending, timeoutMs: number): DynamoError {
		if (!this.#connection.up) {
			return new DynamoError(
				"Unavailable",
				`NATS at ${this.#connection.servers} is away since ${Math.round(this.#connection.sinceMs)} ms; the request waited ${timeoutMs} ms`,
				{ local: true },
			);
		}
		return new DynamoError(
			"ConnectionTimeout",
			`worker ${pending.subject} did not acknowledge the request within ${timeoutMs} ms`,
		);
	}

	async close(): Promise<void> {
		this.#stopListening();
		clearTimeout(this.#resend);
		this.#acks.unsubscribe();
		for (const pending of [...this.#pending.values()]) {
			this.#fail(pending, new DynamoError("Cancelled", "the runtime is shutting down"));
		}
	}

	/** @throws DynamoError `Unavailable` when the connection is closed. */
	#publish(pending: Pending): void {
		pending.published = true;
		try {
			this.#connection.raw.publish(pending.subject, pending.message, {
				reply: `${this.#inbox}.${pending.token}`,
				headers: pending.headers,
			});
		} catch (error) {
			const text = `the request cannot be sent over NATS: ${(error as Error).message}`;
			throw new DynamoError("Unavailable", text, { cause: error, local: true });
		}
	}

	#wait(pending: Pending): void {
		if (this.#waitingBytes + pending.message.length > MAX_WAITING_BYTES) {
			throw new DynamoError(
				"Unavailable",
				`NATS at ${this.#connection.servers} is away and ${this.#waitingBytes} bytes of requests wait for it already`,
				{ local: true },
			);
		}
		this.#waitingBytes += pending.message.length;
	}

	#onAck(error: Error | null, message: Msg): void {
		if (error !== null) {
			this.#log.warn("NATS refused the inbox for acknowledgements", { error });
			return;
		}
		const pending = this.#pending.get(message.subject.slice(this.#inbox.length + 1));
		if (pending === undefined) return;
		if (message.data.length === 0 && message.headers?.code === 503) {
			this.#noResponders(pending);
			return;
		}
		this.forget(pending);
		pending.waiter.onAck(message.data.length === 0 ? "" : Buffer.from(message.data).toString("utf8"));
	}

	/** Nobody listens on the subject: the worker is gone, or NATS was, and the worker is not back yet. */
	#noResponders(pending: Pending): void {
		if (performance.now() - this.#returnedAt < RETURN_MS) {
			clearTimeout(pending.retry);
			pending.retry = setTimeout(() => {
				if (this.#connection.up && this.#pending.has(pending.token)) this.#republish(pending);
			}, RETRY_MS);
			return;
		}
		this.#fail(
			pending,
			new DynamoError("CannotConnect", `worker ${pending.subject} does not listen at NATS (no responders)`),
		);
	}

	#republish(pending: Pending): void {
		try {
			if (!pending.published) this.#waitingBytes -= pending.message.length;
			this.#publish(pending);
		} catch (error) {
			this.#fail(pending, error as DynamoError);
		}
	}

	#onState(up: boolean): void {
		clearTimeout(this.#resend);
		if (!up) return;
		this.#returnedAt = performance.now();
		const unsure: Pending[] = [];
		for (const pending of [...this.#pending.values()]) {
			if (pending.published) unsure.push(pending);
			else this.#republish(pending);
		}
		if (unsure.length === 0) return;
		this.#resend = setTimeout(() => {
			// A timer that is kept would keep these requests.
			this.#resend = undefined;
			for (const pending of unsure) if (this.#pending.get(pending.token) === pending) this.#republish(pending);
		}, UNSURE_MS);
	}

	#fail(pending: Pending, error: DynamoError): void {
		this.forget(pending);
		pending.waiter.onConnectionLost(error);
	}
}

/** Everything about requests over NATS and responses over TCP. */
export type NatsClientOptions = CallHomeOptions & NatsCarrierOptions;

/**
 * Opens the client half of the NATS request plane.
 * @throws DynamoError `Unavailable` when the response listener cannot be opened.
 */
export async function openNatsClient(options: NatsClientOptions): Promise<CallHomeClient> {
	const carrier = await NatsCarrier.open(options);
	try {
		return await CallHomeClient.open(options, carrier);
	} catch (error) {
		await carrier.close();
		throw error;
	}
}
