// SPDX-License-Identifier: Apache-2.0
import { computedBuckets, LABELS, METRIC_PREFIXES, METRICS } from "@dynamo-ts/protocols/internal";
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
	sanitizeMetricName,
	scrapeTogether,
} from "@dynamo-ts/runtime/internal";
import type { BucketRanges } from "./config.js";
import { watchEventLoop } from "./event-loop-watch.js";
import type { MigrationObserver } from "./migration.js";
import type { ModelObserver } from "./model-manager.js";
import { ModelSeries } from "./model-series.js";
import { NimMetrics, type NimOptions, type NimSource } from "./nim-metrics.js";
import type { WorkerSet } from "./worker-set.js";

/** Models that are gone and whose series wait for a last scrape; with more of them the oldest is dropped unseen. */
const MOST_DEPARTED = 100;

/**
 * The prefix in the form that metric names allow; Dynamo's own when nothing is left of it.
 * @param warn told when it had to be changed.
 */
export function metricsPrefix(wanted: string, warn: (message: string) => void): string {
	let prefix: string = METRIC_PREFIXES.frontend;
	try {
		prefix = sanitizeMetricName(wanted);
	} catch {
		// Nothing usable in it.
	}
	if (prefix !== wanted) warn(`metrics prefix "${wanted}" is not a metric name: "${prefix}" is used instead`);
	return prefix;
}

/** What a frontend knows of a model's workers. */
export type WorkerNumbers = Pick<NimSource, "maxRequests" | "cacheUsages">;

const NO_WORKERS: WorkerNumbers = { maxRequests: 0, cacheUsages: [] };

export interface FrontendMetricsOptions {
	/** Replaces `dynamo_frontend` in the names of request and model families. */
	readonly prefix: string;
	readonly buckets: BucketRanges;
	/** Shown for each model. */
	readonly migrationLimit?: number;
	/** Absent: no names of NIM. */
	readonly nim?: NimOptions | undefined;
	/** Read at each scrape. */
	readonly workersOf?: (model: string) => WorkerNumbers;
}

/**
 * The frontend's metric families; names and buckets are Dynamo's. The series of a model are there, at 0, from the moment
 * at which it is found until the first scrape after it has gone and its last request has ended.
 */
export class FrontendMetrics implements ModelObserver {
	readonly registry: MetricsRegistry;
	readonly requestsStarted: MetricVec<Counter>;
	readonly requests: MetricVec<Counter>;
	readonly inflight: MetricVec<Gauge>;
	readonly active: MetricVec<Gauge>;
	readonly queued: MetricVec<Gauge>;
	readonly disconnectedClients: Gauge;
	readonly timeToFirstToken: MetricVec<Histogram>;
	readonly interTokenLatency: MetricVec<Histogram>;
	readonly requestDuration: MetricVec<Histogram>;
	readonly inputTokens: MetricVec<Histogram>;
	readonly outputSequenceTokens: MetricVec<Histogram>;
	readonly outputTokens: MetricVec<Counter>;
	readonly cachedTokens: MetricVec<Histogram>;
	readonly imageTokens: MetricVec<Histogram>;
	readonly images: MetricVec<Histogram>;
	readonly audio: MetricVec<Histogram>;
	readonly videos: MetricVec<Histogram>;
	readonly failures: MetricVec<Counter>;
	readonly cancellations: MetricVec<Counter>;
	readonly rejections: MetricVec<Counter>;
	readonly detokenizeTokens: Counter;
	readonly detokenizeMicros: Counter;
	readonly stageRequests: MetricVec<Gauge>;
	readonly stageDuration: MetricVec<Histogram>;
	readonly templateSeconds: Histogram;
	readonly tokenizeSeconds: Histogram;
	readonly tokenizerLatencyMs: MetricVec<Histogram>;
	readonly tokenizerCacheMisses: Counter;
	readonly tokensEncoded: MetricVec<Counter>;
	readonly tokensFromCache: MetricVec<Counter>;
	readonly workerTimeToFirstToken: MetricVec<Gauge>;
	readonly workerInterTokenLatency: MetricVec<Gauge>;
	readonly workerInputTokens: MetricVec<Gauge>;
	readonly migrations: MetricVec<Counter>;
	readonly migrationDuration: MetricVec<Histogram>;
	private readonly modelReady: MetricVec<Gauge>;
	private readonly cardGauges: {
		readonly gauge: MetricVec<Gauge>;
		readonly read: (set: WorkerSet) => number | null | undefined;
	}[];
	private readonly nim: NimMetrics | undefined;
	private readonly workersOf: (model: string) => WorkerNumbers;
	private readonly models = new Map<string, ModelSeries>();
	private readonly departed = new Set<string>();
	private readonly endWatch: () => void;

