// SPDX-License-Identifier: Apache-2.0
// Events over NATS Core: one subject per scope and topic, the envelope as body.
import {
	decodeEnvelope,
	type EventEnvelope,
	type EventScope,
	type EventTransport,
	encodeEnvelope,
	eventSubject,
	eventSubjectPrefix,
} from "@dynamo-ts/protocols/internal";
import type { NatsConnection } from "../net/nats-connection.js";
import {
	type EventTransportDriver,
	MAX_EVENT_BYTES,
	type TransportListener,
	type TransportPublisher,
	type TransportSubscriber,
} from "./event-transport.js";

/** The library buffers without bound while the server is slow or away: a flush is asked for after so many bytes. */
const FLUSH_EVERY_BYTES = 1024 * 1024;

class NatsPublisher implements TransportPublisher {
	readonly address: EventTransport;
	readonly #connection: NatsConnection;
	readonly #subject: string;
	/** Bytes that the server may not have taken yet. */
	#outstanding = 0;
	#sinceFlush = 0;
	#closed = false;

	constructor(connection: NatsConnection, scope: EventScope, topic: string) {
		this.#connection = connection;
		this.#subject = eventSubject(scope, topic);
		this.address = { kind: "Nats", config: { subject_prefix: eventSubjectPrefix(scope) } };
	}

	send(envelope: EventEnvelope): boolean {
		if (this.#closed || this.#connection.raw.isClosed()) return false;
		const body = encodeEnvelope(envelope);
		if (body.length > this.#connection.maxPayload || this.#outstanding + body.length > MAX_EVENT_BYTES) return false;
		this.#connection.raw.publish(this.#subject, body);
		this.#outstanding += body.length;
		this.#sinceFlush += body.length;
		if (this.#sinceFlush >= FLUSH_EVERY_BYTES) this.#settle();
		return true;
	}

	/** Once the server has answered, what was sent before is off our hands. */
	#settle(): Promise<void> {
		const bytes = this.#sinceFlush;
		this.#sinceFlush = 0;
		return this.#connection.flushed().then(
			() => {
				this.#outstanding -= bytes;
			},
			() => {
				this.#outstanding -= bytes;
			},
		);
	}

	async flush(timeoutMs: number): Promise<void> {
		if (this.#connection.raw.isClosed()) return;
		let timer: NodeJS.Timeout | undefined;
		const limit = new Promise<void>((resolve) => {
			timer = setTimeout(resolve, timeoutMs);
		});
		await Promise.race([this.#settle(), limit]);
		clearTimeout(timer);
	}

	async close(): Promise<void> {
		this.#closed = true;
	}
}

export class NatsDriver implements EventTransportDriver {
	readonly name = "nats";
	readonly #connect: () => Promise<NatsConnection>;

	/** @param connect gives the runtime's connection; its owner closes it. */
	constructor(connect: () => Promise<NatsConnection>) {
		this.#connect = connect;
	}

	async openPublisher(scope: EventScope, topic: string): Promise<TransportPublisher> {
		return new NatsPublisher(await this.#connect(), scope, topic);
	}

	async openSubscriber(scope: EventScope, topic: string, listener: TransportListener): Promise<TransportSubscriber> {
		const connection = await this.#connect();
		const subscription = connection.raw.subscribe(eventSubject(scope, topic), {
			callback: (error, message) => {
				if (error !== null) {
					listener.onMalformed(error);
					return;
				}
				let envelope: EventEnvelope;
				try {
					const { data } = message;
					envelope = decodeEnvelope(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
					if (envelope.topic !== topic) throw new Error(`the envelope is of topic ${JSON.stringify(envelope.topic)}`);
				} catch (reason) {
					listener.onMalformed(reason);
					return;
				}
				listener.onEnvelope(envelope);
			},
		});
		// From here on the server knows of it: nothing published later is missed.
		await connection.raw.flush().catch(() => {});
		return {
			add: () => {},
			remove: () => {},
			close: async () => subscription.unsubscribe(),
		};
	}

	async close(): Promise<void> {}
}
