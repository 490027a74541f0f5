// SPDX-License-Identifier: Apache-2.0
// What the routers' metric families show of one group of workers.
import { SequenceCounts, type SourceFamilies } from "./ingress-metrics.js";
import { KvPolicy } from "./kv-policy.js";
import type { AdmissionObserver } from "./queue/admission.js";
import type { QueueLimit } from "./queue/request-queue.js";
import type { ComponentFamilies, EventFamilies, RouterMetrics } from "./router-metrics.js";
import type { RoutingGroup } from "./routing-group.js";
import type { RoutingObserver, Selection } from "./routing-observer.js";

/** Where a group's workers are, for labels. */
export interface GroupPlace {
	readonly model: string;
	readonly namespace: string;
	/** Under which the router's families are shown; for prefill workers that of the workers that answer. */
	readonly component: string;
	/** The workers' own. */
	readonly targetComponent: string;
	readonly targetEndpoint: string;
	/** "decode" stands for workers that do both, too. */
	readonly workerType: "prefill" | "decode";
	readonly phase: "aggregated" | "prefill" | "decode";
}

/** A request under way; `performance.now()`. */
interface Timed {
	readonly startedAt: number;
	firstAt: number | undefined;
	tokens: number;
	reused: number | undefined;
}

const EVENT_TYPES = ["stored", "removed", "cleared"] as const;
/** Dynamo's; those that cannot happen here stay at 0. */
const EVENT_STATUSES = [
	"ok",
	"allocation_failed",
	"block_not_found",
	"capacity_exhausted",
	"indexer_invariant_violation",
	"invalid_block",
	"ownership_degree_overflow",
	"parent_block_not_found",
	"unsupported_residency_domain",
] as const;
const LIMITS = {
	requests: "request_limit",
	"prompt tokens": "raw_isl_token_limit",
	"cached tokens": "cached_token_limit",
};

export class GroupMetrics implements RoutingObserver, AdmissionObserver {
	readonly #families: RouterMetrics;
	readonly #component: ComponentFamilies;
	readonly #events: EventFamilies;
	readonly #group: RoutingGroup;
	readonly #place: GroupPlace;
	readonly #policy: KvPolicy | undefined;
	readonly #sequences: SequenceCounts | undefined;
	readonly #sources: SourceFamilies | undefined;
	readonly #requests = new Map<string, Timed>();

	constructor(
		families: RouterMetrics,
		component: ComponentFamilies,
		events: EventFamilies,
		group: RoutingGroup,
		place: GroupPlace,
	) {
		this.#families = families;
		this.#component = component;
		this.#events = events;
		this.#group = group;
		this.#place = place;
		if (!(group.policy instanceof KvPolicy)) return;
		const { policy } = group;
		this.#policy = policy;
		policy.admission.observer = this;
		if (policy.cacheWait !== undefined) {
			const { model, workerType } = place;
			for (const outcome of ["found", "in_vain"]) families.cacheWaits.withLabelValues(model, outcome, workerType);
			policy.cacheWait.observer = (outcome) => families.cacheWaits.withLabelValues(model, outcome, workerType).inc();
		}
		for (const { policyClass } of policy.admission.stats()) this.#announce(policyClass);
		families.approximateCache(place, policy.cachePolicy.configured, policy.cachePolicy.effective);
		if (policy.remote !== undefined) {
			const failures = families.remoteFailures(place);
			policy.remote.onFailure = (failure) => failures[failure].inc();
		}
		// Decode workers beside prefill workers are chosen by load alone: as a rule nothing is heard of their caches.
		if (place.phase !== "decode") this.#announceEvents();
		this.#sequences = new SequenceCounts(families.sequencesOf(place), policy, place);
		if (place.phase !== "decode") this.#sources = families.sourcesOf(place);
		policy.feed.onIngress = (step) => {
			if (step === "batch") this.#sources?.batches.inc();
			else this.#sources?.lifecycle.withLabelValues(step).inc();
		};
		policy.feed.onEvent = (type, status, duplicate) => {
			events.applied.withLabelValues(type, status).inc();
			if (duplicate) events.warnings.withLabelValues("duplicate_store").inc();
		};
	}

