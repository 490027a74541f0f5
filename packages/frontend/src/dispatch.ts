// SPDX-License-Identifier: Apache-2.0
import {
	type Annotated,
	DynamoError,
	type EndpointRecord,
	mayTryAnother,
	type PreprocessedRequest,
	type RoutingHints,
} from "@dynamo-ts/protocols/internal";
import type { RoutingDecision, RoutingOverrides, RoutingRequest } from "@dynamo-ts/router";
import type { ActiveRequest, OutgoingRequest, RequestOptions, ResponseSink } from "@dynamo-ts/runtime";
import { type Continuation, isLoss, type MigrationObserver, type MigrationType } from "./migration.js";
import { beginSelection, RouteSpan, type RouteTrace } from "./route-span.js";
import type { WorkerSet } from "./worker-set.js";

/** Most instances that a request is offered to in a row without an item from any of them. */
const MAX_ATTEMPTS = 8;

export interface DispatchOptions extends RequestOptions {
	/** Send to this instance and no other. */
	readonly pinned?: EndpointRecord;
	/** Where the spans of attempts belong; absent: there are none. */
	readonly trace?: RouteTrace;
	/** Told about each instance that is tried, before it is, and what its choice was made by. */
	readonly onAttempt?: (instance: EndpointRecord, decision: RoutingDecision | undefined) => void;
	/** The body for an instance and rank that were chosen, called for each that is tried; absent: the same for all. */
	readonly bodyFor?: (body: PreprocessedRequest, instance: EndpointRecord, rank?: number) => PreprocessedRequest;
	/** Nothing of the answer is shown before its end, so that it can begin anew elsewhere; asked after each loss. */
	readonly mayRepeat?: () => boolean;
	/** What comes before the request goes to a worker of the set. */
	readonly prefill?: PrefillStep;
	/** Told about workers that were lost with the request. */
	readonly migrations?: MigrationObserver;
	/** What the request says about its way. */
	readonly routing?: RoutingHints;
	/** What the request becomes when its stream was lost; absent: it fails. */
	readonly continuation?: Continuation;
}

/** Lets another worker compute a request's prompt before, or while, the request is at a worker of the set. */
export interface PrefillStep {
	/** Begins, or begins again; what came of the run before counts no more. */
	run(request: OutgoingRequest, tokenIds: readonly number[], host: PrefillHost): void;
	/** The worker that took the request failed before its first item: true when the hand-over may be to blame. */
	mayBeBlamed(error: DynamoError): boolean;
	/** Abandons what is under way; the host hears nothing more. */
	cancel(): void;
	/** The answer is complete: what is under way may end by itself, but is not waited for long. */
	release(): void;
}

/** Told what came of a {@link PrefillStep}; some of it may come before `run` has returned. */
export interface PrefillHost {
	/** The request can be sent. */
	onHandover(handover: Handover): void;
	/**
	 * What was handed over last is worth nothing.
	 * @returns false when the worker has begun to answer all the same, and so does not need it.
	 */
	onWithdrawn(): boolean;
	/** The prefill worker's items are the whole answer. */
	onAnswer(items: readonly Annotated<unknown>[]): void;
	/** The request cannot go on. Never called before `run` has returned. */
	onPrefillError(error: DynamoError): void;
}

/** What a request goes on with after its {@link PrefillStep}. */
export interface Handover {
	/** Members of the body that replace the request's. */
	readonly body: Partial<PreprocessedRequest>;
	readonly overrides?: RoutingOverrides;
	/** The worker that it was decided for. */
	readonly preferred?: EndpointRecord;
	/** One worker can use it, and once. */
	readonly once?: boolean;
}

let attemptsEver = 0;

/** The error for a model whose workers are all gone or put aside. */
export function notReadyError(model: string): DynamoError {
	return new DynamoError("Unavailable", `no worker of model ${model} can be reached`, {
		reason: "backend.unavailable",
	});
}

