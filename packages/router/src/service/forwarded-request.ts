// SPDX-License-Identifier: Apache-2.0
// One request that a standalone router passes on: to a worker, to another one where that is lost before it said
// anything, and its items back to the client.
import {
	type Annotated,
	type DynamoError,
	type EndpointRecord,
	finishError,
	isJsonObject,
	type LLMEngineOutput,
	mayTryAnother,
	type RoutingHints,
} from "@dynamo-ts/protocols/internal";
import type { ActiveRequest, IngressRequest, ResponseSink, ResponseWriter } from "@dynamo-ts/runtime";
import type { KvPolicy } from "../kv-policy.js";
import type { Ticket } from "../queue/admission.js";
import { beginSelection, RouteSpan, type RouteTrace } from "../route-span.js";
import type { RoutingDecision, RoutingRequest } from "../router.js";
import type { RoutingGroup } from "../routing-group.js";
import type { WorkerGroup } from "./worker-group.js";

/** Most workers that a request is offered to without an item from any of them. */
const MAX_ATTEMPTS = 8;

/** Headers that the request plane sets anew for each hop. */
const HOP_HEADERS: ReadonlySet<string> = new Set(["request-id", "x-endpoint-path", "x-frontend-send-ts-ns"]);

let attemptsEver = 0;

/** A request as far as the router reads it; everything in it goes on to the worker. */
export interface ForwardedBody {
	readonly [member: string]: unknown;
	readonly routing?: RoutingHints | null;
}

export class ForwardedRequest implements ResponseSink {
	readonly #group: WorkerGroup;
	readonly #policy: KvPolicy;
	readonly #router: RoutingGroup;
	readonly #request: IngressRequest;
	readonly #response: ResponseWriter;
	readonly #body: ForwardedBody;
	readonly #routing: RoutingRequest;
	readonly #pinned: EndpointRecord | undefined;
	readonly #tried = new Set<bigint>();
	#instance: EndpointRecord | undefined;
	#rank = 0;
	#hitRate = 0;
	#queueDepth = 0;
	#attemptId = "";
	#call: ActiveRequest | undefined;
	/** While it waits for its turn. */
	#ticket: Ticket | undefined;
	/** Of the attempt under way; undefined where requests have no spans. */
	#route: RouteSpan | undefined;
	#delivered = false;
	#over = false;
	/** `performance.now()`. */
	#sentAt = 0;
	#firstAt: number | undefined;

	/**
	 * @param router of the policy, told what becomes of the request.
	 * @param pinned the only worker that may take it; undefined: the policy picks.
	 */
	constructor(
		group: WorkerGroup,
		policy: KvPolicy,
		router: RoutingGroup,
		request: IngressRequest,
		response: ResponseWriter,
		body: ForwardedBody,
		routing: RoutingRequest,
		pinned: EndpointRecord | undefined,
	) {
		this.#group = group;
		this.#policy = policy;
		this.#router = router;
		this.#request = request;
		this.#response = response;
		this.#body = body;
		this.#routing = routing;
		this.#pinned = pinned;
	}

