// SPDX-License-Identifier: Apache-2.0
// What every request plane between processes does with a request that arrived: admits it, reads it, runs its handler
// with a response stream that is dialled back to the client.
import {
	ACK_OVERLOADED_PREFIX,
	ACK_UNAVAILABLE_PREFIX,
	type DecodedRequestFrame,
	DynamoError,
	decodeBody,
	parseControl,
	type RequestControl,
	splitTwoPart,
} from "@dynamo-ts/protocols/internal";
import { DescriptorGuard } from "../net/descriptor-guard.js";
import { parseHostPort } from "../net/listen.js";
import type { ClientTls } from "../net/tcp-tls.js";
import type { Logger } from "../observability/logging.js";
import { rateLimited } from "../observability/rate-limited-log.js";
import { parseTraceparent } from "../observability/tracing/trace-context.js";
import type { EndpointEntry } from "./endpoint-entry.js";
import { CancellableRequest } from "./ingress-request.js";
import { REQUEST_HEADERS } from "./request-headers.js";
import { type CallHome, TcpResponseWriter } from "./tcp-response-writer.js";

export interface RequestIngressOptions {
	/** Of the connection that is dialled back, milliseconds. */
	readonly connectTimeoutMs: number;
	readonly maxBufferedResponseBytes: number;
	/** How response streams are secured; absent: plain TCP. */
	readonly clientTls?: ClientTls | undefined;
	readonly log: Logger;
}

/** Takes requests, however they came. */
export class RequestIngress {
	readonly #options: RequestIngressOptions;
	readonly #log: Logger;
	readonly #descriptors: DescriptorGuard;

	constructor(options: RequestIngressOptions) {
		this.#options = options;
		this.#log = rateLimited(options.log);
		this.#descriptors = new DescriptorGuard(options.log);
	}

	/**
	 * The text with which a request is turned away; undefined: it is to be acknowledged and accepted.
	 * @param admitted requests that were let in and have opened nothing yet.
	 */
	refusal(path: string, entry: EndpointEntry | undefined, admitted: number): string | undefined {
		if (entry === undefined) return `${ACK_UNAVAILABLE_PREFIX} unknown endpoint ${path.slice(0, 1024)}`;
		if (entry.refusing) return `${ACK_UNAVAILABLE_PREFIX} shutting down ${path}`;
		const refusal = this.#descriptors.refusal(admitted) ?? entry.fullness(admitted);
		return refusal === undefined ? undefined : `${ACK_OVERLOADED_PREFIX} ${refusal}`;
	}

	/** Runs the handler of a request that was acknowledged; what is wrong with the request is its own answer. */
	accept(frame: DecodedRequestFrame, entry: EndpointEntry, receivedAt: number): void {
		const log = this.#log;
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
		if (problem !== undefined) {
			const { traceparent, [REQUEST_HEADERS.clientRequestId]: clientId } = frame.headers;
			const trace = parseTraceparent(traceparent);
			const ids = { request_id: control.id, x_request_id: clientId, trace_id: trace?.traceId };
			log.warn("request refused", { ...ids, error: problem });
		}
		const request = new CancellableRequest(
			{ id: control.id, headers: frame.headers, payload, codec: control.codec, receivedAt },
			(error) => log.error("a cancellation callback failed", { request_id: control.id, error }, request.span),
		);
		const observer = entry.observer.onRequest(body.length, frame.headers, problem !== undefined);
		request.span = observer.span;
		const response = new TcpResponseWriter(
			callHome,
			{
				connectTimeoutMs: this.#options.connectTimeoutMs,
				maxBufferedBytes: this.#options.maxBufferedResponseBytes,
				tls: this.#options.clientTls,
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