/** The error for a model whose workers are all too full. */
export function overloadedError(model: string): DynamoError {
	return new DynamoError(
		"WorkerOverloaded",
		`every worker of model ${model} that may take the request is above one of the limits that /busy_threshold shows`,
	);
}

/**
 * Sends a request to an instance that the set's router picks. An instance that turns out not to be reachable is put
 * aside by the client; as long as nothing was delivered the request then goes to another one. A stream that was lost
 * after that goes on at another one when there is a {@link Continuation} that allows it. The sink hears of the last
 * failure only.
 */
export class Dispatch implements ResponseSink, PrefillHost {
	private readonly set: WorkerSet;
	private readonly sink: ResponseSink;
	private readonly options: DispatchOptions;
	private readonly tried = new Set<bigint>();
	private request: OutgoingRequest;
	private tokenIds: readonly number[] | undefined;
	private call: ActiveRequest | undefined;
	private instance: EndpointRecord | undefined;
	/** Names the attempt to the router: clients may give several requests the same id. */
	private attemptId = "";
	/** The instance has sent nothing yet. */
	private silent = true;
	/** Instances asked since the last item. */
	private attempts = 0;
	/** Times that the request was moved on the account of the migration limit. */
	private migrations = 0;
	/** The instance has taken the request. */
	private opened = false;
	/** Something of the answer was delivered, by whatever instance. */
	private delivered = false;
	/** A worker was lost, and no item has come from another one yet. */
	private lost: { readonly type: MigrationType; readonly since: number } | undefined;
	/** Of the attempt under way. */
	private route: RouteSpan | undefined;
	/** Attempts from the beginning on. */
	private attemptsMade = 0;
	/** The prompt is to be computed elsewhere before the next attempt. */
	private prefillDue: boolean;
	private handover: Handover | undefined;
	private withdrawing = false;
	private paused = false;
	private over = false;

	/** @param tokenIds the prompt, for the router. */
	constructor(
		set: WorkerSet,
		request: OutgoingRequest,
		tokenIds: readonly number[] | undefined,
		sink: ResponseSink,
		options: DispatchOptions,
	) {
		this.set = set;
		this.request = request;
		this.tokenIds = tokenIds;
		this.sink = sink;
		this.options = options;
		this.prefillDue = options.prefill !== undefined;
	}

	/** Sends. Failures go to the sink, never before this call has returned. */
	start(): void {
		this.set.acquire();
		if (!this.advance()) this.refuse();
	}

	/**
	 * Abandons the request: the worker is told, the sink hears nothing more.
	 * @param complete the answer is, so that there is nothing left for the worker to do.
	 */
	kill(complete = false): void {
		const { call } = this;
		if (complete) this.route?.succeeded();
		else this.route?.cancelled();
		this.settle("cancelled");
		this.finish(() => {});
		call?.kill();
		if (complete) this.options.prefill?.release();
		else this.options.prefill?.cancel();
	}

	/** Holds back delivery, and lets the worker feel it. */
	pause(): void {
		this.paused = true;
		this.call?.pause();
	}

	resume(): void {
		this.paused = false;
		this.call?.resume();
	}

	onOpen(): void {
		if (this.over) return;
		this.opened = true;
		this.sink.onOpen?.();
	}

	onItem(item: Annotated<unknown>): void {
		if (this.over) return;
		this.delivered = true;
		if (this.silent) {
			this.silent = false;
			this.set.router.onFirstItem?.(this.attemptId);
		}
		if (this.lost !== undefined) this.settle("success");
		this.sink.onItem(item);
	}

	onEnd(): void {
		this.route?.succeeded();
		this.settle("success");
		this.finish(() => this.sink.onEnd());
		this.options.prefill?.release();
	}

	onHandover(handover: Handover): void {
		if (this.over) return;
		this.handover = handover;
		if (!this.attempt()) this.refuse();
	}

