// SPDX-License-Identifier: Apache-2.0
import {
	COMPONENT_METRICS,
	LABELS,
	METRIC_PREFIXES,
	RUNTIME_BUCKETS,
	WORK_HANDLER_METRICS,
} from "@dynamo-ts/protocols/internal";
import type { Gauge, Histogram, MetricsRegistry } from "../observability/metrics.js";
import { wallClockMs } from "../observability/wall-clock.js";
import { REQUEST_HEADERS } from "./request-headers.js";
import type { EndpointObserver, RequestObserver } from "./request-plane.js";

/** Request handling of the process as a whole; families without labels. */
export interface ProcessWorkMetrics {
	readonly networkTransit: Histogram;
	readonly timeToFirstResponse: Histogram;
	readonly activeTasks: Gauge;
}

/** @param root the runtime's registry. */
export function createProcessWorkMetrics(root: MetricsRegistry): ProcessWorkMetrics {
	const metrics = root.level({ prefix: METRIC_PREFIXES.workHandler, labels: null });
	return {
		networkTransit: metrics.createHistogram(
			WORK_HANDLER_METRICS.networkTransitSeconds,
			"Frontend-to-backend network transit time (cross-process wall-clock, seconds)",
			{},
			RUNTIME_BUCKETS.networkTransitSeconds,
		),
		timeToFirstResponse: metrics.createHistogram(
			WORK_HANDLER_METRICS.timeToFirstResponseSeconds,
			"Backend processing time from handle_payload entry to prologue sent (seconds)",
			{},
			RUNTIME_BUCKETS.timeToFirstResponseSeconds,
		),
		activeTasks: metrics.createGauge(
			WORK_HANDLER_METRICS.poolActiveTasks,
			"Current number of active worker-pool tasks (permits in use)",
		),
	};
}

/**
 * Counts the requests of one endpoint. Bytes are added up in plain numbers and reach the counters at each scrape,
 * because they change with every token.
 *
 * @param metrics the endpoint's registry.
 */
export function createEndpointObserver(metrics: MetricsRegistry, process: ProcessWorkMetrics): EndpointObserver {
	const names = COMPONENT_METRICS;
	const requests = metrics.createCounter(names.requestsTotal, "Total number of requests processed by work handler");
	const requestBytes = metrics.createCounter(
		names.requestBytesTotal,
		"Total number of bytes received in requests by work handler",
	);
	const responseBytes = metrics.createCounter(
		names.responseBytesTotal,
		"Total number of bytes sent in responses by work handler",
	);
	const inflight = metrics.createGauge(
		names.inflightRequests,
		"Number of requests currently being processed by work handler",
	);
	const duration = metrics.createHistogram(
		names.requestDurationSeconds,
		"Time spent processing requests by work handler",
		{},
		RUNTIME_BUCKETS.requestDurationSeconds,
	);
	const cancellations = metrics.createCounter(
		names.cancellationTotal,
		"Total number of requests cancelled by work handler",
	);
	const errors = metrics.createCounterVec(names.errorsTotal, "Total number of errors in work handler processing", [
		LABELS.errorType,
	]);
	let sentBytes = 0;
	let active = 0;
	metrics.addUpdateCallback(() => {
		responseBytes.inc(sentBytes);
		sentBytes = 0;
		inflight.set(active);
	});

	class Observer implements RequestObserver {
		readonly #start = performance.now();

		onPrologue(): void {
			process.timeToFirstResponse.observe((performance.now() - this.#start) / 1000);
		}
		onResponseBytes(bytes: number): void {
			sentBytes += bytes;
		}
		onError(kind: Parameters<RequestObserver["onError"]>[0]): void {
			errors.withLabelValues(kind).inc();
		}
		onFail(): void {}
		onCancel(): void {
			cancellations.inc();
		}
		onClose(): void {
			active--;
			process.activeTasks.dec();
			duration.observe((performance.now() - this.#start) / 1000);
		}
	}

	return {
		onRequest(bytes, headers) {
			requests.inc();
			requestBytes.inc(bytes);
			active++;
			process.activeTasks.inc();
			const sentAt = Number(headers[REQUEST_HEADERS.sentAtNs]);
			// Clocks of two machines may disagree; a negative time says nothing.
			if (sentAt > 0) process.networkTransit.observe(Math.max(0, (wallClockMs() - sentAt / 1e6) / 1000));
			return new Observer();
		},
		onInvalid(kind) {
			errors.withLabelValues(kind).inc();
		},
	};
}
