// SPDX-License-Identifier: Apache-2.0
// Whether a request goes to a worker at once or waits until one has less to compute.
import { DynamoError, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { RoutingRequest } from "../router.js";
import { isPoolBusy, isPrefillBusy, type PolicyClass, type PolicyProfile, queues } from "./policy-profile.js";
import { type QueueLimit, type QueueStats, RequestQueue, type Waiting } from "./request-queue.js";

/** A request that asks to be let in. */
export interface Applicant {
	readonly request: RoutingRequest;
	/** Its worker is known already, so that it does not wait for another one's cache. */
	readonly settled?: boolean | undefined;
	/** Those that could take it now. */
	candidates(): readonly EndpointRecord[];
	/** It is its turn: it is to be given to a worker, within this call. */
	onTurn(): void;
	/** It has waited too long, or the router closes. */
	onRefused(error: DynamoError): void;
}

/** A request that waits. */
export interface Ticket {
	/** It waits no longer; it hears nothing more. More than once does nothing. */
	cancel(): void;
}

/** What the queue asks of the policy. */
export interface AdmissionHost {
	/** Prompt tokens that each rank has still to compute that could take the request. */
	prefillTokens(request: RoutingRequest, candidates: readonly EndpointRecord[]): number[];
	/** Prompt tokens that the worker has cached that has most of them. */
	cachedTokens(request: RoutingRequest, candidates: readonly EndpointRecord[]): number;
}

/** Told what becomes of requests at the queue; `policyClass` is a class's name. */
export interface AdmissionObserver {
	onReceived(policyClass: string): void;
	/** Refused because a limit of the class was reached. */
	onFull(policyClass: string, limit: QueueLimit): void;
	/** Refused because it had waited too long. */
	onLate(policyClass: string): void;
}

export interface AdmissionOptions {
	readonly profile: PolicyProfile;
	/** Tokens of a step of the workers' engines, as their card says. */
	readonly maxNumBatchedTokens: number | undefined;
	/** Longest wait, milliseconds. */
	readonly deadlineMs: number;
	/** Milliseconds on a clock that does not jump. */
	readonly now?: () => number;
}

/** How often it is looked whether waiting requests can go, beside when something changes, milliseconds. */
const LOOK_AGAIN_MS = 1000;

export class Admission {
	observer: AdmissionObserver | undefined;
	readonly #options: AdmissionOptions;
	readonly #host: AdmissionHost;
	readonly #queue: RequestQueue<Applicant>;
	readonly #now: () => number;
	readonly #mayWait: boolean;
	#timer: NodeJS.Timeout | undefined;
	#scheduled = false;
	#closed = false;

	constructor(host: AdmissionHost, options: AdmissionOptions) {
		this.#host = host;
		this.#options = options;
		this.#queue = new RequestQueue(options.profile);
		this.#now = options.now ?? (() => performance.now());
		this.#mayWait = options.profile.queues;
	}

	/** Requests that wait. */
	get waiting(): number {
		return this.#queue.size;
	}

	/** What waits, by class. */
	stats(): (QueueStats & { readonly policyClass: string })[] {
		const { classes } = this.#options.profile;
		return this.#queue.stats().map((stats, i) => ({ ...stats, policyClass: (classes[i] as PolicyClass).name }));
	}

	/**
	 * Lets a request in, or makes it wait.
	 * @returns undefined: it is to be given to a worker now.
	 * @throws DynamoError `WorkerOverloaded` when it would have to wait and there is no room for it, `Unavailable` when the
	 * router closes.
	 */
	admit(applicant: Applicant): Ticket | undefined {
		const { profile } = this.#options;
		const { request } = applicant;
		if (profile.classes.length === 1 && !this.#mayWait) {
			this.observer?.onReceived((profile.classes[0] as PolicyClass).name);
			return undefined;
		}
		const candidates = applicant.candidates();
		const promptTokens = request.tokenIds?.length ?? 0;
		const cachedTokens = Math.min(promptTokens, this.#host.cachedTokens(request, candidates));
		const place = profile.classOf(request.policyClass, promptTokens - cachedTokens);
		const policy = profile.classes[place] as PolicyClass;
		this.observer?.onReceived(policy.name);
		if (!queues(policy) || candidates.length === 0) return undefined;
		if (!this.#queue.hasBacklog(place) && this.#hasRoom(policy, request, candidates)) return undefined;
		if (this.#closed) throw routerCloses();
		const limit = this.#queue.fullAt(place, candidates.length);
		if (limit !== undefined) {
			this.observer?.onFull(policy.name, limit);
			throw new DynamoError(
				"WorkerOverloaded",
				`the router's queue "${policy.name}" has no room: ${limit.kind} ${limit.current}, limit ${limit.limit}`,
			);
		}
		const facts = {
			promptTokens,
			cachedTokens,
			strictPriority: request.strictPriority ?? 0,
			priorityJump: request.priorityJump ?? 0,
			lane: laneOf(request),
		};
		const waiting = this.#queue.add(place, facts, applicant, this.#now());
		this.#timer ??= setInterval(() => this.#lookAgain(), LOOK_AGAIN_MS).unref();
		// What it waits for may be another lane's.
		this.recheck();
		return { cancel: () => this.#leave(waiting) };
	}

	/** A worker may have less to compute, or there is another one: those whose turn it is go, once this turn is over. */
	recheck(): void {
		if (this.#scheduled || this.#queue.size === 0) return;
		this.#scheduled = true;
		queueMicrotask(() => {
			this.#scheduled = false;
			this.#drain();
		});
	}

	/** Refuses those that wait, and those that come and would have to. */
	close(): void {
		this.#closed = true;
		const error = routerCloses();
		for (const { payload } of this.#queue.takeOlderThan(Number.POSITIVE_INFINITY)) payload.onRefused(error);
		this.#rest();
	}

	#drain(): void {
		if (this.#closed) return;
		const canGo = ({ payload, place }: Waiting<Applicant>): boolean => {
			const candidates = payload.candidates();
			const policy = this.#options.profile.classes[place] as PolicyClass;
			// With nobody there it goes, and is told so.
			return candidates.length === 0 || this.#hasRoom(policy, payload.request, candidates);
		};
		for (let next = this.#queue.take(canGo); next !== undefined; next = this.#queue.take(canGo)) {
			next.payload.onTurn();
		}
		this.#rest();
	}

	#hasRoom(policy: PolicyClass, request: RoutingRequest, candidates: readonly EndpointRecord[]): boolean {
		const loads = this.#host.prefillTokens(request, candidates);
		const { maxNumBatchedTokens } = this.#options;
		const busy = loads.filter((tokens) => isPrefillBusy(policy, tokens, maxNumBatchedTokens)).length;
		return !isPoolBusy(policy, busy, loads.length);
	}

	#lookAgain(): void {
		const { deadlineMs, profile } = this.#options;
		for (const { payload, place } of this.#queue.takeOlderThan(this.#now() - deadlineMs)) {
			const { name } = profile.classes[place] as PolicyClass;
			this.observer?.onLate(name);
			payload.onRefused(
				new DynamoError("WorkerOverloaded", `no worker had room within ${deadlineMs / 1000} s of waiting in "${name}"`),
			);
		}
		this.#drain();
	}

	#leave(waiting: Waiting<Applicant>): void {
		this.#queue.remove(waiting);
		this.#rest();
	}

	#rest(): void {
		if (this.#queue.size > 0) return;
		clearInterval(this.#timer);
		this.#timer = undefined;
	}
}

/** What a request hears that waits when the router closes. */
export function routerCloses(): DynamoError {
	return new DynamoError("Unavailable", "the router closes", { reason: "backend.unavailable" });
}

/** Names the workers that a request can go to, as far as it says something about them itself. */
function laneOf({ pinned, allowed, requiredTaints, dpRank }: RoutingRequest): string {
	if (pinned === undefined && allowed === undefined && requiredTaints === undefined && dpRank === undefined) return "";
	return [pinned ?? "", allowed?.join(",") ?? "", dpRank ?? "", ...(requiredTaints ?? [])].join("|");
}
