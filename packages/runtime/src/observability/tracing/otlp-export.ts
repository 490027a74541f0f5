// SPDX-License-Identifier: Apache-2.0
// Hands spans and log lines to OpenTelemetry's batch processors and OTLP exporters. Loaded only where something is
// exported. Queues are bounded; what does not fit or cannot be sent is dropped and told once in a while.
import { isMainThread, threadId } from "node:worker_threads";
import type { Attributes, HrTime, SpanContext, SpanStatus } from "@opentelemetry/api";
import type { ExportResult, InstrumentationScope } from "@opentelemetry/core";
import { OTLPLogExporter as GrpcLogExporter } from "@opentelemetry/exporter-logs-otlp-grpc";
import { OTLPLogExporter as HttpLogExporter } from "@opentelemetry/exporter-logs-otlp-proto";
import { OTLPTraceExporter as GrpcTraceExporter } from "@opentelemetry/exporter-trace-otlp-grpc";
import { OTLPTraceExporter as HttpTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { type Resource, resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, type ReadableLogRecord, type SdkLogRecord } from "@opentelemetry/sdk-logs";
import { BatchSpanProcessor, type ReadableSpan } from "@opentelemetry/sdk-trace-base";
import type { LogFields, Logger, LogLevel } from "../logging.js";
import { wallClockMs } from "../wall-clock.js";
import type { Span, SpanEvent, SpanKind, SpanSink } from "./span.js";
import type { OtlpTarget } from "./telemetry-settings.js";

/** As the API numbers them. */
const KINDS: Record<SpanKind, number> = { internal: 0, server: 1, client: 2 };
const SEVERITIES: Record<LogLevel, number> = { trace: 1, debug: 5, info: 9, warn: 13, error: 17 };
const NO_TIME: HrTime = [0, 0];

/** Milliseconds between two lines about telemetry that could not be sent. */
const REPORT_INTERVAL_MS = 60_000;

/** An OTLP exporter as the batch processors call it. */
interface Exporter<T> {
	export(items: T[], done: (result: ExportResult) => void): void;
	forceFlush?(): Promise<void>;
	shutdown(): Promise<void>;
}

/** Exports recorded spans. */
export class SpanExport implements SpanSink {
	private readonly processor: BatchSpanProcessor;
	private readonly resource: Resource;
	private readonly scope: InstrumentationScope;

	constructor(target: OtlpTarget, serviceName: string, log: Logger) {
		const { url } = target;
		const exporter = target.protocol === "grpc" ? new GrpcTraceExporter({ url }) : new HttpTraceExporter({ url });
		this.processor = new BatchSpanProcessor(new ReportedExporter<ReadableSpan>(exporter, "spans", url, log));
		this.resource = resourceFromAttributes({ "service.name": serviceName });
		this.scope = { name: serviceName };
	}

	end(span: Span): void {
		this.processor.onEnd(readableSpan(span, this.resource, this.scope));
	}

	/** Sends what is queued and closes. */
	shutdown(): Promise<void> {
		return this.processor.shutdown();
	}
}

/** Exports log lines. */
export class LogExport {
	private readonly processor: BatchLogRecordProcessor;
	private readonly resource: Resource;
	/** By target: the exporter groups by the scope's identity. */
	private readonly scopes = new Map<string, InstrumentationScope>();

	constructor(target: OtlpTarget, serviceName: string, log: Logger) {
		const { url } = target;
		const exporter = target.protocol === "grpc" ? new GrpcLogExporter({ url }) : new HttpLogExporter({ url });
		this.processor = new BatchLogRecordProcessor({
			exporter: new ReportedExporter<ReadableLogRecord>(exporter, "log lines", url, log),
		});
		this.resource = resourceFromAttributes({ "service.name": serviceName });
	}

	/** One line; those of a trace that is not recorded stay here. */
	emit(level: LogLevel, target: string, message: string, fields: LogFields | undefined, span: Span | undefined): void {
		if (span?.sampled === false) return;
		const record: ReadableLogRecord = {
			hrTime: NO_TIME,
			hrTimeObserved: hrTime(wallClockMs()),
			...(span === undefined ? {} : { spanContext: contextOf(span.traceId, span.spanId, false) }),
			severityText: level.toUpperCase(),
			severityNumber: SEVERITIES[level],
			body: message,
			eventName: `event ${target}`,
			resource: this.resource,
			instrumentationScope: this.scopeOf(target),
			attributes: attributesOf(fields),
			droppedAttributesCount: 0,
		};
		// The processor only queues it; what the SDK's own type has more are setters for other processors.
		this.processor.onEmit(record as SdkLogRecord);
	}

	/** Sends what is queued and closes. */
	shutdown(): Promise<void> {
		return this.processor.shutdown();
	}

	private scopeOf(target: string): InstrumentationScope {
		let scope = this.scopes.get(target);
		if (scope === undefined) {
			scope = { name: target };
			this.scopes.set(target, scope);
		}
		return scope;
	}
}

/**
 * Says when sending fails and when it works again. To the processor all is well: it would only drop the batch and raise
 * an error that nobody could do anything about.
 */
export class ReportedExporter<T> implements Exporter<T> {
	private readonly exporter: Exporter<T>;
	private readonly what: string;
	private readonly url: string;
	private readonly log: Logger;
	private reportedAt: number | undefined;
	private dropped = 0;

	constructor(exporter: Exporter<T>, what: string, url: string, log: Logger) {
		this.exporter = exporter;
		this.what = what;
		this.url = url;
		this.log = log;
	}

	export(items: T[], done: (result: ExportResult) => void): void {
		const finish = (result: ExportResult) => {
			if (result.code === 0) this.onSent();
			else this.onFailed(items.length, result.error);
			done({ code: 0 });
		};
		try {
			this.exporter.export(items, finish);
		} catch (error) {
			finish({ code: 1, error: error as Error });
		}
	}

	async forceFlush(): Promise<void> {
		await this.exporter.forceFlush?.();
	}

	shutdown(): Promise<void> {
		return this.exporter.shutdown();
	}

	private onSent(): void {
		if (this.reportedAt === undefined) return;
		this.log.info(`${this.what} are exported again`, { endpoint: this.url, dropped: this.dropped });
		this.reportedAt = undefined;
		this.dropped = 0;
	}

	private onFailed(count: number, error: Error | undefined): void {
		this.dropped += count;
		const now = performance.now();
		if (this.reportedAt !== undefined && now - this.reportedAt < REPORT_INTERVAL_MS) return;
		this.reportedAt = now;
		this.log.warn(`${this.what} could not be exported; they are dropped`, {
			endpoint: this.url,
			dropped: this.dropped,
			error: error?.message,
		});
	}
}

function readableSpan(span: Span, resource: Resource, scope: InstrumentationScope): ReadableSpan {
	const { traceId, parentId } = span;
	const context = contextOf(traceId, span.spanId, false);
	const endedAt = span.endedAt ?? span.startedAt;
	const status: SpanStatus = span.failure === undefined ? { code: 0 } : { code: 2, message: span.failure };
	return {
		name: span.name,
		kind: KINDS[span.kind],
		spanContext: () => context,
		...(parentId === undefined ? {} : { parentSpanContext: contextOf(traceId, parentId, span.hasRemoteParent) }),
		startTime: hrTime(span.startedAt),
		endTime: hrTime(endedAt),
		duration: hrTime(endedAt - span.startedAt),
		ended: true,
		status,
		attributes: {
			"code.module.name": span.module,
			"thread.id": threadId,
			"thread.name": isMainThread ? "main" : "worker",
			target: span.target,
			...attributesOf(span.fields),
			...attributesOf(span.attributes),
		},
		links: [],
		events: span.events.map(timedEvent),
		resource,
		instrumentationScope: scope,
		droppedAttributesCount: 0,
		droppedEventsCount: span.droppedEvents,
		droppedLinksCount: 0,
	};
}

function timedEvent({ name, at, level, target, fields }: SpanEvent): ReadableSpan["events"][number] {
	return { name, time: hrTime(at), attributes: { level: level.toUpperCase(), target, ...attributesOf(fields) } };
}

function contextOf(traceId: string, spanId: string, isRemote: boolean): SpanContext {
	return { traceId, spanId, traceFlags: 1, isRemote };
}

/** OTLP has no unsigned 64-bit integers: ids go as text, as in Dynamo's spans. */
function attributesOf(fields: LogFields | undefined): Attributes {
	const attributes: Attributes = {};
	for (const key of Object.keys(fields ?? {})) {
		const value = fields?.[key];
		if (value === undefined || value === null) continue;
		if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") attributes[key] = value;
		else if (value instanceof Error) attributes[key] = value.message;
		else attributes[key] = typeof value === "object" ? jsonText(value) : String(value);
	}
	return attributes;
}

function jsonText(value: object): string {
	try {
		return JSON.stringify(value, (_key, member) => (typeof member === "bigint" ? member.toString() : member));
	} catch {
		return "[unprintable]";
	}
}

/** Milliseconds since 1970 as the API has times. */
export function hrTime(ms: number): HrTime {
	const seconds = Math.floor(ms / 1000);
	return [seconds, Math.min(999_999_999, Math.round((ms - seconds * 1000) * 1e6))];
}
