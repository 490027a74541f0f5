// SPDX-License-Identifier: Apache-2.0
// Which workers are too full for more: by what they tell of themselves (topic `kv_metrics`), and by what the router
// itself has given them.
import { decodeWorkerLoad, type EndpointId, type EventEnvelope, KV_METRICS_TOPIC } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EventSubscription, Logger } from "@dynamo-ts/runtime";
import { rateLimited } from "@dynamo-ts/runtime/internal";
import { type BusyThresholds, isBusy } from "./eligibility.js";

export interface LoadMonitorOptions {
	readonly thresholds: BusyThresholds;
	/** Blocks of each rank, as the workers' card says; undefined: unknown, and then no worker has too many in use. */
	readonly totalKvBlocks: number | undefined;
	/** Tokens of a step of the workers' engines, as their card says; undefined: the limit in terms of it is none. */
	readonly maxNumBatchedTokens: number | undefined;
	/** Ranks of each worker from this one on; a worker is busy when all of them are. */
	readonly firstRank: number;
	readonly rankCount: number;
}

/** What one source says of a rank; what is undefined is not told. */
export interface ObservedLoad {
	readonly kvUsedBlocks?: number | undefined;
	readonly activeDecodeBlocks?: number | undefined;
	readonly activePrefillTokens?: number | undefined;
}

/** The last word of each source on a rank. */
interface RankState {
	told: ObservedLoad;
	counted: ObservedLoad;
	busy: boolean;
}

/** Most workers that are remembered; more than any deployment has. */
const MAX_WORKERS = 65_536;

export class LoadMonitor {
	readonly #options: LoadMonitorOptions;
	#thresholds: BusyThresholds;
	readonly #workers = new Map<bigint, Map<number, RankState>>();
	#doubted: ReadonlySet<bigint> = new Set();
	#subscription: EventSubscription | undefined;
	#opening: Promise<void> | undefined;
	#log: Pick<Logger, "warn"> | undefined;
	#version = 0;
	#closed = false;

	constructor(options: LoadMonitorOptions) {
		this.#options = options;
		this.#thresholds = options.thresholds;
	}

	/** Changes whenever the answers of {@link isBusy} may. */
	get version(): number {
		return this.#version;
	}

	get thresholds(): BusyThresholds {
		return this.#thresholds;
	}

	/** New limits; they hold at once for what is known already. */
	set thresholds(thresholds: BusyThresholds) {
		this.#thresholds = thresholds;
		for (const ranks of this.#workers.values()) for (const state of ranks.values()) this.#judge(state);
		this.#version++;
	}

	/** Any limit is set. */
	get limited(): boolean {
		return Object.values(this.#thresholds).some((limit) => limit !== undefined);
	}

	/**
	 * Begins to listen to the workers of an endpoint; more than once does nothing.
	 * @throws DynamoError `Unavailable` when that is not possible now; may be called again then.
	 */
	open(runtime: DistributedRuntime, endpoint: EndpointId): Promise<void> {
		this.#opening ??= this.#open(runtime, endpoint).catch((error: unknown) => {
			this.#opening = undefined;
			throw error;
		});
		return this.#opening;
	}

