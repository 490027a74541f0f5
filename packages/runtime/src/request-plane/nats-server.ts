// SPDX-License-Identifier: Apache-2.0
// Takes requests over NATS: one subscription per endpoint, in Dynamo's queue group.
import { DynamoError, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { Msg, MsgHdrs, Subscription } from "nats";
import type { NatsConnection } from "../net/nats-connection.js";
import type { Logger } from "../observability/logging.js";
import { rateLimited } from "../observability/rate-limited-log.js";
import { EndpointEntry } from "./endpoint-entry.js";
import { natsSubject, QUEUE_GROUP } from "./nats-subject.js";
import { RequestIngress, type RequestIngressOptions } from "./request-ingress.js";
import type { EndpointHandler, EndpointObserver, EndpointRegistration, RequestPlaneServer } from "./request-plane.js";

export interface NatsServerOptions extends RequestIngressOptions {
	readonly connection: NatsConnection;
}

/** How long the end of a subscription is waited for, milliseconds. */
const DRAIN_TIMEOUT_MS = 1000;

/**
 * Receives requests from NATS. Each is acknowledged on its inbox, before its handler runs; the response goes over a
 * TCP connection that is dialled back to the client.
 */
export class NatsRequestPlaneServer implements RequestPlaneServer {
	readonly #connection: NatsConnection;
	readonly #ingress: RequestIngress;
	readonly #log: Logger;
	readonly #endpoints = new Map<string, NatsEndpoint>();

	constructor(options: NatsServerOptions) {
		this.#connection = options.connection;
		this.#ingress = new RequestIngress(options);
		this.#log = rateLimited(options.log);
	}

	register(path: string, handler: EndpointHandler, observer?: EndpointObserver): EndpointRegistration {
		const subject = natsSubject(path);
		const other = this.#endpoints.get(subject);
		if (other !== undefined) {
			throw new DynamoError("Conflict", `endpoint ${other.path} is served already, as ${subject}`);
		}
		const entry = new NatsEndpoint(path, handler, observer, this.#connection, () => this.#endpoints.delete(subject));
		this.#endpoints.set(subject, entry);
		entry.subscription = this.#connection.raw.subscribe(subject, {
			queue: QUEUE_GROUP,
			callback: (error, message) => {
				if (error === null) this.#onMessage(entry, message);
				else this.#log.error("NATS refused the subscription of an endpoint", { endpoint: path, subject, error });
			},
		});
		return entry;
	}

	address(path: string): EndpointRecord["transport"] {
		return { nats_tcp: natsSubject(path) };
	}

	async close(): Promise<void> {
		const entries = [...this.#endpoints.values()];
		for (const entry of entries) entry.close();
		await Promise.all(entries.map((entry) => entry.ended));
	}

	#onMessage(entry: NatsEndpoint, message: Msg): void {
		const receivedAt = performance.now();
		const { path } = entry;
		// A fault of one message must not reach the library, which would take it for a fault of the connection.
		try {
			const refused = this.#ingress.refusal(path, entry, 0);
			message.respond(refused === undefined ? undefined : Buffer.from(refused));
			if (refused !== undefined) return;
			const { buffer, byteOffset, length } = message.data;
			const frame = { path, headers: headersOf(message.headers), payload: Buffer.from(buffer, byteOffset, length) };
			this.#ingress.accept(frame, entry, receivedAt);
		} catch (error) {
			this.#log.error("a request from NATS failed", { endpoint: path, error });
		}
	}
}

/** An endpoint with its subscription. */
class NatsEndpoint extends EndpointEntry {
	subscription: Subscription | undefined;
	/** Resolves when no message can come any more; set by {@link close}. */
	ended: Promise<void> = Promise.resolve();
	readonly #connection: NatsConnection;

	constructor(
		path: string,
		handler: EndpointHandler,
		observer: EndpointObserver | undefined,
		connection: NatsConnection,
		forget: () => void,
	) {
		super(path, handler, observer, forget);
		this.#connection = connection;
	}

	override ready(signal?: AbortSignal): Promise<void> {
		return this.#connection.flushed(signal);
	}

	/** Messages that NATS has sent already are still answered, with a refusal. */
	override close(): void {
		super.close();
		const { subscription } = this;
		if (subscription === undefined) return;
		this.subscription = undefined;
		if (!this.#connection.up) {
			subscription.unsubscribe();
			return;
		}
		this.ended = new Promise((resolve) => {
			const timer = setTimeout(() => {
				subscription.unsubscribe();
				resolve();
			}, DRAIN_TIMEOUT_MS);
			const done = () => {
				clearTimeout(timer);
				resolve();
			};
			subscription.drain().then(done, done);
		});
	}
}

function headersOf(headers: MsgHdrs | undefined): Record<string, string> {
	const texts: Record<string, string> = {};
	if (headers !== undefined) for (const [name, values] of headers) texts[name] = values[0] ?? "";
	return texts;
}
