// SPDX-License-Identifier: Apache-2.0
// Chooses by cached prefix and load: what the index, the active sequences and the cost say together.

import type { RoutingOverrides } from "../router.js";
import { ActiveSequences } from "./active-sequences.js";
import { type CostInputs, type CostWeights, DEFAULT_COST_WEIGHTS, drawByCost, idleInputs, workerCost } from "./cost.js";
import { RadixTree } from "./radix-tree.js";
import { WorkerSlots } from "./worker-slots.js";

export interface KvSchedulerOptions {
	/** Tokens of a block, as the workers' card says. */
	readonly blockSize: number;
	readonly weights?: Partial<CostWeights> | undefined;
	readonly temperature?: number | undefined;
	/** Count prompt tokens that workers have still to compute; default true. */
	readonly trackPrefillTokens?: boolean | undefined;
	/** Count blocks of requests under way; default true. */
	readonly trackActiveBlocks?: boolean | undefined;
	/** Requests under way share blocks; false: each has blocks of its own. Default true. */
	readonly assumeKvReuse?: boolean | undefined;
	/** Milliseconds after which a request that never ended is forgotten. */
	readonly expiryMs?: number | undefined;
	readonly random?: (() => number) | undefined;
}

/** A request as the scheduler sees it. */
export interface KvRequest {
	/** Tokens of the prompt. */
	readonly promptTokens: number;
	/** Hashes of its full blocks: by their tokens alone, and in their place. */
	readonly tokensHashes: readonly bigint[];
	readonly sequenceHashes: readonly bigint[];
	/** What holds for it in place of the scheduler's settings. */
	readonly overrides?: RoutingOverrides | undefined;
}

/** A choice, and why. */
export interface KvChoice {
	/** Its place among the eligible. */
	readonly index: number;
	readonly slot: number;
	readonly cost: number;
	/** Leading blocks that the worker holds in device memory. */
	readonly overlapBlocks: number;
	/** Prompt tokens that it must compute. */
	readonly effectivePrefillTokens: number;
}

export class KvScheduler {
	readonly slots = new WorkerSlots();
	readonly tree = new RadixTree();
	readonly active: ActiveSequences;
	readonly blockSize: number;
	readonly #weights: CostWeights;
	readonly #temperature: number;
	readonly #trackPrefill: boolean;
	readonly #trackBlocks: boolean;
	readonly #reuse: boolean;
	/** A name that no block has: hashes have 64 bits. */
	#nextName = 1n << 64n;
	readonly #random: () => number;
	#costs = new Float64Array(16);
	/** One object for all workers and calls. */
	readonly #inputs: { -readonly [K in keyof CostInputs]: number };

	constructor(options: KvSchedulerOptions) {
		this.blockSize = options.blockSize;
		this.#weights = { ...DEFAULT_COST_WEIGHTS, ...options.weights };
		this.#temperature = options.temperature ?? 0;
		this.#trackPrefill = options.trackPrefillTokens ?? true;
		this.#trackBlocks = options.trackActiveBlocks ?? true;
		this.#reuse = options.assumeKvReuse ?? true;
		this.#random = options.random ?? Math.random;
		this.active = new ActiveSequences(options.expiryMs);
		this.#inputs = idleInputs(options.blockSize);
	}

	/** The cheapest of the eligible slots, or as the temperature draws; undefined when there is none. */
	choose(request: KvRequest, eligible: ArrayLike<number>): KvChoice | undefined {
		const count = eligible.length;
		if (count === 0) return undefined;
		if (this.#costs.length < count) this.#costs = new Float64Array(count * 2);
		const costs = this.#costs;
		const inputs = this.#inputs;
		const { active } = this;
		const found = this.tree.find(request.tokensHashes);
		let least = Number.POSITIVE_INFINITY;
		for (let i = 0; i < count; i++) least = Math.min(least, active.prefillTokensOf(eligible[i] as number));
		const { overlapScoreCredit, assumeKvReuse = this.#reuse } = request.overrides ?? {};
		const weights = overlapScoreCredit === undefined ? this.#weights : { ...this.#weights, overlapScoreCredit };
		inputs.promptTokens = this.#tracksPrefill(request) ? request.promptTokens : 0;
		inputs.leastActivePrefillTokens = least;
		for (let i = 0; i < count; i++) {
			const slot = eligible[i] as number;
			inputs.activePrefillTokens = active.prefillTokensOf(slot);
			// A slot without any block may be beyond the arrays.
			inputs.deviceBlocks = found.device[slot] ?? 0;
			inputs.hostBlocks = found.hostPinned[slot] ?? 0;
			inputs.diskBlocks = found.disk[slot] ?? 0;
			inputs.decodeBlocks = this.#decodeBlocks(slot, request.sequenceHashes, assumeKvReuse);
			inputs.activeRequests = active.requestsOf(slot);
			costs[i] = workerCost(weights, inputs);
		}
		const at = drawByCost(costs, count, this.#temperature, this.#random);
		const slot = eligible[at] as number;
		const overlapBlocks = found.device[slot] ?? 0;
		return {
			index: at,
			slot,
			cost: costs[at] as number,
			overlapBlocks,
			effectivePrefillTokens: this.#effectiveTokens(request, slot, overlapBlocks, found),
		};
	}

	/** Blocks that would be in use at the slot with the request, its last partial one included. */
	potentialBlocks(slot: number, request: KvRequest): number {
		const { promptTokens, sequenceHashes } = request;
		const partial = promptTokens > sequenceHashes.length * this.blockSize ? 1 : 0;
		const reuse = request.overrides?.assumeKvReuse ?? this.#reuse;
		return this.#decodeBlocks(slot, sequenceHashes, reuse) + partial;
	}

	#tracksPrefill(request: KvRequest): boolean {
		return request.overrides?.trackPrefillTokens ?? this.#trackPrefill;
	}

	#decodeBlocks(slot: number, hashes: readonly bigint[], reuse: boolean): number {
		if (!this.#trackBlocks) return 0;
		return reuse ? this.active.blocksWith(slot, hashes) : this.active.blocksOf(slot) + hashes.length;
	}

	#effectiveTokens(
		request: KvRequest,
		slot: number,
		overlapBlocks: number,
		found: { readonly hostPinned: Uint32Array; readonly disk: Uint32Array },
	): number {
		const { hostCacheHitWeight, diskCacheHitWeight } = this.#weights;
		const cached =
			overlapBlocks + hostCacheHitWeight * (found.hostPinned[slot] ?? 0) + diskCacheHitWeight * (found.disk[slot] ?? 0);
		return Math.max(0, request.promptTokens - Math.floor(cached * this.blockSize));
	}

	/** The request goes to the slot. Followed by one `active.free` of its id, whatever becomes of it. */
	admit(id: string, slot: number, request: KvRequest, effectivePrefillTokens: number, now: number): void {
		const { sequenceHashes } = request;
		let hashes: readonly bigint[] = [];
		const reuse = request.overrides?.assumeKvReuse ?? this.#reuse;
		if (this.#trackBlocks) hashes = reuse ? sequenceHashes : sequenceHashes.map(() => this.#nextName++);
		this.active.add(id, slot, hashes, this.#tracksPrefill(request) ? effectivePrefillTokens : 0, now);
	}

	/** Gives up the numbers of workers that are not in `kept`, hold no block and have no request. */
	sweep(kept: ReadonlySet<number>): void {
		for (let slot = 0; slot < this.slots.capacity; slot++) {
			if (kept.has(slot) || this.tree.blocksOf(slot) > 0 || this.active.requestsOf(slot) > 0) continue;
			this.slots.release(slot);
		}
	}
}
