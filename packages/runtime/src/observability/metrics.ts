// SPDX-License-Identifier: Apache-2.0

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
	/** The series with these label values, in the order of the label names; made at 0 if new. */
	withLabelValues(...values: string[]): M;
	/** Drops one series. */
	remove(...values: string[]): void;
	/** Drops all series. */
	reset(): void;
}

/**
 * Creates and exposes metrics for one level of the hierarchy (runtime, namespace, component, endpoint). Names get
 * the prefix `dynamo_component_`, series the labels of the level. Creating a family twice with the same labels
 * returns the first.
 * @throws DynamoError `InvalidArgument` for bad names, bad labels or a family that exists with another shape.
 */
export interface MetricsRegistry {
	/** Labels that every series made here carries. */
	readonly labels: Readonly<Record<string, string>>;
	createCounter(name: string, help: string, constLabels?: Record<string, string>): Counter;
	createGauge(name: string, help: string, constLabels?: Record<string, string>): Gauge;
	createHistogram(
		name: string,
		help: string,
		constLabels?: Record<string, string>,
		buckets?: readonly number[],
	): Histogram;
	createCounterVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Record<string, string>,
	): MetricVec<Counter>;
	createGaugeVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Record<string, string>,
	): MetricVec<Gauge>;
	createHistogramVec(
		name: string,
		help: string,
		labelNames: readonly string[],
		constLabels?: Record<string, string>,
		buckets?: readonly number[],
	): MetricVec<Histogram>;
	/** Runs before each scrape. An exception is logged and the scrape goes on. */
	addUpdateCallback(callback: () => void): void;
	/** Its text is appended to the page as it is. */
	addExpositionCallback(callback: () => string): void;
	/** The whole page (of the root of the hierarchy) in Prometheus' text format. */
	scrape(): Promise<string>;
}
