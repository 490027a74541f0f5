// SPDX-License-Identifier: Apache-2.0

/** Names of error classes that Dynamo 1.6.1 knows. */
export const ERROR_CLASSES = [
	"InvalidArgument",
	"CannotConnect",
	"Disconnected",
	"ConnectionTimeout",
	"ResponseTimeout",
	"Cancelled",
	"ResourceExhausted",
	"WorkerOverloaded",
	"Unavailable",
	"WorkerUnavailable",
	"InvalidRequest",
	"Unauthenticated",
	"PermissionDenied",
	"NotFound",
	"Conflict",
	"PayloadTooLarge",
	"UnsupportedMedia",
	"RateLimited",
	"CapacityExhausted",
	"BackendProtocol",
	"DeadlineExceeded",
	"NotImplemented",
	"Internal",
	"Unknown",
] as const;
export type ErrorClass = (typeof ERROR_CLASSES)[number];

/** Reasons inside the `Backend` form of error_type. */
export const BACKEND_ERRORS = [
	"InvalidArgument",
	"EngineShutdown",
	"StreamIncomplete",
	"Disconnected",
	"CannotConnect",
	"ConnectionTimeout",
	"ResponseTimeout",
	"Cancelled",
	"Unknown",
] as const;
export type BackendError = (typeof BACKEND_ERRORS)[number];

/** `error_type` on the wire: a class name, or a backend's reason. */
export type WireErrorType = ErrorClass | { Backend: BackendError } | (string & {});

/** An error object on a response stream or in a prologue. A reader needs error_type and message only. */
export interface WireError {
	error_type: WireErrorType;
	message: string;
	class?: string;
	reason?: string;
	diagnostic?: string;
	public?: { type: string; message?: string };
	/** Ours, for the HTTP answer: OpenAI's `code` and `param`. */
	code?: string;
	param?: string;
}

const MARK = Symbol.for("dynamo-ts.error");

export interface DynamoErrorOptions {
	/** Shown to clients; absent: the text stays inside and clients see a general sentence for the class. */
	publicMessage?: string;
	/** Dotted reason, e.g. `transport.cannot_connect`; absent: the class's own. */
	reason?: string;
	/** OpenAI's `code`, e.g. `context_length_exceeded`. */
	code?: string;
	/** OpenAI's `param`: the request field at fault. */
	param?: string;
	/** The fault lies on this side (a lost broker, say): it says nothing about the instance, and no other one helps. */
	local?: boolean;
	cause?: unknown;
}

/**
 * Says what failed; the edges decide status, retry and worker health from `errorClass` and `reason`.
 * Recognised across packages and threads by a registered symbol, see {@link isDynamoError}.
 */
export class DynamoError extends Error {
	readonly errorClass: ErrorClass;
	readonly reason: string | undefined;
	readonly publicMessage: string | undefined;
	readonly code: string | undefined;
	readonly param: string | undefined;
	/** True when the fault lies on this side; never told to others. */
	readonly local: boolean;

	constructor(errorClass: ErrorClass, message: string, options: DynamoErrorOptions = {}) {
		super(message, options.cause === undefined ? undefined : { cause: options.cause });
		this.name = "DynamoError";
		this.errorClass = errorClass;
		this.reason = options.reason;
		this.publicMessage = options.publicMessage;
		this.code = options.code;
		this.param = options.param;
		this.local = options.local === true;
		Object.defineProperty(this, MARK, { value: true });
	}
}

/** True for a DynamoError of any copy of this package. */
export function isDynamoError(value: unknown): value is DynamoError {
	return typeof value === "object" && value !== null && (value as Record<symbol, unknown>)[MARK] === true;
}