	onWithdrawn(): boolean {
		if (this.over || !this.silent) return false;
		this.handover = undefined;
		const { call, instance } = this;
		this.call = undefined;
		this.route?.cancelled();
		this.withdrawing = true;
		call?.kill();
		this.withdrawing = false;
		if (instance !== undefined) {
			this.leaveInstance();
			this.tried.delete(instance.instance_id);
		}
		return true;
	}

	onAnswer(items: readonly Annotated<unknown>[]): void {
		if (this.over) return;
		this.sink.onOpen?.();
		for (const item of items) if (!this.over) this.sink.onItem(item);
		this.onEnd();
	}

	onPrefillError(error: DynamoError): void {
		this.settle("failure");
		this.finish(() => this.sink.onError(error));
	}

	onError(error: DynamoError): void {
		if (this.over || this.withdrawing) return;
		const { instance } = this;
		this.route?.failed(error);
		this.leaveInstance();
		this.settle("failure");
		// A full worker is not lost: it counts only when its refusal moved the request.
		if (mayTryAnother(error) || error.errorClass === "ResponseTimeout") this.noteLoss();
		if (this.options.pinned === undefined && this.mayGoOn(error) && this.advance()) return;
		if (this.silent && this.options.prefill?.mayBeBlamed(error)) {
			if (instance !== undefined) this.tried.delete(instance.instance_id);
			this.prefillDue = true;
			if (this.advance()) return;
		}
		if (this.options.continuation !== undefined && isLoss(error)) this.route?.noMore(error);
		this.settle("failure");
		this.finish(() => this.sink.onError(error));
		this.options.prefill?.cancel();
	}

	/** Prepares the request for another instance; false when it has to end with this error. */
	private mayGoOn(error: DynamoError): boolean {
		const { mayRepeat, prefill } = this.options;
		if (mayRepeat !== undefined) return isLoss(error) && mayRepeat();
		// A worker that had the request may have used up what was handed over.
		if (prefill !== undefined && (this.opened || this.handover?.once === true)) this.prefillDue = true;
		if (!this.delivered && mayTryAnother(error)) return true;
		const { continuation } = this.options;
		if (continuation === undefined || !isLoss(error) || this.migrations >= continuation.limit) return false;
		if (this.delivered && continuation.obstacle !== undefined) return false;
		if (this.lost === undefined) this.noteLoss();
		this.migrations++;
		this.attempts = 0;
		const rest = continuation.rest();
		this.request = { ...this.request, payload: rest };
		this.tokenIds = rest.token_ids;
		this.prefillDue = prefill !== undefined;
		return true;
	}

	/** @returns false when there is nobody (else) to ask. */
	private advance(): boolean {
		const { prefill } = this.options;
		if (prefill === undefined || !this.prefillDue) return this.attempt();
		// Without anybody to go on with the prompt would be computed for nothing.
		if (this.attempts >= MAX_ATTEMPTS || !this.hasInstance()) return false;
		this.prefillDue = false;
		this.handover = undefined;
		prefill.run(this.request, this.tokenIds ?? [], this);
		return true;
	}

	private hasInstance(): boolean {
		const { pinned } = this.options;
		if (pinned !== undefined) return this.roomAt(pinned) !== undefined;
		return this.set.router.name !== "direct" && this.fresh().length > 0;
	}

	/** Candidates that have not been tried. */
	private fresh(): readonly EndpointRecord[] {
		const candidates = this.set.withRoom();
		if (this.tried.size === 0) return candidates;
		return candidates.filter(({ instance_id }) => !this.tried.has(instance_id));
	}

	private attempt(): boolean {
		if (this.attempts >= MAX_ATTEMPTS) return false;
		const { pinned, onAttempt } = this.options;
		const routing = this.routingRequest();
		const instance = pinned === undefined ? this.pick(routing) : this.roomAt(pinned);
		routing.span?.end();
		if (instance === undefined) return false;
		this.attempts++;
		this.tried.add(instance.instance_id);
		this.instance = instance;
		this.opened = false;
		this.silent = true;
		this.attemptId = String(attemptsEver++);
		const rank = this.set.router.rankFor?.(instance.instance_id, routing);
		const decision = this.set.router.explain?.(instance.instance_id, routing);
		this.beginRoute(instance, decision);
		const request = { ...withRank(this.requestFor(instance, rank), rank), span: this.route?.span };
		this.set.router.onStart?.(instance.instance_id, this.attemptId, routing);
		onAttempt?.(instance, decision);
		this.call = this.set.client.send(instance, request, this, this.options);
		if (this.paused) this.call.pause();
		return true;
	}

