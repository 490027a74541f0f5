// SPDX-License-Identifier: Apache-2.0
import { LABELS, METRICS } from "@dynamo-ts/protocols/internal";
import type { Counter, Histogram, MetricsRegistry, MetricVec } from "@dynamo-ts/runtime";
import { openCounterVec, openGauge, openHistogram } from "@dynamo-ts/runtime/internal";

const FAMILIES = METRICS.kvTransfer;

/** How asking for a prompt ended: there, already there, not needed any more, or computed. */
export type PullResult = "ok" | "cached" | "cancelled" | "failed";

/** Counts what goes between prefill and decode workers. */
export class TransferMetrics {
	readonly #pulls: MetricVec<Counter>;
	readonly #failures: MetricVec<Counter>;
	readonly #bytes: MetricVec<Counter>;
	readonly #holds: MetricVec<Counter>;
	readonly #seconds: Histogram;

	/** @param heldBlocks read when the page is. */
	constructor(metrics: MetricsRegistry, model: string, heldBlocks: () => number) {
		const labels = { [LABELS.model]: model };
		this.#pulls = openCounterVec(metrics, FAMILIES.pullsTotal, labels);
		this.#failures = openCounterVec(metrics, FAMILIES.failuresTotal, labels);
		this.#bytes = openCounterVec(metrics, FAMILIES.bytesTotal, labels);
		this.#holds = openCounterVec(metrics, FAMILIES.holdsTotal, labels);
		this.#seconds = openHistogram(metrics, FAMILIES.seconds, labels);
		const held = openGauge(metrics, FAMILIES.heldBlocks, labels);
		metrics.addUpdateCallback(() => held.set(heldBlocks()));
	}

	pull(result: PullResult, reason?: string): void {
		this.#pulls.withLabelValues(result).inc();
		if (reason !== undefined) this.#failures.withLabelValues(reason).inc();
	}

	transferred(seconds: number): void {
		this.#seconds.observe(seconds);
	}

	bytes(direction: "sent" | "received", transport: "tcp" | "shm", bytes: number): void {
		this.#bytes.withLabelValues(direction, transport).inc(bytes);
	}

	hold(outcome: string): void {
		this.#holds.withLabelValues(outcome).inc();
	}
}
