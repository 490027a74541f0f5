// SPDX-License-Identifier: Apache-2.0
// Requests that wait until workers have less to compute. Within a class by priority and the class's order; between
// classes by deficit round robin, so that each gets its share and none starves.
import type { PolicyClass, PolicyProfile } from "./policy-profile.js";
import { WaitingHeap } from "./waiting-heap.js";

/** Most requests that wait in a class, whatever its limits say. */
const MAX_WAITING = 65_536;

/** What is known of a request when it begins to wait; it does not change while it does. */
export interface WaitingFacts {
	/** Tokens of the prompt, and how many of them the worker that has most of them has cached. */
	readonly promptTokens: number;
	readonly cachedTokens: number;
	/** Higher goes first, whatever else. */
	readonly strictPriority: number;
	/** Seconds by which it counts as earlier (fcfs), or by which it weighs more (wspt). */
	readonly priorityJump: number;
	/** Requests with the same lane can go to the same workers: the first of each is looked at. */
	readonly lane: string;
}

/** A limit of a class that is reached. */
export interface QueueLimit {
	readonly kind: "requests" | "prompt tokens" | "cached tokens";
	readonly current: number;
	readonly limit: number;
}

/** A request in a {@link RequestQueue}. */
export interface Waiting<T> {
	readonly payload: T;
	/** Place of its class. */
	readonly place: number;
	readonly facts: WaitingFacts;
	/** When it began, milliseconds. */
	readonly since: number;
}

interface Entry<T> extends Waiting<T> {
	readonly score: number;
	readonly order: number;
	/** It left before its turn. */
	gone: boolean;
}

/** What waits in a class. */
export interface QueueStats {
	requests: number;
	promptTokens: number;
	cachedTokens: number;
}

interface ClassQueue<T> {
	readonly policy: PolicyClass;
	readonly lanes: Map<string, WaitingHeap<Entry<T>>>;
	readonly stats: QueueStats;
	/** Tokens of service that it has earned and not had. */
	deficit: number;
	/** Entries in the heaps that are gone. */
	dead: number;
}

/** Uncached prompt tokens; one that has none costs something too. */
function costOf({ promptTokens, cachedTokens }: WaitingFacts): number {
	return Math.max(1, promptTokens - cachedTokens);
}

function goesBefore<T>(a: Entry<T>, b: Entry<T>): boolean {
	if (a.facts.strictPriority !== b.facts.strictPriority) return a.facts.strictPriority > b.facts.strictPriority;
	return a.score === b.score ? a.order < b.order : a.score > b.score;
}

export class RequestQueue<T> {
	readonly #classes: readonly ClassQueue<T>[];
	/** The class that is looked at first. */
	#cursor = 0;
	#next = 0;
	#size = 0;

