// SPDX-License-Identifier: Apache-2.0
// How many requests a process handles at once, whatever their endpoints, and how many wait for that:
// DYN_TCP_WORKER_POOL_SIZE and DYN_TCP_WORK_QUEUE_SIZE of Dynamo.
import { ENV, METRICS } from "@dynamo-ts/protocols/internal";
import type { Counter, Histogram, MetricsRegistry } from "../observability/metrics.js";
import { openCounter, openGauge, openHistogram } from "../observability/open-family.js";
import { type Gate, type Ticket, Turnstile } from "./turnstile.js";

export class WorkPool implements Gate {
	readonly #capacity: number;
	readonly #queueCapacity: number;
	readonly #turnstile: Turnstile;
	readonly #rejected: Counter;
	readonly #wait: Histogram;

	/** @param metrics the registry of the work handler's families: without labels. */
	constructor(capacity: number, queueCapacity: number, metrics: MetricsRegistry) {
		this.#capacity = capacity;
		this.#queueCapacity = queueCapacity;
		this.#turnstile = new Turnstile(capacity, queueCapacity);
		const families = METRICS.workHandler;
		this.#rejected = openCounter(metrics, families.enqueueRejectedTotal);
		this.#wait = openHistogram(metrics, families.permitWaitSeconds);
		openGauge(metrics, families.poolCapacity).set(capacity);
		openGauge(metrics, families.queueCapacity).set(queueCapacity);
		const active = openGauge(metrics, families.poolActiveTasks);
		const depth = openGauge(metrics, families.queueDepth);
		metrics.addUpdateCallback(() => {
			active.set(this.#turnstile.running);
			depth.set(this.#turnstile.waiting);
		});
	}

	refusal(coming: number): string | undefined {
		if (this.#turnstile.hasRoom(coming)) return undefined;
		this.#rejected.inc();
		return `worker at capacity (${ENV.DYN_TCP_WORKER_POOL_SIZE} ${this.#capacity}, ${ENV.DYN_TCP_WORK_QUEUE_SIZE} ${this.#queueCapacity})`;
	}

	enter(run: () => void): Ticket {
		if (this.#turnstile.running < this.#capacity) return this.#turnstile.enter(run);
		const since = performance.now();
		return this.#turnstile.enter(() => {
			this.#wait.observe((performance.now() - since) / 1000);
			run();
		});
	}

	leave(ticket: Ticket): void {
		this.#turnstile.leave(ticket);
	}
}