	constructor({ prefix, buckets, migrationLimit = 0, nim, workersOf = () => NO_WORKERS }: FrontendMetricsOptions) {
		this.registry = createMetricsRegistry({ prefix });
		this.nim = nim && new NimMetrics(this.registry.level({ prefix: METRIC_PREFIXES.nim, labels: null }), nim);
		this.workersOf = workersOf;
		const r = this.registry;
		const fixed = r.level({ prefix: METRIC_PREFIXES.frontend });
		const f = METRICS.frontend;
		this.requestsStarted = openCounterVec(r, f.requestsStartedTotal);
		this.requests = openCounterVec(r, f.requestsTotal);
		this.inflight = openGaugeVec(r, f.inflightRequests);
		this.active = openGaugeVec(r, f.activeRequests);
		this.queued = openGaugeVec(r, f.queuedRequests);
		this.disconnectedClients = openGauge(r, f.disconnectedClients);
		const ranged = (family: typeof f.timeToFirstTokenSeconds, range: keyof BucketRanges): MetricVec<Histogram> =>
			openHistogramVec(r, family, {}, computedBuckets(buckets[range]));
		this.timeToFirstToken = ranged(f.timeToFirstTokenSeconds, "timeToFirstToken");
		this.interTokenLatency = ranged(f.interTokenLatencySeconds, "interTokenLatency");
		this.requestDuration = ranged(f.requestDurationSeconds, "requestDuration");
		this.inputTokens = ranged(f.inputSequenceTokens, "inputSequence");
		this.outputSequenceTokens = ranged(f.outputSequenceTokens, "outputSequence");
		this.cachedTokens = ranged(f.cachedTokens, "inputSequence");
		this.outputTokens = openCounterVec(r, f.outputTokensTotal);
		this.imageTokens = openHistogramVec(r, f.imageTokensPerRequest);
		this.images = openHistogramVec(r, f.imagesPerRequest);
		this.audio = openHistogramVec(r, f.audioPerRequest);
		this.videos = openHistogramVec(r, f.videosPerRequest);
		this.failures = openCounterVec(r, f.failuresTotal);
		this.cancellations = openCounterVec(r, f.modelCancellationTotal);
		this.rejections = openCounterVec(r, f.modelRejectionTotal);
		this.migrations = openCounterVec(r, f.modelMigrationTotal);
		this.migrationDuration = openHistogramVec(r, f.modelMigrationDurationSeconds);
		this.modelReady = openGaugeVec(r, f.modelReady);
		const card = (family: typeof f.modelContextLength, read: (set: WorkerSet) => number | null | undefined) => ({
			gauge: openGaugeVec(r, family),
			read,
		});
		this.cardGauges = [
			card(f.modelContextLength, (set) => set.contextWindow),
			card(f.modelKvCacheBlockSize, (set) => set.card.kv_cache_block_size),
			card(f.modelMaxNumBatchedTokens, (set) => set.card.runtime_config?.max_num_batched_tokens),
			card(f.modelMaxNumSeqs, (set) => set.card.runtime_config?.max_num_seqs),
			// The frontend's own limit, whatever the card says.
			card(f.modelMigrationLimit, () => migrationLimit),
			card(f.modelTotalKvBlocks, (set) => set.card.runtime_config?.total_kv_blocks),
		];
		this.workerTimeToFirstToken = openGaugeVec(r, f.workerLastTimeToFirstTokenSeconds);
		this.workerInterTokenLatency = openGaugeVec(r, f.workerLastInterTokenLatencySeconds);
		this.workerInputTokens = openGaugeVec(r, f.workerLastInputSequenceTokens);
		this.tokenizerLatencyMs = openHistogramVec(r, f.tokenizerLatencyMs);
		this.tokensEncoded = openCounterVec(r, f.tokenizerCacheUncachedTokensTotal);
		this.tokensFromCache = openCounterVec(r, f.tokenizerCacheCachedTokensTotal);
		this.detokenizeTokens = openCounter(fixed, f.detokenizeTokenCount);
		this.detokenizeMicros = openCounter(fixed, f.detokenizeTotalUs);
		this.stageRequests = openGaugeVec(fixed, f.stageRequests);
		this.stageDuration = openHistogramVec(fixed, f.stageDurationSeconds);
		this.templateSeconds = openHistogram(fixed, f.templateSeconds);
		this.tokenizeSeconds = openHistogram(fixed, f.tokenizeSeconds);
		// There is no cache of encoded prompts here: each one is a miss, and none is ever a hit.
		openCounter(fixed, f.tokenizerCacheHitsTotal);
		this.tokenizerCacheMisses = openCounter(fixed, f.tokenizerCacheMissesTotal);
		this.endWatch = watchEventLoop(fixed);
	}

