// SPDX-License-Identifier: Apache-2.0
// Log lines as Dynamo writes them: readable, or one JSON object per line.
import type { LogConfig } from "./log-settings.js";
import type { LogFields, LogLevel } from "./logging.js";
import type { Span, SpanValue } from "./tracing/span.js";
import { wallClockMs } from "./wall-clock.js";

/** Makes one line, with its newline. */
export type LineFormat = (
	level: LogLevel,
	target: string,
	message: string,
	fields: LogFields | undefined,
	span: Span | undefined,
	/** `file` and `line` as JSON members, with a comma after them. */
	position?: string,
) => string;

/** One JSON object: time, level, position, target and message, then the fields of the event and its span, sorted. */
export function jsonlFormat(config: LogConfig): LineFormat {
	const time = timestamper(config.localTime);
	return (level, target, message, fields, span, position = "") => {
		let line = `{"time":"${time()}","level":"${level.toUpperCase()}",${position}"target":${JSON.stringify(target)},"message":${JSON.stringify(message)}`;
		const all = span === undefined ? fields : withSpan(span, fields);
		if (all !== undefined) {
			for (const key of Object.keys(all).sort()) {
				const value = jsonValue(all[key]);
				if (value !== undefined) line += `,${JSON.stringify(key)}:${value}`;
			}
		}
		return `${line}}\n`;
	};
}

/** Fields of spans are text, as in Dynamo's lines; those of the event itself come before them. */
function withSpan(span: Span, fields: LogFields | undefined): LogFields {
	const all: LogFields = {};
	for (const key of Object.keys(span.fields)) all[key] = String(span.fields[key]);
	all.span_name = span.name;
	all.span_id = span.spanId;
	all.trace_id = span.traceId;
	all.parent_id = span.parentId;
	all.x_request_id = span.xRequestId;
	all.request_id ??= span.requestId;
	if (span.kind !== "internal") all["otel.kind"] = span.kind;
	if (fields !== undefined)
		for (const key of Object.keys(fields)) if (fields[key] !== undefined) all[key] = fields[key];
	return all;
}

/** SGR codes as the readable format of Dynamo has them. */
const COLOURS: Record<LogLevel, string> = { error: "31", warn: "33", info: "32", debug: "34", trace: "35" };

/** How a readable line is put together; `dim` is around the fields of a span. */
interface Style {
	head(time: string, level: LogLevel, target: string, spans: readonly Span[]): string;
	field(key: string, value: string): string;
	dim(fields: string): string;
}

const PLAIN: Style = {
	head: (time, level, target, spans) =>
		`${time} ${level.toUpperCase().padStart(5)} ${spans.map(({ name }) => `${name}:`).join("")}${spans.length > 0 ? " " : ""}${target}:`,
	field: (key, value) => ` ${key}=${value}`,
	dim: (fields) => fields,
};

const COLOURED: Style = {
	head: (time, level, target, spans) => {
		const names = spans.map(({ name }) => `\x1b[1m${name}\x1b[0m:`).join("");
		const label = `\x1b[${COLOURS[level]}m${level.toUpperCase().padStart(5)}\x1b[0m`;
		return `\x1b[2m${time}\x1b[0m ${label} ${names}${spans.length > 0 ? " " : ""}\x1b[2m${target}\x1b[0m\x1b[2m:\x1b[0m`;
	},
	field: (key, value) => ` \x1b[3m${key}\x1b[0m\x1b[2m=\x1b[0m${value}`,
	dim: (fields) => ` \x1b[2m${fields.slice(1)}\x1b[0m`,
};

