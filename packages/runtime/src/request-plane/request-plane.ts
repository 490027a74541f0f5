// SPDX-License-Identifier: Apache-2.0
import type { Annotated, DynamoError, EndpointRecord, RequestPlaneCodec } from "@dynamo-ts/protocols/internal";
import type { Span } from "../observability/tracing/span.js";
import type { Gate } from "./turnstile.js";

/**
 * Why a request was cancelled: `stop` asks to end generation early and may still send what there is, `kill` and
 * `disconnect` (the client's connection is gone) mean that nobody reads any more.
 */
export type CancelKind = "stop" | "kill" | "disconnect";

/** A request as a handler sees it. */
export interface IngressRequest {
	/** The context id: a UUID made by the frontend, the same on every leg of one user request. */
	readonly id: string;
	/** Text headers that travelled with the request: `traceparent`, `x-request-id`, ... */
	readonly headers: Readonly<Record<string, string>>;
	/** The decoded body. */
	readonly payload: unknown;
	/** The codec of the body, and so of the answers. */
	readonly codec: RequestPlaneCodec;
	/** `performance.now()` when the last byte of the request arrived, milliseconds. */
	readonly receivedAt: number;
	/** What is done for the request is part of it; goes with log lines and, by its headers, with further requests. */
	readonly span?: Span | undefined;
	/** Aborted on kill and disconnect, not on stop. Made when first asked for. */
	readonly signal: AbortSignal;
	/**
	 * Calls `callback` once if the request is cancelled before its response ended; at once if that happened already.
	 * A stop can be followed by a kill: then the callback is called a second time.
	 */
	onCancel(callback: (kind: CancelKind) => void): void;
}

/**
 * The response stream of one request, push-based: what is sent within one turn of the event loop goes out as one
 * write. A handler ends it exactly once, with {@link end} or {@link fail}; calls after that, or after the client
 * went away, do nothing.
 */
export interface ResponseWriter {
	/** True once ended, failed or cancelled by kill or disconnect. */
	readonly closed: boolean;
	/** Bytes (in-process: items) taken by {@link send} and not yet taken by the client. */
	readonly bufferedBytes: number;
	/**
	 * Sends one item. A client that lets more than the limit of bytes pile up is cut off as if it had disconnected.
	 */
	send(item: Annotated<unknown>): void;
	/** Ends the stream with an error: in the prologue if that was not sent yet, as an error item otherwise. */
	fail(error: DynamoError): void;
	/** Ends the stream: complete. */
	end(): void;
}

/**
 * Serves one request. Called synchronously when a request has arrived; an exception from it fails the request with
 * an `Internal` error (a DynamoError: with that). It may return a promise only in the sense that a rejected one
 * fails the request too; the response ends with `response.end()` or `response.fail()` alone.
 */
export type EndpointHandler = (request: IngressRequest, response: ResponseWriter) => void | Promise<void>;

/** What a client sends. */
export interface OutgoingRequest {
	/** The context id. */
	readonly id: string;
	/** Encoded in the codec that the instance asks for. */
	readonly payload: unknown;
	/** Text headers; `request-id` and `x-endpoint-path` are added. */
	readonly headers?: Readonly<Record<string, string>>;
	/** What the request is sent for: its trace context goes with the headers, and it is on the lines about it. */
	readonly span?: Span | undefined;
}

/** Receives a response stream. After any of onEnd and onError nothing more is called. */
export interface ResponseSink {
	/** The worker has taken the request (its prologue said so); called once, before any item. */
	onOpen?(): void;
	/** One item; called synchronously from the socket's data event. Must not throw. Never an error item. */
	onItem(item: Annotated<unknown>): void;
	/** The stream is complete. */
	onEnd(): void;
	/** The request failed, before or after items. `Cancelled` after {@link ActiveRequest.kill}. */
	onError(error: DynamoError): void;
}

