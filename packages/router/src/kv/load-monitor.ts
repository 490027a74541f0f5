// SPDX-License-Identifier: Apache-2.0
// Which workers are too full for more, by what they tell of themselves (topic `kv_metrics`).
import { decodeWorkerLoad, type EndpointId, type EventEnvelope, KV_METRICS_TOPIC } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EventSubscription, Logger } from "@dynamo-ts/runtime";
import { rateLimited } from "@dynamo-ts/runtime/internal";
import { type BusyThresholds, isBusy } from "./eligibility.js";

export interface LoadMonitorOptions {
	readonly thresholds: BusyThresholds;
	/** Blocks of each rank, as the workers' card says; undefined: unknown, and then nobody is busy. */
	readonly totalKvBlocks: number | undefined;
	/** Ranks of each worker; one is busy when all of them are. */
	readonly rankCount: number;
}

/** Most workers that are remembered as busy; more than any deployment has. */
const MAX_BUSY = 65_536;

export class LoadMonitor {
	readonly #options: LoadMonitorOptions;
	/** Ranks that are busy, by worker. */
	readonly #busy = new Map<bigint, Set<number>>();
	#subscription: EventSubscription | undefined;
	#log: Pick<Logger, "warn"> | undefined;
	#version = 0;
	#closed = false;

	constructor(options: LoadMonitorOptions) {
		this.#options = options;
	}

	/** Changes whenever the answers of {@link isBusy} do. */
	get version(): number {
		return this.#version;
	}

	/**
	 * Begins to listen to the workers of an endpoint.
	 * @throws DynamoError `Unavailable` when that is not possible now; may be called again then.
	 */
	async open(runtime: DistributedRuntime, endpoint: EndpointId): Promise<void> {
		if (this.#subscription !== undefined || this.#closed) return;
		this.#log = rateLimited(runtime.log.child("dynamo_llm::worker_monitor"));
		const subscription = await runtime.events.subscribe({ kind: "endpoint", endpoint }, KV_METRICS_TOPIC, {
			onEvent: (envelope) => this.#onEnvelope(envelope),
		});
		if (this.#closed) await subscription.close();
		else this.#subscription = subscription;
	}

	/** The worker said last that it is above a limit; one that said nothing is not. */
	isBusy(workerId: bigint): boolean {
		return (this.#busy.get(workerId)?.size ?? 0) >= this.#options.rankCount;
	}

	/** The worker is gone. */
	forget(workerId: bigint): void {
		if (this.#busy.delete(workerId)) this.#version++;
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
			const { workerId, dpRank, kvUsedBlocks } = decodeWorkerLoad(payload);
			if (kvUsedBlocks !== undefined) this.#take(workerId, dpRank, Number(kvUsedBlocks));
		} catch (error) {
			this.#log?.warn("What a worker told of its load could not be read", { error });
		}
	}

	#take(workerId: bigint, dpRank: number, kvUsedBlocks: number): void {
		const { thresholds, totalKvBlocks } = this.#options;
		const ranks = this.#busy.get(workerId);
		if (isBusy(thresholds, { kvUsedBlocks, totalKvBlocks })) {
			if (ranks?.has(dpRank)) return;
			if (ranks !== undefined) ranks.add(dpRank);
			else if (this.#busy.size < MAX_BUSY) this.#busy.set(workerId, new Set([dpRank]));
			this.#version++;
		} else if (ranks?.delete(dpRank)) {
			if (ranks.size === 0) this.#busy.delete(workerId);
			this.#version++;
		}
	}
}
