// SPDX-License-Identifier: Apache-2.0
// Requests over pooled TCP connections, each frame with the path of its endpoint.
import {
	DynamoError,
	ENV,
	type EndpointRecord,
	encodeRequestFrame,
	FrameTooLargeError,
	splitTcpAddress,
} from "@dynamo-ts/protocols/internal";
import type { ClientTls } from "../net/tcp-tls.js";
import { CallHomeClient, type CallHomeOptions } from "./call-home-client.js";
import type { AckWaiter, RequestCarrier, SentRequest } from "./request-carrier.js";
import { ConnectionPool } from "./request-connection.js";
import { headersToSend, REQUEST_HEADERS } from "./request-headers.js";
import type { OutgoingRequest } from "./request-plane.js";

/** Of the connections that requests leave by; times are milliseconds. */
export interface TcpCarrierOptions {
	readonly connectTimeoutMs: number;
	readonly ackTimeoutMs: number;
	readonly poolSize: number;
	readonly poolIdleMs: number;
	/** Largest request frame sent. */
	readonly maxMessageBytes: number;
	/** How the connections are secured; absent: plain TCP. */
	readonly clientTls?: ClientTls | undefined;
}

/** Sends each request as one frame to the `host:port` of its instance. */
export class TcpCarrier implements RequestCarrier {
	readonly #options: TcpCarrierOptions;
	readonly #pool: ConnectionPool;

	constructor(options: TcpCarrierOptions) {
		this.#options = options;
		this.#pool = new ConnectionPool({
			connectTimeoutMs: options.connectTimeoutMs,
			size: options.poolSize,
			idleMs: options.poolIdleMs,
			tls: options.clientTls,
		});
	}

	get ackTimeoutMs(): number {
		return this.#options.ackTimeoutMs;
	}

	targetOf({ transport, namespace, component, endpoint }: EndpointRecord): string {
		return "tcp" in transport ? transport.tcp : `${namespace}/${component}/${endpoint}`;
	}

	send(instance: EndpointRecord, request: OutgoingRequest, message: Buffer, waiter: AckWaiter): SentRequest {
		const { transport } = instance;
		const target = "tcp" in transport ? splitTcpAddress(transport.tcp) : undefined;
		if (target === undefined) {
			const advice =
				"nats_tcp" in transport ? `; it takes requests over NATS: set ${ENV.DYN_REQUEST_PLANE} alike everywhere` : "";
			throw new DynamoError(
				"CannotConnect",
				`the worker's address ${JSON.stringify(transport)} is not "host:port/path" over TCP${advice}`,
			);
		}
		const { path } = target;
		const headers = { ...headersToSend(request), [REQUEST_HEADERS.endpointPath]: path };
		let frame: Buffer;
		try {
			frame = encodeRequestFrame({ path, headers, payload: message }, this.#options.maxMessageBytes);
		} catch (error) {
			if (!(error instanceof FrameTooLargeError)) throw error;
			const text = `the request is too large to send to a worker: ${error.frameBytes} bytes of at most ${error.maxBytes} (${ENV.DYN_TCP_MAX_MESSAGE_SIZE})`;
			throw new DynamoError("PayloadTooLarge", text, { publicMessage: text, cause: error });
		}
		return this.#pool.send(target.host, target.port, frame, waiter);
	}

	async close(): Promise<void> {
		this.#pool.close();
	}
}

/** Everything about requests and responses over TCP. */
export type TcpClientOptions = CallHomeOptions & TcpCarrierOptions;

/**
 * Opens the client half of the TCP request plane.
 * @throws DynamoError `Unavailable` when the response listener cannot be opened.
 */
export function openTcpClient(options: TcpClientOptions): Promise<CallHomeClient> {
	return CallHomeClient.open(options, new TcpCarrier(options));
}
