// SPDX-License-Identifier: Apache-2.0
// The span of a request that an endpoint handles, and the lines that say what becomes of it.
import type { DynamoError, EndpointId } from "@dynamo-ts/protocols/internal";
import type { Logger } from "../observability/logging.js";
import type { Span, Tracer } from "../observability/tracing/span.js";
import { REQUEST_HEADERS } from "./request-headers.js";
import type { CancelKind, EndpointObserver, RequestObserver } from "./request-plane.js";

/** How Dynamo names what ended a request early. */
const CANCEL_SIGNALS: Record<CancelKind, string> = { stop: "stop", kill: "kill", disconnect: "stream_drop" };
const TARGET = "dynamo_runtime::pipeline::network::ingress::push_handler";

/** What the spans of an endpoint's requests are made with. */
export interface RequestSpansOptions {
	readonly endpoint: EndpointId;
	readonly instanceId: bigint;
	readonly tracer: Tracer;
	/** Of the process. */
	readonly log: Logger;
}

/**
 * Puts each request into a span `handle_payload`, which goes on with the caller's trace, writes a line when the request
 * is received, cancelled and completed, and passes all on to `next`.
 */
export function traceRequests(next: EndpointObserver, options: RequestSpansOptions): EndpointObserver {
	const { endpoint, tracer } = options;
	const log = options.log.child(TARGET);
	const requestLog = options.log.child("request_span");
	const instanceId = options.instanceId.toString();
	return {
		onInvalid: (kind) => next.onInvalid(kind),
		onRequest(bytes, headers, refused) {
			const observer = next.onRequest(bytes, headers, refused);
			// Any peer can cause as many of those as it likes; they are told elsewhere, and not each.
			if (refused === true) return observer;
			const requestId = headers[REQUEST_HEADERS.requestId];
			const span = tracer.enter(
				"handle_payload",
				{ traceparent: headers[REQUEST_HEADERS.traceparent], xRequestId: headers[REQUEST_HEADERS.clientRequestId] },
				{ kind: "server" },
				{
					request_id: requestId,
					component: endpoint.component,
					endpoint: endpoint.name,
					namespace: endpoint.namespace,
					instance_id: instanceId,
				},
			);
			log.info("request received", { request_id: requestId }, span);
			return new TracedRequest(observer, log, requestLog, span, requestId);
		},
	};
}

class TracedRequest implements RequestObserver {
	readonly span: Span;
	readonly #next: RequestObserver;
	readonly #log: Logger;
	readonly #requestLog: Logger;
	readonly #requestId: string | undefined;

	constructor(next: RequestObserver, log: Logger, requestLog: Logger, span: Span, requestId: string | undefined) {
		this.#next = next;
		this.#log = log;
		this.#requestLog = requestLog;
		this.span = span;
		this.#requestId = requestId;
	}
	onPrologue(): void {
		this.#next.onPrologue();
	}
	onResponseBytes(bytes: number): void {
		this.#next.onResponseBytes(bytes);
	}
	onError(kind: Parameters<RequestObserver["onError"]>[0]): void {
		if (kind === "publish_response") {
			this.#log.warn(`Failed to publish response for stream ${this.#requestId ?? ""}`, undefined, this.span);
		}
		this.#next.onError(kind);
	}
	onFail(error: DynamoError): void {
		this.span.set("error.type", error.errorClass);
		this.span.fail(error.message);
		this.#next.onFail(error);
	}
	onCancel(kind: CancelKind): void {
		this.#requestLog.info(
			"request cancellation received",
			{
				request_id: this.#requestId,
				"cancellation.signal": CANCEL_SIGNALS[kind],
				"cancellation.source": "upstream",
			},
			this.span,
		);
		this.#next.onCancel(kind);
	}
	onClose(): void {
		this.#log.info("request completed", { request_id: this.#requestId }, this.span);
		this.span.end();
		this.#next.onClose();
	}
}
