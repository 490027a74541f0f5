// SPDX-License-Identifier: Apache-2.0
// A span is an explicit object that goes with its request. It always has its ids, which log lines and workers need;
// events and times are kept only when it is recorded.
import type { LogFields, Logger, LogLevel } from "../logging.js";
import { wallClockMs } from "../wall-clock.js";
import { isSampled, newSpanId, newTraceId, parseTraceparent } from "./trace-context.js";

/** Where a span stands between processes. */
export type SpanKind = "internal" | "server" | "client";
export type SpanValue = string | number | bigint | boolean;

/** Something that happened within a span: a log line. */
export interface SpanEvent {
	readonly name: string;
	/** Milliseconds since 1970, with a fraction. */
	readonly at: number;
	readonly level: LogLevel;
	readonly target: string;
	readonly fields: LogFields | undefined;
}

export interface SpanOptions {
	readonly kind?: SpanKind;
	/** By which log filters and trace viewers know it; absent: `request_span`, as Dynamo's spans of requests have it. */
	readonly target?: string;
	/** Where it is made, as a module path of Dynamo's. */
	readonly module?: string;
	/** Shown on log lines and exported. */
	readonly fields?: Readonly<Record<string, SpanValue | undefined>>;
	/** Milliseconds since 1970; absent: now. */
	readonly startedAt?: number;
}

/** What of a request's headers matters to spans. */
export interface SpanHeaders {
	readonly traceparent?: string | undefined;
	readonly xRequestId?: string | undefined;
}

/** Takes spans that ended and are recorded. */
export interface SpanSink {
	end(span: Span): void;
}

/** What spans of one process share. */
export interface SpanHost {
	/** Absent: nothing is recorded. */
	readonly sink: SpanSink | undefined;
	/** The log that begin and end of spans with a target are told to; absent: nobody is told. */
	readonly lifecycle: ((target: string) => Logger) | undefined;
}

/** Events of a span beyond this many are dropped. */
const MAX_EVENTS = 128;

export class Span {
	readonly name: string;
	readonly kind: SpanKind;
	readonly target: string;
	readonly module: string;
	readonly traceId: string;
	readonly spanId: string;
	readonly parentId: string | undefined;
	/** The span in this process that it is part of. */
	readonly parent: Span | undefined;
	/** What the HTTP client called its request. */
	readonly xRequestId: string | undefined;
	/** The trace is recorded, here or elsewhere: what is sent on says so. */
	readonly sampled: boolean;
	/** Somebody takes the span when it ends. */
	readonly recording: boolean;
	/** In the order in which they were set. */
	readonly fields: Record<string, SpanValue> = {};
	/** Exported only; undefined when nothing is recorded. */
	readonly attributes: Record<string, SpanValue> | undefined;
	readonly events: SpanEvent[] = [];
	droppedEvents = 0;
	/** Milliseconds since 1970, with a fraction. */
	readonly startedAt: number;
	endedAt: number | undefined;
	/** Set when what the span stands for failed; may be empty. */
	failure: string | undefined;
	private readonly host: SpanHost;

	/** Use {@link Tracer.enter} and {@link child}. */
	constructor(host: SpanHost, name: string, origin: SpanOrigin, options: SpanOptions) {
		this.host = host;
		this.name = name;
		this.kind = options.kind ?? "internal";
		this.target = options.target ?? "request_span";
		this.module = options.module ?? "dynamo_runtime::logging";
		this.traceId = origin.traceId;
		this.spanId = newSpanId();
		this.parentId = origin.parentId;
		this.parent = origin.parent;
		this.xRequestId = origin.xRequestId;
		this.sampled = origin.sampled;
		this.recording = origin.sampled && host.sink !== undefined;
		this.startedAt = options.startedAt ?? wallClockMs();
		if (this.recording) this.attributes = {};
		const { fields } = options;
		if (fields !== undefined) for (const key in fields) this.set(key, fields[key]);
	}

	/** Tells that it has begun; called once, when the first fields are set. */
	begin(): this {
		this.host.lifecycle?.(this.target).info("SPAN_FIRST_ENTRY", undefined, this);
		return this;
	}

