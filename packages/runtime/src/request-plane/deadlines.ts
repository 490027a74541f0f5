// SPDX-License-Identifier: Apache-2.0

/** Looks at its own deadlines when called. */
export interface DeadlineHolder {
	/** @param now of {@link Deadlines.now}. Must not throw. */
	checkDeadlines(now: number): void;
}

/** Milliseconds between two looks; also how late a deadline may be noticed. */
const SWEEP_MS = 50;

/**
 * One timer for the deadlines of all streams, so that an item costs no timer. It looks at them only after the event
 * loop has read what had arrived: a stall of this process does not count as the peer's silence.
 */
export class Deadlines {
	readonly #holders = new Set<DeadlineHolder>();
	#timer: NodeJS.Timeout | undefined;
	#swept = performance.now();

	/** Milliseconds of the monotonic clock, at most one sweep old: cheap enough for each item. */
	now = performance.now();

	add(holder: DeadlineHolder): void {
		this.#holders.add(holder);
		if (this.#timer !== undefined) return;
		this.now = performance.now();
		this.#swept = this.now;
		this.#timer = setInterval(() => setImmediate(() => this.#sweep()), SWEEP_MS);
		this.#timer.unref();
	}

	remove(holder: DeadlineHolder): void {
		this.#holders.delete(holder);
	}

	#sweep(): void {
		const now = performance.now();
		const stalled = now - this.#swept > 20 * SWEEP_MS;
		this.#swept = now;
		this.now = now;
		if (this.#holders.size === 0) {
			clearInterval(this.#timer);
			this.#timer = undefined;
			return;
		}
		// One more round, so that what peers sent during the stall is read first.
		if (stalled) return;
		for (const holder of this.#holders) holder.checkDeadlines(now);
	}
}

/** The time `timeoutMs` from now; never for 0. */
export function deadlineAfter(now: number, timeoutMs: number): number {
	return timeoutMs > 0 ? now + timeoutMs : Number.POSITIVE_INFINITY;
}