/** Deadlines of one request; milliseconds, 0 for none, absent for the runtime's configuration. */
export interface RequestOptions {
	/** From send to the worker's acknowledgement. */
	readonly ackTimeoutMs?: number;
	/** From send to the first item or end. */
	readonly firstResponseTimeoutMs?: number;
	/** Between two items. */
	readonly idleTimeoutMs?: number;
	/**
	 * Another worker has a part in the request: a stream that breaks off may be the doing of that one, and alone is no reason
	 * to put the instance aside.
	 */
	readonly blameIsShared?: boolean;
}

/** A request under way. All methods are idempotent and do nothing once the request ended. */
export interface ActiveRequest {
	readonly id: string;
	/** Abandons the request: the worker is told to drop it, nothing more is delivered but `onError(Cancelled)`. */
	kill(): void;
	/** Asks the worker to end generation; the stream goes on until the worker ends it. */
	stop(): void;
	/** Stops delivery (and reading, so that the worker feels it) until {@link resume}; idle deadlines rest. */
	pause(): void;
	resume(): void;
}

/** A request as the request plane hands it to the runtime. */
export interface PlaneRequest extends ActiveRequest {
	/**
	 * The instance left discovery. A request that the worker has not answered in any way fails at once; one whose
	 * stream stands goes on, but silence is not borne as long.
	 */
	instanceGone(): void;
}

/** Sends requests to instances. One per process. */
export interface RequestPlaneClient {
	/** Never throws: every failure is delivered to the sink, not before this call has returned. */
	send(instance: EndpointRecord, request: OutgoingRequest, sink: ResponseSink, options?: RequestOptions): PlaneRequest;
	/** Fails what is under way and closes all connections. */
	close(): Promise<void>;
}

/** An endpoint that a request-plane server routes to. */
export interface EndpointRegistration {
	/** Requests being handled now. */
	readonly inflight: number;
	/** Requests from now on run, wait or are refused as the gates say, one after the other. */
	limit(...gates: Gate[]): void;
	/**
	 * Resolves once requests that are sent from now on arrive; waits for a broker that is away.
	 * @throws DynamoError `Unavailable` when `signal` is aborted or the broker given up before.
	 */
	ready(signal?: AbortSignal): Promise<void>;
	/** Refuses new requests with `Server unavailable`; those under way go on. */
	refuse(): void;
	/** Resolves true when no request is under way, false when `timeoutMs` milliseconds have passed. */
	drained(timeoutMs: number): Promise<boolean>;
	/** Ends what is still under way with a Disconnected error and forgets the endpoint. */
	close(): void;
}

/** Told about each request of an endpoint; used for metrics. */
export interface EndpointObserver {
	/**
	 * A request was read; `bytes` of its body. Returns the observer of this request.
	 * @param refused true: only an error will be answered, since it is no request that a handler can get.
	 */
	onRequest(bytes: number, headers: Readonly<Record<string, string>>, refused?: boolean): RequestObserver;
	/** A request was refused because it could not be read. */
	onInvalid(kind: "deserialization" | "invalid_message"): void;
}

/** Told about one request. Exactly one {@link onClose} follows each {@link EndpointObserver.onRequest}. */
export interface RequestObserver {
	/** The span that the request is handled in. */
	readonly span?: Span | undefined;
	/** The prologue went out. */
	onPrologue(): void;
	/** Encoded bytes of one response frame. */
	onResponseBytes(bytes: number): void;
	onError(kind: "generate" | "response_stream" | "serialization" | "publish_response" | "publish_final"): void;
	/** The answer is this error, or ends with it. */
	onFail(error: DynamoError): void;
	/** The client stopped, killed or left; only the first of these is told. */
	onCancel(kind: CancelKind): void;
	onClose(): void;
}

/** Receives requests. One per process, all endpoints behind one listener. */
export interface RequestPlaneServer {
	/** Routes `{id:x}/{ns}/{component}/{endpoint}` to a handler. */
	register(path: string, handler: EndpointHandler, observer?: EndpointObserver): EndpointRegistration;
	/** What an endpoint record's `transport` says for a registered path. */
	address(path: string): EndpointRecord["transport"];
	close(): Promise<void>;
}
