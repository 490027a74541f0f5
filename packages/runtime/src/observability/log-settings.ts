// SPDX-License-Identifier: Apache-2.0
// How a process logs: variables, and a TOML file beside them.
import { readFileSync } from "node:fs";
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import { parse } from "smol-toml";
import type { EnvReader } from "../config.js";

/** How a process logs. */
export interface LogConfig {
	/** `info`, or `default_level[,target[=level]]...`; of two rules for a target the later one counts. */
	readonly filter: string;
	readonly format: "readable" | "jsonl";
	/** Colours in the readable format. */
	readonly ansi: boolean;
	/** Local time with offset instead of UTC. */
	readonly localTime: boolean;
	/** Begin and end of spans are lines, too. */
	readonly spanEvents?: boolean;
}

/** Read when it is there, before the file that the variable names. */
const SYSTEM_FILE = "/opt/dynamo/etc/logging.toml";

/** Reads the logging settings. @throws DynamoError `InvalidArgument` that names the variable or file. */
export function logConfigFromEnv(read: EnvReader): LogConfig {
	const byFlag = read.flag(ENV.DYN_LOGGING_JSONL, false) ? "jsonl" : "readable";
	return {
		filter: filterText(read),
		format: read.choice(ENV.DYN_LOGGING_CONSOLE_FORMAT, ["readable", "jsonl"], byFlag),
		ansi:
			process.stderr.isTTY === true &&
			!read.flag(ENV.DYN_SDK_DISABLE_ANSI_LOGGING, false) &&
			read.text(ENV.NO_COLOR, "") === "",
		localTime: read.flag(ENV.DYN_LOG_USE_LOCAL_TZ, false),
		spanEvents: read.flag(ENV.DYN_LOGGING_SPAN_EVENTS, false),
	};
}

/** The file's level, what the variable says, then the file's rules for targets, which win as they do in Dynamo. */
function filterText(read: EnvReader): string {
	const files: LogFile[] = [];
	const path = read.text(ENV.DYN_LOGGING_CONFIG_PATH, "");
	const system = readLogFile(SYSTEM_FILE, false);
	if (system !== undefined) files.push(system);
	if (path !== "") files.push(readLogFile(path, true) as LogFile);
	const level = files.reduce((last, { level = last }) => level, "info");
	const given = read.text(ENV.DYN_LOG, "");
	if (files.length === 0) return given === "" ? level : given;
	const rules = Object.entries(Object.assign({}, ...files.map(({ filters }) => filters)) as Record<string, string>);
	return [level, given, ...rules.map(([target, its]) => `${target}=${its}`)].filter((part) => part !== "").join(",");
}

interface LogFile {
	readonly level?: string;
	readonly filters: Readonly<Record<string, string>>;
}

/** `log_level` and the table `log_filters` of a TOML file. */
function readLogFile(path: string, required: boolean): LogFile | undefined {
	let text: string;
	try {
		text = readFileSync(path, "utf8");
	} catch (error) {
		if (!required) return undefined;
		throw wrong(path, `it cannot be read (${(error as Error).message})`);
	}
	let content: Record<string, unknown>;
	try {
		content = parse(text);
	} catch (error) {
		throw wrong(path, `it is not TOML: ${(error as Error).message.split("\n", 1)[0]}`);
	}
	const { log_level: level, log_filters: filters = {} } = content;
	if (level !== undefined && typeof level !== "string") throw wrong(path, "log_level must be a text");
	if (
		typeof filters !== "object" ||
		filters === null ||
		Object.values(filters).some((one) => typeof one !== "string")
	) {
		throw wrong(path, 'log_filters must be a table of lines like dynamo_runtime = "debug"');
	}
	return { ...(level === undefined ? {} : { level }), filters: filters as Record<string, string> };
}

function wrong(path: string, why: string): DynamoError {
	const text = `${ENV.DYN_LOGGING_CONFIG_PATH}: ${path}: ${why}`;
	return new DynamoError("InvalidArgument", text, { publicMessage: text });
}
