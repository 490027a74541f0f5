// SPDX-License-Identifier: Apache-2.0
// Whole (not streamed) answers, written to node's response as they are: Dynamo's bytes have no charset parameter and
// no other decoration.
import { type ServerResponse, STATUS_CODES } from "node:http";
import type { FailureClass } from "@dynamo-ts/protocols/internal";
import type { Failure } from "./http-errors.js";

/** Sends JSON text. Does nothing when the client is gone or something was sent. */
export function sendJson(
	response: ServerResponse,
	status: number,
	json: string,
	headers?: Record<string, string>,
): void {
	if (response.headersSent || response.destroyed) return;
	// What Dynamo's status line says where there is no phrase (499, 529).
	if (STATUS_CODES[status] === undefined) response.statusMessage = "<none>";
	response.writeHead(status, {
		"content-type": "application/json",
		"content-length": Buffer.byteLength(json),
		...headers,
	});
	response.end(hasOddHeaders(response) ? Buffer.from(json) : json);
}

/**
 * True when an echoed x-request-id is not ASCII. The id has to come back byte for byte, and node writes headers so only
 * when what comes with them is a buffer; together with text both become UTF-8.
 */
export function hasOddHeaders(response: ServerResponse): boolean {
	const id = response.getHeader("x-request-id");
	return typeof id === "string" && /[^\x20-\x7e]/.test(id);
}

/** Sends a status without a body or content type. */
export function sendEmpty(response: ServerResponse, status: number, headers?: Record<string, string>): void {
	if (response.headersSent || response.destroyed) return;
	response.writeHead(status, { "content-length": 0, ...headers });
	response.end();
}

/** Failures that pass by themselves: clients are told to come again. */
const RETRY_LATER: ReadonlySet<FailureClass> = new Set<FailureClass>([
	"CapacityExhausted",
	"RateLimited",
	"Unavailable",
]);
const RETRY_AFTER_SECONDS = "1";

/** Sends the error's body: Dynamo's flat members and OpenAI's object, so that clients of both find what they look for. */
export function sendFailure(response: ServerResponse, failure: Failure, headers?: Record<string, string>): void {
	const body = failure.http.toBody();
	if (failure.detail !== undefined) body.error.message = failure.detail;
	const retry: Record<string, string> = {};
	if (RETRY_LATER.has(failure.errorClass)) retry["retry-after"] = RETRY_AFTER_SECONDS;
	sendJson(response, failure.http.status, JSON.stringify(body), { ...retry, ...headers });
}