	#announceEvents(): void {
		const { applied, warnings } = this.#events;
		warnings.withLabelValues("duplicate_store");
		for (const type of EVENT_TYPES) for (const status of EVENT_STATUSES) applied.withLabelValues(type, status);
	}

	/** Counters are there, at 0, before anything is counted. */
	#announce(policyClass: string): void {
		const { admissionReceived, admissionRejected, backpressure } = this.#families;
		const { model, workerType } = this.#place;
		admissionReceived.withLabelValues(model, policyClass, workerType);
		for (const reason of ["due_time_passed", "predicted_miss"]) {
			admissionRejected.withLabelValues(model, policyClass, reason, workerType);
		}
		for (const reason of Object.values(LIMITS)) backpressure.withLabelValues(model, policyClass, reason, workerType);
	}

	onReceived(policyClass: string): void {
		const { model, workerType } = this.#place;
		this.#families.admissionReceived.withLabelValues(model, policyClass, workerType).inc();
	}

	onFull(policyClass: string, { kind }: QueueLimit): void {
		const { model, workerType } = this.#place;
		this.#families.backpressure.withLabelValues(model, policyClass, LIMITS[kind], workerType).inc();
	}

	onLate(policyClass: string): void {
		const { model, workerType } = this.#place;
		this.#families.admissionRejected.withLabelValues(model, policyClass, "due_time_passed", workerType).inc();
	}

	onStart(requestId: string, promptTokens: number): void {
		const { model, phase } = this.#place;
		this.#requests.set(requestId, { startedAt: performance.now(), firstAt: undefined, tokens: 0, reused: undefined });
		this.#component.started.inc();
		this.#component.promptTokens.withLabelValues(model, phase).observe(promptTokens);
	}

	onFirstItem(requestId: string): void {
		const request = this.#requests.get(requestId);
		if (request === undefined || request.firstAt !== undefined) return;
		request.firstAt = performance.now();
		this.#component.timeToFirstToken.observe((request.firstAt - request.startedAt) / 1000);
	}

	onTokens(requestId: string, tokens: number): void {
		const request = this.#requests.get(requestId);
		if (request !== undefined) request.tokens += tokens;
	}

	onReused(requestId: string, tokens: number): void {
		const request = this.#requests.get(requestId);
		if (request !== undefined) request.reused = tokens;
	}

	onHandedOver(seconds: number): void {
		this.#component.transfer.observe(seconds);
	}

	onEnd(requestId: string): void {
		const request = this.#requests.get(requestId);
		if (request === undefined) return;
		this.#requests.delete(requestId);
		const { firstAt, tokens, reused } = request;
		const component = this.#component;
		component.ended.inc();
		component.outputTokens.observe(tokens);
		if (firstAt !== undefined && tokens > 1) {
			component.interTokenLatency.observe((performance.now() - firstAt) / 1000 / (tokens - 1));
		}
		if (this.#policy === undefined) return;
		const { model, phase } = this.#place;
		component.reusedTokens.withLabelValues(model, phase).inc(reused ?? 0);
	}

	onSelection(selection: Selection): void {
		const { promptBlocks, overlapBlocks, mostOverlapBlocks, blockSize } = selection;
		const { model, phase, workerType } = this.#place;
		const component = this.#component;
		component.hitRate.observe(promptBlocks === 0 ? 0 : overlapBlocks / promptBlocks);
		component.bestTokens.withLabelValues(model, phase).inc(mostOverlapBlocks * blockSize);
		component.selectedTokens.withLabelValues(model, phase).inc(overlapBlocks * blockSize);
		if (workerType === "prefill" && overlapBlocks < mostOverlapBlocks) {
			component.notBest.inc();
			component.blocksLost.observe(mostOverlapBlocks - overlapBlocks);
		}
		const { blockHashingMs, seqHashingMs, findMatchesMs, schedulingMs } = selection;
		const families = this.#families;
		families.blockHashingMs.observe(blockHashingMs);
		families.seqHashingMs.observe(seqHashingMs);
		families.findMatchesMs.observe(findMatchesMs);
		families.schedulingMs.observe(schedulingMs);
		families.totalMs.observe(blockHashingMs + seqHashingMs + findMatchesMs + schedulingMs);
	}

	/** Sets the gauges; those of all groups were dropped just before. */
	show(): void {
		const policy = this.#policy;
		if (policy === undefined) return;
		const { model, workerType, namespace, targetComponent, targetEndpoint } = this.#place;
		const families = this.#families;
		for (const { policyClass, requests, promptTokens, cachedTokens } of policy.admission.stats()) {
			families.pendingRequests.withLabelValues(model, policyClass, workerType).set(requests);
			families.pendingPromptTokens.withLabelValues(model, policyClass, workerType).set(promptTokens);
			families.pendingCachedTokens.withLabelValues(model, policyClass, workerType).set(cachedTokens);
		}
		const { sources, missing, expected } = policy.feed.state();
		const known = new Set(sources.map(({ worker }) => `${worker.workerId}/${worker.dpRank}`));
		const without = new Set<bigint>();
		const ranks: string[] = [];
		for (const { workerId, dpRank, activeBlocks, prefillTokens } of this.#group.loads()) {
			const rank = String(dpRank);
			const id = workerId.toString();
			families.activeBlocks.withLabelValues(rank, id, workerType).set(activeBlocks);
			families.activePrefillTokens.withLabelValues(rank, id, workerType).set(prefillTokens);
			this.#component.registered.withLabelValues(rank, id, workerType).set(1);
			ranks.push(`${workerId}/${rank}`);
			if (expected && !known.has(`${workerId}/${rank}`)) without.add(workerId);
		}
		this.#sequences?.show(ranks);
		if (!expected) return;
		this.#component.sourceMismatch
			.withLabelValues(model, targetComponent, targetEndpoint, namespace, workerType)
			.set(without.size);
		this.#component.eventsMissing.withLabelValues(model, targetComponent).set(missing ? 1 : 0);
		const active = sources.filter(({ inSync }) => inSync).length;
		this.#sources?.sources.withLabelValues("active").inc(active);
		this.#sources?.sources.withLabelValues("preconnected").inc(sources.length - active);
	}
}
