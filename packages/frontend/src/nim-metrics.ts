// SPDX-License-Identifier: Apache-2.0
// The names of NVIDIA NIM's metrics, for agents that were set up for it. Only frontends have them: what several
// frontends show adds up to the whole.
import { METRICS, MORE_LABELS } from "@dynamo-ts/protocols/internal";
import {
	type Counter,
	type Gauge,
	type Histogram,
	type MetricsRegistry,
	type MetricVec,
	openCounterVec,
	openGauge,
	openGaugeVec,
	openHistogramVec,
	readGarbageCollections,
} from "@dynamo-ts/runtime/internal";

/** Names for agents. */
export interface NimOptions {
	/** Also those about Python, filled with what this process has instead. */
	readonly python: boolean;
}

/** What a model's gauges are read from. */
export interface NimSource {
	readonly running: number;
	readonly waiting: number;
	/** Most requests that its workers run at once. */
	readonly maxRequests: number;
	/** Share of the KV cache in use of each worker, 0 to 1. */
	readonly cacheUsages: readonly number[];
}

const FAMILIES = METRICS.nim;
/** Words of NIM's engine for how a request ended. */
const FINISH_REASONS = ["stop", "length", "abort", "error"] as const;
type FinishReason = (typeof FINISH_REASONS)[number];

export class NimMetrics {
	readonly timeToFirstToken: MetricVec<Histogram>;
	readonly timePerOutputToken: MetricVec<Histogram>;
	readonly e2eLatency: MetricVec<Histogram>;
	readonly promptTokens: MetricVec<Counter>;
	readonly generationTokens: MetricVec<Counter>;
	readonly promptLength: MetricVec<Histogram>;
	readonly generationLength: MetricVec<Histogram>;
	readonly success: MetricVec<Counter>;
	readonly failure: MetricVec<Counter>;
	readonly finish: MetricVec<Counter>;
	private readonly running: MetricVec<Gauge>;
	private readonly waiting: MetricVec<Gauge>;
	private readonly max: MetricVec<Gauge>;
	private readonly cacheUsage: MetricVec<Gauge>;
	private readonly sources = new Map<string, () => NimSource>();

	/** @param metrics a registry without prefix and labels. */
	constructor(metrics: MetricsRegistry, options: NimOptions) {
		this.timeToFirstToken = openHistogramVec(metrics, FAMILIES.timeToFirstTokenSeconds);
		this.timePerOutputToken = openHistogramVec(metrics, FAMILIES.timePerOutputTokenSeconds);
		this.e2eLatency = openHistogramVec(metrics, FAMILIES.e2eRequestLatencySeconds);
		this.promptTokens = openCounterVec(metrics, FAMILIES.promptTokensTotal);
		this.generationTokens = openCounterVec(metrics, FAMILIES.generationTokensTotal);
		this.promptLength = openHistogramVec(metrics, FAMILIES.requestPromptTokens);
		this.generationLength = openHistogramVec(metrics, FAMILIES.requestGenerationTokens);
		this.success = openCounterVec(metrics, FAMILIES.requestSuccessTotal);
		this.failure = openCounterVec(metrics, FAMILIES.requestFailureTotal);
		this.finish = openCounterVec(metrics, FAMILIES.requestFinishTotal);
		this.running = openGaugeVec(metrics, FAMILIES.numRequestsRunning);
		this.waiting = openGaugeVec(metrics, FAMILIES.numRequestsWaiting);
		this.max = openGaugeVec(metrics, FAMILIES.numRequestMax);
		this.cacheUsage = openGaugeVec(metrics, FAMILIES.gpuCacheUsagePerc);
		metrics.addUpdateCallback(() => this.readSources());
		if (options.python) addPythonFamilies(metrics);
	}

	/** Makes the series of a model, and keeps its gauges up to date. */
	seriesOf(model: string, source: () => NimSource): NimSeries {
		this.sources.set(model, source);
		return new NimSeries(this, model);
	}

	drop(model: string): void {
		this.sources.delete(model);
		for (const family of [
			this.timeToFirstToken,
			this.timePerOutputToken,
			this.e2eLatency,
			this.promptTokens,
			this.generationTokens,
			this.promptLength,
			this.generationLength,
			this.success,
			this.failure,
			this.finish,
			this.running,
			this.waiting,
			this.max,
			this.cacheUsage,
		]) {
			family.removeWhere(MORE_LABELS.modelName, model);
		}
	}