	async #open(runtime: DistributedRuntime, endpoint: EndpointId): Promise<void> {
		if (this.#closed) return;
		this.#log = rateLimited(runtime.log.child("dynamo_llm::worker_monitor"));
		const subscription = await runtime.events.subscribe({ kind: "endpoint", endpoint }, KV_METRICS_TOPIC, {
			onEvent: (envelope) => this.#onEnvelope(envelope),
		});
		if (this.#closed) await subscription.close();
		else this.#subscription = subscription;
	}

	/** Every rank of the worker is above a limit; one of which nothing is known is not. */
	isBusy(workerId: bigint): boolean {
		const ranks = this.#workers.get(workerId);
		if (ranks === undefined || ranks.size < this.#options.rankCount) return false;
		for (const { busy } of ranks.values()) if (!busy) return false;
		return true;
	}

	/** Share of its blocks that a worker says are in use, 0 to 1; 0 while it has said nothing. */
	usage(workerId: bigint): number {
		const { totalKvBlocks, rankCount } = this.#options;
		if (totalKvBlocks === undefined || totalKvBlocks === 0) return 0;
		let used = 0;
		for (const { told } of this.#workers.get(workerId)?.values() ?? []) {
			used += told.kvUsedBlocks ?? told.activeDecodeBlocks ?? 0;
		}
		return Math.min(1, used / (totalKvBlocks * rankCount));
	}

	/** What the router counts of its own requests at a rank. */
	count(workerId: bigint, dpRank: number, counted: ObservedLoad): void {
		const state = this.#state(workerId, dpRank);
		if (state === undefined) return;
		state.counted = counted;
		this.#reconsider(state);
	}

	/**
	 * These workers could not be reached, all others can: what they told of themselves holds no longer, and what still
	 * arrives of it is not taken.
	 */
	doubt(workerIds: ReadonlySet<bigint>): void {
		this.#doubted = workerIds;
		for (const workerId of workerIds) {
			for (const state of this.#workers.get(workerId)?.values() ?? []) {
				state.told = {};
				this.#reconsider(state);
			}
		}
	}

	/** The worker is gone. */
	forget(workerId: bigint): void {
		if (this.#workers.delete(workerId)) this.#version++;
	}

	async close(): Promise<void> {
		this.#closed = true;
		try {
			await this.#subscription?.close();
		} catch (error) {
			this.#log?.warn("The subscription to workers' load could not be closed", { error });
		}
	}

	#onEnvelope({ payload }: EventEnvelope): void {
		try {
			const { workerId, dpRank, ...load } = decodeWorkerLoad(payload);
			const state = this.#doubted.has(workerId) ? undefined : this.#state(workerId, dpRank);
			if (state === undefined) return;
			// A worker that does not tell a number has said nothing new about it.
			state.told = {
				kvUsedBlocks: numberOf(load.kvUsedBlocks) ?? state.told.kvUsedBlocks,
				activeDecodeBlocks: numberOf(load.activeDecodeBlocks) ?? state.told.activeDecodeBlocks,
				activePrefillTokens: numberOf(load.activePrefillTokens) ?? state.told.activePrefillTokens,
			};
			this.#reconsider(state);
		} catch (error) {
			this.#log?.warn("What a worker told of its load could not be read", { error });
		}
	}

	/** Undefined for a rank that the card does not know, and for more workers than there can be. */
	#state(workerId: bigint, dpRank: number): RankState | undefined {
		const { firstRank, rankCount } = this.#options;
		if (dpRank < firstRank || dpRank >= firstRank + rankCount) return undefined;
		let ranks = this.#workers.get(workerId);
		if (ranks === undefined) {
			if (this.#workers.size >= MAX_WORKERS) return undefined;
			ranks = new Map();
			this.#workers.set(workerId, ranks);
		}
		let state = ranks.get(dpRank);
		if (state === undefined) {
			state = { told: {}, counted: {}, busy: false };
			ranks.set(dpRank, state);
		}
		return state;
	}

	#reconsider(state: RankState): void {
		const before = state.busy;
		this.#judge(state);
		if (state.busy !== before) this.#version++;
	}

	#judge(state: RankState): void {
		const { totalKvBlocks, maxNumBatchedTokens } = this.#options;
		const { told, counted } = state;
		const blocks = [told.kvUsedBlocks, told.activeDecodeBlocks, counted.activeDecodeBlocks];
		state.busy = isBusy(this.#thresholds, {
			kvUsedBlocks: most(blocks),
			activePrefillTokens: most([told.activePrefillTokens, counted.activePrefillTokens]),
			totalKvBlocks,
			maxNumBatchedTokens,
		});
	}
}

function numberOf(value: bigint | undefined): number | undefined {
	return value === undefined ? undefined : Number(value);
}

function most(values: readonly (number | undefined)[]): number | undefined {
	const known = values.filter((value) => value !== undefined);
	return known.length === 0 ? undefined : Math.max(...known);
}
