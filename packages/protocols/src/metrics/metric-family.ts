// SPDX-License-Identifier: Apache-2.0

/** A metric family: everything that a page of metrics says about it but the values. */
export interface MetricFamily {
	/** Without the prefix of its group. */
	readonly name: string;
	readonly type: "counter" | "gauge" | "histogram";
	readonly help: string;
	readonly labels: readonly string[];
	/** Upper bounds of a histogram without the last, infinite one. */
	readonly buckets?: readonly number[];
}

export interface CounterFamily extends MetricFamily {
	readonly type: "counter";
}

export interface GaugeFamily extends MetricFamily {
	readonly type: "gauge";
}

export interface HistogramFamily extends MetricFamily {
	readonly type: "histogram";
	readonly buckets: readonly number[];
}

export const counter = (name: string, help: string, labels: readonly string[]): CounterFamily => ({
	name,
	type: "counter",
	help,
	labels,
});

export const gauge = (name: string, help: string, labels: readonly string[]): GaugeFamily => ({
	name,
	type: "gauge",
	help,
	labels,
});

export const histogram = (
	name: string,
	help: string,
	labels: readonly string[],
	buckets: readonly number[],
): HistogramFamily => ({ name, type: "histogram", help, labels, buckets });
