// SPDX-License-Identifier: Apache-2.0
// Where in the program a log line comes from. Node tells only by a stack trace, which costs as much as the line: it is
// asked once for each message.
import { fileURLToPath } from "node:url";
import type { LogFunction } from "./logging.js";

/** Messages of one logger and level whose positions are told; of those with ids in them there are any number. */
const MAX_KEPT = 64;

/** The positions of the lines of one logger and level; the place that wrote a message first stands for it. */
export class LinePositions {
	readonly #known = new Map<string, string>();

	/**
	 * The members `file` and `line` as JSON text, with a comma after them; empty when nothing is known.
	 * @param log the function that was called with the message.
	 */
	of(message: string, log: LogFunction): string {
		const known = this.#known.get(message);
		if (known !== undefined) return known;
		if (this.#known.size >= MAX_KEPT) return "";
		const text = callerOf(log);
		this.#known.set(message, text);
		return text;
	}
}

function callerOf(called: LogFunction): string {
	const limit = Error.stackTraceLimit;
	Error.stackTraceLimit = 1;
	const at: { stack?: unknown } = {};
	Error.captureStackTrace(at, called);
	const { stack } = at;
	Error.stackTraceLimit = limit;
	// `    at name (file:///folder/file.js:12:34)`, or without a name and brackets.
	const match = typeof stack === "string" ? /([^\s(]+):(\d+):\d+\)?$/.exec(stack) : null;
	if (match === null) return "";
	const [, file = "", line] = match;
	return `"file":${JSON.stringify(file.startsWith("file:") ? fileURLToPath(file) : file)},"line":${line},`;
}
