// SPDX-License-Identifier: Apache-2.0
// Loggers: one per target, with the level that the filter gives it.
import { writeSync } from "node:fs";
import { LinePositions } from "./line-positions.js";
import { LEVEL_NUMBER, parseLogFilter } from "./log-filter.js";
import { jsonlFormat, readableFormat } from "./log-format.js";
import type { LogConfig } from "./log-settings.js";
import type { Span } from "./tracing/span.js";

/** Severity, most severe first. */
export type LogLevel = "error" | "warn" | "info" | "debug" | "trace";

/** Key-value pairs of a log line. Undefined members are left out; bigint is written as a decimal number. */
export type LogFields = Record<string, unknown>;

/**
 * Writes one line. With a span it carries the span's ids and fields, and is kept as an event of it.
 * @param calledAs the function that was called where another one passes the line on: the line comes from its caller.
 */
export type LogFunction = (message: string, fields?: LogFields, span?: Span, calledAs?: LogFunction) => void;

/** Writes log lines for one target (`dynamo_runtime::discovery`). A disabled level costs one call. */
export interface Logger {
	readonly target: string;
	isEnabled(level: LogLevel): boolean;
	readonly error: LogFunction;
	readonly warn: LogFunction;
	readonly info: LogFunction;
	readonly debug: LogFunction;
	readonly trace: LogFunction;
	/** A logger for another target, with fields that every line of it carries. */
	child(target: string, fields?: LogFields): Logger;
}

/** Takes finished lines, each with its newline. */
export type LineWriter = (line: string, level: LogLevel) => void;

/** Gets every line that is written, beside the writer. */
export interface LogRelay {
	/** Absent: nobody wants them. */
	emit?: (
		level: LogLevel,
		target: string,
		message: string,
		fields: LogFields | undefined,
		span: Span | undefined,
	) => void;
}

/**
 * A logger in Dynamo's two formats, readable and JSONL. Lines go to stderr, as Dynamo's do; stdout stays free for
 * what a command prints.
 * @throws DynamoError `InvalidArgument` for a filter that is not understood.
 */
export function createLogger(
	config: LogConfig,
	target = "dynamo",
	write: LineWriter = writeToStderr,
	relay: LogRelay = {},
): Logger {
	const filter = parseLogFilter(config.filter);
	const format = config.format === "jsonl" ? jsonlFormat(config) : readableFormat(config);
	/** By target and level; undefined where lines do not say where they come from. */
	const positions = config.format === "jsonl" ? new Map<string, LinePositions>() : undefined;
	const make = (name: string, fields: LogFields | undefined): Logger => {
		const enabled = filter.levelFor(name);
		const at = (level: LogLevel) => {
			if (LEVEL_NUMBER[level] > enabled) return nothing;
			const known = positions && positionsOf(positions, `${level} ${name}`);
			const log: LogFunction = (message, extra, span, calledAs = log) => {
				const all = fields === undefined ? extra : { ...fields, ...extra };
				write(format(level, name, message, all, span, known?.of(message, calledAs)), level);
				span?.addEvent(message, level, name, all);
				relay.emit?.(level, name, message, all, span);
			};
			return log;
		};
		return {
			target: name,
			isEnabled: (level) => LEVEL_NUMBER[level] <= enabled,
			error: at("error"),
			warn: at("warn"),
			info: at("info"),
			debug: at("debug"),
			trace: at("trace"),
			child: (childTarget, childFields) =>
				make(childTarget, fields === undefined ? childFields : { ...fields, ...childFields }),
		};
	};
	return make(target, undefined);
}

function nothing(): void {}

function positionsOf(all: Map<string, LinePositions>, key: string): LinePositions {
	let positions = all.get(key);
	if (positions === undefined) {
		positions = new LinePositions();
		all.set(key, positions);
	}
	return positions;
}

/** UTF-16 units of lines that are held at most. */
const MAX_HELD = 64 * 1024;
/** Lines of this turn of the event loop that wait for its end. */
let held = "";
let turnBegun = false;

/**
 * The first line of a turn of the event loop is written at once, further ones together at its end: a process that
 * serves many requests per turn would spend much of its time on lines. Errors and warnings wait for nothing, nor does
 * anything when the process ends, so that its last words are not lost.
 */
function writeToStderr(line: string, level: LogLevel): void {
	if (level === "error" || level === "warn") writeHeld(line);
	else if (turnBegun) {
		held += line;
		if (held.length > MAX_HELD) writeHeld("");
	} else {
		turnBegun = true;
		setImmediate(endTurn).unref();
		writeHeld(line);
	}
}

function endTurn(): void {
	turnBegun = false;
	if (held !== "") writeHeld("");
}

/** Synchronous; drops lines when stderr is closed or full. */
function writeHeld(line: string): void {
	const text = held + line;
	held = "";
	try {
		writeSync(2, text);
	} catch {
		// A log line is never worth an exception in the code that logs.
	}
}

process.on("exit", endTurn);
