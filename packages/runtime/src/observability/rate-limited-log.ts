// SPDX-License-Identifier: Apache-2.0
// Keeps peers that send nonsense from filling the log.
import type { LogFunction, Logger } from "./logging.js";

/** Lines with the same text per window; the next window's first one says how many were left out. */
const LINES_PER_WINDOW = 5;
const WINDOW_MS = 10_000;

interface Window {
	startedAt: number;
	lines: number;
	leftOut: number;
}

/**
 * A logger for what any peer can cause as often as it likes: of each message (which must be a constant; what varies
 * belongs into the fields) at most five lines in ten seconds are written, at every level.
 */
export function rateLimited(log: Logger): Logger {
	const windows = new Map<string, Window>();
	const limited = (write: LogFunction): LogFunction => {
		const own: LogFunction = (message, fields, span, calledAs = own) => {
			const now = performance.now();
			let window = windows.get(message);
			if (window === undefined || now - window.startedAt > WINDOW_MS) {
				const leftOut = window?.leftOut ?? 0;
				window = { startedAt: now, lines: 0, leftOut: 0 };
				windows.set(message, window);
				if (leftOut > 0) {
					window.lines++;
					write(message, { ...fields, left_out: leftOut }, span, calledAs);
					return;
				}
			}
			if (window.lines < LINES_PER_WINDOW) {
				window.lines++;
				write(message, fields, span, calledAs);
			} else {
				window.leftOut++;
			}
		};
		return own;
	};
	return {
		...log,
		error: limited(log.error),
		warn: limited(log.warn),
		info: limited(log.info),
		debug: limited(log.debug),
	};
}
