// SPDX-License-Identifier: Apache-2.0
import { METRICS } from "@dynamo-ts/protocols/internal";
import type { Histogram, MetricsRegistry } from "../observability/metrics.js";
import { openCounter, openCounterVec, openGauge, openHistogram } from "../observability/open-family.js";
import { wallClockMs } from "../observability/wall-clock.js";
import { REQUEST_HEADERS } from "./request-headers.js";
import type { EndpointObserver, RequestObserver } from "./request-plane.js";

/** Request handling of the process as a whole; families without labels. */
export interface ProcessWorkMetrics {
	readonly networkTransit: Histogram;
	readonly timeToFirstResponse: Histogram;
}

/** @param metrics the registry of the work handler's families. */
export function createProcessWorkMetrics(metrics: MetricsRegistry): ProcessWorkMetrics {
	return {
		networkTransit: openHistogram(metrics, METRICS.workHandler.networkTransitSeconds),
		timeToFirstResponse: openHistogram(metrics, METRICS.workHandler.timeToFirstResponseSeconds),
	};
}

/**
 * Counts the requests of one endpoint. Bytes are added up in plain numbers and reach the counters at each scrape,
 * because they change with every token.
 *
 * @param metrics the endpoint's registry.
 * @param labels of all its series, beside those of the registry.
 */
export function createEndpointObserver(
	metrics: MetricsRegistry,
	process: ProcessWorkMetrics,
	labels: Readonly<Record<string, string>> = {},
): EndpointObserver {
	const families = METRICS.component;
	const requests = openCounter(metrics, families.requestsTotal, labels);
	const requestBytes = openCounter(metrics, families.requestBytesTotal, labels);
	const responseBytes = openCounter(metrics, families.responseBytesTotal, labels);
	const inflight = openGauge(metrics, families.inflightRequests, labels);
	const duration = openHistogram(metrics, families.requestDurationSeconds, labels);
	const cancellations = openCounter(metrics, families.cancellationTotal, labels);
	const errors = openCounterVec(metrics, families.errorsTotal, labels);
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
			duration.observe((performance.now() - this.#start) / 1000);
		}
	}

	return {
		onRequest(bytes, headers) {
			requests.inc();
			requestBytes.inc(bytes);
			active++;
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
