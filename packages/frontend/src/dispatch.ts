// SPDX-License-Identifier: Apache-2.0
import {
	type Annotated,
	type DynamoError,
	type EndpointRecord,
	finishError,
	type LLMEngineOutput,
	mayTryAnother,
	type PreprocessedRequest,
} from "@dynamo-ts/protocols/internal";
import type { RoutingDecision, RoutingRequest, Ticket } from "@dynamo-ts/router";
import { beginSelection, RouteSpan } from "@dynamo-ts/router/internal";
import type { ActiveRequest, OutgoingRequest, ResponseSink } from "@dynamo-ts/runtime";
import { notReadyError } from "./dispatch-errors.js";
import type { DispatchOptions, Handover, PrefillHost } from "./dispatch-options.js";
import { routingRequestOf, withRank } from "./dispatch-requests.js";
import { asDynamoError } from "./http-errors.js";
import { isLoss, type MigrationType } from "./migration.js";
import type { WorkerSet } from "./worker-set.js";

/** Most instances that a request is offered to in a row without an item from any of them. */
const MAX_ATTEMPTS = 8;

let attemptsEver = 0;

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
	attemptsMade = 0;
	/** The prompt is to be computed elsewhere before the next attempt. */
	private prefillDue: boolean;
	private handover: Handover | undefined;
	private withdrawing = false;
	/** Times that a worker was told to drop the request, and perhaps has not yet when it gets it again. */
	private withdrawals = 0;
	/** While it waits for its turn. */
	private waiting: { readonly ticket: Ticket; readonly routing: RoutingRequest } | undefined;
	/** Why it may not even be picked for. */
	private denied: DynamoError | undefined;
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
		this.leaveQueue();
		this.settle("cancelled");
		this.finish(() => {});
		call?.kill();
		if (complete) this.options.prefill?.release();
		else this.options.prefill?.cancel();
	}

	/** What the sink found in the answer of the attempt under way: all that was wanted, or a failure. */
	judge(error?: DynamoError): void {
		if (error === undefined) this.route?.succeeded();
		else this.route?.failed(error);
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
		if (this.silent && this.options.prefill !== undefined && this.isFailedMeeting(item)) return;
		this.delivered = true;
		if (this.silent) {
			this.silent = false;
			this.set.router.onFirstItem(this.attemptId);
		}
		const output = item.data as Partial<LLMEngineOutput> | null | undefined;
		const tokens = output?.token_ids?.length;
		if (tokens !== undefined && tokens > 0) this.set.router.onTokens(this.attemptId, tokens);
		const reused = output?.completion_usage?.prompt_tokens_details?.cached_tokens;
		if (typeof reused === "number") this.set.router.onReused(this.attemptId, reused);
		if (this.lost !== undefined) this.settle("success");
		this.sink.onItem(item);
	}

	onEnd(): void {
		this.settle("success");
		// The sink may find that this was no answer.
		this.finish(() => this.sink.onEnd());
		this.route?.succeeded();
		this.options.prefill?.release();
	}

	get requestId(): string {
		const { id } = this.request;
		return this.withdrawals === 0 ? id : `${id}-${this.withdrawals}`;
	}

	onHandover(handover: Handover): void {
		if (this.over) return;
		this.handover = handover;
		if (!this.attempt()) this.refuse();
	}

	onWithdrawn(): boolean {
		if (this.over || !this.silent) return false;
		this.leaveQueue();
		this.handover = undefined;
		const { instance } = this;
		this.route?.cancelled();
		this.dropCall();
		if (instance !== undefined) {
			this.leaveInstance();
			this.tried.delete(instance.instance_id);
		}
		return true;
	}

	/** A worker may say in an item that nobody came to the meeting; that is as good as a failed request. */
	private isFailedMeeting(item: Annotated<unknown>): boolean {
		const error = finishError(item);
		if (error === undefined || !this.options.prefill?.mayBeBlamed(error)) return false;
		this.dropCall();
		this.onError(error);
		return true;
	}

	/** Ends the attempt under way without hearing of it. */
	private dropCall(): void {
		const { call } = this;
		if (call !== undefined) this.withdrawals++;
		this.call = undefined;
		this.withdrawing = true;
		call?.kill();
		this.withdrawing = false;
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
		if (prefill.running) this.withdrawals++;
		prefill.run(this.request, this.tokenIds ?? [], this);
		return true;
	}

	private hasInstance(): boolean {
		const { router } = this.set;
		if (this.options.pinned === undefined && router.name === "direct") return false;
		return router.eligible(this.fresh(), this.routingRequest()).length > 0;
	}

	/** Candidates that have not been tried, full ones included. */
	private fresh(): readonly EndpointRecord[] {
		const { pinned } = this.options;
		const candidates = pinned === undefined ? this.set.candidates() : [pinned];
		if (this.tried.size === 0) return candidates;
		return candidates.filter(({ instance_id }) => !this.tried.has(instance_id));
	}

	/** Goes to an instance, or waits for one. */
	private attempt(): boolean {
		if (this.attempts >= MAX_ATTEMPTS) return false;
		const routing: RoutingRequest = {
			...this.routingRequest(),
			span: beginSelection(this.options.trace, this.set.router),
		};
		try {
			const ticket = this.set.router.admit({
				request: routing,
				settled: this.handover?.preferred !== undefined,
				candidates: () => this.fresh(),
				onTurn: () => {
					this.waiting = undefined;
					if (!this.place(routing)) this.refuse();
				},
				onRefused: (error) => {
					this.leaveQueue();
					this.denied = error;
					this.refuse();
				},
			});
			if (ticket === undefined) return this.place(routing);
			this.waiting = { ticket, routing };
			return true;
		} catch (error) {
			routing.span?.end();
			this.denied = asDynamoError(error);
			return false;
		}
	}

	private place(routing: RoutingRequest): boolean {
		const { onAttempt } = this.options;
		const { router } = this.set;
		const instance = this.pick(routing);
		routing.span?.end();
		if (instance === undefined) return false;
		this.attempts++;
		this.tried.add(instance.instance_id);
		this.instance = instance;
		this.opened = false;
		this.silent = true;
		this.attemptId = String(attemptsEver++);
		const rank = router.rankFor(instance.instance_id, routing);
		const decision = router.explain?.(instance.instance_id, routing);
		this.beginRoute(instance, decision);
		const { requestId: id } = this;
		const request = { ...withRank(this.requestFor(instance, rank), rank), id, span: this.route?.span };
		router.onStart(instance.instance_id, this.attemptId, routing);
		onAttempt?.(instance, decision);
		const meets = this.handover?.once === true;
		this.call = this.set.client.send(
			instance,
			request,
			this,
			meets ? { ...this.options, blameIsShared: true } : this.options,
		);
		if (this.paused) this.call.pause();
		return true;
	}

	private leaveQueue(): void {
		const { waiting } = this;
		this.waiting = undefined;
		waiting?.ticket.cancel();
		waiting?.routing.span?.end();
	}

	private beginRoute(instance: EndpointRecord, decision: RoutingDecision | undefined): void {
		const { trace, continuation } = this.options;
		const attemptsBefore = this.attemptsMade++;
		if (trace === undefined) return;
		const { router } = this.set;
		this.route = new RouteSpan(trace, router, {
			instance,
			number: (trace.attemptsBefore ?? 0) + attemptsBefore,
			tokensCompleted: continuation?.tokens ?? 0,
			decision,
			previous: this.route,
		});
	}

	private pick(routing: RoutingRequest): EndpointRecord | undefined {
		const { router } = this.set;
		const fresh = this.fresh();
		const preferred = this.handover?.preferred;
		// A session's worker comes before the one that was found for the prompt.
		if (preferred !== undefined && (routing.sessionId === undefined || router.affinity === undefined)) {
			if (router.eligible(fresh, routing).includes(preferred)) return preferred;
		}
		return router.pick(fresh, routing);
	}

	private requestFor(instance: EndpointRecord, rank: number | undefined): OutgoingRequest {
		const { request, handover } = this;
		const { bodyFor } = this.options;
		if (handover === undefined && bodyFor === undefined) return request;
		const body = { ...(request.payload as PreprocessedRequest), ...handover?.body };
		return { ...request, payload: bodyFor === undefined ? body : bodyFor(body, instance, rank) };
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
		return this.denied ?? this.set.router.refusal() ?? notReadyError(this.set.name);
	}

	private routingRequest(): RoutingRequest {
		return routingRequestOf(this.options, this.requestId, this.tokenIds, this.handover?.overrides);
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

	/** The worker said its last: it has room for others from now on, not only when its stream has ended. */
	answered(): void {
		this.leaveInstance();
	}

	private leaveInstance(): void {
		const { instance } = this;
		if (instance === undefined) return;
		this.instance = undefined;
		this.set.router.onEnd(instance.instance_id, this.attemptId);
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
