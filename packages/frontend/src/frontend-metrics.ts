// SPDX-License-Identifier: Apache-2.0
import {
	computedBuckets,
	FRONTEND_BUCKETS,
	FRONTEND_FIXED_METRICS,
	FRONTEND_LABELS,
	FRONTEND_METRICS,
	LABELS,
	METRIC_PREFIXES,
	MORE_LABELS,
} from "@dynamo-ts/protocols/internal";
import {
	type Counter,
	createMetricsRegistry,
	type Gauge,
	type Histogram,
	type MetricsRegistry,
	type MetricVec,
	sanitizeMetricName,
} from "@dynamo-ts/runtime/internal";
import type { BucketRanges } from "./config.js";
import type { MigrationObserver } from "./migration.js";
import type { ModelObserver } from "./model-manager.js";
import type { WorkerSet } from "./worker-set.js";

/** How often the event loop's delay is sampled, milliseconds; a later tick by more than the stall limit is a stall. */
const LOOP_SAMPLE_MS = 10;
const LOOP_STALL_MS = 5;

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

/** Series of one model that are used per token; looked up once per request. */
export interface ModelSeries {
	readonly timeToFirstToken: Histogram;
	readonly interTokenLatency: Histogram;
	readonly outputTokens: Counter;
}

/** The frontend's metric families, on a page of their own; names and buckets are Dynamo's. */
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
	readonly workerTimeToFirstToken: MetricVec<Gauge>;
	readonly workerInterTokenLatency: MetricVec<Gauge>;
	readonly workerInputTokens: MetricVec<Gauge>;
	private readonly migrations: MetricVec<Counter>;
	private readonly migrationDuration: MetricVec<Histogram>;
	private readonly modelReady: MetricVec<Gauge>;
	private readonly cardGauges: {
		readonly gauge: MetricVec<Gauge>;
		readonly read: (set: WorkerSet) => number | null | undefined;
	}[];
	private readonly loopTimer: NodeJS.Timeout;

	/**
	 * @param prefix replaces `dynamo_frontend` in the names of request and model families.
	 * @param migrationLimit shown for each model.
	 */
	constructor(prefix: string, buckets: BucketRanges, migrationLimit = 0) {
		this.registry = createMetricsRegistry({ prefix });
		const r = this.registry;
		const fixed = r.level({ prefix: METRIC_PREFIXES.frontend });
		const m = FRONTEND_METRICS;
		const f = FRONTEND_FIXED_METRICS;
		const l = FRONTEND_LABELS;
		const model = [LABELS.model];
		const request = [l.apiEndpoint, LABELS.model, l.requestType];
		const worker = [l.dpRank, LABELS.workerId, l.workerType];
		this.requestsStarted = r.createCounterVec(
			m.requestsStartedTotal,
			"Total number of LLM requests accepted by the frontend handler",
			request,
		);
		this.requests = r.createCounterVec(m.requestsTotal, "Total number of LLM requests processed", [
			...request,
			l.status,
			LABELS.errorType,
		]);
		this.inflight = r.createGaugeVec(m.inflightRequests, "Number of inflight requests", model);
		this.active = r.createGaugeVec(
			m.activeRequests,
			"Number of requests currently being handled by the frontend, from HTTP handler entry to response completion",
			model,
		);
		this.queued = r.createGaugeVec(m.queuedRequests, "Number of requests in HTTP processing queue", model);
		this.disconnectedClients = r.createGauge(m.disconnectedClients, "Number of disconnected clients");
		const histogram = (name: string, help: string, range: keyof BucketRanges): MetricVec<Histogram> =>
			r.createHistogramVec(name, help, model, {}, computedBuckets(buckets[range]));
		this.timeToFirstToken = histogram(m.timeToFirstTokenSeconds, "Time to first token in seconds", "timeToFirstToken");
		this.interTokenLatency = histogram(
			m.interTokenLatencySeconds,
			"Inter-token latency in seconds",
			"interTokenLatency",
		);
		this.requestDuration = histogram(m.requestDurationSeconds, "Duration of LLM requests", "requestDuration");
		this.inputTokens = histogram(m.inputSequenceTokens, "Input sequence length in tokens", "inputSequence");
		this.outputSequenceTokens = histogram(m.outputSequenceTokens, "Output sequence length in tokens", "outputSequence");
		this.cachedTokens = histogram(
			m.cachedTokens,
			"Number of cached tokens (prefix cache hits) per request",
			"inputSequence",
		);
		this.outputTokens = r.createCounterVec(
			m.outputTokensTotal,
			"Total number of output tokens generated (updates in real-time)",
			model,
		);
		this.failures = r.createCounterVec(m.failuresTotal, "Total number of terminal semantic request failures", [
			l.errorClass,
			l.reason,
		]);
		this.cancellations = r.createCounterVec(m.modelCancellationTotal, "Total number of request cancellations", request);
		this.rejections = r.createCounterVec(
			m.modelRejectionTotal,
			"Total number of requests rejected because of overload",
			[l.apiEndpoint, LABELS.model],
		);
		this.migrations = r.createCounterVec(
			m.modelMigrationTotal,
			"Total number of request migrations due to worker unavailability",
			[MORE_LABELS.migrationType, LABELS.model],
		);
		this.migrationDuration = r.createHistogramVec(
			m.modelMigrationDurationSeconds,
			"Time from detecting a migratable failure until recovery, terminal failure, or cancellation",
			[MORE_LABELS.migrationType, LABELS.model, MORE_LABELS.outcome],
			{},
			FRONTEND_BUCKETS.modelMigrationSeconds,
		);
		this.modelReady = r.createGaugeVec(
			m.modelReady,
			"Whether the frontend can route at least one inference request for the model (1 = ready, 0 = not ready)",
			model,
		);
		const card = (name: string, help: string, read: (set: WorkerSet) => number | null | undefined) => ({
			gauge: r.createGaugeVec(name, help, model),
			read,
		});
		this.cardGauges = [
			card(
				m.modelContextLength,
				"Maximum context length in tokens for a worker serving the model",
				(set) => set.contextWindow,
			),
			card(
				m.modelKvCacheBlockSize,
				"KV cache block size in tokens for a worker serving the model",
				(set) => set.card.kv_cache_block_size,
			),
			card(
				m.modelMaxNumBatchedTokens,
				"Maximum number of batched tokens for a worker serving the model",
				(set) => set.card.runtime_config?.max_num_batched_tokens,
			),
			card(
				m.modelMaxNumSeqs,
				"Maximum number of sequences for a worker serving the model",
				(set) => set.card.runtime_config?.max_num_seqs,
			),
			// The frontend's own limit, whatever the card says.
			card(m.modelMigrationLimit, "Maximum number of request migrations allowed for the model", () => migrationLimit),
			card(
				m.modelTotalKvBlocks,
				"Total KV cache blocks available for a worker serving the model",
				(set) => set.card.runtime_config?.total_kv_blocks,
			),
		];
		this.workerTimeToFirstToken = r.createGaugeVec(
			m.workerLastTimeToFirstTokenSeconds,
			"Last observed time to first token per worker (seconds)",
			worker,
		);
		this.workerInterTokenLatency = r.createGaugeVec(
			m.workerLastInterTokenLatencySeconds,
			"Last observed inter-token latency per worker (seconds)",
			worker,
		);
		this.workerInputTokens = r.createGaugeVec(
			m.workerLastInputSequenceTokens,
			"Last observed input sequence tokens per worker",
			worker,
		);
		this.detokenizeTokens = fixed.createCounter(f.detokenizeTokenCount, "Total tokens detokenized");
		this.detokenizeMicros = fixed.createCounter(f.detokenizeTotalUs, "Cumulative detokenization time (microseconds)");
		this.stageRequests = fixed.createGaugeVec(
			f.stageRequests,
			"Number of requests currently in the given pipeline stage",
			[l.phase, l.stage],
		);
		this.stageDuration = fixed.createHistogramVec(
			f.stageDurationSeconds,
			"Pipeline stage duration (seconds)",
			[l.stage],
			{},
			FRONTEND_BUCKETS.stageDurationSeconds,
		);
		this.templateSeconds = fixed.createHistogram(
			f.templateSeconds,
			"Template application time in preprocessor (seconds)",
			{},
			FRONTEND_BUCKETS.templateSeconds,
		);
		this.tokenizeSeconds = fixed.createHistogram(
			f.tokenizeSeconds,
			"Tokenization time in preprocessor (seconds)",
			{},
			FRONTEND_BUCKETS.tokenizeSeconds,
		);
		this.tokenizerLatencyMs = fixed.createHistogramVec(
			f.tokenizerLatencyMs,
			"Tokenizer latency in milliseconds",
			[l.operation],
			{},
			FRONTEND_BUCKETS.tokenizerLatencyMs,
		);
		this.loopTimer = this.watchEventLoop(fixed);
	}

	/** The series that a request touches per token. */
	seriesOf(model: string): ModelSeries {
		return {
			timeToFirstToken: this.timeToFirstToken.withLabelValues(model),
			interTokenLatency: this.interTokenLatency.withLabelValues(model),
			outputTokens: this.outputTokens.withLabelValues(model),
		};
	}

	/** Counts the lost workers of one request. */
	migrationObserver(model: string): MigrationObserver {
		return {
			onLost: (type) => this.migrations.withLabelValues(type, model).inc(),
			onOutcome: (type, outcome, seconds) =>
				this.migrationDuration.withLabelValues(type, model, outcome).observe(seconds),
		};
	}

	onSet(set: WorkerSet): void {
		if (!set.answers) return;
		for (const name of [set.name, ...(set.card.aliases ?? [])]) {
			for (const { gauge, read } of this.cardGauges) {
				const value = read(set);
				if (typeof value === "number") gauge.withLabelValues(name).set(value);
			}
		}
	}

	onReadiness(model: string, ready: boolean): void {
		this.modelReady.withLabelValues(model).set(ready ? 1 : 0);
	}

	/** The series with the card's numbers stay, as they do in Dynamo; whether it is ready is no longer a question. */
	onGone(model: string): void {
		this.modelReady.remove(model);
	}

	/** Drops what was last seen of a worker that is gone. */
	forgetWorker(workerId: bigint): void {
		for (const family of [this.workerTimeToFirstToken, this.workerInterTokenLatency, this.workerInputTokens]) {
			for (const type of ["decode", "prefill"]) family.remove("none", workerId.toString(), type);
		}
	}

	close(): void {
		clearInterval(this.loopTimer);
	}

	private watchEventLoop(registry: MetricsRegistry): NodeJS.Timeout {
		const delay = registry.createHistogram(
			FRONTEND_FIXED_METRICS.eventLoopDelaySeconds,
			"Event loop delay canary: drift from 10ms sleep (seconds)",
			{},
			FRONTEND_BUCKETS.eventLoopDelaySeconds,
		);
		const stalls = registry.createCounter(
			FRONTEND_FIXED_METRICS.eventLoopStallTotal,
			"Number of event loop stalls (delay > 5ms)",
		);
		let last = performance.now();
		const timer = setInterval(() => {
			const now = performance.now();
			const drift = Math.max(0, now - last - LOOP_SAMPLE_MS);
			last = now;
			delay.observe(drift / 1000);
			if (drift > LOOP_STALL_MS) stalls.inc();
		}, LOOP_SAMPLE_MS);
		return timer.unref();
	}
}
