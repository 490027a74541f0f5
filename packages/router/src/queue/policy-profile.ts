// SPDX-License-Identifier: Apache-2.0
// Classes of requests that wait for a worker, and which request belongs to which: semantics of Dynamo's router policies.

/** Order within a class: by arrival, or the shortest prompt first. */
export type QueueOrder = "fcfs" | "wspt";

/** How requests of a class wait. Limits are multiplied by the number of workers that could take the request. */
export interface PolicyClass {
	readonly name: string;
	readonly order: QueueOrder;
	/** Share of service against other classes, uncached prompt tokens per round. */
	readonly quantum: number;
	/** A worker with more prompt tokens to compute is busy; undefined: no such limit. */
	readonly prefillBusyThreshold?: number | undefined;
	/** The same as a multiple of its `max_num_batched_tokens`. Without either no request waits. */
	readonly prefillBusyThresholdFrac?: number | undefined;
	/** Requests wait when this share of the workers is busy, above 0 and up to 1; undefined: when all are. */
	readonly busyWorkerRatio?: number | undefined;
	/** Most requests, prompt tokens, and cached prompt tokens that wait, per worker. */
	readonly requestLimit?: number | undefined;
	readonly promptTokenLimit?: number | undefined;
	readonly cachedTokenLimit?: number | undefined;
}

/** True when requests of the class can be made to wait. */
export function queues(policy: PolicyClass): boolean {
	return policy.prefillBusyThreshold !== undefined || policy.prefillBusyThresholdFrac !== undefined;
}

/**
 * @param activeTokens prompt tokens that the worker has still to compute.
 * @param maxBatchedTokens of its engine; undefined: unknown, and then no multiple of it is reached.
 */
export function isPrefillBusy(
	policy: PolicyClass,
	activeTokens: number,
	maxBatchedTokens: number | undefined,
): boolean {
	const { prefillBusyThreshold: tokens, prefillBusyThresholdFrac: multiple } = policy;
	if (tokens !== undefined && activeTokens > tokens) return true;
	return multiple !== undefined && maxBatchedTokens !== undefined && activeTokens > multiple * maxBatchedTokens;
}

/** True when so many of the workers are busy that requests wait. */
export function isPoolBusy(policy: PolicyClass, busy: number, workers: number): boolean {
	if (workers === 0) return false;
	return policy.busyWorkerRatio === undefined ? busy === workers : busy >= policy.busyWorkerRatio * workers;
}

/** A range of uncached prompt tokens. */
export interface TokenBucket {
	readonly minTokens: number;
}

/** The classes of a model. */
export class PolicyProfile {
	readonly classes: readonly PolicyClass[];
	readonly #explicit: ReadonlyMap<string, number>;
	readonly #families: ReadonlyMap<string, readonly number[]>;
	readonly #defaultFamily: readonly number[];
	readonly #buckets: readonly TokenBucket[];

	/**
	 * @param explicit places in `classes` of those that a request can name.
	 * @param families for each family the place of the class of each bucket.
	 * @param buckets in rising order; the first begins at 0.
	 */
	constructor(
		classes: readonly PolicyClass[],
		explicit: ReadonlyMap<string, number>,
		families: ReadonlyMap<string, readonly number[]>,
		defaultFamily: string,
		buckets: readonly TokenBucket[],
	) {
		this.classes = classes;
		this.#explicit = explicit;
		this.#families = families;
		this.#defaultFamily = families.get(defaultFamily) ?? [0];
		this.#buckets = buckets;
	}

	/** One class for all requests, called "default". */
	static single(order: QueueOrder, prefillBusyThresholdFrac: number | undefined): PolicyProfile {
		const only: PolicyClass = { name: "default", order, quantum: 1, prefillBusyThresholdFrac };
		return new PolicyProfile([only], new Map(), new Map(), "", [{ minTokens: 0 }]);
	}

	/** Requests of some class can be made to wait. */
	get queues(): boolean {
		return this.classes.some(queues);
	}

	/**
	 * The place of a request's class.
	 * @param wanted class or family that the request names; one that is not known is as good as none.
	 * @param uncachedTokens prompt tokens that no worker has cached.
	 */
	classOf(wanted: string | undefined, uncachedTokens: number): number {
		if (wanted !== undefined) {
			const place = this.#explicit.get(wanted);
			if (place !== undefined) return place;
		}
		const family = (wanted === undefined ? undefined : this.#families.get(wanted)) ?? this.#defaultFamily;
		let bucket = 0;
		while (bucket + 1 < this.#buckets.length && (this.#buckets[bucket + 1]?.minTokens ?? 0) <= uncachedTokens) bucket++;
		return family[bucket] ?? 0;
	}
}
