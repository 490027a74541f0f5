// SPDX-License-Identifier: Apache-2.0
// The one place that decides how a failure looks from outside: status, text, metric labels.
import {
	DynamoError,
	type ErrorReason,
	errorReason,
	type FailureClass,
	failureClass,
	HttpError,
	isDynamoError,
	publicMessage,
} from "@dynamo-ts/protocols/internal";
import { WorkerFinishError } from "./choice-state.js";

/** Values of the metric label `error_type`; "" for success. */
export type ErrorTypeLabel =
	| ""
	| "validation"
	| "not_found"
	| "overload"
	| "unavailable"
	| "cancelled"
	| "internal"
	| "not_implemented";

/** A failure as clients, metrics and logs see it. */
export interface Failure {
	/** What the client gets, in an answer of its own or as the last event of a stream. */
	readonly http: HttpError;
	/** OpenAI's error object may say more than the flat message; absent: the same. */
	readonly detail: string | undefined;
	readonly errorType: ErrorTypeLabel;
	/** Labels of the failures counter. */
	readonly errorClass: FailureClass;
	readonly reason: ErrorReason;
	/** For operators; never shown to clients. */
	readonly diagnostic: string;
}

/** What {@link failureOf} may know beside the error. */
export interface FailureContext {
	readonly detail?: string;
	readonly begun?: boolean;
}

/** Dynamo counts a worker's silence (504) as internal. */
const BY_CLASS: Readonly<Record<FailureClass, { status: number; errorType: ErrorTypeLabel }>> = {
	InvalidRequest: { status: 400, errorType: "validation" },
	Unauthenticated: { status: 401, errorType: "validation" },
	PermissionDenied: { status: 403, errorType: "validation" },
	NotFound: { status: 404, errorType: "not_found" },
	Conflict: { status: 409, errorType: "validation" },
	PayloadTooLarge: { status: 413, errorType: "validation" },
	UnsupportedMedia: { status: 415, errorType: "validation" },
	RateLimited: { status: 429, errorType: "overload" },
	CapacityExhausted: { status: 529, errorType: "overload" },
	Unavailable: { status: 503, errorType: "unavailable" },
	BackendProtocol: { status: 500, errorType: "internal" },
	DeadlineExceeded: { status: 504, errorType: "internal" },
	Cancelled: { status: 499, errorType: "cancelled" },
	NotImplemented: { status: 501, errorType: "not_implemented" },
	Internal: { status: 500, errorType: "internal" },
};

/** Class and reason of refusals that were made as HTTP errors in the first place. */
const BY_STATUS: Readonly<Record<number, { errorClass: FailureClass; reason: ErrorReason }>> = {
	400: { errorClass: "InvalidRequest", reason: "request.invalid" },
	404: { errorClass: "NotFound", reason: "request.not_found" },
	413: { errorClass: "PayloadTooLarge", reason: "request.payload_too_large" },
	415: { errorClass: "UnsupportedMedia", reason: "request.unsupported_media" },
	422: { errorClass: "InvalidRequest", reason: "request.invalid" },
	501: { errorClass: "NotImplemented", reason: "runtime.not_implemented" },
	503: { errorClass: "Unavailable", reason: "backend.unavailable" },
};

/** Classes whose own public text is not shown: what broke inside is told by a general sentence. */
const UNEXPLAINED: ReadonlySet<FailureClass> = new Set(["BackendProtocol", "Internal"]);

/** Errors that say nothing of what they are; Dynamo marks them as the engine's when there is no output before them. */
const UNCLASSIFIED: ReadonlySet<DynamoError["errorClass"]> = new Set(["Unknown", "BackendProtocol"]);

/** A worker that ended with an error, or anything else that was thrown, as one of our errors. */
export function asDynamoError(error: unknown): DynamoError {
	if (isDynamoError(error)) return error;
	const message = error instanceof Error ? error.message : String(error);
	if (error instanceof WorkerFinishError) return new DynamoError("Unknown", `the worker failed: ${message}`);
	return new DynamoError("Internal", message, { cause: error });
}

/**
 * How a failure looks from outside. Anything that is not one of our errors is an internal one, whose text stays here.
 * @param overloadStatus the status that overload gets.
 * @param context detail: text for OpenAI's error object, when it may say more than the flat message; begun: the worker
 * had sent output before.
 */
export function failureOf(thrown: unknown, overloadStatus = 529, context: FailureContext = {}): Failure {
	const { detail, begun = false } = context;
	if (thrown instanceof HttpError) {
		const labels = BY_STATUS[thrown.status] ?? { errorClass: "Internal", reason: "runtime.unclassified" };
		const { errorType } = BY_CLASS[labels.errorClass];
		return { http: thrown, detail, errorType, ...labels, diagnostic: thrown.message };
	}
	const error = asDynamoError(thrown);
	const errorClass = failureClass(error);
	const { status, errorType } = BY_CLASS[errorClass];
	const shown = UNEXPLAINED.has(errorClass) ? new DynamoError(error.errorClass, "", reasonOption(error)) : error;
	const overload = errorClass === "CapacityExhausted";
	const http = new HttpError(overload ? overloadStatus : status, publicMessage(shown), {
		...(overload ? { phrase: "Overloaded" } : {}),
		...(error.code === undefined ? {} : { code: error.code }),
		...(error.param === undefined ? {} : { param: error.param }),
		...(status === 500 && !begun && UNCLASSIFIED.has(error.errorClass) ? { details: { backend_status: 500 } } : {}),
	});
	return { http, detail, errorType, errorClass, reason: errorReason(error), diagnostic: error.message };
}

function reasonOption(error: DynamoError): { reason?: string } {
	return error.reason === undefined ? {} : { reason: error.reason };
}