	/** Sends it; whatever becomes of it, the response ends. */
	start(): void {
		this.#request.onCancel((kind) => {
			if (kind === "stop") this.#call?.stop();
			else this.#abandon();
		});
		if (this.#over || this.#attempt()) return;
		this.#refuse(this.#group.noWorkerError());
	}

	onItem(item: Annotated<unknown>): void {
		if (this.#over) return;
		if (!this.#delivered) {
			this.#delivered = true;
			this.#router.onFirstItem(this.#attemptId);
		}
		const output = isJsonObject(item.data) ? (item.data as Partial<LLMEngineOutput>) : undefined;
		const tokens = output?.token_ids?.length;
		if (tokens !== undefined && tokens > 0) this.#router.onTokens(this.#attemptId, tokens);
		const reused = output?.completion_usage?.prompt_tokens_details?.cached_tokens;
		if (typeof reused === "number") this.#router.onReused(this.#attemptId, reused);
		const failure = finishError(item);
		if (failure !== undefined) this.#route?.failed(failure);
		this.#response.send(this.#withRoutingData(item));
	}

	onEnd(): void {
		if (this.#over) return;
		this.#route?.succeeded();
		this.#finish();
		this.#response.end();
	}

	onError(error: DynamoError): void {
		if (this.#over) return;
		this.#route?.failed(error);
		this.#leaveInstance();
		if (this.#pinned === undefined && !this.#delivered && mayTryAnother(error) && this.#attempt()) return;
		this.#finish();
		this.#response.fail(error);
	}

	/** Goes to a worker, or waits for one. @returns false when there is nobody (else) to ask. */
	#attempt(): boolean {
		if (this.#tried.size >= MAX_ATTEMPTS) return false;
		try {
			this.#ticket = this.#policy.admit({
				request: this.#routing,
				candidates: () => (this.#pinned === undefined ? this.#fresh() : [this.#pinned]),
				onTurn: () => {
					this.#ticket = undefined;
					if (!this.#place()) this.#refuse(this.#group.noWorkerError());
				},
				onRefused: (error) => this.#refuse(error),
			});
		} catch (error) {
			// The response is only to end once the request's start is over.
			queueMicrotask(() => this.#refuse(error as DynamoError));
			return true;
		}
		return this.#ticket !== undefined || this.#place();
	}

	#refuse(error: DynamoError): void {
		if (this.#over) return;
		this.#finish();
		this.#response.fail(error);
	}

	#place(): boolean {
		const trace = this.#group.traceOf(this.#request, this.#body.routing);
		const span = beginSelection(trace, this.#policy);
		const routing: RoutingRequest = span === undefined ? this.#routing : { ...this.#routing, span };
		const instance = this.#pinned ?? this.#pick(routing);
		span?.end();
		if (instance === undefined) return false;
		const { instance_id: id } = instance;
		this.#tried.add(id);
		this.#instance = instance;
		this.#attemptId = `forwarded-${attemptsEver++}`;
		const rank = this.#policy.rankFor(id, routing);
		const decision = this.#policy.explain(id, routing);
		const { dpRank, overlapBlocks, promptBlocks, queueDepth } = decision;
		this.#rank = dpRank;
		this.#queueDepth = queueDepth;
		this.#hitRate = promptBlocks === 0 ? 0 : overlapBlocks / promptBlocks;
		this.#router.onStart(id, this.#attemptId, routing);
		this.#beginRoute(trace, instance, decision);
		this.#sentAt = performance.now();
		const payload =
			rank === undefined ? this.#body : { ...this.#body, routing: { ...this.#body.routing, dp_rank: rank } };
		this.#call = this.#group.client.send(
			instance,
			{ id: this.#request.id, payload, headers: passedHeaders(this.#request.headers), span: this.#route?.span },
			this,
		);
		return true;
	}

	#beginRoute(trace: RouteTrace | undefined, instance: EndpointRecord, decision: RoutingDecision): void {
		if (trace === undefined) return;
		const number = this.#tried.size - 1;
		const attempt = { instance, number, tokensCompleted: 0, decision, previous: this.#route };
		this.#route = new RouteSpan(trace, this.#policy, attempt);
	}

	#pick(routing: RoutingRequest): EndpointRecord | undefined {
		return this.#policy.pick(this.#fresh(), routing);
	}

	/** Candidates that have not been tried. */
	#fresh(): readonly EndpointRecord[] {
		const candidates = this.#group.candidates();
		if (this.#tried.size === 0) return candidates;
		return candidates.filter(({ instance_id }) => !this.#tried.has(instance_id));
	}

	/** As Dynamo's router does: the worker with the first item, timings (milliseconds) with the last. */
	#withRoutingData(item: Annotated<unknown>): Annotated<unknown> {
		if (!isJsonObject(item.data)) return item;
		const output = item.data as Partial<LLMEngineOutput> & { readonly routing_data?: unknown };
		const isFirst = this.#firstAt === undefined;
		const now = performance.now();
		this.#firstAt ??= now;
		const isLast = output.finish_reason !== undefined && output.finish_reason !== null;
		if (!isFirst && !isLast) return item;
		const data: Record<string, unknown> = isJsonObject(output.routing_data) ? { ...output.routing_data } : {};
		if (isFirst) data.worker_id = workerIds(this.#instance?.instance_id, this.#rank, this.#body.routing);
		if (isLast) {
			const { receivedAt } = this.#request;
			data.timing = {
				request_received_ms: Math.round(performance.timeOrigin + receivedAt),
				prefill_wait_time_ms: this.#sentAt - receivedAt,
				prefill_time_ms: this.#firstAt - this.#sentAt,
				ttft_ms: this.#firstAt - receivedAt,
				total_time_ms: now - receivedAt,
				kv_hit_rate: this.#hitRate,
				router_queue_depth: this.#queueDepth,
			};
		}
		return { ...item, data: { ...output, routing_data: data } };
	}

	/** The client is gone. */
	#abandon(): void {
		this.#route?.cancelled();
		const call = this.#call;
		this.#finish();
		call?.kill();
	}

	#leaveInstance(): void {
		const instance = this.#instance;
		if (instance === undefined) return;
		this.#instance = undefined;
		this.#router.onEnd(instance.instance_id, this.#attemptId);
	}

	#finish(): void {
		this.#over = true;
		this.#call = undefined;
		this.#ticket?.cancel();
		this.#ticket = undefined;
		this.#leaveInstance();
	}
}

/** Who answers, as answers tell it: one worker does both, unless another one has computed the prompt. */
export function workerIds(
	id: bigint | undefined,
	dpRank: number,
	routing: RoutingHints | null | undefined,
): Record<string, unknown> {
	return {
		prefill_worker_id: routing?.prefill_worker_id ?? id,
		prefill_dp_rank: routing?.prefill_dp_rank ?? dpRank,
		decode_worker_id: id,
		decode_dp_rank: dpRank,
	};
}

function passedHeaders(headers: Readonly<Record<string, string>>): Record<string, string> {
	return Object.fromEntries(Object.entries(headers).filter(([name]) => !HOP_HEADERS.has(name)));
}