	constructor(profile: PolicyProfile) {
		this.#classes = profile.classes.map((policy) => ({
			policy,
			lanes: new Map(),
			stats: { requests: 0, promptTokens: 0, cachedTokens: 0 },
			deficit: 0,
			dead: 0,
		}));
	}

	/** Requests that wait. */
	get size(): number {
		return this.#size;
	}

	/** What waits in each class, in the order of the profile's classes. */
	stats(): readonly Readonly<QueueStats>[] {
		return this.#classes.map(({ stats }) => stats);
	}

	/** Some request of the class waits. */
	hasBacklog(place: number): boolean {
		return this.#class(place).stats.requests > 0;
	}

	/**
	 * The limit that leaves no room in a class; undefined: there is room.
	 * @param workers that could take the request: limits are per worker.
	 */
	fullAt(place: number, workers: number): QueueLimit | undefined {
		const { policy, stats } = this.#class(place);
		const at = (kind: QueueLimit["kind"], current: number, perWorker: number | undefined): QueueLimit | undefined => {
			const limit = (perWorker ?? Number.POSITIVE_INFINITY) * workers;
			return current >= limit ? { kind, current, limit } : undefined;
		};
		if (stats.requests >= MAX_WAITING) return { kind: "requests", current: stats.requests, limit: MAX_WAITING };
		return (
			at("requests", stats.requests, policy.requestLimit) ??
			at("prompt tokens", stats.promptTokens, policy.promptTokenLimit) ??
			at("cached tokens", stats.cachedTokens, policy.cachedTokenLimit)
		);
	}

	/** @param now milliseconds; scores are of seconds. */
	add(place: number, facts: WaitingFacts, payload: T, now: number): Waiting<T> {
		const queue = this.#class(place);
		const score =
			queue.policy.order === "fcfs"
				? facts.priorityJump - now / 1000
				: (1 + Math.max(0, facts.priorityJump)) / costOf(facts);
		const entry: Entry<T> = { payload, place, facts, since: now, score, order: this.#next++, gone: false };
		let lane = queue.lanes.get(facts.lane);
		if (lane === undefined) {
			lane = new WaitingHeap<Entry<T>>(goesBefore);
			queue.lanes.set(facts.lane, lane);
		}
		lane.push(entry);
		this.#count(queue, facts, 1);
		return entry;
	}

	/** It waits no longer: its client left, or its time is over. @returns false when it was not there any more. */
	remove(waiting: Waiting<T>): boolean {
		const entry = waiting as Entry<T>;
		if (entry.gone) return false;
		const queue = this.#class(entry.place);
		entry.gone = true;
		queue.dead++;
		this.#count(queue, entry.facts, -1);
		if (queue.dead > 64 && queue.dead > queue.stats.requests) this.#sweep(queue);
		return true;
	}

	/**
	 * Takes out the next request that can go; undefined when none can.
	 * @param canGo asked about the first of each class and lane.
	 */
	take(canGo: (waiting: Waiting<T>) => boolean): Waiting<T> | undefined {
		const heads = this.#classes.map((queue) => this.#head(queue, canGo));
		// Rounds after which the first class has earned enough; all that could go earn as much by then.
		let rounds = Number.POSITIVE_INFINITY;
		this.#classes.forEach((queue, place) => {
			if (queue.stats.requests === 0) queue.deficit = 0;
			const head = heads[place];
			if (head === undefined) return;
			rounds = Math.min(rounds, Math.max(0, Math.ceil((costOf(head.facts) - queue.deficit) / queue.policy.quantum)));
		});
		if (rounds === Number.POSITIVE_INFINITY) return undefined;
		if (rounds > 0) {
			this.#classes.forEach((queue, place) => {
				if (heads[place] !== undefined) queue.deficit += rounds * queue.policy.quantum;
			});
		}
		for (let i = 0; i < this.#classes.length; i++) {
			const place = (this.#cursor + i) % this.#classes.length;
			const head = heads[place];
			const queue = this.#class(place);
			if (head === undefined || costOf(head.facts) > queue.deficit) continue;
			queue.deficit -= costOf(head.facts);
			// A class goes on as long as its credit lasts; then it is the next one's turn.
			this.#cursor = queue.deficit > 0 ? place : (place + 1) % this.#classes.length;
			this.#drop(queue, head);
			return head;
		}
		return undefined;
	}

	/** Takes out all that began before `since`, milliseconds. */
	takeOlderThan(since: number): Waiting<T>[] {
		const old: Entry<T>[] = [];
		for (const queue of this.#classes) {
			for (const lane of queue.lanes.values()) {
				for (const entry of lane.values()) if (!entry.gone && entry.since < since) old.push(entry);
			}
		}
		for (const entry of old) this.remove(entry);
		return old;
	}

	#class(place: number): ClassQueue<T> {
		return this.#classes[place] as ClassQueue<T>;
	}

	/** The first of those that can go; lanes whose first cannot are passed over. */
	#head(queue: ClassQueue<T>, canGo: (waiting: Waiting<T>) => boolean): Entry<T> | undefined {
		if (queue.stats.requests === 0) return undefined;
		let best: Entry<T> | undefined;
		for (const [key, lane] of queue.lanes) {
			while (lane.peek()?.gone) {
				lane.pop();
				queue.dead--;
			}
			const first = lane.peek();
			if (first === undefined) queue.lanes.delete(key);
			else if ((best === undefined || goesBefore(first, best)) && canGo(first)) best = first;
		}
		return best;
	}

	#drop(queue: ClassQueue<T>, entry: Entry<T>): void {
		const lane = queue.lanes.get(entry.facts.lane);
		lane?.pop();
		if (lane?.size === 0) queue.lanes.delete(entry.facts.lane);
		entry.gone = true;
		this.#count(queue, entry.facts, -1);
	}

	#sweep(queue: ClassQueue<T>): void {
		for (const [key, lane] of queue.lanes) {
			lane.retain((entry) => !entry.gone);
			if (lane.size === 0) queue.lanes.delete(key);
		}
		queue.dead = 0;
	}

	#count(queue: ClassQueue<T>, facts: WaitingFacts, by: 1 | -1): void {
		this.#size += by;
		queue.stats.requests += by;
		queue.stats.promptTokens += by * facts.promptTokens;
		queue.stats.cachedTokens += by * facts.cachedTokens;
	}
}