	/** Of the request that it belongs to, whichever span around it says so. */
	get requestId(): SpanValue | undefined {
		return this.fields.request_id ?? this.parent?.requestId;
	}

	/** True when the parent is in another process. */
	get hasRemoteParent(): boolean {
		return this.parent === undefined && this.parentId !== undefined;
	}

	/** Shown on further log lines and exported; undefined changes nothing. */
	set(key: string, value: SpanValue | undefined): void {
		if (value !== undefined) this.fields[key] = value;
	}

	/** Exported, not shown on log lines. */
	setAttribute(key: string, value: SpanValue | undefined): void {
		if (value !== undefined && this.attributes !== undefined) this.attributes[key] = value;
	}

	child(name: string, options: SpanOptions = {}): Span {
		const { traceId, spanId, xRequestId, sampled } = this;
		const origin = { traceId, parentId: spanId, parent: this, xRequestId, sampled };
		return new Span(this.host, name, origin, options).begin();
	}

	/** Keeps a log line as an event. */
	addEvent(name: string, level: LogLevel, target: string, fields: LogFields | undefined): void {
		if (!this.recording || this.endedAt !== undefined) return;
		if (this.events.length >= MAX_EVENTS) this.droppedEvents++;
		else this.events.push({ name, at: wallClockMs(), level, target, fields });
	}

	/** What the span stands for failed. */
	fail(description = ""): void {
		this.failure = description;
	}

	/** Ends it; only the first call does anything. */
	end(at: number = wallClockMs()): void {
		if (this.endedAt !== undefined) return;
		const endedAt = Math.max(this.startedAt, at);
		const { lifecycle, sink } = this.host;
		// From here on lines are no events of it: that it is closed is none, as in Dynamo's spans.
		this.endedAt = endedAt;
		const duration = Math.round((endedAt - this.startedAt) * 1000);
		lifecycle?.(this.target).info("SPAN_CLOSED", { "time.duration_us": duration }, this);
		if (this.recording) sink?.end(this);
	}

	/** Headers for a request that is sent on account of this span. */
	headers(): Record<string, string> {
		const headers: Record<string, string> = { traceparent: this.traceparent() };
		if (this.xRequestId !== undefined) headers["x-request-id"] = this.xRequestId;
		return headers;
	}

	traceparent(): string {
		return `00-${this.traceId}-${this.spanId}-${this.sampled ? "01" : "00"}`;
	}
}

interface SpanOrigin {
	readonly traceId: string;
	readonly parentId: string | undefined;
	readonly parent: Span | undefined;
	readonly xRequestId: string | undefined;
	readonly sampled: boolean;
}

/** Begins the spans of requests that come into a process. */
export class Tracer {
	private readonly host: SpanHost;
	private readonly sample: (traceId: string, parentSampled: boolean | undefined) => boolean;

	/** @param sample decides which traces are recorded. */
	constructor(host: SpanHost, sample: (traceId: string, parentSampled: boolean | undefined) => boolean) {
		this.host = host;
		this.sample = sample;
	}

	/**
	 * The first span of a request in this process: goes on with the caller's trace, or begins one.
	 * @param identity fields that come after those that tell of the trace.
	 */
	enter(name: string, headers: SpanHeaders, options: SpanOptions = {}, identity?: SpanOptions["fields"]): Span {
		const caller = parseTraceparent(headers.traceparent);
		const { xRequestId } = headers;
		const traceId = caller?.traceId ?? newTraceId();
		const sampled = this.sample(traceId, caller === undefined ? undefined : isSampled(caller.flags));
		const origin = { traceId, parentId: caller?.spanId, parent: undefined, xRequestId, sampled };
		const span = new Span(this.host, name, origin, options);
		if (caller !== undefined) {
			span.set("trace_id", traceId);
			span.set("parent_id", caller.spanId);
			span.set("trace_flags", caller.flags);
		}
		span.set("x_request_id", xRequestId);
		if (identity !== undefined) for (const key in identity) span.set(key, identity[key]);
		return span.begin();
	}
}
