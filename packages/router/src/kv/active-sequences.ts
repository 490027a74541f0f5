// SPDX-License-Identifier: Apache-2.0
// What a router's own requests occupy at workers: blocks, each once however many requests share it, and prompt tokens
// that are still to be computed. A set by request id, so that it cannot drift.

/** A request that is under way. */
interface ActiveSequence {
	readonly slot: number;
	/** Sequence hashes of its full blocks. */
	readonly hashes: readonly bigint[];
	/** Prompt tokens that the worker must still compute; 0 after the first token. */
	prefillTokens: number;
	/** Milliseconds, on the caller's clock. */
	readonly since: number;
	/** Undefined: what it generates is not counted. */
	readonly growth: Growth | undefined;
}

/** How a request grows while it generates. */
interface Growth extends OutputTracking {
	outputTokens: number;
	/** Blocks that were begun for what it generated. */
	blocks: number;
	/** What each of them counts. */
	weight: number;
}

/** What is needed to count the blocks that a request generates. */
export interface OutputTracking {
	/** Tokens of a block. */
	readonly blockSize: number;
	/** Tokens of the prompt. */
	readonly promptTokens: number;
	/** Tokens that it is expected to generate; blocks that are its own count less the nearer it comes to that. */
	readonly expectedTokens: number | undefined;
}

class SlotLoad {
	/** Requests that need a block, by its sequence hash. */
	readonly users = new Map<bigint, number>();
	/** Blocks of one request that is nearing its end: what each counts, less than 1. */
	readonly shares = new Map<bigint, number>();
	/** What is to be added to the number of blocks: generated ones, and the shares that are less than 1. */
	extra = 0;
	prefillTokens = 0;
	requests = 0;
}

/** Requests that never end are forgotten after this long, milliseconds (`DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS`). */
export const ACTIVE_REQUEST_EXPIRY_MS = 300_000;

export class ActiveSequences {
	/** In the order of their beginning. */
	readonly #requests = new Map<string, ActiveSequence>();
	readonly #loads: (SlotLoad | undefined)[] = [];
	readonly #expiryMs: number;
	/** Told the slot whose load changed, and whether it is less now. */
	onChange: ((slot: number, eased: boolean) => void) | undefined;

	/** @param expiryMs after which a request that never ended is forgotten, milliseconds. */
	constructor(expiryMs: number = ACTIVE_REQUEST_EXPIRY_MS) {
		this.#expiryMs = expiryMs;
	}

	/** Requests under way. */
	get size(): number {
		return this.#requests.size;
	}

	/**
	 * A request was given to a worker. One with the same id ends.
	 * @param hashes sequence hashes of its full blocks, from the prompt's beginning.
	 * @param prefillTokens prompt tokens that the worker does not have in its cache.
	 * @param now milliseconds.
	 * @param output absent: what it generates is not counted.
	 */
	add(
		id: string,
		slot: number,
		hashes: readonly bigint[],
		prefillTokens: number,
		now: number,
		output?: OutputTracking,
	): void {
		this.free(id);
		this.expire(now);
		const growth = output === undefined ? undefined : { ...output, outputTokens: 0, blocks: 0, weight: 1 };
		this.#requests.set(id, { slot, hashes, prefillTokens, since: now, growth });
		let load = this.#loads[slot];
		if (load === undefined) {
			load = new SlotLoad();
			this.#loads[slot] = load;
		}
		load.requests++;
		load.prefillTokens += prefillTokens;
		for (const hash of hashes) {
			load.users.set(hash, (load.users.get(hash) ?? 0) + 1);
			if (load.shares.size > 0) setShare(load, hash, 1);
		}
		this.onChange?.(slot, false);
	}

