// SPDX-License-Identifier: Apache-2.0
import type { Server, Socket } from "node:net";
import { ENV, KILL_FRAME, parseHandshake, TwoPartDecoder } from "@dynamo-ts/protocols/internal";
import { advertisedHost, formatHostPort, listenTcp } from "../net/listen.js";
import { createStreamServer } from "../net/streams.js";
import type { ServerTls } from "../net/tcp-tls.js";
import type { Logger } from "../observability/logging.js";
import { rateLimited } from "../observability/rate-limited-log.js";
import { readAt } from "../turn-clock.js";

/** Waits for a worker to call home. */
export interface ResponseStreamOwner {
	/** The worker is there. Returns the receiver of what follows the handshake. */
	onCallHome(socket: Socket): ResponseStreamReceiver;
}

/** Receives what comes on one response connection. None of these may throw. */
export interface ResponseStreamReceiver {
	/** One two-part message; an absent part is an empty buffer. */
	onFrame(header: Buffer, body: Buffer): void;
	/** No more comes; `why` for people. Called exactly once. */
	onClosed(why: string): void;
}

export interface ResponseServerOptions {
	readonly host: string;
	readonly port: number;
	readonly backlog: number | undefined;
	readonly maxMessageBytes: number;
	readonly tls: ServerTls | undefined;
	readonly log: Logger;
}

/** A worker that dials must say for which stream within this time. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
/** What a worker may send before its handshake is whole. */
const MAX_HANDSHAKE_BYTES = 64 * 1024;
/** How long a worker may take to close a stream that nobody waits for. */
const REFUSAL_LINGER_MS = 1000;

/** The listener that workers dial back to: one per process, one connection per response stream. */
export class ResponseServer {
	/** `host:port` that goes into requests. */
	readonly address: string;
	readonly #options: ResponseServerOptions;
	readonly #server: Server;
	readonly #waiting = new Map<string, ResponseStreamOwner>();
	readonly #sockets = new Set<Socket>();

	readonly #log: Logger;

	private constructor(options: ResponseServerOptions, server: Server, port: number, log: Logger) {
		this.#options = options;
		this.#server = server;
		this.#log = log;
		this.address = formatHostPort(advertisedHost(options.host), port);
	}

	/** @throws DynamoError `Unavailable` when the address cannot be listened on. */
	static async listen(options: ResponseServerOptions): Promise<ResponseServer> {
		const log = rateLimited(options.log);
		const server = createStreamServer(options.tls, log, (socket) => responses.#onConnection(socket));
		const port = await listenTcp(
			server,
			{
				host: options.host,
				port: options.port,
				backlog: options.backlog,
				purpose: "response streams",
				variables: { host: ENV.DYN_TCP_RESPONSE_STREAM_HOST, port: ENV.DYN_TCP_RESPONSE_STREAM_PORT },
			},
			log,
		);
		const responses = new ResponseServer(options, server, port, log);
		return responses;
	}

	/** Requests whose worker has not called home yet. */
	get waiting(): number {
		return this.#waiting.size;
	}

	/** Must come before the request is sent: the worker may call home before it acknowledges. */
	expect(subject: string, owner: ResponseStreamOwner): void {
		this.#waiting.set(subject, owner);
	}

	/** A worker that calls for this subject from now on is told to drop its work. */
	forget(subject: string): void {
		this.#waiting.delete(subject);
	}

	async close(): Promise<void> {
		const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
		for (const socket of this.#sockets) socket.destroy();
		await closed;
	}

	#onConnection(socket: Socket): void {
		this.#sockets.add(socket);
		let receiver: ResponseStreamReceiver | undefined;
		let refused = false;
		let why = "closed by the worker";
		socket.setTimeout(HANDSHAKE_TIMEOUT_MS, () => socket.destroy());
		socket.on("error", (error) => {
			why = error.message;
		});
		socket.on("close", () => {
			this.#sockets.delete(socket);
			receiver?.onClosed(why);
		});
		const onFirst = (header: Buffer): void => {
			const { subject } = parseHandshake(header);
			const owner = this.#waiting.get(subject);
			if (owner === undefined) {
				refused = true;
				this.#log.debug("a worker called home for a request that is over", { subject });
				socket.setTimeout(REFUSAL_LINGER_MS);
				socket.end(KILL_FRAME);
				return;
			}
			this.#waiting.delete(subject);
			socket.setTimeout(0);
			receiver = owner.onCallHome(socket);
		};
		const onFrame = (header: Buffer, body: Buffer): void => {
			if (receiver !== undefined) receiver.onFrame(header, body);
			else if (!refused) onFirst(header);
		};
		const decoder = new TwoPartDecoder(this.#options.maxMessageBytes);
		socket.on("data", (chunk) => {
			// Requests that are read after it in this turn had to wait for it.
			readAt();
			if (refused) return;
			try {
				decoder.push(chunk, onFrame);
				if (receiver === undefined && decoder.bufferedBytes > MAX_HANDSHAKE_BYTES) {
					throw new RangeError(`a handshake of more than ${MAX_HANDSHAKE_BYTES} bytes`);
				}
			} catch (error) {
				why = (error as Error).message;
				refused = true;
				this.#log.warn("response connection closed", { worker: socket.remoteAddress, reason: why });
				socket.destroy();
			}
		});
	}
}
