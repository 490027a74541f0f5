// SPDX-License-Identifier: Apache-2.0

/** The flat `type` of an error body: the reason phrase, as Dynamo 1.6.1 spells it. 529 has no official one. */
export const STATUS_PHRASES: Readonly<Record<number, string>> = {
	400: "Bad Request",
	401: "Unauthorized",
	403: "Forbidden",
	404: "Not Found",
	405: "Method Not Allowed",
	408: "Request Timeout",
	409: "Conflict",
	413: "Payload Too Large",
	415: "Unsupported Media Type",
	422: "Unprocessable Entity",
	429: "Too Many Requests",
	499: "Client Closed Request",
	500: "Internal Server Error",
	501: "Not Implemented",
	502: "Bad Gateway",
	503: "Service Unavailable",
	504: "Gateway Timeout",
	529: "Overloaded",
};

/** The `type` inside `error`, as OpenAI's clients know it. */
const OPENAI_TYPES: Readonly<Record<number, string>> = {
	401: "authentication_error",
	403: "permission_error",
	404: "not_found_error",
	429: "rate_limit_error",
	503: "service_unavailable",
	504: "timeout_error",
	529: "overloaded_error",
};

function openAiType(status: number): string {
	return OPENAI_TYPES[status] ?? (status >= 400 && status < 500 ? "invalid_request_error" : "server_error");
}

/** The `type` of an error event inside a stream that has begun with 200. */
const SSE_TYPES: Readonly<Record<number, string>> = {
	...OPENAI_TYPES,
	499: "request_cancelled",
	501: "not_implemented_error",
	529: "service_unavailable",
};

function sseType(status: number): string {
	return SSE_TYPES[status] ?? (status >= 400 && status < 500 ? "invalid_request_error" : "internal_server_error");
}

/** Dynamo's flat members and OpenAI's object side by side, so that the clients of both read it. */
export interface HttpErrorBody {
	error: { message: string; type: string; param: string | null; code: string | null };
	message: string;
	type: string;
	code: number;
	details?: Record<string, unknown>;
}

export interface HttpErrorOptions {
	/** The flat `type`; default: the status' reason phrase. */
	phrase?: string;
	/** OpenAI's `type`; default: by status. */
	type?: string;
	/** OpenAI's `code`, e.g. `model_not_found`; default null. */
	code?: string;
	/** The request field at fault; default null. */
	param?: string;
	/** More flat members, e.g. `{"backend_status":500}`. */
	details?: Record<string, unknown>;
	cause?: unknown;
}

/** An answer that is an error. Its message is meant for clients. */
export class HttpError extends Error {
	readonly status: number;
	readonly phrase: string;
	readonly type: string;
	readonly code: string | null;
	readonly param: string | null;
	readonly details: Record<string, unknown> | undefined;

	constructor(status: number, message: string, options: HttpErrorOptions = {}) {
		super(message, options.cause === undefined ? undefined : { cause: options.cause });
		this.name = "HttpError";
		this.status = status;
		this.phrase = options.phrase ?? STATUS_PHRASES[status] ?? "Error";
		this.type = options.type ?? openAiType(status);
		this.code = options.code ?? null;
		this.param = options.param ?? null;
		this.details = options.details;
	}

	/** The JSON body of the answer. */
	toBody(): HttpErrorBody {
		const body: HttpErrorBody = {
			error: { message: this.message, type: this.type, param: this.param, code: this.code },
			message: this.message,
			type: this.phrase,
			code: this.status,
		};
		if (this.details !== undefined) body.details = this.details;
		return body;
	}

	/** The event that ends a stream which has begun with 200; `data: [DONE]` must follow. */
	toSseEvent(): string {
		return sseErrorEvent(this.status, this.message, this.param ?? undefined);
	}
}

/** `data: {"error":{"message","type","code"[,"param"]}}` and the empty line. Newlines of the message are escaped by JSON. */
export function sseErrorEvent(status: number, message: string, param?: string): string {
	return `data: ${JSON.stringify({ error: { message, type: sseType(status), code: status, param } })}\n\n`;
}

/** Ends every stream. */
export const SSE_DONE = "data: [DONE]\n\n";
