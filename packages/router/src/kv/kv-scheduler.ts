// SPDX-License-Identifier: Apache-2.0
// Chooses by cached prefix and load: what the index, the active sequences and the cost say together.

import { randomBytes } from "node:crypto";
import type { TieredScores } from "@dynamo-ts/protocols/internal";
import type { RoutingOverrides } from "../router.js";
import { ActiveSequences } from "./active-sequences.js";
import { type CostInputs, type CostWeights, DEFAULT_COST_WEIGHTS, drawByCost, idleInputs, workerCost } from "./cost.js";
import { type PrefixMatches, RadixTree } from "./radix-tree.js";
import { matchesOf } from "./remote-index.js";
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
	/** Count blocks that requests generate; default false. */
	readonly trackOutputBlocks?: boolean | undefined;
	/** Keep an index of what workers probably hold, beside what they tell; default false. */
	readonly predict?: boolean | undefined;
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
	/** Tokens that it is expected to generate. */
	readonly expectedOutputTokens?: number | undefined;
	/** What holds for it in place of the scheduler's settings. */
	readonly overrides?: RoutingOverrides | undefined;
	/** What workers hold of it, where another process was asked; absent: the scheduler's own index knows. */
	readonly scores?: TieredScores | undefined;
}

/** A choice, and why. */
export interface KvChoice {
	/** Its place among the eligible. */
	readonly index: number;
	readonly slot: number;
	readonly cost: number;
	/** Leading blocks that the worker holds in device memory. */
	readonly overlapBlocks: number;
	/** The same of the eligible one that holds most. */
	readonly mostOverlapBlocks: number;
	/** Prompt tokens that it must compute. */
	readonly effectivePrefillTokens: number;
}

/** What a request counts as at its worker. */
export interface Admitted {
	/** Names of its blocks; undefined where none are counted. */
	readonly hashes: readonly bigint[] | undefined;
	readonly prefillTokens: number;
}

export class KvScheduler {
	readonly slots = new WorkerSlots();
	readonly tree = new RadixTree();
	/** What workers are believed to hold beside what {@link tree} says; the larger of both counts. */
	readonly predicted: RadixTree | undefined;
	readonly active: ActiveSequences;
	readonly blockSize: number;
	/** How long the last search of the index took, milliseconds. */
	findMs = 0;
	readonly #weights: CostWeights;
	readonly #temperature: number;
	readonly #trackPrefill: boolean;
	readonly #trackBlocks: boolean;
	readonly #reuse: boolean;
	readonly #trackOutput: boolean;
	/** Names that no block has: any number will do, as hashes are spread over all of them. */
	#nextName = randomBytes(8).readBigUInt64LE();
	readonly #random: () => number;
	#costs = new Float64Array(16);
	/** What the last search found. */
	#found: PrefixMatches | undefined;
	#predictedFound: Uint32Array | undefined;
	/** One object for all workers and calls. */
	readonly #inputs: { -readonly [K in keyof CostInputs]: number };

	constructor(options: KvSchedulerOptions) {
		this.blockSize = options.blockSize;
		this.#weights = { ...DEFAULT_COST_WEIGHTS, ...options.weights };
		this.#temperature = options.temperature ?? 0;
		this.#trackPrefill = options.trackPrefillTokens ?? true;
		this.#trackBlocks = options.trackActiveBlocks ?? true;
		this.#reuse = options.assumeKvReuse ?? true;
		this.#trackOutput = options.trackOutputBlocks ?? false;
		this.predicted = options.predict === true ? new RadixTree() : undefined;
		this.#random = options.random ?? Math.random;
		this.active = new ActiveSequences(options.expiryMs);
		this.#inputs = idleInputs(options.blockSize);
	}

