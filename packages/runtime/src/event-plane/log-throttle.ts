// SPDX-License-Identifier: Apache-2.0
// One log line per interval for something that a peer can make happen as often as it likes.
import type { LogFields, Logger } from "../observability/logging.js";

const INTERVAL_MS = 10_000;

export class LogThrottle {
	readonly #intervalMs: number;
	#last = Number.NEGATIVE_INFINITY;
	#suppressed = 0;

	constructor(intervalMs = INTERVAL_MS) {
		this.#intervalMs = intervalMs;
	}

	/** Writes the line, or counts it; the next line that is written tells how many were not. */
	warn(log: Logger, message: string, fields: LogFields): void {
		const now = performance.now();
		if (now - this.#last < this.#intervalMs) {
			this.#suppressed++;
			return;
		}
		log.warn(message, this.#suppressed === 0 ? fields : { ...fields, not_logged: this.#suppressed });
		this.#last = now;
		this.#suppressed = 0;
	}
}
