// SPDX-License-Identifier: Apache-2.0
// The routers' metric families, as Dynamo's frontend shows them: what was chosen and how well, what waits, what workers
// have to do.
import { FRONTEND_LABELS, METRIC_PREFIXES, METRICS, MORE_LABELS } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import {
	type Counter,
	type Gauge,
	type Histogram,
	type MetricsRegistry,
	type MetricVec,
	openCounter,
	openCounterVec,
	openGauge,
	openGaugeVec,
	openHistogram,
	openHistogramVec,
} from "@dynamo-ts/runtime/internal";
import { GroupMetrics, type GroupPlace } from "./group-metrics.js";
import type { RemoteIndexFailure } from "./kv/remote-index.js";
import type { RoutingGroup } from "./routing-group.js";

const POLICIES = ["disabled", "lru", "ttl"] as const;

/** Families that carry the component of the workers. */
export interface ComponentFamilies {
	readonly started: Counter;
	readonly ended: Counter;
	readonly promptTokens: MetricVec<Histogram>;
	readonly outputTokens: Histogram;
	readonly timeToFirstToken: Histogram;
	readonly interTokenLatency: Histogram;
	readonly transfer: Histogram;
	readonly hitRate: Histogram;
	readonly bestTokens: MetricVec<Counter>;
	readonly selectedTokens: MetricVec<Counter>;
	readonly reusedTokens: MetricVec<Counter>;
	readonly notBest: Counter;
	readonly blocksLost: Histogram;
	readonly registered: MetricVec<Gauge>;
	readonly sourceMismatch: MetricVec<Gauge>;
	readonly eventsMissing: MetricVec<Gauge>;
}

/** Families about events of caches: those of prefill workers are shown under the component of these. */
export interface EventFamilies {
	readonly applied: MetricVec<Counter>;
	readonly warnings: MetricVec<Counter>;
	readonly sources: MetricVec<Gauge>;
}

export class RouterMetrics {
	readonly admissionReceived: MetricVec<Counter>;
	readonly admissionRejected: MetricVec<Counter>;
	readonly backpressure: MetricVec<Counter>;
	readonly cacheWaits: MetricVec<Counter>;
	readonly pendingRequests: MetricVec<Gauge>;
	readonly pendingPromptTokens: MetricVec<Gauge>;
	readonly pendingCachedTokens: MetricVec<Gauge>;
	readonly activeBlocks: MetricVec<Gauge>;
	readonly activePrefillTokens: MetricVec<Gauge>;
	readonly blockHashingMs: Histogram;
	readonly seqHashingMs: Histogram;
	readonly findMatchesMs: Histogram;
	readonly schedulingMs: Histogram;
	readonly totalMs: Histogram;
	readonly #runtime: DistributedRuntime;
	readonly #constant: { readonly router_id: string };
	readonly #components = new Map<string, ComponentFamilies>();
	readonly #events = new Map<string, EventFamilies>();
	readonly #groups = new Map<RoutingGroup, GroupMetrics>();

