// SPDX-License-Identifier: Apache-2.0
// Pushes the metrics of the process over OTLP at an interval, under the names that they have when they are scraped.
import { type HrTime, ValueType } from "@opentelemetry/api";
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-grpc";
import { type Resource, resourceFromAttributes } from "@opentelemetry/resources";
import {
	AggregationTemporality,
	type DataPoint,
	DataPointType,
	type Histogram,
	type MetricData,
	type ResourceMetrics,
} from "@opentelemetry/sdk-metrics";
import type { Logger } from "../logging.js";
import type { FamilySnapshot } from "../metric-families.js";
import type { HistogramValue, SeriesLabels } from "../metric-series.js";
import type { MetricsRegistry } from "../metrics.js";
import { wallClockMs } from "../wall-clock.js";
import { hrTime, ReportedExporter } from "./otlp-export.js";
import type { MetricsExportConfig } from "./telemetry-settings.js";

/** As Dynamo names it. */
const SCOPE = { name: "dynamo.runtime.metrics" };

/** Exports a registry until it is shut down. */
export class MetricsExport {
	private readonly exporter: ReportedExporter<ResourceMetrics>;
	private readonly metrics: MetricsRegistry;
	private readonly resource: Resource;
	private readonly startedAt = hrTime(wallClockMs());
	private readonly timer: NodeJS.Timeout;
	/** The last batch is still on its way. */
	private busy = false;

	constructor(config: MetricsExportConfig, serviceName: string, metrics: MetricsRegistry, log: Logger) {
		const { url } = config;
		const exporter = new OTLPMetricExporter({ url });
		this.exporter = new ReportedExporter(
			{
				export: ([batch], done) => exporter.export(batch as ResourceMetrics, done),
				shutdown: () => exporter.shutdown(),
			},
			"metrics",
			url,
			log,
		);
		this.metrics = metrics;
		this.resource = resourceFromAttributes({ ...config.resource, "service.name": serviceName });
		this.timer = setInterval(() => this.push().catch(() => {}), config.intervalMs);
		this.timer.unref();
	}

	/** Sends the last values and closes. */
	async shutdown(): Promise<void> {
		clearInterval(this.timer);
		await this.push();
		await this.exporter.shutdown();
	}

	private async push(): Promise<void> {
		if (this.busy) return;
		this.busy = true;
		try {
			const families = await this.metrics.collect();
			const now = hrTime(wallClockMs());
			const metrics = families.map((family) => metricData(family, this.startedAt, now));
			const batch = { resource: this.resource, scopeMetrics: [{ scope: SCOPE, metrics }] };
			await new Promise<void>((resolve) => this.exporter.export([batch], () => resolve()));
		} finally {
			this.busy = false;
		}
	}
}

/** One family as the exporter takes it. */
export function metricData(family: FamilySnapshot, startTime: HrTime, endTime: HrTime): MetricData {
	const { name, help, type, series } = family;
	const common = {
		descriptor: { name, description: help, unit: "", valueType: ValueType.DOUBLE },
		aggregationTemporality: AggregationTemporality.CUMULATIVE,
	};
	const point = <T>(labels: SeriesLabels, value: T): DataPoint<T> => ({
		startTime,
		endTime,
		attributes: { ...labels },
		value,
	});
	if (type === "histogram") {
		const dataPoints = series.map(({ labels, value }) => point(labels, histogramOf(value as HistogramValue)));
		return { ...common, dataPointType: DataPointType.HISTOGRAM, dataPoints };
	}
	const dataPoints = series.map(({ labels, value }) => point(labels, value as number));
	if (type === "gauge") return { ...common, dataPointType: DataPointType.GAUGE, dataPoints };
	return { ...common, dataPointType: DataPointType.SUM, dataPoints, isMonotonic: true };
}

function histogramOf({ bounds, counts, sum }: HistogramValue): Histogram {
	const count = counts.reduce((total, some) => total + some, 0);
	return { buckets: { boundaries: [...bounds], counts: [...counts] }, sum, count };
}
