// SPDX-License-Identifier: Apache-2.0
// The client half of every request plane between processes: requests leave by a carrier, workers dial back with the
// responses.
import { randomUUID } from "node:crypto";
import {
	DynamoError,
	type EndpointRecord,
	encodeBody,
	encodeControl,
	encodeTwoPart,
	isDynamoError,
} from "@dynamo-ts/protocols/internal";
import { DescriptorGuard } from "../net/descriptor-guard.js";
import type { ServerTls } from "../net/tcp-tls.js";
import type { Logger } from "../observability/logging.js";
import { Deadlines } from "./deadlines.js";
import type { PlaneClientMetrics } from "./plane-client-metrics.js";
import type { RequestCarrier } from "./request-carrier.js";
import type {
	OutgoingRequest,
	PlaneRequest,
	RequestOptions,
	RequestPlaneClient,
	ResponseSink,
} from "./request-plane.js";
import { ResponseServer } from "./response-server.js";
import { TcpActiveRequest } from "./tcp-active-request.js";

/** What the client half needs to know beside its carrier. */
export interface CallHomeOptions {
	/** Address of the listener that workers dial back to. */
	readonly responseHost: string;
	readonly responsePort: number;
	/** Connections that may wait to be accepted; absent: the default. */
	readonly listenBacklog?: number;
	/** From sending a request to the worker's call home. */
	readonly callHomeTimeoutMs: number;
	readonly firstResponseTimeoutMs: number;
	readonly idleTimeoutMs: number;
	/** Largest response frame taken. */
	readonly maxMessageBytes: number;
	/** How the response listener is secured; absent: plain TCP. */
	readonly serverTls?: ServerTls | undefined;
	/** Absent: nobody counts. */
	readonly metrics?: PlaneClientMetrics | undefined;
	readonly log: Logger;
}

/** Sends requests by a carrier and receives the responses. */
export class CallHomeClient implements RequestPlaneClient {
	readonly #options: CallHomeOptions;
	readonly #carrier: RequestCarrier;
	readonly #responses: ResponseServer;
	readonly #deadlines = new Deadlines();
	readonly #active = new Set<TcpActiveRequest>();
	readonly #descriptors: DescriptorGuard;

	private constructor(options: CallHomeOptions, carrier: RequestCarrier, responses: ResponseServer) {
		this.#options = options;
		this.#carrier = carrier;
		this.#responses = responses;
		this.#descriptors = new DescriptorGuard(options.log);
	}

	/** @throws DynamoError `Unavailable` when the response listener cannot be opened. */
	static async open(options: CallHomeOptions, carrier: RequestCarrier): Promise<CallHomeClient> {
		const responses = await ResponseServer.listen({
			host: options.responseHost,
			port: options.responsePort,
			backlog: options.listenBacklog,
			maxMessageBytes: options.maxMessageBytes,
			tls: options.serverTls,
			log: options.log,
		});
		return new CallHomeClient(options, carrier, responses);
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
		const { metrics } = this.#options;
		const since = performance.now();
		const subject = randomUUID();
		const codec = instance.request_plane_codec ?? "json";
		const active = new TcpActiveRequest(
			{
				id: request.id,
				target: this.#carrier.targetOf(instance),
				codec,
				ackTimeoutMs: options.ackTimeoutMs ?? this.#carrier.ackTimeoutMs,
				callHomeTimeoutMs: this.#options.callHomeTimeoutMs,
				firstResponseTimeoutMs: options.firstResponseTimeoutMs ?? this.#options.firstResponseTimeoutMs,
				idleTimeoutMs: options.idleTimeoutMs ?? this.#options.idleTimeoutMs,
				deadlines: this.#deadlines,
				metrics,
				onFinished: () => {
					metrics?.ended();
					this.#active.delete(active);
					this.#responses.forget(subject);
				},
				deliverEnd: this.#deliverEnd,
			},
			sink,
		);
		this.#active.add(active);
		metrics?.began();
		try {
			const refusal = this.#descriptors.refusal(this.#responses.waiting);
			if (refusal !== undefined) {
				metrics?.heldBack();
				throw new DynamoError("ResourceExhausted", refusal, { local: true });
			}
			const message = this.#encode(request, codec, subject);
			this.#responses.expect(subject, active);
			metrics?.handedOver(since, message.length);
			active.sentAs(this.#carrier.send(instance, request, message, active));
		} catch (error) {
			const problem = sendError(error);
			if (problem.errorClass !== "ResourceExhausted") metrics?.sendFailed();
			setImmediate(() => active.fail(problem));
		}
		return active;
	}

	async close(): Promise<void> {
		for (const active of [...this.#active]) {
			active.fail(new DynamoError("Cancelled", "the runtime is shutting down"));
		}
		await this.#carrier.close();
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

	#encode(request: OutgoingRequest, codec: "json" | "msgpack", subject: string): Buffer {
		const control = encodeControl({ id: request.id, codec, address: this.#responses.address, subject });
		return encodeTwoPart(control, encodeBody(request.payload, codec));
	}
}

function sendError(error: unknown): DynamoError {
	if (isDynamoError(error)) return error;
	const text = `the request cannot be encoded: ${(error as Error).message}`;
	return new DynamoError("InvalidRequest", text, { cause: error });
}
