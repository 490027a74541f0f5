// SPDX-License-Identifier: Apache-2.0
// Opens families of the catalogue. A label that neither the registry nor the caller fixes is one whose values are given
// per series, in the order in which the catalogue names them.
import type { CounterFamily, GaugeFamily, HistogramFamily, MetricFamily } from "@dynamo-ts/protocols/internal";
import type { Counter, Gauge, Histogram, MetricsRegistry, MetricVec } from "./metrics.js";

type ConstLabels = Readonly<Record<string, string>>;

function freeLabels(metrics: MetricsRegistry, family: MetricFamily, constLabels: ConstLabels): string[] {
	return family.labels.filter((label) => !Object.hasOwn(metrics.labels, label) && !Object.hasOwn(constLabels, label));
}

/** A programming error, so no DynamoError. */
function refuseFreeLabels(metrics: MetricsRegistry, family: MetricFamily, constLabels: ConstLabels): void {
	const free = freeLabels(metrics, family, constLabels);
	if (free.length > 0) throw new TypeError(`metric ${family.name} needs values for [${free.join(", ")}]`);
}

/** @throws TypeError when a label of the family has no value. */
export function openCounter(metrics: MetricsRegistry, family: CounterFamily, constLabels: ConstLabels = {}): Counter {
	refuseFreeLabels(metrics, family, constLabels);
	return metrics.createCounter(family.name, family.help, constLabels);
}

/** @throws TypeError when a label of the family has no value. */
export function openGauge(metrics: MetricsRegistry, family: GaugeFamily, constLabels: ConstLabels = {}): Gauge {
	refuseFreeLabels(metrics, family, constLabels);
	return metrics.createGauge(family.name, family.help, constLabels);
}

/**
 * @param buckets in place of the family's.
 * @throws TypeError when a label of the family has no value.
 */
export function openHistogram(
	metrics: MetricsRegistry,
	family: HistogramFamily,
	constLabels: ConstLabels = {},
	buckets: readonly number[] = family.buckets,
): Histogram {
	refuseFreeLabels(metrics, family, constLabels);
	return metrics.createHistogram(family.name, family.help, constLabels, buckets);
}

export function openCounterVec(
	metrics: MetricsRegistry,
	family: CounterFamily,
	constLabels: ConstLabels = {},
): MetricVec<Counter> {
	return metrics.createCounterVec(family.name, family.help, freeLabels(metrics, family, constLabels), constLabels);
}

export function openGaugeVec(
	metrics: MetricsRegistry,
	family: GaugeFamily,
	constLabels: ConstLabels = {},
): MetricVec<Gauge> {
	return metrics.createGaugeVec(family.name, family.help, freeLabels(metrics, family, constLabels), constLabels);
}

/** @param buckets in place of the family's. */
export function openHistogramVec(
	metrics: MetricsRegistry,
	family: HistogramFamily,
	constLabels: ConstLabels = {},
	buckets: readonly number[] = family.buckets,
): MetricVec<Histogram> {
	const free = freeLabels(metrics, family, constLabels);
	return metrics.createHistogramVec(family.name, family.help, free, constLabels, buckets);
}
