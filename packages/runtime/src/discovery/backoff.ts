// SPDX-License-Identifier: Apache-2.0
// Waiting between tries: exponential with jitter, so that a fleet does not come back all at once.

/** Delays between tries of one thing, in milliseconds: doubling up to a limit, each drawn from its upper half. */
export class Backoff {
	readonly #firstMs: number;
	readonly #maxMs: number;
	#nextMs: number;

	constructor(firstMs: number, maxMs: number) {
		this.#firstMs = firstMs;
		this.#maxMs = maxMs;
		this.#nextMs = firstMs;
	}

	/** How long to wait before the next try. */
	next(): number {
		const limit = this.#nextMs;
		this.#nextMs = Math.min(this.#maxMs, limit * 2);
		return limit * (0.5 + Math.random() / 2);
	}

	/** After a success: the next failure is the first again. */
	reset(): void {
		this.#nextMs = this.#firstMs;
	}
}

/** A wait that can be cut short, and that keeps no process alive. */
export class Pause {
	#timer: NodeJS.Timeout | undefined;
	#end: (() => void) | undefined;

	/** Resolves after `ms` milliseconds or with the next {@link cutShort}. One wait at a time. */
	wait(ms: number): Promise<void> {
		return new Promise((resolve) => {
			this.#end = resolve;
			this.#timer = setTimeout(() => this.cutShort(), ms);
			this.#timer.unref();
		});
	}

	/** Ends the running wait now; nothing happens when there is none. */
	cutShort(): void {
		clearTimeout(this.#timer);
		const end = this.#end;
		this.#end = undefined;
		end?.();
	}
}
