// SPDX-License-Identifier: Apache-2.0
import { DynamoError, LABELS, METRIC_PREFIXES } from "@dynamo-ts/protocols/internal";
import type { FamilySnapshot, MetricType } from "./metric-families.js";
import { type Eventually, MetricsPage, renderPages } from "./metrics-page.js";
import { readProcessMetrics } from "./process-metrics.js";

export interface Counter {
	inc(by?: number): void;
}
export interface Gauge {
	set(value: number): void;
	inc(by?: number): void;
	dec(by?: number): void;
}
export interface Histogram {
	observe(value: number): void;
}
/** A family with labels. */
export interface MetricVec<M> {
	/** The series with these label values, in the order of the label names; made at 0 if new. Keep it on hot paths. */
	withLabelValues(...values: string[]): M;
	/** Drops one series. What still holds it counts on, unseen. */
	remove(...values: string[]): void;
	/** Drops the series that have this value of a label. */
	removeWhere(label: string, value: string): void;
	/** Drops all series. */
	reset(): void;
}

/**
 * Creates and exposes metrics for one level of the hierarchy (runtime, namespace, component, endpoint). A family's
 * name is the level's prefix (`dynamo_component_`) and the sanitised name; its series carry the labels of the level.
 * @throws DynamoError `InvalidArgument` for bad names, bad labels or a family that exists with another shape,
 * `Conflict` for a metric that exists with the same labels.
 */
export interface MetricsRegistry {
	/** Labels that every series made here carries. */
	readonly labels: Readonly<Record<string, string>>;
	createCounter(name: string, help: string, constLabels?: Readonly<Record<string, string>>): Counter;
	createGauge(name: string, help: string, constLabels?: Readonly<Record<string, string>>): Gauge;
	/** `buckets`: upper bounds, rising, without the infinite one; absent: 0.005 to 10. */
	createHistogram(
		name: string,
		help: string,
		constLabels?: Readonly<Record<string, string>>,
		buckets?: readonly number[],
	): Histogram;
	createCounterVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Readonly<Record<string, string>>,
	): MetricVec<Counter>;
	createGaugeVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Readonly<Record<string, string>>,
	): MetricVec<Gauge>;
	createHistogramVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Readonly<Record<string, string>>,
		buckets?: readonly number[],
	): MetricVec<Histogram>;
	/**
	 * Runs before each scrape, for what is cheaper to look up than to count. An exception is reported and the scrape goes
	 * on; so it does when a promise is not kept within a second.
	 */
	addUpdateCallback(callback: () => Eventually<void>): void;
	/**
	 * Its text is appended to the page as it is. After an exception, or when it is late by more than a second, that is
	 * reported and the page comes without the part.
	 */
	addExpositionCallback(callback: () => Eventually<string>): void;
	/**
	 * The same with families as data, which {@link collect} gives, too. A family whose name is on the page already is left
	 * out.
	 */
	addTypedCallback(callback: () => Eventually<readonly FamilySnapshot[]>): void;
	/** Puts what prom-client knows of this process (`process_*`, `nodejs_*`) on the page. Once per page. */
	addProcessMetrics(): void;
	/** A registry whose metrics appear on the same page, with other labels or another prefix. */
	level(options: MetricsLevelOptions): MetricsRegistry;
	/** The page of the whole hierarchy in Prometheus' text format. */
	scrape(): Promise<string>;
	/** The families of the whole hierarchy as data, as an exporter of another format needs them. */
	collect(): Promise<readonly FamilySnapshot[]>;
}

export interface MetricsLevelOptions {
	/** Joined to names with `_`; `""`: names are taken as they are. Absent: that of the parent. */
	readonly prefix?: string;
	/** Added to those of the parent; `null`: none at all. */
	readonly labels?: Readonly<Record<string, string>> | null;
}

/** The content type of {@link MetricsRegistry.scrape}, as Dynamo sends it. */
export const METRICS_CONTENT_TYPE = "text/plain; charset=utf-8";

/**
 * Makes the root of a hierarchy with a page of its own.
 * @param onCallbackError told about exceptions of callbacks.
 */
export function createMetricsRegistry(
	options: MetricsLevelOptions = {},
	onCallbackError: (error: unknown) => void = () => {},
): MetricsRegistry {
	const page = new MetricsPage(onCallbackError);
	return new Level(page, options.prefix ?? METRIC_PREFIXES.component, options.labels ?? {});
}

/**
 * One page of several registries, families by name.
 * @param last families whose names start so come behind all others.
 */
export function scrapeTogether(registries: readonly MetricsRegistry[], last?: string): Promise<string> {
	const pages = registries.map((registry) => (registry as Level).page);
	return renderPages([...new Set(pages)], last);
}

const AUTO_LABELS: readonly string[] = [LABELS.namespace, LABELS.component, LABELS.endpoint];

class Level implements MetricsRegistry {
	readonly labels: Readonly<Record<string, string>>;
	readonly page: MetricsPage;
	readonly #prefix: string;

	constructor(page: MetricsPage, prefix: string, labels: Readonly<Record<string, string>>) {
		this.page = page;
		this.#prefix = prefix;
		this.labels = Object.freeze({ ...labels });
	}

