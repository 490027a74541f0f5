// SPDX-License-Identifier: Apache-2.0
// What the log says about a store that is away: its loss, a reminder now and then, its return; not each failed try.
import type { Logger } from "../observability/logging.js";

const REMINDER_MS = 30_000;
const SETTLE_MS = 5000;
/** A store that comes and goes is told about no more often than this. */
const FLAPPING_MS = 5000;

/** Tells the loss and the return of one store, for all that talk to it. */
export class ConnectionReport {
	readonly #log: Logger;
	readonly #store: string;
	#lostAt: number | undefined;
	#backAt = Number.NEGATIVE_INFINITY;
	#toldAt = Number.NEGATIVE_INFINITY;
	#told = false;
	#failures = 0;

	/** @param store the name for the log, such as `etcd at http://localhost:2379`. */
	constructor(log: Logger, store: string) {
		this.#log = log;
		this.#store = store;
	}

	/** True from the first failure to the next success. */
	get away(): boolean {
		return this.#lostAt !== undefined;
	}

	/** True while the store is away and for a few seconds after: what it lacks now may be on its way back. */
	get unsettled(): boolean {
		return this.away || performance.now() - this.#backAt < SETTLE_MS;
	}

	/** A call failed and will be tried again. */
	failed(doing: string, error: unknown): void {
		const now = performance.now();
		this.#lostAt ??= now;
		this.#failures++;
		if (now - this.#toldAt < (this.#told ? REMINDER_MS : FLAPPING_MS)) return;
		this.#toldAt = now;
		this.#told = true;
		this.#log.warn(`${this.#store} cannot be used; what is known stays in use, and it is tried again`, {
			doing,
			failures: this.#failures,
			away_seconds: Math.round((now - this.#lostAt) / 1000),
			error: errorText(error),
		});
	}

	/** A call succeeded. */
	succeeded(): void {
		if (this.#lostAt === undefined) return;
		if (this.#told) {
			const seconds = (performance.now() - this.#lostAt) / 1000;
			this.#log.info(`${this.#store} answers again`, {
				away_seconds: Number(seconds.toFixed(1)),
				failures: this.#failures,
			});
		}
		this.#told = false;
		this.#backAt = performance.now();
		this.#lostAt = undefined;
		this.#failures = 0;
	}
}

/** The message of whatever was thrown, in one line. */
export function errorText(error: unknown): string {
	const text = error instanceof Error ? error.message : String(error);
	return text.replace(/\s+/g, " ").trim();
}