	/**
	 * @param page where families without a component go.
	 * @param runtime whose id names the router, and whose page shows the rest.
	 */
	constructor(page: MetricsRegistry, runtime: DistributedRuntime) {
		const f = METRICS.frontend;
		this.admissionReceived = openCounterVec(page, f.routerAdmissionReceivedTotal);
		this.admissionRejected = openCounterVec(page, f.routerAdmissionRejectedTotal);
		this.backpressure = openCounterVec(page, f.routerQueueBackpressureTotal);
		this.cacheWaits = openCounterVec(page, f.routerCacheWaitsTotal);
		this.pendingRequests = openGaugeVec(page, f.routerQueuePendingRequests);
		this.pendingPromptTokens = openGaugeVec(page, f.routerQueuePendingIslTokens);
		this.pendingCachedTokens = openGaugeVec(page, f.routerQueuePendingCachedTokens);
		this.activeBlocks = openGaugeVec(page, f.workerActiveDecodeBlocks);
		this.activePrefillTokens = openGaugeVec(page, f.workerActivePrefillTokens);
		const router = page.level({ prefix: METRIC_PREFIXES.router, labels: null });
		const constant = { [MORE_LABELS.routerId]: runtime.instanceId.toString() } as { router_id: string };
		const o = METRICS.router;
		this.blockHashingMs = openHistogram(router, o.overheadBlockHashingMs, constant);
		this.seqHashingMs = openHistogram(router, o.overheadSeqHashingMs, constant);
		this.findMatchesMs = openHistogram(router, o.overheadIndexerFindMatchesMs, constant);
		this.schedulingMs = openHistogram(router, o.overheadSchedulingMs, constant);
		this.totalMs = openHistogram(router, o.overheadTotalMs, constant);
		openHistogram(router, o.overheadSharedCacheQueryMs, constant);
		openCounter(router, o.sharedCacheErrorsTotal, constant);
		this.#runtime = runtime;
		this.#constant = constant;
		page.addUpdateCallback(() => this.#show());
	}

	readonly #cachePolicies = new Map<string, Gauge>();

	/** Begins to count what the group does. */
	add(group: RoutingGroup, place: GroupPlace): void {
		const metrics = new GroupMetrics(this, this.#component(place), this.#eventsOf(place), group, place);
		this.#groups.set(group, metrics);
		group.observe(metrics);
	}

	/** The group is gone. */
	remove(group: RoutingGroup): void {
		this.#groups.delete(group);
		this.#show();
	}

	/** Gauges are set when they are looked at, so that none is left of what is gone. */
	#show(): void {
		const gauges = [this.pendingRequests, this.pendingPromptTokens, this.pendingCachedTokens];
		for (const gauge of [...gauges, this.activeBlocks, this.activePrefillTokens]) gauge.reset();
		for (const { registered, sourceMismatch, eventsMissing } of this.#components.values()) {
			for (const gauge of [registered, sourceMismatch, eventsMissing]) gauge.reset();
		}
		for (const { sources } of this.#events.values()) sources.reset();
		for (const metrics of this.#groups.values()) metrics.show();
	}

	#component({ namespace, component }: GroupPlace): ComponentFamilies {
		const key = `${namespace}/${component}`;
		let families = this.#components.get(key);
		if (families === undefined) {
			families = this.#open(this.#runtime.namespace(namespace).component(component).metrics);
			this.#components.set(key, families);
		}
		return families;
	}

	#eventsOf({ namespace, targetComponent }: GroupPlace): EventFamilies {
		const key = `${namespace}/${targetComponent}`;
		let families = this.#events.get(key);
		if (families === undefined) {
			const { metrics } = this.#runtime.namespace(namespace).component(targetComponent);
			const c = METRICS.component;
			families = {
				applied: openCounterVec(metrics, c.kvCacheEventsApplied),
				warnings: openCounterVec(metrics, c.kvCacheEventWarnings),
				sources: openGaugeVec(metrics, c.routerKvZmqIngressSources),
			};
			this.#events.set(key, families);
		}
		return families;
	}

	#open(metrics: MetricsRegistry): ComponentFamilies {
		const c = METRICS.component;
		const router = this.#constant;
		const prefill = { ...router, [FRONTEND_LABELS.workerType]: "prefill" };
		// There is no cache that workers share: nothing to count.
		openHistogram(metrics, c.routerSharedCacheBeyondBlocks, router);
		openHistogram(metrics, c.routerSharedCacheHitRate, router);
		return {
			started: openCounter(metrics, c.routerRequestsStartedTotal, router),
			ended: openCounter(metrics, c.routerRequestsTotal, router),
			promptTokens: openHistogramVec(metrics, c.routerInputSequenceTokens, router),
			outputTokens: openHistogram(metrics, c.routerOutputSequenceTokens, router),
			timeToFirstToken: openHistogram(metrics, c.routerTimeToFirstTokenSeconds, router),
			interTokenLatency: openHistogram(metrics, c.routerInterTokenLatencySeconds, router),
			transfer: openHistogram(metrics, c.routerKvTransferEstimatedLatencySeconds, router),
			hitRate: openHistogram(metrics, c.routerKvHitRate, router),
			bestTokens: openCounterVec(metrics, c.routerKvBestEligibleCachedPrefixTokensTotal, router),
			selectedTokens: openCounterVec(metrics, c.routerKvSelectedCachedPrefixTokensTotal, router),
			reusedTokens: openCounterVec(metrics, c.routerKvWorkerReusedTokensTotal, router),
			notBest: openCounter(metrics, c.routerNonMaxOverlapSelectionsTotal, prefill),
			blocksLost: openHistogram(metrics, c.routerOverlapBlocksLost, prefill),
			registered: openGaugeVec(metrics, c.routerWorkerRegistered),
			sourceMismatch: openGaugeVec(metrics, c.routerKvEventSourceMismatchWorkers),
			eventsMissing: openGaugeVec(metrics, METRICS.event.kvEventsMissing),
		};
	}

	readonly #remoteFailures = new Map<string, Record<RemoteIndexFailure, Counter>>();

	/** Counters of what an index of another process did not answer or take in, under the component of its workers. */
	remoteFailures({ namespace, targetComponent }: GroupPlace): Record<RemoteIndexFailure, Counter> {
		const key = `${namespace}/${targetComponent}`;
		let counters = this.#remoteFailures.get(key);
		if (counters === undefined) {
			const { metrics } = this.#runtime.namespace(namespace).component(targetComponent);
			const c = METRICS.component;
			counters = {
				query: openCounter(metrics, c.routerRemoteIndexerQueryFailuresTotal, this.#constant),
				write: openCounter(metrics, c.routerRemoteIndexerWriteFailuresTotal, this.#constant),
			};
			this.#remoteFailures.set(key, counters);
		}
		return counters;
	}

	/** Which policy keeps blocks that no events tell of; `disabled`: none. */
	approximateCache(place: GroupPlace, policy: (typeof POLICIES)[number], effective: (typeof POLICIES)[number]): void {
		const { metrics } = this.#runtime.namespace(place.namespace).component(place.component);
		const c = METRICS.component;
		for (const [family, chosen] of [
			[c.routerApproximateCacheConfiguredPolicy, policy],
			[c.routerApproximateCacheEffectivePolicy, effective],
		] as const) {
			for (const name of POLICIES) {
				// Prefill and decode workers are shown under one component, and a group can come again.
				const key = `${place.namespace}/${place.component}/${family.name}/${name}`;
				let gauge = this.#cachePolicies.get(key);
				if (gauge === undefined) {
					gauge = openGauge(metrics, family, { [MORE_LABELS.policy]: name });
					this.#cachePolicies.set(key, gauge);
				}
				gauge.set(name === chosen ? 1 : 0);
			}
		}
	}
}
