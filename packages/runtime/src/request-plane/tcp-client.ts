// SPDX-License-Identifier: Apache-2.0
import { randomUUID } from "node:crypto";
import {
	DynamoError,
	type EndpointRecord,
	encodeBody,
	encodeControl,
	encodeRequestFrame,
	encodeTwoPart,
	FrameTooLargeError,
	isDynamoError,
	splitTcpAddress,
} from "@dynamo-ts/protocols/internal";
import { DescriptorGuard } from "../net/descriptor-guard.js";
import type { Logger } from "../observability/logging.js";
import { Deadlines } from "./deadlines.js";
import { ConnectionPool } from "./request-connection.js";
import { headersToSend } from "./request-headers.js";
import type {
	OutgoingRequest,
	PlaneRequest,
	RequestOptions,
	RequestPlaneClient,
	ResponseSink,
} from "./request-plane.js";
import { ResponseServer } from "./response-server.js";
import { TcpActiveRequest } from "./tcp-active-request.js";

export interface TcpClientOptions {
	/** Address of the listener that workers dial back to. */
	readonly responseHost: string;
	readonly responsePort: number;
	readonly connectTimeoutMs: number;
	readonly ackTimeoutMs: number;
	/** From sending a request to the worker's call home. */
	readonly callHomeTimeoutMs: number;
	readonly firstResponseTimeoutMs: number;
	readonly idleTimeoutMs: number;
	readonly poolSize: number;
	readonly poolIdleMs: number;
	readonly maxMessageBytes: number;
	readonly log: Logger;
}

/** Sends requests over pooled TCP connections; workers dial back with the responses. */
export class TcpRequestPlaneClient implements RequestPlaneClient {
	readonly #options: TcpClientOptions;
	readonly #responses: ResponseServer;
	readonly #pool: ConnectionPool;
	readonly #deadlines = new Deadlines();
	readonly #active = new Set<TcpActiveRequest>();
	readonly #descriptors: DescriptorGuard;

	private constructor(options: TcpClientOptions, responses: ResponseServer) {
		this.#options = options;
		this.#responses = responses;
		this.#descriptors = new DescriptorGuard(options.log);
		this.#pool = new ConnectionPool({
			connectTimeoutMs: options.connectTimeoutMs,
			size: options.poolSize,
			idleMs: options.poolIdleMs,
		});
	}

	/** @throws DynamoError `Unavailable` when the response listener cannot be opened. */
	static async open(options: TcpClientOptions): Promise<TcpRequestPlaneClient> {
		const responses = await ResponseServer.listen({
			host: options.responseHost,
			port: options.responsePort,
			maxMessageBytes: options.maxMessageBytes,
			log: options.log,
		});
		return new TcpRequestPlaneClient(options, responses);
	}

	/** Requests under way. */
	get inflight(): number {
		return this.#active.size;
	}

	send(
		instance: EndpointRecord,
		request: OutgoingRequest,
		sink: ResponseSink,
		options: RequestOptions = {},
	): PlaneRequest {
		const subject = randomUUID();
		const codec = instance.request_plane_codec ?? "json";
		const address = "tcp" in instance.transport ? instance.transport.tcp : undefined;
		const active = new TcpActiveRequest(
			{
				id: request.id,
				target: address ?? `${instance.namespace}/${instance.component}/${instance.endpoint}`,
				codec,
				ackTimeoutMs: options.ackTimeoutMs ?? this.#options.ackTimeoutMs,
				callHomeTimeoutMs: this.#options.callHomeTimeoutMs,
				firstResponseTimeoutMs: options.firstResponseTimeoutMs ?? this.#options.firstResponseTimeoutMs,
				idleTimeoutMs: options.idleTimeoutMs ?? this.#options.idleTimeoutMs,
				deadlines: this.#deadlines,
				onFinished: () => {
					this.#active.delete(active);
					this.#responses.forget(subject);
				},
				deliverEnd: this.#deliverEnd,
			},
			sink,
		);
		this.#active.add(active);
		try {
			const target = address === undefined ? undefined : splitTcpAddress(address);
			if (target === undefined) {
				throw new DynamoError(
					"CannotConnect",
					`the worker's address ${JSON.stringify(instance.transport)} is not "host:port/path" over TCP`,
				);
			}
			const refusal = this.#descriptors.refusal(this.#responses.waiting);
			if (refusal !== undefined) throw new DynamoError("ResourceExhausted", refusal);
			const frame = this.#encode(request, codec, target.path, subject);
			this.#responses.expect(subject, active);
			active.sentOver(this.#pool.send(target.host, target.port, frame, active));
		} catch (error) {
			const problem = sendError(error);
			setImmediate(() => active.fail(problem));
		}
		return active;
	}

	async close(): Promise<void> {
		for (const active of [...this.#active]) {
			active.fail(new DynamoError("Cancelled", "the runtime is shutting down"));
		}
		this.#pool.close();
		await this.#responses.close();
	}

	readonly #deliverEnd = (sink: ResponseSink, error: DynamoError | undefined): void => {
		try {
			if (error === undefined) sink.onEnd();
			else sink.onError(error);
		} catch (failure) {
			this.#options.log.error("the receiver of a response failed", { error: failure });
		}
	};

	#encode(request: OutgoingRequest, codec: "json" | "msgpack", path: string, subject: string): Buffer {
		const control = encodeControl({ id: request.id, codec, address: this.#responses.address, subject });
		const payload = encodeTwoPart(control, encodeBody(request.payload, codec));
		const headers = headersToSend(request, path);
		return encodeRequestFrame({ path, headers, payload }, this.#options.maxMessageBytes);
	}
}

function sendError(error: unknown): DynamoError {
	if (isDynamoError(error)) return error;
	if (error instanceof FrameTooLargeError) {
		const text = `the request is too large to send to a worker: ${error.frameBytes} bytes of at most ${error.maxBytes}`;
		return new DynamoError("PayloadTooLarge", text, { publicMessage: text, cause: error });
	}
	const text = `the request cannot be encoded: ${(error as Error).message}`;
	return new DynamoError("InvalidRequest", text, { cause: error });
}
