// SPDX-License-Identifier: Apache-2.0
import type { Server, Socket } from "node:net";
import {
	type DecodedRequestFrame,
	DynamoError,
	ENV,
	type EndpointRecord,
	encodeAck,
	FrameTooLargeError,
	RequestFrameDecoder,
} from "@dynamo-ts/protocols/internal";
import { advertisedHost, formatHostPort, listenTcp } from "../net/listen.js";
import { createStreamServer } from "../net/streams.js";
import type { ServerTls } from "../net/tcp-tls.js";
import type { Logger } from "../observability/logging.js";
import { rateLimited } from "../observability/rate-limited-log.js";
import { EndpointEntry } from "./endpoint-entry.js";
import { RequestIngress, type RequestIngressOptions } from "./request-ingress.js";
import type { EndpointHandler, EndpointObserver, EndpointRegistration, RequestPlaneServer } from "./request-plane.js";

export interface TcpServerOptions extends RequestIngressOptions {
	/** Address to listen on; 0.0.0.0 and :: are advertised as the first address that other machines can reach. */
	readonly host: string;
	/** 0: any. */
	readonly port: number;
	/** Connections that may wait to be accepted; absent: the default. */
	readonly listenBacklog?: number;
	readonly maxMessageBytes: number;
	/** How the request listener is secured; absent: plain TCP. */
	readonly serverTls?: ServerTls | undefined;
}

/** A client that sends requests and does not read the acks is cut off at this many bytes. */
const MAX_WAITING_ACK_BYTES = 1024 * 1024;

/** A client that began a frame must go on within this time. */
const PARTIAL_FRAME_TIMEOUT_MS = 30_000;

/**
 * Takes requests over TCP. Each is acknowledged at once and in order, before its handler runs; the response goes over
 * a connection of its own that is dialled back to the client.
 */
export class TcpRequestPlaneServer implements RequestPlaneServer {
	readonly #options: TcpServerOptions;
	readonly #server: Server;
	readonly #endpoints = new Map<string, EndpointEntry>();
	readonly #sockets = new Set<Socket>();
	readonly #authority: string;
	readonly #ingress: RequestIngress;
	readonly #log: Logger;

	private constructor(options: TcpServerOptions, server: Server, port: number, log: Logger) {
		this.#options = options;
		this.#server = server;
		this.#ingress = new RequestIngress(options);
		this.#log = log;
		this.#authority = formatHostPort(advertisedHost(options.host), port);
	}

	/** @throws DynamoError `Unavailable` when the address cannot be listened on. */
	static async listen(options: TcpServerOptions): Promise<TcpRequestPlaneServer> {
		const log = rateLimited(options.log);
		const server = createStreamServer(options.serverTls, log, (socket) => requests.#onConnection(socket));
		const port = await listenTcp(
			server,
			{
				host: options.host,
				port: options.port,
				backlog: options.listenBacklog,
				purpose: "request plane",
				variables: { host: ENV.DYN_TCP_RPC_HOST, port: ENV.DYN_TCP_RPC_PORT },
			},
			log,
		);
		const requests = new TcpRequestPlaneServer(options, server, port, log);
		return requests;
	}

	register(path: string, handler: EndpointHandler, observer?: EndpointObserver): EndpointRegistration {
		if (this.#endpoints.has(path)) throw new DynamoError("Conflict", `endpoint ${path} is served already`);
		const entry = new EndpointEntry(path, handler, observer, () => this.#endpoints.delete(path));
		this.#endpoints.set(path, entry);
		return entry;
	}

	address(path: string): EndpointRecord["transport"] {
		return { tcp: `${this.#authority}/${path}` };
	}

	async close(): Promise<void> {
		for (const entry of [...this.#endpoints.values()]) entry.close();
		const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
		for (const socket of this.#sockets) socket.destroy();
		await closed;
	}

	#onConnection(socket: Socket): void {
		this.#sockets.add(socket);
		socket.on("close", () => this.#sockets.delete(socket));
		socket.on("error", (error) => this.#log.debug("request connection failed", { error }));
		const decoder = new RequestFrameDecoder(this.#options.maxMessageBytes);
		let partial = false;
		socket.on("timeout", () => {
			this.#log.warn("request connection closed", { client: peerName(socket), reason: "a frame was begun, not ended" });
			socket.destroy();
		});
		socket.on("data", (chunk) => {
			let frames: DecodedRequestFrame[];
			let refusal: string | undefined;
			try {
				frames = decoder.push(chunk);
			} catch (error) {
				frames = decoder.framesBeforeError;
				refusal = error instanceof FrameTooLargeError ? error.message : `Read error: ${(error as Error).message}`;
				this.#log.warn("request connection closed", { client: peerName(socket), reason: refusal });
			}
			if (decoder.bufferedBytes > 0 !== partial) {
				partial = !partial;
				socket.setTimeout(partial ? PARTIAL_FRAME_TIMEOUT_MS : 0);
			}
			this.#onFrames(socket, frames, refusal);
		});
	}

	#onFrames(socket: Socket, frames: readonly DecodedRequestFrame[], refusal: string | undefined): void {
		const receivedAt = performance.now();
		const acks: Buffer[] = [];
		const accepted: { frame: DecodedRequestFrame; entry: EndpointEntry }[] = [];
		for (const frame of frames) {
			const entry = this.#endpoints.get(frame.path);
			const refused = this.#ingress.refusal(frame.path, entry, accepted.length);
			acks.push(encodeAck(refused));
			if (refused === undefined) accepted.push({ frame, entry: entry as EndpointEntry });
		}
		if (refusal !== undefined) acks.push(encodeAck(refusal));
		if (acks.length > 0) socket.write(acks.length === 1 ? (acks[0] as Buffer) : Buffer.concat(acks));
		if (refusal !== undefined) {
			// What else arrives is not read; the client gets the text, then the end.
			socket.removeAllListeners("data");
			socket.removeAllListeners("timeout");
			socket.resume();
			socket.end();
			socket.setTimeout(1000, () => socket.destroy());
		} else if (socket.writableLength > MAX_WAITING_ACK_BYTES) {
			socket.destroy();
		}
		for (const { frame, entry } of accepted) this.#ingress.accept(frame, entry, receivedAt);
	}
}

function peerName(socket: Socket): string {
	return `${socket.remoteAddress}:${socket.remotePort}`;
}
