// SPDX-License-Identifier: Apache-2.0
// Requests that wait a moment for a worker that holds their prompt. The cheapest worker is often one without it, only
// because the others have one request more; a few milliseconds later it is not. This is delay scheduling (Zaharia et
// al., EuroSys 2010), with the worker's cache for the data's place.
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { RoutingRequest } from "../router.js";
import { type Applicant, routerCloses, type Ticket } from "./admission.js";

/** What the wait asks of the policy. */
export interface CacheWaitHost {
	/**
	 * Slots that hold much more of the prompt than the cheapest one does; empty when there is nothing to gain, so that the
	 * request can go.
	 */
	betterFor(request: RoutingRequest, candidates: readonly EndpointRecord[]): readonly number[];
}

/** Told what became of a wait: it was for something, or its time was over. */
export type CacheWaitObserver = (outcome: "found" | "in_vain") => void;

interface Waiting {
	readonly applicant: Applicant;
	/** Milliseconds. */
	readonly since: number;
	/** Where it is looked for. */
	slots: readonly number[];
}

/** More requests than this are never kept waiting at a time. */
const MOST_WAITING = 1024;
/** So many of a slot's waiting requests are looked at in vain when the slot has less to do. */
const MOST_IN_VAIN = 2;

export class CacheWait {
	observer: CacheWaitObserver | undefined;
	readonly #host: CacheWaitHost;
	readonly #waitMs: number;
	/** In the order of their coming, which is that of their ends. */
	readonly #waiting = new Set<Waiting>();
	readonly #bySlot = new Map<number, Set<Waiting>>();
	readonly #eased = new Set<number>();
	#timer: NodeJS.Timeout | undefined;

	/** @param waitMs the longest wait, milliseconds. */
	constructor(host: CacheWaitHost, waitMs: number) {
		this.#host = host;
		this.#waitMs = waitMs;
	}

	/** Requests that wait. */
	get size(): number {
		return this.#waiting.size;
	}

	/** @returns undefined: the request is to be given to a worker now. */
	admit(applicant: Applicant): Ticket | undefined {
		if (this.#waiting.size >= MOST_WAITING) return undefined;
		const slots = this.#host.betterFor(applicant.request, applicant.candidates());
		if (slots.length === 0) return undefined;
		const waiting: Waiting = { applicant, since: performance.now(), slots: [] };
		this.#waiting.add(waiting);
		this.#lookAt(waiting, slots);
		this.#timer ??= setTimeout(() => this.#endWaits(), this.#waitMs);
		return { cancel: () => this.#leave(waiting) };
	}

	/** The slot has less to do: those that wait for it are looked at once this turn is over. */
	eased(slot: number): void {
		if (!this.#bySlot.has(slot)) return;
		if (this.#eased.size === 0) queueMicrotask(() => this.#look());
		this.#eased.add(slot);
	}

	/** Refuses those that wait. */
	close(): void {
		const error = routerCloses();
		for (const waiting of [...this.#waiting]) {
			this.#leave(waiting);
			waiting.applicant.onRefused(error);
		}
	}

	#look(): void {
		const slots = [...this.#eased];
		this.#eased.clear();
		for (const slot of slots) {
			let vain = 0;
			for (const waiting of [...(this.#bySlot.get(slot) ?? [])]) {
				// One that went may have taken others with it.
				if (!this.#waiting.has(waiting)) continue;
				const better = this.#host.betterFor(waiting.applicant.request, waiting.applicant.candidates());
				if (better.length === 0) this.#go(waiting, "found");
				else {
					this.#lookAt(waiting, better);
					if (++vain === MOST_IN_VAIN) break;
				}
			}
		}
	}

	#endWaits(): void {
		this.#timer = undefined;
		const now = performance.now();
		for (const waiting of this.#waiting) {
			const rest = waiting.since + this.#waitMs - now;
			if (rest > 0.5) {
				this.#timer = setTimeout(() => this.#endWaits(), rest);
				return;
			}
			this.#go(waiting, "in_vain");
		}
	}

	#go(waiting: Waiting, outcome: "found" | "in_vain"): void {
		this.#leave(waiting);
		this.observer?.(outcome);
		waiting.applicant.onTurn();
	}

	#lookAt(waiting: Waiting, slots: readonly number[]): void {
		if (slots.length === waiting.slots.length && slots.every((slot, i) => slot === waiting.slots[i])) return;
		this.#lookNoMore(waiting);
		waiting.slots = slots;
		for (const slot of slots) {
			const those = this.#bySlot.get(slot);
			if (those === undefined) this.#bySlot.set(slot, new Set([waiting]));
			else those.add(waiting);
		}
	}

	#lookNoMore(waiting: Waiting): void {
		for (const slot of waiting.slots) {
			const those = this.#bySlot.get(slot);
			those?.delete(waiting);
			if (those?.size === 0) this.#bySlot.delete(slot);
		}
	}

	#leave(waiting: Waiting): void {
		if (!this.#waiting.delete(waiting)) return;
		this.#lookNoMore(waiting);
		if (this.#waiting.size > 0) return;
		clearTimeout(this.#timer);
		this.#timer = undefined;
	}
}