	/**
	 * The cheapest of the eligible slots, or as the temperature draws; undefined when there is none.
	 * @param factorOf what a slot's cost is multiplied by; absent: 1.
	 */
	choose(request: KvRequest, eligible: ArrayLike<number>, factorOf?: (slot: number) => number): KvChoice | undefined {
		const count = eligible.length;
		if (count === 0) return undefined;
		if (this.#costs.length < count) this.#costs = new Float64Array(count * 2);
		const costs = this.#costs;
		const inputs = this.#inputs;
		const { active } = this;
		const began = performance.now();
		const { scores } = request;
		const found = scores === undefined ? this.tree.find(request.tokensHashes) : matchesOf(scores, this.slots);
		const predicted = this.predicted?.find(request.tokensHashes).device;
		this.#found = found;
		this.#predictedFound = predicted;
		this.findMs = performance.now() - began;
		let least = Number.POSITIVE_INFINITY;
		for (let i = 0; i < count; i++) least = Math.min(least, active.prefillTokensOf(eligible[i] as number));
		const { assumeKvReuse = this.#reuse, temperature = this.#temperature } = request.overrides ?? {};
		const weights = this.#weightsFor(request.overrides);
		inputs.promptTokens = this.#tracksPrefill(request) ? request.promptTokens : 0;
		inputs.leastActivePrefillTokens = least;
		for (let i = 0; i < count; i++) {
			const slot = eligible[i] as number;
			inputs.activePrefillTokens = active.prefillTokensOf(slot);
			// A slot without any block may be beyond the arrays.
			inputs.deviceBlocks = Math.max(found.device[slot] ?? 0, predicted?.[slot] ?? 0);
			inputs.hostBlocks = found.hostPinned[slot] ?? 0;
			inputs.diskBlocks = found.disk[slot] ?? 0;
			inputs.decodeBlocks = this.#decodeBlocks(slot, request.sequenceHashes, assumeKvReuse);
			inputs.activeRequests = active.requestsOf(slot);
			const cost = workerCost(weights, inputs);
			costs[i] = factorOf === undefined ? cost : cost * factorOf(slot);
		}
		const at = drawByCost(costs, count, temperature, this.#random);
		const slot = eligible[at] as number;
		const overlapBlocks = Math.max(found.device[slot] ?? 0, predicted?.[slot] ?? 0);
		let mostOverlap = overlapBlocks;
		for (let i = 0; i < count; i++) {
			const other = eligible[i] as number;
			mostOverlap = Math.max(mostOverlap, found.device[other] ?? 0, predicted?.[other] ?? 0);
		}
		return {
			index: at,
			slot,
			cost: costs[at] as number,
			overlapBlocks,
			mostOverlapBlocks: mostOverlap,
			effectivePrefillTokens: this.#effectiveTokens(request, slot, overlapBlocks, found),
		};
	}

	#weightsFor(overrides: RoutingOverrides | undefined): CostWeights {
		if (overrides?.overlapScoreCredit === undefined && overrides?.prefillLoadScale === undefined) return this.#weights;
		const { overlapScoreCredit = this.#weights.overlapScoreCredit, prefillLoadScale = this.#weights.prefillLoadScale } =
			overrides;
		return { ...this.#weights, overlapScoreCredit, prefillLoadScale };
	}

	/**
	 * Slots that hold so many blocks more of the prompt than the chosen one, by the search that led to the choice: to be
	 * asked before the next one.
	 */
	holdersBeyond(choice: KvChoice, blocks: number, eligible: ArrayLike<number>): number[] {
		const least = choice.overlapBlocks + blocks;
		const slots: number[] = [];
		if (choice.mostOverlapBlocks < least) return slots;
		for (let i = 0; i < eligible.length; i++) {
			const slot = eligible[i] as number;
			if (Math.max(this.#found?.device[slot] ?? 0, this.#predictedFound?.[slot] ?? 0) >= least) slots.push(slot);
		}
		return slots;
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

	/**
	 * The request goes to the slot. Followed by one `active.free` of its id, whatever becomes of it.
	 * @returns what it counts as.
	 */
	admit(id: string, slot: number, request: KvRequest, effectivePrefillTokens: number, now: number): Admitted {
		const { sequenceHashes } = request;
		let hashes: readonly bigint[] = [];
		const reuse = request.overrides?.assumeKvReuse ?? this.#reuse;
		if (this.#trackBlocks) hashes = reuse ? sequenceHashes : sequenceHashes.map(() => this.#newName());
		const prefill = this.#tracksPrefill(request) ? effectivePrefillTokens : 0;
		const { blockSize } = this;
		const { promptTokens, expectedOutputTokens: expectedTokens } = request;
		const output = this.#trackOutput && this.#trackBlocks ? { blockSize, promptTokens, expectedTokens } : undefined;
		this.active.add(id, slot, hashes, prefill, now, output);
		return { hashes: this.#trackBlocks ? hashes : undefined, prefillTokens: prefill };
	}

	#newName(): bigint {
		this.#nextName = BigInt.asUintN(64, this.#nextName + 1n);
		return this.#nextName;
	}

	/** Gives up the numbers of workers that are not in `kept`, hold no block and have no request. */
	sweep(kept: ReadonlySet<number>): void {
		for (let slot = 0; slot < this.slots.capacity; slot++) {
			if (kept.has(slot) || this.tree.blocksOf(slot) > 0 || this.active.requestsOf(slot) > 0) continue;
			if ((this.predicted?.blocksOf(slot) ?? 0) > 0) continue;
			this.slots.release(slot);
		}
	}
}
