// SPDX-License-Identifier: Apache-2.0
import { createServer, type Server, type Socket } from "node:net";
import {
	ACK_OVERLOADED_PREFIX,
	ACK_UNAVAILABLE_PREFIX,
	type DecodedRequestFrame,
	DynamoError,
	decodeBody,
	ENV,
	type EndpointRecord,
	encodeAck,
	FrameTooLargeError,
	parseControl,
	type RequestControl,
	RequestFrameDecoder,
	splitTwoPart,
} from "@dynamo-ts/protocols/internal";
import { DescriptorGuard } from "../net/descriptor-guard.js";
import { advertisedHost, formatHostPort, listenTcp, parseHostPort } from "../net/listen.js";
import type { Logger } from "../observability/logging.js";
import { EndpointEntry } from "./endpoint-entry.js";
import { CancellableRequest } from "./ingress-request.js";
import type { EndpointHandler, EndpointObserver, EndpointRegistration, RequestPlaneServer } from "./request-plane.js";
import { type CallHome, TcpResponseWriter } from "./tcp-response-writer.js";

export interface TcpServerOptions {
	/** Address to listen on; 0.0.0.0 and :: are advertised as the first address that other machines can reach. */
	readonly host: string;
	/** 0: any. */
	readonly port: number;
	readonly maxMessageBytes: number;
	readonly connectTimeoutMs: number;
	readonly maxBufferedResponseBytes: number;
	readonly log: Logger;
}

/** A client that sends requests and does not read the acks is cut off at this many bytes. */
const MAX_WAITING_ACK_BYTES = 1024 * 1024;

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
	readonly #descriptors: DescriptorGuard;

	private constructor(options: TcpServerOptions, server: Server, port: number) {
		this.#options = options;
		this.#server = server;
		this.#descriptors = new DescriptorGuard(options.log);
		this.#authority = formatHostPort(advertisedHost(options.host), port);
		server.on("connection", (socket) => this.#onConnection(socket));
	}

	/** @throws DynamoError `Unavailable` when the address cannot be listened on. */
	static async listen(options: TcpServerOptions): Promise<TcpRequestPlaneServer> {
		const server = createServer({ noDelay: true });
		const port = await listenTcp(
			server,
			{
				host: options.host,
				port: options.port,
				purpose: "request plane",
				variables: { host: ENV.DYN_TCP_RPC_HOST, port: ENV.DYN_TCP_RPC_PORT },
			},
			options.log,
		);
		return new TcpRequestPlaneServer(options, server, port);
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
		socket.on("error", (error) => this.#options.log.debug("request connection failed", { error }));
		const decoder = new RequestFrameDecoder(this.#options.maxMessageBytes);
		socket.on("data", (chunk) => {
			let frames: DecodedRequestFrame[];
			let refusal: string | undefined;
			try {
				frames = decoder.push(chunk);
			} catch (error) {
				frames = decoder.framesBeforeError;
				refusal = error instanceof FrameTooLargeError ? error.message : `Read error: ${(error as Error).message}`;
				this.#options.log.warn("request connection closed", { client: peerName(socket), reason: refusal });
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
			if (entry === undefined) {
				acks.push(encodeAck(`${ACK_UNAVAILABLE_PREFIX} unknown endpoint ${frame.path.slice(0, 1024)}`));
			} else if (entry.refusing) {
				acks.push(encodeAck(`${ACK_UNAVAILABLE_PREFIX} shutting down ${frame.path}`));
			} else {
				const refusal = this.#descriptors.refusal(accepted.length);
				if (refusal !== undefined) {
					acks.push(encodeAck(`${ACK_OVERLOADED_PREFIX} ${refusal}`));
					continue;
				}
				acks.push(encodeAck());
				accepted.push({ frame, entry });
			}
		}
		if (refusal !== undefined) acks.push(encodeAck(refusal));
		if (acks.length > 0) socket.write(acks.length === 1 ? (acks[0] as Buffer) : Buffer.concat(acks));
		if (refusal !== undefined) {
			// What else arrives is not read; the client gets the text, then the end.
			socket.removeAllListeners("data");
			socket.resume();
			socket.end();
			socket.setTimeout(1000, () => socket.destroy());
		} else if (socket.writableLength > MAX_WAITING_ACK_BYTES) {
			socket.destroy();
		}
		for (const { frame, entry } of accepted) this.#accept(frame, entry, receivedAt);
	}

	#accept(frame: DecodedRequestFrame, entry: EndpointEntry, receivedAt: number): void {
		const { log } = this.#options;
		let control: RequestControl;
		let body: Buffer;
		try {
			const parts = splitTwoPart(frame.payload);
			body = parts.body;
			control = parseControl(parts.header);
		} catch (error) {
			// Nobody to answer: the control header says where the answer would go.
			entry.observer.onInvalid("invalid_message");
			log.warn("request dropped: its control message cannot be read", { endpoint: frame.path, error });
			return;
		}
		const callHome = callHomeOf(control);
		if (callHome === undefined) {
			entry.observer.onInvalid("invalid_message");
			log.warn("request dropped: its response address cannot be used", {
				endpoint: frame.path,
				request_id: control.id,
				address: control.address,
			});
			return;
		}
		let payload: unknown;
		let problem = messageProblem(frame, control, body);
		if (problem !== undefined) {
			entry.observer.onInvalid("invalid_message");
		} else {
			try {
				payload = decodeBody(body, control.codec);
			} catch (error) {
				entry.observer.onInvalid("deserialization");
				problem = new DynamoError(
					"InvalidArgument",
					`request body cannot be decoded as ${control.codec}: ${(error as Error).message}`,
				);
			}
		}
		if (problem !== undefined) log.warn("request refused", { request_id: control.id, error: problem });
		const request = new CancellableRequest(
			{ id: control.id, headers: frame.headers, payload, codec: control.codec, receivedAt },
			(error) => log.error("a cancellation callback failed", { request_id: control.id, error }),
		);
		const observer = entry.observer.onRequest(body.length, frame.headers);
		const response = new TcpResponseWriter(
			callHome,
			{
				connectTimeoutMs: this.#options.connectTimeoutMs,
				maxBufferedBytes: this.#options.maxBufferedResponseBytes,
				log,
			},
			request,
			observer,
			(writer) => entry.done(writer),
		);
		const refusal = problem;
		if (refusal === undefined) entry.run(request, response, observer);
		else entry.refuseOne(response, refusal);
	}
}

function callHomeOf(control: RequestControl): CallHome | undefined {
	const target = parseHostPort(control.address);
	return target === undefined ? undefined : { ...target, subject: control.subject, codec: control.codec };
}

function messageProblem(frame: DecodedRequestFrame, control: RequestControl, body: Buffer): DynamoError | undefined {
	if (frame.headersError !== undefined) return new DynamoError("InvalidArgument", frame.headersError);
	if (control.context !== control.id) {
		return new DynamoError(
			"InvalidArgument",
			`control message: context ${control.context} is not the id ${control.id}`,
		);
	}
	if (control.requestType !== "single_in" || control.responseType !== "many_out") {
		return new DynamoError(
			"NotImplemented",
			`control message: ${control.requestType} with ${control.responseType} is not supported; single_in with many_out is`,
		);
	}
	if (body.length === 0) return new DynamoError("InvalidArgument", "the request has no body");
	return undefined;
}

function peerName(socket: Socket): string {
	return `${socket.remoteAddress}:${socket.remotePort}`;
}
