// SPDX-License-Identifier: Apache-2.0
// A policy and what goes with every policy: which workers of the group are too full for more.
import type { DynamoError, EndpointId, EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import type { LoadMonitor } from "./kv/load-monitor.js";
import { PrefillCounts } from "./prefill-counts.js";
import type { Router, RouterMode, RoutingRequest } from "./router.js";

/** What a group is made of. */
export interface RoutingGroupParts {
	readonly policy: Router;
	/** Told what the group's own requests occupy; absent: nobody asks. */
	readonly load?: LoadMonitor | undefined;
	/** Data-parallel ranks of each worker. */
	readonly firstRank: number;
	readonly rankCount: number;
}

/** The router of one group of interchangeable workers. */
export class RoutingGroup implements Router {
	readonly policy: Router;
	readonly load: LoadMonitor | undefined;
	/** For policies that keep no account of prompts themselves. */
	readonly #prefills: PrefillCounts | undefined;

	constructor(parts: RoutingGroupParts) {
		const { policy, load, firstRank, rankCount } = parts;
		this.policy = policy;
		this.load = load;
		if (load === undefined) return;
		if (policy.watchLoad !== undefined) {
			policy.watchLoad(({ workerId, dpRank, activeBlocks, prefillTokens }) =>
				load.count(workerId, dpRank, { activeDecodeBlocks: activeBlocks, activePrefillTokens: prefillTokens }),
			);
			return;
		}
		// Which rank takes a request is the worker's affair then: on the whole each gets its share.
		this.#prefills = new PrefillCounts((workerId, tokens) => {
			for (let rank = firstRank; rank < firstRank + rankCount; rank++) {
				load.count(workerId, rank, { activePrefillTokens: tokens / rankCount });
			}
		});
	}

	get name(): RouterMode {
		return this.policy.name;
	}

	pick(candidates: readonly EndpointRecord[], request: RoutingRequest): EndpointRecord | undefined {
		return this.policy.pick(candidates, request);
	}

	refusal(): DynamoError | undefined {
		return this.policy.refusal?.();
	}

	rankFor(instanceId: bigint, request: RoutingRequest): number | undefined {
		return this.policy.rankFor?.(instanceId, request);
	}

	/** Absent where the policy does not look at caches. */
	get explain(): Router["explain"] {
		return this.policy.explain?.bind(this.policy);
	}

	onStart(instanceId: bigint, requestId: string, request: RoutingRequest): void {
		this.policy.onStart?.(instanceId, requestId, request);
		const tokens = request.overrides?.trackPrefillTokens === false ? 0 : (request.tokenIds?.length ?? 0);
		this.#prefills?.add(requestId, instanceId, tokens);
	}

	onFirstItem(requestId: string): void {
		this.policy.onFirstItem?.(requestId);
		this.#prefills?.done(requestId);
	}

	onEnd(instanceId: bigint, requestId: string): void {
		this.policy.onEnd?.(instanceId, requestId);
		this.#prefills?.done(requestId);
	}

	async open(runtime: DistributedRuntime, endpoint: EndpointId): Promise<void> {
		await this.policy.open?.(runtime, endpoint);
	}

	async close(): Promise<void> {
		await this.policy.close?.();
	}
}