	private readSources(): void {
		for (const [model, read] of this.sources) {
			const { running, waiting, maxRequests, cacheUsages } = read();
			this.running.withLabelValues(model).set(running);
			this.waiting.withLabelValues(model).set(waiting);
			this.max.withLabelValues(model).set(maxRequests);
			const sum = cacheUsages.reduce((total, usage) => total + usage, 0);
			this.cacheUsage.withLabelValues(model).set(cacheUsages.length === 0 ? 0 : sum / cacheUsages.length);
		}
	}
}

/** The series of one model. */
export class NimSeries {
	readonly timeToFirstToken: Histogram;
	readonly timePerOutputToken: Histogram;
	readonly promptTokens: Counter;
	readonly generationTokens: Counter;
	private readonly e2eLatency: Histogram;
	private readonly promptLength: Histogram;
	private readonly generationLength: Histogram;
	private readonly success: Counter;
	private readonly failure: Counter;
	private readonly finish: Readonly<Record<FinishReason, Counter>>;

	constructor(metrics: NimMetrics, model: string) {
		this.timeToFirstToken = metrics.timeToFirstToken.withLabelValues(model);
		this.timePerOutputToken = metrics.timePerOutputToken.withLabelValues(model);
		this.promptTokens = metrics.promptTokens.withLabelValues(model);
		this.generationTokens = metrics.generationTokens.withLabelValues(model);
		this.e2eLatency = metrics.e2eLatency.withLabelValues(model);
		this.promptLength = metrics.promptLength.withLabelValues(model);
		this.generationLength = metrics.generationLength.withLabelValues(model);
		this.success = metrics.success.withLabelValues(model);
		this.failure = metrics.failure.withLabelValues(model);
		this.finish = {
			stop: metrics.finish.withLabelValues("stop", model),
			length: metrics.finish.withLabelValues("length", model),
			abort: metrics.finish.withLabelValues("abort", model),
			error: metrics.finish.withLabelValues("error", model),
		};
	}

	/**
	 * A request ended that a worker was asked for.
	 * @param reason as a client reads it; undefined where the request failed.
	 */
	ended(
		outcome: "success" | "cancelled" | "failed",
		reason: string | undefined,
		seconds: number,
		inputTokens: number,
		outputTokens: number,
	): void {
		const finished = outcome === "success" ? (reason === "length" ? "length" : "stop") : null;
		this.finish[finished ?? (outcome === "cancelled" ? "abort" : "error")].inc();
		(finished === null ? this.failure : this.success).inc();
		if (finished === null) return;
		this.e2eLatency.observe(seconds);
		this.promptLength.observe(inputTokens);
		this.generationLength.observe(outputTokens);
	}
}

/** Generations of Python's collector, filled with V8's: new objects, steps of marking, everything. */
const GENERATIONS = ["0", "1", "2"] as const;

function addPythonFamilies(metrics: MetricsRegistry): void {
	const [major = "", minor = "", patchlevel = ""] = process.versions.node.split(".");
	openGauge(metrics, FAMILIES.pythonInfo, {
		[MORE_LABELS.implementation]: "Node",
		[MORE_LABELS.major]: major,
		[MORE_LABELS.minor]: minor,
		[MORE_LABELS.patchlevel]: patchlevel,
		[MORE_LABELS.version]: process.versions.node,
	}).set(1);
	const collections = openCounterVec(metrics, FAMILIES.pythonGcCollectionsTotal);
	const collected = openCounterVec(metrics, FAMILIES.pythonGcObjectsCollectedTotal);
	const uncollectable = openCounterVec(metrics, FAMILIES.pythonGcObjectsUncollectableTotal);
	const seen = [0, 0, 0];
	for (const generation of GENERATIONS) {
		collected.withLabelValues(generation);
		uncollectable.withLabelValues(generation);
	}
	metrics.addUpdateCallback(async () => {
		const { minor: young, incremental, major: full } = await readGarbageCollections();
		for (const [i, count] of [young, incremental, full].entries()) {
			collections.withLabelValues(GENERATIONS[i] as string).inc(Math.max(0, count - (seen[i] as number)));
			seen[i] = count;
		}
	});
}