	createCounter(name: string, help: string, constLabels?: Readonly<Record<string, string>>): Counter {
		return this.#vec<Counter>("counter", name, help, [], constLabels).withLabelValues();
	}

	createGauge(name: string, help: string, constLabels?: Readonly<Record<string, string>>): Gauge {
		return this.#vec<Gauge>("gauge", name, help, [], constLabels).withLabelValues();
	}

	createHistogram(
		name: string,
		help: string,
		constLabels?: Readonly<Record<string, string>>,
		buckets?: readonly number[],
	): Histogram {
		const vec = this.#vec<Histogram>("histogram", name, help, [], constLabels, buckets);
		return vec.withLabelValues();
	}

	createCounterVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Readonly<Record<string, string>>,
	): MetricVec<Counter> {
		requireLabelNames(name, labelNames);
		return this.#vec<Counter>("counter", name, help, labelNames, constLabels);
	}

	createGaugeVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Readonly<Record<string, string>>,
	): MetricVec<Gauge> {
		requireLabelNames(name, labelNames);
		return this.#vec<Gauge>("gauge", name, help, labelNames, constLabels);
	}

	createHistogramVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Readonly<Record<string, string>>,
		buckets?: readonly number[],
	): MetricVec<Histogram> {
		requireLabelNames(name, labelNames);
		return this.#vec<Histogram>("histogram", name, help, labelNames, constLabels, buckets);
	}

	addUpdateCallback(callback: () => Eventually<void>): void {
		this.page.addUpdate(callback);
	}

	addExpositionCallback(callback: () => Eventually<string>): void {
		this.page.addExposition(callback);
	}

	addTypedCallback(callback: () => Eventually<readonly FamilySnapshot[]>): void {
		this.page.addTyped(callback);
	}

	addProcessMetrics(): void {
		this.page.addSource(readProcessMetrics);
	}

	level(options: MetricsLevelOptions): MetricsRegistry {
		const labels = options.labels === null ? {} : { ...this.labels, ...sanitizeValues(options.labels ?? {}) };
		return new Level(this.page, options.prefix ?? this.#prefix, labels);
	}

	scrape(): Promise<string> {
		return renderPages([this.page]);
	}

	collect(): Promise<readonly FamilySnapshot[]> {
		return this.page.collect();
	}

	#vec<M>(
		type: MetricType,
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels: Readonly<Record<string, string>> = {},
		buckets?: readonly number[],
	): MetricVec<M> {
		const clean = sanitizeMetricName(name);
		const fullName = this.#prefix === "" ? clean : `${this.#prefix}_${clean}`;
		const fixed: Record<string, string> = { ...this.labels };
		for (const [key, value] of Object.entries(constLabels)) {
			const label = sanitizeLabel(key);
			if (AUTO_LABELS.includes(label)) {
				throw invalid(`metric ${fullName}: label ${label} is set by the runtime and cannot be given`);
			}
			if (Object.hasOwn(fixed, label)) throw invalid(`metric ${fullName}: label ${label} is given twice`);
			fixed[label] = value;
		}
		const variable = labelNames.map(sanitizeLabel);
		for (const [index, label] of variable.entries()) {
			if (Object.hasOwn(fixed, label) || variable.indexOf(label) !== index) {
				throw invalid(`metric ${fullName}: label ${label} is given twice`);
			}
		}
		return this.page.families.open<M>({ type, name: fullName, help, fixed, variable, buckets });
	}
}

function requireLabelNames(name: string, labelNames: readonly string[]): void {
	if (labelNames.length === 0) throw invalid(`metric ${name}: a vector needs at least one label name`);
}

function sanitizeValues(labels: Readonly<Record<string, string>>): Record<string, string> {
	return Object.fromEntries(Object.entries(labels).map(([key, value]) => [key, value.replace(/[^A-Za-z0-9_]/g, "_")]));
}

/**
 * Characters other than letters, digits, `_` and `:` become `_`; a name that would start with something else than a
 * letter or `_` gets a `_` in front.
 * @throws DynamoError `InvalidArgument` when nothing but `_` is left.
 */
export function sanitizeMetricName(name: string): string {
	let clean = name.replace(/[^A-Za-z0-9_:]/g, "_");
	if (/^[^A-Za-z_]/.test(clean)) clean = `_${clean}`;
	if (/^_*$/.test(clean)) throw invalid(`"${name}" is no metric name: it needs a letter or a digit`);
	return clean;
}

/**
 * The rule of {@link sanitizeMetricName} without `:`; a leading `__`, which Prometheus keeps for itself, is removed.
 * @throws DynamoError `InvalidArgument` when nothing but `_` is left.
 */
export function sanitizeLabel(name: string): string {
	let clean = name.replace(/[^A-Za-z0-9_]/g, "_");
	while (clean.startsWith("__")) clean = clean.slice(2);
	if (/^[^A-Za-z_]/.test(clean)) clean = `_${clean}`;
	if (/^_*$/.test(clean)) throw invalid(`"${name}" is no label name: it needs a letter or a digit`);
	return clean;
}

function invalid(text: string): DynamoError {
	return new DynamoError("InvalidArgument", text);
}
