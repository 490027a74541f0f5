// SPDX-License-Identifier: Apache-2.0
import type { BackendError, DynamoError, ErrorClass } from "../dynamo-error.js";

/** The closed classes that the wire's `class` member and the failure metrics use. */
export const FAILURE_CLASSES = [
	"InvalidRequest",
	"Unauthenticated",
	"PermissionDenied",
	"NotFound",
	"Conflict",
	"PayloadTooLarge",
	"UnsupportedMedia",
	"RateLimited",
	"CapacityExhausted",
	"Unavailable",
	"BackendProtocol",
	"DeadlineExceeded",
	"Cancelled",
	"NotImplemented",
	"Internal",
] as const;
export type FailureClass = (typeof FAILURE_CLASSES)[number];

/** Every reason that Dynamo 1.6.1 registers, with the one class it belongs to. A pair that is not here reads as Internal. */
export const CLASS_OF_REASON = {
	"request.invalid": "InvalidRequest",
	"request.invalid_argument": "InvalidRequest",
	"request.unauthenticated": "Unauthenticated",
	"request.permission_denied": "PermissionDenied",
	"request.not_found": "NotFound",
	"request.payload_too_large": "PayloadTooLarge",
	"request.unsupported_media": "UnsupportedMedia",
	"request.rate_limited": "RateLimited",
	"request.deadline_exceeded": "DeadlineExceeded",
	"request.cancelled": "Cancelled",
	"transport.cannot_connect": "Unavailable",
	"transport.disconnected": "Unavailable",
	"transport.connection_timeout": "DeadlineExceeded",
	"backend.invalid_argument": "InvalidRequest",
	"backend.unavailable": "Unavailable",
	"backend.worker_unavailable": "Unavailable",
	"backend.cannot_connect": "Unavailable",
	"backend.disconnected": "Unavailable",
	"backend.engine_shutdown": "Unavailable",
	"backend.stream_incomplete": "Unavailable",
	"backend.response_timeout": "DeadlineExceeded",
	"backend.connection_timeout": "DeadlineExceeded",
	"backend.cancelled": "Cancelled",
	"backend.unknown": "BackendProtocol",
	"capacity.pool_exhausted": "CapacityExhausted",
	"capacity.worker_overloaded": "CapacityExhausted",
	"capacity.exhausted": "CapacityExhausted",
	"runtime.not_implemented": "NotImplemented",
	"runtime.invalid_error": "Internal",
	"runtime.unclassified": "Internal",
} as const satisfies Record<string, FailureClass>;
export type ErrorReason = keyof typeof CLASS_OF_REASON;

/** True for a reason that Dynamo 1.6.1 registers. */
export function isErrorReason(text: unknown): text is ErrorReason {
	return typeof text === "string" && Object.hasOwn(CLASS_OF_REASON, text);
}

/** The reason that an error class has unless its error says another one. */
export const REASON_OF_ERROR_CLASS: Readonly<Record<ErrorClass, ErrorReason>> = {
	InvalidArgument: "request.invalid_argument",
	InvalidRequest: "request.invalid",
	CannotConnect: "transport.cannot_connect",
	Disconnected: "transport.disconnected",
	ConnectionTimeout: "transport.connection_timeout",
	ResponseTimeout: "backend.response_timeout",
	Cancelled: "request.cancelled",
	ResourceExhausted: "capacity.pool_exhausted",
	WorkerOverloaded: "capacity.worker_overloaded",
	CapacityExhausted: "capacity.exhausted",
	Unavailable: "backend.unavailable",
	WorkerUnavailable: "backend.worker_unavailable",
	Unauthenticated: "request.unauthenticated",
	PermissionDenied: "request.permission_denied",
	NotFound: "request.not_found",
	// Dynamo registers no reason for a conflict.
	Conflict: "runtime.unclassified",
	PayloadTooLarge: "request.payload_too_large",
	UnsupportedMedia: "request.unsupported_media",
	RateLimited: "request.rate_limited",
	BackendProtocol: "backend.unknown",
	DeadlineExceeded: "request.deadline_exceeded",
	NotImplemented: "runtime.not_implemented",
	Internal: "runtime.unclassified",
	Unknown: "runtime.unclassified",
};

