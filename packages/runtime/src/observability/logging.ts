// SPDX-License-Identifier: Apache-2.0

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