	/** The series of a model, whether it is known or not. */
	seriesOf(model: string): ModelSeries {
		let series = this.models.get(model);
		if (series === undefined) {
			series = new ModelSeries(this, model);
			this.models.set(model, series);
		}
		return series;
	}

	/** Counts the lost workers of one request. */
	migrationObserver(model: string): MigrationObserver {
		return {
			onLost: (type) => this.migrations.withLabelValues(type, model).inc(),
			onOutcome: (type, outcome, seconds) =>
				this.migrationDuration.withLabelValues(type, model, outcome).observe(seconds),
		};
	}

	/** The page: these families, and those of the runtime. */
	async scrape(runtime: MetricsRegistry): Promise<string> {
		const page = await scrapeTogether([this.registry, runtime], METRIC_PREFIXES.component);
		for (const model of this.departed) this.drop(model);
		return page;
	}

	onSet(set: WorkerSet): void {
		if (!set.answers) return;
		for (const name of set.publicNames) {
			this.departed.delete(name);
			const series = this.seriesOf(name);
			series.announce(set.modelTypes, series.nim ?? this.nim?.seriesOf(name, () => this.nimSource(series)));
			for (const { gauge, read } of this.cardGauges) {
				const value = read(set);
				if (typeof value === "number") gauge.withLabelValues(name).set(value);
			}
		}
	}

	onReadiness(model: string, ready: boolean): void {
		this.modelReady.withLabelValues(model).set(ready ? 1 : 0);
	}

	/** Whether it is ready is no longer a question. What was counted is shown once more. */
	onGone(model: string): void {
		this.modelReady.remove(model);
		if (!this.models.has(model)) return;
		this.departed.add(model);
		if (this.departed.size <= MOST_DEPARTED) return;
		for (const oldest of this.departed) if (this.drop(oldest)) return;
	}

	/** Drops what was last seen of a worker that is gone. */
	forgetWorker(workerId: bigint): void {
		for (const family of [this.workerTimeToFirstToken, this.workerInterTokenLatency, this.workerInputTokens]) {
			family.removeWhere(LABELS.workerId, workerId.toString());
		}
	}

	close(): void {
		this.endWatch();
	}

	private nimSource(series: ModelSeries): NimSource {
		return { running: series.running, waiting: series.queuedRequests, ...this.workersOf(series.model) };
	}

	/** Drops the series of a model that is gone, unless a request of it is still under way. */
	private drop(model: string): boolean {
		if (this.models.get(model)?.busy) return false;
		this.departed.delete(model);
		this.models.delete(model);
		this.nim?.drop(model);
		for (const family of [
			this.requestsStarted,
			this.requests,
			this.inflight,
			this.active,
			this.queued,
			this.timeToFirstToken,
			this.interTokenLatency,
			this.requestDuration,
			this.inputTokens,
			this.outputSequenceTokens,
			this.outputTokens,
			this.cachedTokens,
			this.imageTokens,
			this.images,
			this.audio,
			this.videos,
			this.cancellations,
			this.rejections,
			this.tokensEncoded,
			this.tokensFromCache,
			this.migrations,
			this.migrationDuration,
			...this.cardGauges.map(({ gauge }) => gauge),
		]) {
			family.removeWhere(LABELS.model, model);
		}
		return true;
	}
}