/** Time, level, spans from the outermost, target and message; then the fields of the event and of each span. */
export function readableFormat(config: LogConfig): LineFormat {
	const time = timestamper(config.localTime);
	const style = config.ansi ? COLOURED : PLAIN;
	return (level, target, message, fields, span) => {
		const spans = span === undefined ? NO_SPANS : scopeOf(span);
		let line = `${style.head(time(), level, target, spans)} ${oneLine(message)}`;
		if (fields !== undefined) line += fieldTexts(style, fields);
		for (const one of spans) {
			let texts = fieldTexts(style, one.fields);
			if (one.kind !== "internal") texts = style.field("otel.kind", JSON.stringify(one.kind)) + texts;
			// Shown in any case, where Dynamo shows it only when the trace came from outside.
			if (one.parent === undefined && one.fields.trace_id === undefined) texts += style.field("trace_id", one.traceId);
			line += style.dim(texts);
		}
		return `${line}\n`;
	};
}

const NO_SPANS: readonly Span[] = [];

function scopeOf(span: Span): Span[] {
	const spans: Span[] = [];
	for (let one: Span | undefined = span; one !== undefined; one = one.parent) spans.unshift(one);
	return spans;
}

function fieldTexts(style: Style, fields: LogFields | Readonly<Record<string, SpanValue>>): string {
	let texts = "";
	for (const key of Object.keys(fields)) {
		const value = readableValue(key, fields[key]);
		if (value !== undefined) texts += style.field(key, value);
	}
	return texts;
}

/** A line break inside a message would look like a second, forged line. */
function oneLine(text: string): string {
	return /[\r\n]/.test(text) ? text.replace(/\r/g, "\\r").replace(/\n/g, "\\n") : text;
}

/** Texts that Dynamo writes without quotes, unless something in them needs some. */
const BARE_FIELDS: ReadonlySet<string> = new Set([
	...["method", "uri", "version", "endpoint", "model", "request_type", "status", "elapsed_ms", "latency_ms"],
	...["trace_id", "parent_id", "trace_flags", "x_request_id", "request_id", "error_type"],
	...["input_tokens", "output_tokens", "image_count", "video_count", "audio_count"],
	...["router_mode", "worker_id", "prefill_worker_id", "decode_worker_id", "dp_rank", "overlap_blocks", "phase"],
	...["request.attempt", "migration.tokens_completed", "component", "namespace", "instance_id"],
]);

function readableValue(key: string, value: unknown): string | undefined {
	if (typeof value !== "string") return jsonValue(value);
	return BARE_FIELDS.has(key) && /^[!#-<>-~]+$/.test(value) ? value : JSON.stringify(value);
}

function jsonValue(value: unknown): string | undefined {
	switch (typeof value) {
		case "undefined":
		case "function":
		case "symbol":
			return undefined;
		case "bigint":
			return value.toString();
		case "number":
			return Number.isFinite(value) ? String(value) : JSON.stringify(String(value));
		case "object":
			if (value instanceof Error) return JSON.stringify(value.message);
			try {
				return JSON.stringify(value, (_key, member) =>
					typeof member === "bigint" ? member.toString() : member instanceof Error ? member.message : member,
				);
			} catch {
				return '"[unprintable]"';
			}
		default:
			return JSON.stringify(value);
	}
}

/** RFC 3339 with microseconds. The text of a second is made once. */
function timestamper(local: boolean): () => string {
	let secondText = "";
	let second = Number.NaN;
	let suffix = "Z";
	return () => {
		const now = wallClockMs();
		const whole = Math.floor(now / 1000);
		if (whole !== second) {
			second = whole;
			const date = new Date(second * 1000);
			if (local) {
				const minutes = -date.getTimezoneOffset();
				const away = Math.abs(minutes);
				suffix = `${minutes < 0 ? "-" : "+"}${two(Math.floor(away / 60))}:${two(away % 60)}`;
				secondText = new Date(date.getTime() + minutes * 60_000).toISOString().slice(0, 19);
			} else {
				secondText = date.toISOString().slice(0, 19);
			}
		}
		const micros = Math.floor((now - second * 1000) * 1000);
		return `${secondText}.${String(micros).padStart(6, "0")}${suffix}`;
	};
}

function two(value: number): string {
	return String(value).padStart(2, "0");
}
