// SPDX-License-Identifier: Apache-2.0
// Events within one process, for runtimes that share a mem store.
import {
	type EventEnvelope,
	type EventScope,
	type EventTransport,
	eventSubject,
	idHex,
} from "@dynamo-ts/protocols/internal";
import {
	type EventTransportDriver,
	MAX_QUEUED_MESSAGES,
	type TransportListener,
	type TransportPublisher,
	type TransportSubscriber,
} from "./event-transport.js";

class MemSubscriber implements TransportSubscriber {
	readonly #listener: TransportListener;
	readonly #onClose: () => void;
	#waiting: EventEnvelope[] = [];
	#scheduled: NodeJS.Immediate | undefined;

	constructor(listener: TransportListener, onClose: () => void) {
		this.#listener = listener;
		this.#onClose = onClose;
	}

	/** @returns false when it has fallen behind too far. */
	take(envelope: EventEnvelope): boolean {
		if (this.#waiting.length >= MAX_QUEUED_MESSAGES) return false;
		this.#waiting.push(envelope);
		// Never within the publisher's call, as with every other transport.
		this.#scheduled ??= setImmediate(() => {
			this.#scheduled = undefined;
			const batch = this.#waiting;
			this.#waiting = [];
			for (const one of batch) this.#listener.onEnvelope(one);
		});
		return true;
	}

	add(): void {}
	remove(): void {}

	async close(): Promise<void> {
		this.#onClose();
		this.#waiting = [];
		if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
	}
}

/** Subscribers of one process by subject; what a network is to the other transports. */
type Hub = Map<string, Set<MemSubscriber>>;
const hubs = new WeakMap<object, Hub>();

export class MemEventDriver implements EventTransportDriver {
	readonly name = "mem";
	readonly #hub: Hub;

	/** @param world all who share it hear each other. */
	constructor(world: object) {
		let hub = hubs.get(world);
		if (hub === undefined) {
			hub = new Map();
			hubs.set(world, hub);
		}
		this.#hub = hub;
	}

	async openPublisher(scope: EventScope, topic: string, publisherId: bigint): Promise<TransportPublisher> {
		const subject = eventSubject(scope, topic);
		// The shape of a ZeroMQ address that no other process can connect to.
		const address: EventTransport = { kind: "Zmq", config: { endpoint: `inproc://${idHex(publisherId)}` } };
		return {
			address,
			send: (envelope) => {
				// The payload is the caller's to use again.
				const own = { ...envelope, payload: Buffer.from(envelope.payload) };
				let taken = true;
				for (const subscriber of this.#hub.get(subject) ?? []) taken = subscriber.take(own) && taken;
				return taken;
			},
			flush: async () => {},
			close: async () => {},
		};
	}

	async openSubscriber(scope: EventScope, topic: string, listener: TransportListener): Promise<TransportSubscriber> {
		const subject = eventSubject(scope, topic);
		const subscriber = new MemSubscriber(listener, () => {
			const subscribers = this.#hub.get(subject);
			subscribers?.delete(subscriber);
			if (subscribers?.size === 0) this.#hub.delete(subject);
		});
		const subscribers = this.#hub.get(subject) ?? new Set();
		this.#hub.set(subject, subscribers.add(subscriber));
		return subscriber;
	}

	async close(): Promise<void> {}
}
