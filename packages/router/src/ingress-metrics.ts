// SPDX-License-Identifier: Apache-2.0
// The metric families of the KV router's inside: sources of events, what other routers tell, and blocks that are believed
// to be cached. Of what Dynamo counts and there is no such thing here, the family is there and nothing in it.
import { METRICS, MORE_LABELS } from "@dynamo-ts/protocols/internal";
import {
	type Counter,
	type Gauge,
	type MetricsRegistry,
	type MetricVec,
	openCounter,
	openCounterVec,
	openGauge,
	openGaugeVec,
	openHistogram,
} from "@dynamo-ts/runtime/internal";
import type { GroupPlace } from "./group-metrics.js";
import type { ReplicaCounts } from "./kv/replica-sync.js";
import type { KvPolicy } from "./kv-policy.js";

const C = METRICS.component;
/** There are no groups within a model's workers. */
const ROUTING_GROUP = "default";

/** No other router is listened to. */
const NOBODY: ReplicaCounts = { batches: 0, events: 0, unreadable: 0, malformed: 0, lost: 0, publishers: 0 };

/** Families under the component of the router's others. */
export class SequenceFamilies {
	readonly batches: MetricVec<Counter>;
	readonly events: MetricVec<Counter>;
	readonly depth: MetricVec<Gauge>;
	readonly malformed: Counter;
	readonly unreadable: Counter;
	readonly lost: Counter;
	readonly sources: Gauge;
	readonly evictedBlocks: Counter;
	readonly evictionBatches: Counter;
	readonly fallbacks: Counter;

	constructor(metrics: MetricsRegistry) {
		this.batches = openCounterVec(metrics, C.routerActiveSequenceIngressDrainBatchesTotal);
		this.events = openCounterVec(metrics, C.routerActiveSequenceIngressEventsAppliedTotal);
		this.depth = openGaugeVec(metrics, C.routerActiveSequenceIngressQueueDepth);
		this.malformed = openCounter(metrics, C.routerActiveSequenceZmqIngressEnvelopeDecodeErrorsTotal);
		this.unreadable = openCounter(metrics, C.routerActiveSequenceZmqIngressPayloadDecodeErrorsTotal);
		this.lost = openCounter(metrics, C.routerActiveSequenceZmqIngressSequenceGapsTotal);
		this.sources = openGauge(metrics, C.routerActiveSequenceZmqIngressSources);
		this.evictedBlocks = openCounter(metrics, C.routerApproximateLruEvictedBlocksTotal);
		this.evictionBatches = openCounter(metrics, C.routerApproximateLruEvictionBatchesTotal);
		this.fallbacks = openCounter(metrics, C.routerApproximateLruFallbackActivationsTotal);
		for (const idle of [
			C.routerActiveSequenceZmqIngressDroppedEventsTotal,
			C.routerActiveSequenceZmqIngressForcedAbortsTotal,
			C.routerActiveSequenceZmqIngressIdentityErrorsTotal,
			C.routerActiveSequenceZmqIngressOutOfOrderTotal,
			C.routerActiveSequenceZmqIngressReconnectsTotal,
			C.routerActiveSequenceZmqIngressReplacementsTotal,
			C.routerApproximateLruOutputBatchesTotal,
		]) {
			openCounter(metrics, idle);
		}
		openGauge(metrics, C.routerApproximateLruLeases);
		openGauge(metrics, C.routerApproximateLruMutationQueueDepth);
		openHistogram(metrics, C.routerApproximateLruMessagesPerRequest);
		openHistogram(metrics, C.routerApproximateLruMutationWaitSeconds);
	}

	/** Before groups add what they have. */
	reset(): void {
		this.depth.reset();
		this.sources.set(0);
	}
}

/** Families under the component of the workers whose caches are followed. */
export class SourceFamilies {
	readonly batches: Counter;
	readonly lifecycle: MetricVec<Counter>;
	readonly sources: MetricVec<Gauge>;

	constructor(metrics: MetricsRegistry) {
		this.batches = openCounter(metrics, C.routerKvZmqIngressBatchesTotal);
		this.lifecycle = openCounterVec(metrics, C.routerKvZmqIngressLifecycleTotal);
		this.sources = openGaugeVec(metrics, C.routerKvZmqIngressSources);
		for (const outcome of ["capacity_exhausted", "unknown_remove"]) {
			openCounter(metrics, C.ckfMutationTotal, { [MORE_LABELS.outcome]: outcome });
		}
	}
}

/** Brings the families up to what a group's policy has counted since it was last asked. */
export class SequenceCounts {
	readonly #families: SequenceFamilies;
	readonly #policy: KvPolicy;
	readonly #labels: readonly [model: string, routingGroup: string, workerType: string];
	readonly #told = new Map<Counter, number>();
	/** Ranks whose blocks run out by time although they were to give way by use. */
	#fallen = new Set<string>();

	constructor(families: SequenceFamilies, policy: KvPolicy, { model, workerType }: GroupPlace) {
		this.#families = families;
		this.#policy = policy;
		this.#labels = [model, ROUTING_GROUP, workerType];
		this.show([]);
	}

	/** @param ranks names of those that the group has. */
	show(ranks: readonly string[]): void {
		const families = this.#families;
		const { batches, events, unreadable, malformed, lost, publishers } = this.#policy.replicaCounts() ?? NOBODY;
		this.#raise(families.batches.withLabelValues(...this.#labels), batches);
		this.#raise(families.events.withLabelValues(...this.#labels), events);
		families.depth.withLabelValues(...this.#labels).set(0);
		this.#raise(families.unreadable, unreadable);
		this.#raise(families.malformed, malformed);
		this.#raise(families.lost, lost);
		families.sources.inc(publishers);
		const { evicted, cachePolicy, assumes } = this.#policy;
		this.#raise(families.evictedBlocks, evicted.blocks);
		this.#raise(families.evictionBatches, evicted.batches);
		if (!assumes || cachePolicy.configured === cachePolicy.effective) return;
		families.fallbacks.inc(ranks.filter((rank) => !this.#fallen.has(rank)).length);
		this.#fallen = new Set(ranks);
	}

	/** Groups of one component share a counter, so each adds what is new of its own. */
	#raise(counter: Counter, total: number): void {
		const before = this.#told.get(counter) ?? 0;
		// A message that came late is no longer lost; what was shown stays.
		if (total <= before) return;
		counter.inc(total - before);
		this.#told.set(counter, total);
	}
}