	private beginRoute(instance: EndpointRecord, decision: RoutingDecision | undefined): void {
		const { trace, continuation } = this.options;
		if (trace === undefined) return;
		const { router } = this.set;
		this.route = new RouteSpan(trace, router, {
			instance,
			number: this.attemptsMade++,
			tokensCompleted: continuation?.tokens ?? 0,
			decision,
			previous: this.route,
		});
	}

	private pick(routing: RoutingRequest): EndpointRecord | undefined {
		const fresh = this.fresh();
		const preferred = this.handover?.preferred;
		return preferred !== undefined && fresh.includes(preferred) ? preferred : this.set.router.pick(fresh, routing);
	}

	private requestFor(instance: EndpointRecord, rank: number | undefined): OutgoingRequest {
		const { request, handover } = this;
		const { bodyFor } = this.options;
		if (handover === undefined && bodyFor === undefined) return request;
		const body = { ...(request.payload as PreprocessedRequest), ...handover?.body };
		return { ...request, payload: bodyFor === undefined ? body : bodyFor(body, instance, rank) };
	}

	private roomAt(instance: EndpointRecord): EndpointRecord | undefined {
		return this.set.load?.isBusy(instance.instance_id) ? undefined : instance;
	}

	private refuse(): void {
		const error = this.refusal();
		queueMicrotask(() => {
			this.finish(() => this.sink.onError(error));
			this.options.prefill?.cancel();
		});
	}

	/** Why nobody was there for the request in the first place. */
	private refusal(): DynamoError {
		// One that is pinned is passed over only for being full.
		const full = this.options.pinned !== undefined || this.set.withRoom().length === 0;
		const known = this.options.pinned !== undefined || this.set.candidates().length > 0;
		if (full && known) return overloadedError(this.set.name);
		return this.set.router.refusal?.() ?? notReadyError(this.set.name);
	}

	private routingRequest(): RoutingRequest {
		const { routing } = this.options;
		return {
			tokenIds: this.tokenIds,
			loraName: routing?.lora_name,
			cacheSalt: routing?.cache_salt,
			dpRank: routing?.dp_rank,
			span: beginSelection(this.options.trace, this.set.router),
			overrides: this.handover?.overrides,
		};
	}

	private noteLoss(): void {
		const type = this.opened ? "ongoing_request" : "new_request";
		this.lost = { type, since: performance.now() };
		this.options.migrations?.onLost(type);
	}

	/** Tells what became of the last loss, if that is still open. */
	private settle(outcome: "success" | "failure" | "cancelled"): void {
		const { lost } = this;
		if (lost === undefined) return;
		this.lost = undefined;
		this.options.migrations?.onOutcome(lost.type, outcome, (performance.now() - lost.since) / 1000);
	}

	private leaveInstance(): void {
		const { instance } = this;
		if (instance === undefined) return;
		this.instance = undefined;
		this.set.router.onEnd?.(instance.instance_id, this.attemptId);
	}

	private finish(tell: () => void): void {
		if (this.over) return;
		this.over = true;
		this.call = undefined;
		this.leaveInstance();
		this.set.release();
		tell();
	}
}

/** The request with the rank that it is for; the same one where the worker decides. */
function withRank(request: OutgoingRequest, rank: number | undefined): OutgoingRequest {
	if (rank === undefined) return request;
	const body = request.payload as { readonly routing?: RoutingHints };
	return { ...request, payload: { ...body, routing: { ...body.routing, dp_rank: rank } } };
}
