// SPDX-License-Identifier: Apache-2.0
// How many requests a worker runs at once, and how many wait for their turn: DYN_ENGINE_REQUEST_LIMIT and
// DYN_DYNAMO_REQUEST_QUEUE_LIMIT of Dynamo.
import { ENV, METRICS } from "@dynamo-ts/protocols/internal";
import type { Counter, MetricsRegistry } from "../observability/metrics.js";
import { openCounter, openGauge } from "../observability/open-family.js";
import { type Gate, type Ticket, Turnstile } from "./turnstile.js";

/** Admits requests to the engine of a process, first come first served. */
export class Admission implements Gate {
	readonly #engineLimit: number;
	readonly #queueLimit: number;
	readonly #turnstile: Turnstile;
	readonly #rejected: Counter;

	/**
	 * @param engineLimit most requests that run; Infinity: no limit.
	 * @param queueLimit most requests that wait; Infinity: no limit.
	 * @param metrics the registry of its families: without labels.
	 */
	constructor(engineLimit: number, queueLimit: number, metrics: MetricsRegistry) {
		this.#engineLimit = engineLimit;
		this.#queueLimit = queueLimit;
		this.#turnstile = new Turnstile(engineLimit, queueLimit);
		const engine = openGauge(metrics, METRICS.admission.engineRequest);
		const queue = openGauge(metrics, METRICS.admission.requestQueue);
		this.#rejected = openCounter(metrics, METRICS.admission.rejectionRequestTotal);
		metrics.addUpdateCallback(() => {
			// As with Dynamo: without a limit nobody counts.
			engine.set(this.#engineLimit === Number.POSITIVE_INFINITY ? 0 : this.#turnstile.running);
			queue.set(this.#turnstile.waiting);
		});
	}

	refusal(coming: number): string | undefined {
		if (this.#turnstile.hasRoom(coming)) return undefined;
		this.#rejected.inc();
		return `worker at capacity (${ENV.DYN_ENGINE_REQUEST_LIMIT} ${this.#engineLimit}, ${ENV.DYN_DYNAMO_REQUEST_QUEUE_LIMIT} ${this.#queueLimit})`;
	}

	enter(run: () => void): Ticket {
		return this.#turnstile.enter(run);
	}

	leave(ticket: Ticket): void {
		this.#turnstile.leave(ticket);
	}
}
