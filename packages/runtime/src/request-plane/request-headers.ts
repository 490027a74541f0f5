// SPDX-License-Identifier: Apache-2.0
import { wallClockMs } from "../observability/wall-clock.js";
import type { OutgoingRequest } from "./request-plane.js";

/** Names of the text headers that the runtime itself writes or reads. */
export const REQUEST_HEADERS = {
	/** The context id. */
	requestId: "request-id",
	/** The routing key once more. */
	endpointPath: "x-endpoint-path",
	/** When the request was sent: nanoseconds since 1970, decimal. */
	sentAtNs: "x-frontend-send-ts-ns",
	/** What the HTTP client called its request. */
	clientRequestId: "x-request-id",
	/** W3C trace context. */
	traceparent: "traceparent",
} as const;

/** The caller's headers and the runtime's own. A time of sending that the caller gave is kept. */
export function headersToSend(request: OutgoingRequest): Record<string, string> {
	return {
		[REQUEST_HEADERS.sentAtNs]: BigInt(Math.round(wallClockMs() * 1e6)).toString(),
		...request.headers,
		...request.span?.headers(),
		[REQUEST_HEADERS.requestId]: request.id,
	};
}
