// SPDX-License-Identifier: Apache-2.0
import { writeSync } from "node:fs";
import type { LogConfig } from "../config.js";
import { LEVEL_NUMBER, parseLogFilter } from "./log-filter.js";
import { wallClockMs } from "./wall-clock.js";

/** Severity, most severe first. */
export type LogLevel = "error" | "warn" | "info" | "debug" | "trace";

/** Key-value pairs of a log line. Undefined members are left out; bigint is written as a decimal number. */
export type LogFields = Record<string, unknown>;

/** Writes log lines for one target (`dynamo_runtime::discovery`). A disabled level costs one comparison. */
export interface Logger {
	readonly target: string;
	isEnabled(level: LogLevel): boolean;
	error(message: string, fields?: LogFields): void;
	warn(message: string, fields?: LogFields): void;
	info(message: string, fields?: LogFields): void;
	debug(message: string, fields?: LogFields): void;
	trace(message: string, fields?: LogFields): void;
	/** A logger for another target, with fields that every line of it carries. */
	child(target: string, fields?: LogFields): Logger;
}

/** Takes finished lines, each with its newline. */
export type LineWriter = (line: string, level: LogLevel) => void;

type LineFormat = (level: LogLevel, target: string, message: string, fields: LogFields | undefined) => string;

/**
 * A logger in Dynamo's two formats, readable and JSONL. Lines go to stderr, as Dynamo's do; stdout stays free for
 * what a command prints.
 * @throws DynamoError `InvalidArgument` for a filter that is not understood.
 */
export function createLogger(config: LogConfig, target = "dynamo", write: LineWriter = writeToStderr): Logger {
	const filter = parseLogFilter(config.filter);
	const format = config.format === "jsonl" ? jsonlFormat(config) : readableFormat(config);
	const make = (name: string, fields: LogFields | undefined): Logger => {
		const enabled = filter.levelFor(name);
		const at = (level: LogLevel) => {
			if (LEVEL_NUMBER[level] > enabled) return nothing;
			return (message: string, extra?: LogFields) =>
				write(format(level, name, message, fields === undefined ? extra : { ...fields, ...extra }), level);
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

function jsonlFormat(config: LogConfig): LineFormat {
	const time = timestamper(config.localTime);
	return (level, target, message, fields) => {
		let line = `{"time":"${time()}","level":"${level.toUpperCase()}","target":${JSON.stringify(target)},"message":${JSON.stringify(message)}`;
		if (fields !== undefined) {
			for (const key of Object.keys(fields).sort()) {
				const value = jsonValue(fields[key]);
				if (value !== undefined) line += `,${JSON.stringify(key)}:${value}`;
			}
		}
		return `${line}}\n`;
	};
}

/** SGR codes as the readable format of Dynamo has them. */
const COLOURS: Record<LogLevel, string> = { error: "31", warn: "33", info: "32", debug: "34", trace: "35" };

function readableFormat(config: LogConfig): LineFormat {
	const time = timestamper(config.localTime);
	if (!config.ansi) {
		return (level, target, message, fields) => {
			let line = `${time()} ${level.toUpperCase().padStart(5)} ${target}: ${oneLine(message)}`;
			if (fields !== undefined) {
				for (const key of Object.keys(fields)) {
					const value = readableValue(fields[key]);
					if (value !== undefined) line += ` ${key}=${value}`;
				}
			}
			return `${line}\n`;
		};
	}
	return (level, target, message, fields) => {
		const name = level.toUpperCase().padStart(5);
		let line = `\x1b[2m${time()}\x1b[0m \x1b[${COLOURS[level]}m${name}\x1b[0m \x1b[2m${target}\x1b[0m\x1b[2m:\x1b[0m ${oneLine(message)}`;
		if (fields !== undefined) {
			for (const key of Object.keys(fields)) {
				const value = readableValue(fields[key]);
				if (value !== undefined) line += ` \x1b[3m${key}\x1b[0m\x1b[2m=\x1b[0m${value}`;
			}
		}
		return `${line}\n`;
	};
}

/** A line break inside a message would look like a second, forged line. */
function oneLine(text: string): string {
	return /[\r\n]/.test(text) ? text.replace(/\r/g, "\\r").replace(/\n/g, "\\n") : text;
}

function readableValue(value: unknown): string | undefined {
	if (typeof value === "string") return JSON.stringify(value);
	return jsonValue(value);
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
