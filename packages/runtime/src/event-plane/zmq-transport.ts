// SPDX-License-Identifier: Apache-2.0
// Events over ZeroMQ. Direct: each publisher binds a socket of its own and subscribers connect to all of them, as
// discovery shows. Through brokers: everybody connects to all brokers, and nobody needs discovery.
import {
	DynamoError,
	decodeEventFrames,
	type EventEnvelope,
	type EventScope,
	type EventTransport,
	encodeEventFrames,
	eventSubject,
} from "@dynamo-ts/protocols/internal";
import type { Publisher, Subscriber } from "zeromq";
import { type EventHost, zmqEndpoint } from "./event-host.js";
import {
	type EventTransportDriver,
	MAX_QUEUED_MESSAGES,
	type TransportListener,
	type TransportPublisher,
	type TransportSubscriber,
} from "./event-transport.js";
import { loadZmq, readSocket, SendQueue, socketOptions, type Zmq } from "./zmq-sockets.js";

/** Messages that ZeroMQ keeps per subscriber that does not keep up; as Dynamo has it. */
const SEND_HIGH_WATER_MARK = 100_000;

/** The brokers' two sides. */
export interface BrokerEndpoints {
	/** Publishers connect here. */
	readonly xsub: readonly string[];
	/** Subscribers connect here. */
	readonly xpub: readonly string[];
}

/** Tells the brokers now and each time they change; returns how to end that. */
export type BrokerSource = (namespace: string, onBrokers: (brokers: BrokerEndpoints) => void) => Promise<() => void>;

function namespaceOf(scope: EventScope): string {
	switch (scope.kind) {
		case "namespace":
			return scope.name;
		case "component":
			return scope.namespace;
		case "endpoint":
			return scope.endpoint.namespace;
	}
}

class ZmqPublisher implements TransportPublisher {
	readonly #socket: Publisher;
	readonly #queue: SendQueue;
	readonly #topicFrame: string;
	readonly #onClose: () => void;

	constructor(
		socket: Publisher,
		topicFrame: string,
		readonly address: EventTransport | undefined,
		onClose: () => void,
	) {
		this.#socket = socket;
		this.#queue = new SendQueue(socket, MAX_QUEUED_MESSAGES);
		this.#topicFrame = topicFrame;
		this.#onClose = onClose;
	}

	send(envelope: EventEnvelope): boolean {
		return this.#queue.push(encodeEventFrames(this.#topicFrame, envelope));
	}

	flush(timeoutMs: number): Promise<void> {
		return this.#queue.flush(timeoutMs);
	}

	async close(): Promise<void> {
		this.#queue.close();
		this.#onClose();
		if (!this.#socket.closed) this.#socket.close();
	}
}

/** A subscribing socket and the endpoints it is connected to. */
class ZmqReader {
	readonly #socket: Subscriber;
	readonly #connected = new Set<string>();
	readonly #done: Promise<void>;