/** What the `Backend` form of error_type means: our class for it, and its reason. */
export const BACKEND_ERROR_FACTS: Readonly<Record<BackendError, { errorClass: ErrorClass; reason: ErrorReason }>> = {
	InvalidArgument: { errorClass: "InvalidArgument", reason: "backend.invalid_argument" },
	EngineShutdown: { errorClass: "Unavailable", reason: "backend.engine_shutdown" },
	StreamIncomplete: { errorClass: "Disconnected", reason: "backend.stream_incomplete" },
	Disconnected: { errorClass: "Disconnected", reason: "backend.disconnected" },
	CannotConnect: { errorClass: "CannotConnect", reason: "backend.cannot_connect" },
	ConnectionTimeout: { errorClass: "ConnectionTimeout", reason: "backend.connection_timeout" },
	ResponseTimeout: { errorClass: "ResponseTimeout", reason: "backend.response_timeout" },
	Cancelled: { errorClass: "Cancelled", reason: "backend.cancelled" },
	Unknown: { errorClass: "BackendProtocol", reason: "backend.unknown" },
};

/** The dotted reason of an error; one that Dynamo does not know counts as the class's own. */
export function errorReason(error: DynamoError): ErrorReason {
	return isErrorReason(error.reason) ? error.reason : REASON_OF_ERROR_CLASS[error.errorClass];
}

/** The class under which an error is counted and written to the wire. */
export function failureClass(error: DynamoError): FailureClass {
	return error.errorClass === "Conflict" ? "Conflict" : CLASS_OF_REASON[errorReason(error)];
}

/** Reasons that say nothing about the request, only about the worker or the way to it. */
const MIGRATABLE_REASONS: ReadonlySet<ErrorReason> = new Set<ErrorReason>([
	"transport.cannot_connect",
	"transport.disconnected",
	"transport.connection_timeout",
	"backend.unavailable",
	"backend.worker_unavailable",
	"backend.cannot_connect",
	"backend.disconnected",
	"backend.connection_timeout",
	"backend.engine_shutdown",
	"backend.stream_incomplete",
	"capacity.worker_overloaded",
]);

/** True when another instance may finish the request: the stream or the worker was lost, or the worker had no room. */
export function isMigratable(error: DynamoError): boolean {
	return !error.local && MIGRATABLE_REASONS.has(errorReason(error));
}

/** True when the instance itself is in doubt and should get no requests for a while. A full worker is not. */
export function isInstanceFault(error: DynamoError): boolean {
	const reason = errorReason(error);
	if (error.local) return false;
	return (
		reason === "backend.response_timeout" || (MIGRATABLE_REASONS.has(reason) && reason !== "capacity.worker_overloaded")
	);
}

/** What a failed request says about the instance that had it. */
export type InstanceVerdict = "healthy" | "neutral" | "failure" | "fault";

/**
 * What an error says about the instance: a request that was at fault itself nothing bad (4xx), being busy nothing at
 * all (429, 503, 529), an error of its own something (other 5xx), and that it cannot be reached or lost the stream
 * enough to leave it alone.
 */
export function instanceVerdict(error: DynamoError): InstanceVerdict {
	if (isInstanceFault(error)) return "fault";
	switch (failureClass(error)) {
		case "RateLimited":
		case "CapacityExhausted":
		case "Unavailable":
			return "neutral";
		case "BackendProtocol":
		case "DeadlineExceeded":
		case "Internal":
			return "failure";
		default:
			return "healthy";
	}
}

/** True when a request that has shown nothing yet should be tried on another instance. A full one is not left. */
export function mayTryAnother(error: DynamoError): boolean {
	return isMigratable(error) && errorReason(error) !== "capacity.worker_overloaded";
}

/** What clients read when an error brings no public message of its own: nothing of the inside. */
export const PUBLIC_SENTENCES: Readonly<Record<FailureClass, string>> = {
	InvalidRequest: "Invalid request",
	Unauthenticated: "Authentication required",
	PermissionDenied: "Permission denied",
	NotFound: "Resource not found",
	Conflict: "Conflict",
	PayloadTooLarge: "Request payload too large",
	UnsupportedMedia: "Unsupported media type",
	RateLimited: "Rate limit exceeded",
	CapacityExhausted: "Service temporarily overloaded",
	Unavailable: "Service temporarily unavailable",
	BackendProtocol: "Internal server error",
	DeadlineExceeded: "Request deadline exceeded",
	Cancelled: "Request cancelled",
	NotImplemented: "Operation not implemented",
	Internal: "Internal server error",
};

/** The text that clients may read. */
export function publicMessage(error: DynamoError): string {
	return error.publicMessage ?? PUBLIC_SENTENCES[failureClass(error)];
}
