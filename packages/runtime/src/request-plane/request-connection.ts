// SPDX-License-Identifier: Apache-2.0
import type { Socket } from "node:net";
import { AckDecoder, DynamoError } from "@dynamo-ts/protocols/internal";
import { formatHostPort } from "../net/listen.js";
import { dialStream } from "../net/streams.js";
import type { ClientTls } from "../net/tcp-tls.js";
import type { AckWaiter, SentRequest } from "./request-carrier.js";
import { type Flushable, flushAfterTurn } from "./turn-flush.js";

export interface ConnectionPoolOptions {
	readonly connectTimeoutMs: number;
	/** Most connections per address. */
	readonly size: number;
	/** Unused connections are closed after this. */
	readonly idleMs: number;
	readonly tls: ClientTls | undefined;
}

/** A further connection is opened when every open one has this many requests without an ack. */
const BUSY_UNACKED = 16;

/** One connection to a worker's request listener: many requests in flight, acks in the order of the requests. */
class RequestConnection implements Flushable, SentRequest {
	readonly #address: string;
	readonly #socket: Socket;
	readonly #waiters: AckWaiter[] = [];
	#firstWaiter = 0;
	/** Acknowledged, and the worker has not called home. */
	readonly #acknowledged = new Set<AckWaiter>();
	#connected = false;
	#gathering = false;
	#onClosed: (() => void) | undefined;

	constructor(host: string, port: number, options: ConnectionPoolOptions, onClosed: () => void) {
		this.#address = formatHostPort(host, port);
		this.#onClosed = onClosed;
		const socket = dialStream({
			host,
			port,
			tls: options.tls,
			connectTimeoutMs: options.connectTimeoutMs,
			onReady: () => {
				this.#connected = true;
				socket.setTimeout(options.idleMs);
			},
		});
		this.#socket = socket;
		socket.on("timeout", () => {
			if (!this.#connected) {
				this.#close(
					new DynamoError(
						"ConnectionTimeout",
						`no connection to worker ${this.#address} within ${options.connectTimeoutMs} ms`,
					),
				);
			} else if (this.unacked === 0 && this.#acknowledged.size === 0) this.#close(undefined);
			// It fires once; an acknowledged request may end without another byte here.
			else socket.setTimeout(options.idleMs);
		});
		socket.on("error", (error) => this.#close(this.#failure(error.message, error)));
		socket.on("end", () => this.#close(this.#failure("closed by the worker")));
		socket.on("close", () => this.#close(this.#failure("closed")));
		const decoder = new AckDecoder();
		socket.on("data", (chunk) => {
			try {
				for (const text of decoder.push(chunk)) this.#onAck(text);
			} catch (error) {
				this.#close(this.#failure((error as Error).message, error));
			}
		});
	}

	get unacked(): number {
		return this.#waiters.length - this.#firstWaiter;
	}

	send(frame: Buffer, waiter: AckWaiter): void {
		this.#waiters.push(waiter);
		// Requests of one turn of the event loop go out in one write.
		if (!this.#gathering) {
			this.#gathering = true;
			this.#socket.cork();
			flushAfterTurn(this);
		}
		this.#socket.write(frame);
	}

	/** Called at the end of the turn. */
	flush(): void {
		this.#gathering = false;
		this.#socket.uncork();
	}

	overdue(timeoutMs: number): DynamoError {
		return new DynamoError(
			"ConnectionTimeout",
			`worker ${this.#address} did not acknowledge the request within ${timeoutMs} ms`,
		);
	}

	/** An ack is waited for all the same: it has its place in the order. */
	settled(waiter: AckWaiter): void {
		this.#acknowledged.delete(waiter);
	}

	/** Closes it: acks come in order, so what was sent after an overdue request waits in vain too. */
	giveUp(): void {
		this.#close(this.#failure("an acknowledgement is overdue"));
	}

	#onAck(text: string): void {
		const waiter = this.#waiters[this.#firstWaiter];
		if (waiter === undefined) {
			this.#close(this.#failure("an acknowledgement came that nothing was sent for"));
			return;
		}
		this.#firstWaiter++;
		if (this.#firstWaiter === this.#waiters.length) {
			this.#waiters.length = 0;
			this.#firstWaiter = 0;
		} else if (this.#firstWaiter >= 1024) {
			this.#waiters.splice(0, this.#firstWaiter);
			this.#firstWaiter = 0;
		}
		if (waiter.onAck(text)) this.#acknowledged.add(waiter);
	}

	#failure(why: string, cause?: unknown): DynamoError {
		const { code } = (cause ?? {}) as NodeJS.ErrnoException;
		if (!this.#connected && (code === "EMFILE" || code === "ENFILE")) {
			// Nothing is wrong with the worker.
			return new DynamoError("ResourceExhausted", `no file descriptor for a connection to a worker: ${why}`, { cause });
		}
		return this.#connected
			? new DynamoError("Disconnected", `connection to worker ${this.#address} lost: ${why}`, { cause })
			: new DynamoError("CannotConnect", `cannot connect to worker ${this.#address}: ${why}`, { cause });
	}

	#close(error: DynamoError | undefined): void {
		const onClosed = this.#onClosed;
		if (onClosed === undefined) return;
		this.#onClosed = undefined;
		onClosed();
		this.#socket.destroy();
		const waiters = [...this.#acknowledged, ...this.#waiters.splice(this.#firstWaiter)];
		this.#acknowledged.clear();
		const reason = error ?? this.#failure("idle");
		for (const waiter of waiters) waiter.onConnectionLost(reason);
	}
}

/** Request connections by address. Few are used as long as acks come quickly; more are opened under load. */
export class ConnectionPool {
	readonly #options: ConnectionPoolOptions;
	readonly #byAddress = new Map<string, Set<RequestConnection>>();

	constructor(options: ConnectionPoolOptions) {
		this.#options = options;
	}

	/** Sends a frame to `host:port`. */
	send(host: string, port: number, frame: Buffer, waiter: AckWaiter): SentRequest {
		const connection = this.#pick(host, port);
		connection.send(frame, waiter);
		return connection;
	}

	/** Connections open now. */
	get size(): number {
		let size = 0;
		for (const connections of this.#byAddress.values()) size += connections.size;
		return size;
	}

	close(): void {
		for (const connections of [...this.#byAddress.values()]) {
			for (const connection of [...connections]) connection.giveUp();
		}
	}

	#pick(host: string, port: number): RequestConnection {
		const address = formatHostPort(host, port);
		let connections = this.#byAddress.get(address);
		if (connections === undefined) {
			connections = new Set();
			this.#byAddress.set(address, connections);
		}
		let best: RequestConnection | undefined;
		for (const connection of connections) {
			if (connection.unacked < BUSY_UNACKED) return connection;
			if (best === undefined || connection.unacked < best.unacked) best = connection;
		}
		if (best !== undefined && connections.size >= this.#options.size) return best;
		const all = connections;
		const opened = new RequestConnection(host, port, this.#options, () => {
			all.delete(opened);
			if (all.size === 0 && this.#byAddress.get(address) === all) this.#byAddress.delete(address);
		});
		all.add(opened);
		return opened;
	}
}
