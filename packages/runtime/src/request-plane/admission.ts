// SPDX-License-Identifier: Apache-2.0
// How many requests a worker runs at once, and how many wait for their turn: DYN_ENGINE_REQUEST_LIMIT and
// DYN_DYNAMO_REQUEST_QUEUE_LIMIT of Dynamo.
import { ADMISSION_METRICS, ENV } from "@dynamo-ts/protocols/internal";
import type { Counter, MetricsRegistry } from "../observability/metrics.js";

/** A request between {@link Admission.enter} and {@link Admission.leave}. */
export interface Ticket {
	/** Undefined once it runs. */
	run: (() => void) | undefined;
}

/** Admits requests to the engine of a process, first come first served. */
export class Admission {
	readonly #engineLimit: number;
	readonly #queueLimit: number;
	readonly #running = new Set<Ticket>();
	/** Tickets in the order in which they came. */
	readonly #waiting = new Set<Ticket>();
	readonly #rejected: Counter;

	/**
	 * @param engineLimit most requests that run; Infinity: no limit.
	 * @param queueLimit most requests that wait; Infinity: no limit.
	 * @param metrics a registry without a prefix.
	 */
	constructor(engineLimit: number, queueLimit: number, metrics: MetricsRegistry) {
		this.#engineLimit = engineLimit;
		this.#queueLimit = queueLimit;
		const engine = metrics.createGauge(
			ADMISSION_METRICS.engineRequest,
			"Current number of requests being handled by the engine (--engine-request-limit)",
		);
		const queue = metrics.createGauge(
			ADMISSION_METRICS.requestQueue,
			"Current number of requests queued in Dynamo not yet in the engine (--dynamo-request-queue-limit)",
		);
		this.#rejected = metrics.createCounter(
			ADMISSION_METRICS.rejectionRequestTotal,
			"Requests rejected because the worker is at capacity (engine in-flight limit and Dynamo queue both full)",
		);
		metrics.addUpdateCallback(() => {
			// As with Dynamo: without a limit nobody counts.
			engine.set(this.#engineLimit === Number.POSITIVE_INFINITY ? 0 : this.#running.size);
			queue.set(this.#waiting.size);
		});
	}

	/**
	 * Why a request has to be turned away; undefined: there is room. Counts the refusal.
	 * @param coming requests that were let in and have not entered yet.
	 */
	refusal(coming: number): string | undefined {
		const known = this.#running.size + this.#waiting.size + coming;
		if (known < this.#engineLimit + this.#queueLimit) return undefined;
		this.#rejected.inc();
		return `worker at capacity (${ENV.DYN_ENGINE_REQUEST_LIMIT} ${this.#engineLimit}, ${ENV.DYN_DYNAMO_REQUEST_QUEUE_LIMIT} ${this.#queueLimit})`;
	}

	/** Calls `run` now or, when the engine has no room, once it has. */
	enter(run: () => void): Ticket {
		if (this.#running.size < this.#engineLimit) {
			const ticket: Ticket = { run: undefined };
			this.#running.add(ticket);
			run();
			return ticket;
		}
		const ticket: Ticket = { run };
		this.#waiting.add(ticket);
		return ticket;
	}

	/** The request is over, or nobody waits for it any more. Idempotent. */
	leave(ticket: Ticket): void {
		if (this.#waiting.delete(ticket) || !this.#running.delete(ticket)) return;
		for (const next of this.#waiting) {
			if (this.#running.size >= this.#engineLimit) return;
			this.#waiting.delete(next);
			this.#running.add(next);
			const { run } = next;
			next.run = undefined;
			run?.();
		}
	}
}