	/** The request generated tokens: each block that they begin counts, for as long as it runs. */
	grow(id: string, tokens: number): void {
		const request = this.#requests.get(id);
		const growth = request?.growth;
		const load = request === undefined ? undefined : this.#loads[request.slot];
		if (request === undefined || growth === undefined || load === undefined) return;
		growth.outputTokens += tokens;
		const { promptTokens, outputTokens, blockSize, expectedTokens } = growth;
		const blocks = Math.ceil((promptTokens + outputTokens) / blockSize) - Math.ceil(promptTokens / blockSize);
		if (blocks <= growth.blocks) return;
		load.extra -= growth.blocks * growth.weight;
		growth.blocks = blocks;
		if (expectedTokens !== undefined) {
			growth.weight = Math.max(0, 1 - outputTokens / Math.max(1, expectedTokens));
			// The blocks at the end of its path that nobody shares fade with those that it generates.
			for (let i = request.hashes.length - 1; i >= 0; i--) {
				const hash = request.hashes[i] as bigint;
				if (load.users.get(hash) !== 1) break;
				setShare(load, hash, growth.weight);
			}
		}
		load.extra += growth.blocks * growth.weight;
		this.onChange?.(request.slot, false);
	}

	/** The first token is there: the prompt is no load any more. */
	prefillDone(id: string): void {
		const request = this.#requests.get(id);
		if (request === undefined || request.prefillTokens === 0) return;
		const load = this.#loads[request.slot];
		if (load !== undefined) load.prefillTokens -= request.prefillTokens;
		request.prefillTokens = 0;
		this.onChange?.(request.slot, true);
	}

	/** The request ended, whatever its outcome; more than once does nothing. */
	free(id: string): void {
		const request = this.#requests.get(id);
		if (request === undefined) return;
		this.#requests.delete(id);
		const load = this.#loads[request.slot];
		if (load === undefined) return;
		load.prefillTokens -= request.prefillTokens;
		for (const hash of request.hashes) {
			const users = load.users.get(hash) ?? 0;
			if (users > 1) {
				load.users.set(hash, users - 1);
			} else {
				load.users.delete(hash);
				if (load.shares.size > 0) setShare(load, hash, 1);
			}
		}
		if (request.growth !== undefined) load.extra -= request.growth.blocks * request.growth.weight;
		load.requests--;
		if (load.requests === 0) this.#loads[request.slot] = undefined;
		this.onChange?.(request.slot, true);
	}

	/** Forgets requests that began too long ago. @returns how many. */
	expire(now: number): number {
		let expired = 0;
		for (const [id, { since }] of this.#requests) {
			if (now - since <= this.#expiryMs) break;
			this.free(id);
			expired++;
		}
		return expired;
	}

	requestsOf(slot: number): number {
		return this.#loads[slot]?.requests ?? 0;
	}

	/** Prompt tokens that the worker has still to compute. */
	prefillTokensOf(slot: number): number {
		return this.#loads[slot]?.prefillTokens ?? 0;
	}

	/** The request is under way. */
	has(id: string): boolean {
		return this.#requests.has(id);
	}

	/** Blocks in use; a fraction where some count less. */
	blocksOf(slot: number): number {
		const load = this.#loads[slot];
		return load === undefined ? 0 : load.users.size + load.extra;
	}

	/**
	 * Blocks that would be in use with another request.
	 * @param hashes its sequence hashes. A hash names all that is before it too, and every request brings its whole
	 * path: the shared ones come first, so that their end can be found by halving.
	 */
	blocksWith(slot: number, hashes: readonly bigint[]): number {
		const load = this.#loads[slot];
		if (load === undefined) return hashes.length;
		const { users, extra } = load;
		let shared = 0;
		let end = hashes.length;
		while (shared < end) {
			const middle = (shared + end) >>> 1;
			if (users.has(hashes[middle] as bigint)) shared = middle + 1;
			else end = middle;
		}
		return users.size + extra + hashes.length - shared;
	}
}

/** What a block of the prompt counts from now on. */
function setShare(load: SlotLoad, hash: bigint, share: number): void {
	const before = load.shares.get(hash) ?? 1;
	if (share < 1) load.shares.set(hash, share);
	else load.shares.delete(hash);
	load.extra += share - before;
}
