// SPDX-License-Identifier: Apache-2.0
import type { EndpointId } from "@dynamo-ts/protocols/internal";
import type { LogFields, Logger } from "../observability/logging.js";
import { REQUEST_HEADERS } from "./request-headers.js";
import type { CancelKind, EndpointObserver, RequestObserver } from "./request-plane.js";

/** How Dynamo names what ended a request early. */
const CANCEL_SIGNALS: Record<CancelKind, string> = { stop: "stop", kill: "kill", disconnect: "stream_drop" };

/** Writes a line when a request is received, cancelled and completed, and passes all on to `next`. */
export function logRequests(
	next: EndpointObserver,
	endpoint: EndpointId,
	instanceId: bigint,
	log: Logger,
): EndpointObserver {
	if (!log.isEnabled("info")) return next;
	const common = {
		component: endpoint.component,
		endpoint: endpoint.name,
		instance_id: instanceId.toString(),
		namespace: endpoint.namespace,
	};
	return {
		onInvalid: (kind) => next.onInvalid(kind),
		onRequest(bytes, headers, refused) {
			const observer = next.onRequest(bytes, headers, refused);
			// Any peer can cause as many of those as it likes; they are told elsewhere, and not each.
			if (refused === true) return observer;
			const fields = { ...common, request_id: headers[REQUEST_HEADERS.requestId], ...traceFields(headers) };
			log.info("request received", fields);
			return new LoggedRequest(observer, log, fields);
		},
	};
}

class LoggedRequest implements RequestObserver {
	readonly #next: RequestObserver;
	readonly #log: Logger;
	readonly #fields: LogFields;

	constructor(next: RequestObserver, log: Logger, fields: LogFields) {
		this.#next = next;
		this.#log = log;
		this.#fields = fields;
	}
	onPrologue(): void {
		this.#next.onPrologue();
	}
	onResponseBytes(bytes: number): void {
		this.#next.onResponseBytes(bytes);
	}
	onError(kind: Parameters<RequestObserver["onError"]>[0]): void {
		this.#next.onError(kind);
	}
	onCancel(kind: CancelKind): void {
		this.#log.info("request cancellation received", {
			...this.#fields,
			"cancellation.signal": CANCEL_SIGNALS[kind],
			"cancellation.source": "upstream",
		});
		this.#next.onCancel(kind);
	}
	onClose(): void {
		this.#log.info("request completed", this.#fields);
		this.#next.onClose();
	}
}

/** The trace that the caller is in, for finding all lines of one request; nothing for a header that is not W3C's. */
function traceFields(headers: Readonly<Record<string, string>>): LogFields {
	const match = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/.exec(headers[REQUEST_HEADERS.traceparent] ?? "");
	const fields: LogFields = {};
	if (match !== null) [, fields.trace_id, fields.parent_id, fields.trace_flags] = match;
	const clientId = headers[REQUEST_HEADERS.clientRequestId];
	if (clientId !== undefined) fields.x_request_id = clientId;
	return fields;
}
