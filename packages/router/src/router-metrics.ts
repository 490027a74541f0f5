// SPDX-License-Identifier: Apache-2.0
// The routers' metric families, as Dynamo's frontend shows them: what was chosen and how well, what waits, what workers
// have to do.
import { FRONTEND_LABELS, METRIC_PREFIXES, METRICS, MORE_LABELS } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import {
	type Counter,
	createMetricsRegistry,
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
import { SequenceFamilies, SourceFamilies } from "./ingress-metrics.js";
import type { RemoteIndexFailure } from "./kv/remote-index.js";
import type { RoutingGroup } from "./routing-group.js";

const POLICIES = ["disabled", "lru", "ttl"] as const;
type CachePolicy = (typeof POLICIES)[number];
interface CachePolicyGauge {
	readonly name: CachePolicy;
	readonly configured: Gauge;
	readonly effective: Gauge;
}

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
	readonly #sequences = new Map<string, SequenceFamilies>();
	readonly #sources = new Map<string, SourceFamilies>();
	readonly #remoteFailures = new Map<string, Record<RemoteIndexFailure, Counter>>();
	readonly #cachePolicies = new Map<string, CachePolicyGauge[]>();
	readonly #groups = new Map<RoutingGroup, GroupMetrics>();

	/**
	 * @param runtime whose id names the router, and whose page shows the families with a component.
	 * @param page where the others go; absent: nowhere, as with Dynamo's router without a frontend.
	 */
	constructor(runtime: DistributedRuntime, page: MetricsRegistry = createMetricsRegistry()) {
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
		// Either page can be looked at without the other one.
		for (const registry of [page, runtime.metrics]) registry.addUpdateCallback(() => this.#show());
	}

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
		for (const families of this.#sequences.values()) families.reset();
		for (const { sources } of this.#sources.values()) sources.reset();
		for (const metrics of this.#groups.values()) metrics.show();
	}

	#component({ namespace, component }: GroupPlace): ComponentFamilies {
		return this.#once(this.#components, namespace, component, (metrics) => this.#open(metrics));
	}

	#eventsOf({ namespace, targetComponent }: GroupPlace): EventFamilies {
		return this.#once(this.#events, namespace, targetComponent, (metrics) => ({
			applied: openCounterVec(metrics, METRICS.component.kvCacheEventsApplied),
			warnings: openCounterVec(metrics, METRICS.component.kvCacheEventWarnings),
		}));
	}

	/** For groups of the mode kv. */
	sequencesOf({ namespace, component }: GroupPlace): SequenceFamilies {
		return this.#once(this.#sequences, namespace, component, (metrics) => new SequenceFamilies(metrics));
	}

	/** For groups whose workers' caches are followed. */
	sourcesOf({ namespace, targetComponent }: GroupPlace): SourceFamilies {
		return this.#once(this.#sources, namespace, targetComponent, (metrics) => new SourceFamilies(metrics));
	}

	/** Prefill and decode workers can be shown under one component, and a group can come again. */
	#once<T>(known: Map<string, T>, namespace: string, component: string, open: (metrics: MetricsRegistry) => T): T {
		const key = `${namespace}/${component}`;
		let families = known.get(key);
		if (families === undefined) {
			families = open(this.#runtime.namespace(namespace).component(component).metrics);
			known.set(key, families);
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

	/** Counters of what an index of another process did not answer or take in, under the component of its workers. */
	remoteFailures({ namespace, targetComponent }: GroupPlace): Record<RemoteIndexFailure, Counter> {
		const c = METRICS.component;
		return this.#once(this.#remoteFailures, namespace, targetComponent, (metrics) => ({
			query: openCounter(metrics, c.routerRemoteIndexerQueryFailuresTotal, this.#constant),
			write: openCounter(metrics, c.routerRemoteIndexerWriteFailuresTotal, this.#constant),
		}));
	}

	/** Which policy keeps blocks that no events tell of; `disabled`: none. */
	approximateCache({ namespace, component }: GroupPlace, configured: CachePolicy, effective: CachePolicy): void {
		const c = METRICS.component;
		const gauges = this.#once(this.#cachePolicies, namespace, component, (metrics) =>
			POLICIES.map((name) => {
				const labels = { [MORE_LABELS.policy]: name };
				const configured = openGauge(metrics, c.routerApproximateCacheConfiguredPolicy, labels);
				return { name, configured, effective: openGauge(metrics, c.routerApproximateCacheEffectivePolicy, labels) };
			}),
		);
		for (const gauge of gauges) {
			gauge.configured.set(gauge.name === configured ? 1 : 0);
			gauge.effective.set(gauge.name === effective ? 1 : 0);
		}
	}
}