	constructor(zmq: Zmq, topicFrame: string, topic: string, listener: TransportListener) {
		const socket = new zmq.Subscriber({ ...socketOptions([]), receiveHighWaterMark: MAX_QUEUED_MESSAGES });
		socket.subscribe(topicFrame);
		this.#socket = socket;
		this.#done = readSocket(socket, (frames) => {
			// Subscriptions are prefixes: what only begins like our topic is not for us.
			if (frames[0] !== undefined && frames[0].length !== Buffer.byteLength(topicFrame)) {
				if (frames[0].toString("utf8").startsWith(topicFrame)) return;
			}
			let envelope: EventEnvelope;
			try {
				envelope = decodeEventFrames(frames, topicFrame, topic);
			} catch (error) {
				listener.onMalformed(error);
				return;
			}
			listener.onEnvelope(envelope);
		});
	}

	/** @throws Error for text that is no endpoint. */
	connect(endpoint: string): void {
		if (this.#connected.has(endpoint)) return;
		if (!/^tcp:\/\/[^\s/]+:\d{1,5}$/.test(endpoint)) {
			throw new DynamoError("InvalidArgument", `${JSON.stringify(endpoint)} is not of the form tcp://host:port`);
		}
		if (endpoint.includes("[")) this.#socket.ipv6 = true;
		this.#socket.connect(endpoint);
		this.#connected.add(endpoint);
	}

	disconnect(endpoint: string): void {
		if (!this.#connected.delete(endpoint) || this.#socket.closed) return;
		this.#socket.disconnect(endpoint);
	}

	async close(): Promise<void> {
		if (!this.#socket.closed) this.#socket.close();
		await this.#done;
	}
}

/** Every publisher has its own socket. */
export class ZmqDirectDriver implements EventTransportDriver {
	readonly name = "zmq";
	readonly #host: () => Promise<EventHost>;

	/** @param host asked with the first publisher. */
	constructor(host: () => Promise<EventHost>) {
		this.#host = host;
	}

	async openPublisher(_scope: EventScope, topic: string): Promise<TransportPublisher> {
		const [zmq, host] = await Promise.all([loadZmq(), this.#host()]);
		const wanted = zmqEndpoint(host.bind, "*");
		const socket = new zmq.Publisher({ ...socketOptions([wanted]), sendHighWaterMark: SEND_HIGH_WATER_MARK });
		try {
			await socket.bind(wanted);
		} catch (cause) {
			socket.close();
			const text = `the event plane cannot listen on ${host.bind}: ${(cause as Error).message}`;
			throw new DynamoError("Unavailable", text, { publicMessage: text, cause });
		}
		const port = /:(\d+)$/.exec(socket.lastEndpoint ?? "")?.[1] ?? "0";
		const endpoint = zmqEndpoint(host.advertise, port);
		return new ZmqPublisher(socket, topic, { kind: "Zmq", config: { endpoint } }, () => {});
	}

	async openSubscriber(_scope: EventScope, topic: string, listener: TransportListener): Promise<TransportSubscriber> {
		const reader = new ZmqReader(await loadZmq(), topic, topic, listener);
		const endpoints = new Map<bigint, string>();
		return {
			add(publisherId, address) {
				if (address.kind !== "Zmq") throw wrongKind(address, "zmq");
				reader.connect(address.config.endpoint);
				endpoints.set(publisherId, address.config.endpoint);
			},
			remove(publisherId) {
				const endpoint = endpoints.get(publisherId);
				endpoints.delete(publisherId);
				// A new publisher may have got the port of a dead one.
				if (endpoint !== undefined && ![...endpoints.values()].includes(endpoint)) reader.disconnect(endpoint);
			},
			close: () => reader.close(),
		};
	}

	async close(): Promise<void> {}
}

/** An error for a publisher on another plane than ours. */
export function wrongKind(address: EventTransport, ours: string): DynamoError {
	return new DynamoError(
		"InvalidArgument",
		`the publisher uses ${address.kind}, this process ${ours}: set the same event plane for both`,
	);
}

/** Everybody connects to all brokers; the topic frame is the whole subject, since all topics share their sockets. */
export class ZmqBrokerDriver implements EventTransportDriver {
	readonly name = "zmq";
	readonly #brokers: BrokerSource;

	constructor(brokers: BrokerSource) {
		this.#brokers = brokers;
	}

	async openPublisher(scope: EventScope, topic: string): Promise<TransportPublisher> {
		const zmq = await loadZmq();
		const socket = new zmq.Publisher({ ...socketOptions([]), sendHighWaterMark: SEND_HIGH_WATER_MARK });
		const connected = new Set<string>();
		const stop = await this.#brokers(namespaceOf(scope), ({ xsub }) => {
			follow(connected, xsub, {
				connect(endpoint) {
					if (endpoint.includes("[")) socket.ipv6 = true;
					socket.connect(endpoint);
				},
				disconnect: (endpoint) => socket.disconnect(endpoint),
			});
		}).catch((error: unknown) => {
			socket.close();
			throw error;
		});
		return new ZmqPublisher(socket, eventSubject(scope, topic), undefined, stop);
	}

	async openSubscriber(scope: EventScope, topic: string, listener: TransportListener): Promise<TransportSubscriber> {
		const reader = new ZmqReader(await loadZmq(), eventSubject(scope, topic), topic, listener);
		const connected = new Set<string>();
		const stop = await this.#brokers(namespaceOf(scope), ({ xpub }) => {
			follow(connected, xpub, reader);
		}).catch(async (error: unknown) => {
			await reader.close();
			throw error;
		});
		return {
			add: () => {},
			remove: () => {},
			close: () => {
				stop();
				return reader.close();
			},
		};
	}

	async close(): Promise<void> {}
}

/** Makes the connections those that are wanted; an endpoint that is none is left out. */
function follow(
	connected: Set<string>,
	wanted: readonly string[],
	socket: { connect(endpoint: string): void; disconnect(endpoint: string): void },
): void {
	for (const endpoint of [...connected]) {
		if (wanted.includes(endpoint)) continue;
		connected.delete(endpoint);
		socket.disconnect(endpoint);
	}
	for (const endpoint of wanted) {
		if (connected.has(endpoint)) continue;
		try {
			socket.connect(endpoint);
		} catch {
			continue;
		}
		connected.add(endpoint);
	}
}
