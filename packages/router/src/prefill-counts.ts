// SPDX-License-Identifier: Apache-2.0
// Prompt tokens that workers have still to compute, for the policies that keep no such account of their own.

export class PrefillCounts {
	readonly #requests = new Map<string, { readonly workerId: bigint; readonly tokens: number }>();
	readonly #tokens = new Map<bigint, number>();
	readonly #onChange: (workerId: bigint, tokens: number) => void;

	/** @param onChange told the worker's new sum. */
	constructor(onChange: (workerId: bigint, tokens: number) => void) {
		this.#onChange = onChange;
	}

	/** Requests whose first token is not there. */
	get size(): number {
		return this.#requests.size;
	}

	/** @param tokens of the prompt. */
	add(requestId: string, workerId: bigint, tokens: number): void {
		this.done(requestId);
		if (tokens === 0) return;
		this.#requests.set(requestId, { workerId, tokens });
		this.#move(workerId, tokens);
	}

	/** The first token is there, or the request ended; more than once does nothing. */
	done(requestId: string): void {
		const request = this.#requests.get(requestId);
		if (request === undefined) return;
		this.#requests.delete(requestId);
		this.#move(request.workerId, -request.tokens);
	}

	#move(workerId: bigint, by: number): void {
		const tokens = (this.#tokens.get(workerId) ?? 0) + by;
		if (tokens > 0) this.#tokens.set(workerId, tokens);
		else this.#tokens.delete(workerId);
		this.#onChange(workerId, tokens);
	}
}
