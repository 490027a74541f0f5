// SPDX-License-Identifier: Apache-2.0
// So many at once, the others wait in the order in which they came.

/** Someone between {@link Turnstile.enter} and {@link Turnstile.leave}. */
export interface Ticket {
	/** Undefined once it runs. */
	run: (() => void) | undefined;
}

/** What requests pass on their way to a handler. */
export interface Gate {
	/**
	 * Why a request has to be turned away; undefined: there is room. Counts the refusal.
	 * @param coming requests that were let in and have not entered yet.
	 */
	refusal(coming: number): string | undefined;
	/** Calls `run` now or, when there is no room, once there is. */
	enter(run: () => void): Ticket;
	/** The request is over, or nobody waits for it any more. Idempotent. */
	leave(ticket: Ticket): void;
}

export class Turnstile {
	readonly #limit: number;
	readonly #queueLimit: number;
	readonly #running = new Set<Ticket>();
	/** Tickets in the order in which they came. */
	readonly #waiting = new Set<Ticket>();

	/**
	 * @param limit most that run; Infinity: no limit.
	 * @param queueLimit most that wait; Infinity: no limit.
	 */
	constructor(limit: number, queueLimit: number) {
		this.#limit = limit;
		this.#queueLimit = queueLimit;
	}

	get running(): number {
		return this.#running.size;
	}

	get waiting(): number {
		return this.#waiting.size;
	}

	/** @param coming those that were let in and have not entered yet. */
	hasRoom(coming: number): boolean {
		return this.#running.size + this.#waiting.size + coming < this.#limit + this.#queueLimit;
	}

	enter(run: () => void): Ticket {
		if (this.#running.size < this.#limit) {
			const ticket: Ticket = { run: undefined };
			this.#running.add(ticket);
			run();
			return ticket;
		}
		const ticket: Ticket = { run };
		this.#waiting.add(ticket);
		return ticket;
	}

	leave(ticket: Ticket): void {
		if (this.#waiting.delete(ticket) || !this.#running.delete(ticket)) return;
		for (const next of this.#waiting) {
			if (this.#running.size >= this.#limit) return;
			this.#waiting.delete(next);
			this.#running.add(next);
			const { run } = next;
			next.run = undefined;
			run?.();
		}
	}
}
