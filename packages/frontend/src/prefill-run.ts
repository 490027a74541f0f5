// SPDX-License-Identifier: Apache-2.0
// A prompt at a prefill worker. Without a meeting point the prefill worker finishes first and what it returns goes with
// the request to the decode worker; with one (bootstrap) both have the request at once.
import { randomBytes, randomUUID } from "node:crypto";
import {
	type Annotated,
	type BootstrapInfo,
	DynamoError,
	type EndpointRecord,
	type LLMEngineOutput,
	type PreprocessedRequest,
	type RoutingHints,
} from "@dynamo-ts/protocols/internal";
import type { RoutingDecision, RoutingOverrides } from "@dynamo-ts/router";
import type { OutgoingRequest, ResponseSink, Span } from "@dynamo-ts/runtime";
import { Dispatch } from "./dispatch.js";
import type { DispatchOptions, Handover } from "./dispatch-options.js";
import type { WorkerSet } from "./worker-set.js";

/** A prefill worker sends two items for each choice; of one that sends many more the rest is not kept. */
const MAX_ITEMS = 1024;

/** The decode worker gets the blocks: what it has cached or still to compute is no matter, and nothing is shared. */
const DECODE_OVERRIDES = { overlapScoreCredit: 0, assumeKvReuse: false, trackPrefillTokens: false } as const;
/** The same as it is sent. */
const DECODE_CONFIG = {
	overlap_score_credit: 0,
	prefill_load_scale: null,
	router_temperature: null,
	assume_kv_reuse: false,
	track_prefill_tokens: false,
	shared_cache_multiplier: null,
};

/** Told how a {@link PrefillRun} gets on. */
export interface PrefillRunEvents {
	onAttempt(instance: EndpointRecord, decision: RoutingDecision | undefined): void;
	/** Both workers are to meet; called before {@link onHandover}. */
	onMeeting(): void;
	onHandover(handover: Handover): void;
	onPrefilled(outputs: readonly LLMEngineOutput[]): void;
	onAnswer(items: readonly Annotated<unknown>[]): void;
	/** Never called before `start` has returned. */
	onFailure(error: DynamoError): void;
}

/** A prompt at prefill workers of one set, one after the other until one has computed it. */
export class PrefillRun implements ResponseSink {
	private readonly set: WorkerSet;
	private readonly body: PreprocessedRequest;
	private readonly events: PrefillRunEvents;
	private readonly choices: number;
	private readonly dispatch: Dispatch;
	private readonly items: Annotated<unknown>[] = [];
	private instance: EndpointRecord | undefined;
	private rank: number | undefined;
	private info: BootstrapInfo | undefined;
	private started = false;
	private met = false;
	private readonly span: Span | undefined;
	over = false;
	/** The prompt is computed. */
	completed = false;

	/** @param attemptsBefore decode workers that have had the request. */
	constructor(
		set: WorkerSet,
		request: OutgoingRequest,
		tokenIds: readonly number[],
		choices: number,
		decode: DispatchOptions,
		attemptsBefore: number,
		events: PrefillRunEvents,
	) {
		this.set = set;
		this.body = request.payload as PreprocessedRequest;
		this.choices = choices;
		this.events = events;
		const { prefill_worker_id: pin, prefill_dp_rank: rank } = this.body.routing;
		const pinned = pin === undefined ? undefined : set.member(pin);
		const { trace, firstResponseTimeoutMs, idleTimeoutMs } = decode;
		// Dynamo 1.6.1 has no span around the attempts; the guide to observability looks for this one.
		this.span = trace?.parent.child("prefill_routing", { module: "dynamo_llm::kv_router::prefill_router" });
		this.dispatch = new Dispatch(set, request, tokenIds, this, {
			...(firstResponseTimeoutMs === undefined ? {} : { firstResponseTimeoutMs }),
			...(idleTimeoutMs === undefined ? {} : { idleTimeoutMs }),
			...(trace === undefined || this.span === undefined
				? {}
				: { trace: { ...trace, parent: this.span, phase: "Prefill", attemptsBefore } }),
			...(pinned === undefined ? {} : { pinned }),
			routing: onRank(this.body.routing, rank),
			onAttempt: (instance, decision) => events.onAttempt(instance, decision),
			bodyFor: (body, instance, chosenRank) => this.bodyFor(body, instance, chosenRank ?? rank),
			mayRepeat: () => !this.meeting,
		});
	}

	/** The decode worker has the request too, and they meet by themselves. */
	get meeting(): boolean {
		return this.info !== undefined;
	}

	start(): void {
		this.dispatch.start();
		this.started = true;
		this.meet();
	}

	/** The prefill worker has the request, and waits for the other one. */
	private meet(): void {
		if (this.info === undefined || this.met || this.over) return;
		this.met = true;
		this.events.onMeeting();
		this.events.onHandover({ ...this.handover({ bootstrap_info: this.info }), once: true });
	}

	cancel(): void {
		if (this.over) return;
		this.over = true;
		this.dispatch.kill();
		this.endSpan("cancelled");
	}

	onItem(item: Annotated<unknown>): void {
		// What an attempt sent that was then lost is of no use.
		if (!this.over && item.data !== null && item.data !== undefined && this.items.length < MAX_ITEMS) {
			this.items.push(item);
		}
	}

	onEnd(): void {
		if (this.over) return;
		const outputs = this.items.map(({ data }) => data as LLMEngineOutput);
		const reasons = outputs.map(({ finish_reason }) => finish_reason).filter((reason) => reason != null);
		const failed = reasons.find((reason) => !["length", "stop", "eos", "content_filter"].includes(reason as string));
		if (failed !== undefined) {
			const why = typeof failed === "string" ? failed : failed.error;
			this.fail(new DynamoError("Unknown", `the prefill worker failed: ${why}`));
			return;
		}
		this.over = true;
		this.completed = true;
		this.events.onPrefilled(outputs);
		if (this.meeting) {
			this.succeed();
			return;
		}
		const ended = reasons.filter((reason) => reason !== "length").length;
		if (ended > 0 && ended >= this.choices) {
			this.succeed();
			this.events.onAnswer(this.items);
			return;
		}
		const params = outputs.map(({ disaggregated_params }) => disaggregated_params).find((given) => given != null);
		if (params === undefined) {
			this.fail(new DynamoError("BackendProtocol", "the prefill worker returned no disaggregated_params: is it one?"));
			return;
		}
		this.succeed();
		const details = outputs.map(({ completion_usage }) => completion_usage?.prompt_tokens_details);
		const detail = details.find((given) => given != null);
		this.events.onHandover(
			this.handover({
				prefill_result: {
					disaggregated_params: params,
					...(detail === undefined ? {} : { prompt_tokens_details: detail as Record<string, never> }),
				},
			}),
		);
	}

	onError(error: DynamoError): void {
		if (!this.over) this.fail(error);
	}

	private succeed(): void {
		this.over = true;
		this.dispatch.judge();
		this.endSpan("success");
	}

	private fail(error: DynamoError): void {
		this.over = true;
		this.dispatch.judge(error);
		this.span?.fail(error.message);
		this.endSpan("error");
		this.events.onFailure(error);
	}

	private endSpan(outcome: "success" | "error" | "cancelled"): void {
		this.span?.set("request.outcome", outcome);
		this.span?.end();
	}

	private bodyFor(body: PreprocessedRequest, instance: EndpointRecord, rank: number | undefined): PreprocessedRequest {
		this.items.length = 0;
		this.instance = instance;
		this.rank = rank;
		this.info = this.meetingAt(instance, rank);
		// One that had to wait for its turn is sent once this call has returned.
		if (this.started && this.info !== undefined) queueMicrotask(() => this.meet());
		const { max_tokens: _all, min_tokens, ...stop } = body.stop_conditions;
		return {
			...body,
			stop_conditions: { ...stop, max_tokens: 1, min_tokens: min_tokens === null ? null : Math.min(1, min_tokens) },
			routing: onRank({ ...body.routing, prefill_worker_id: instance.instance_id }, rank),
			...(this.info === undefined ? {} : { bootstrap_info: this.info }),
		};
	}

	/** Where the instance waits for the decode worker; policies that count requests wait for the prompt instead. */
	private meetingAt(instance: EndpointRecord, rank: number | undefined): BootstrapInfo | undefined {
		const { name } = this.set.router;
		if (name === "power-of-two" || name === "least-loaded") return undefined;
		const config = this.set.cardOf(instance.instance_id)?.runtime_config;
		const { bootstrap_host, bootstrap_port } = config?.disaggregated_endpoint ?? {};
		if (typeof bootstrap_host !== "string" || typeof bootstrap_port !== "number") return undefined;
		const ranks = BigInt(Math.max(1, config?.data_parallel_size ?? 1));
		return {
			bootstrap_host,
			bootstrap_port,
			bootstrap_room: roomOf(ranks, BigInt(rank ?? 0) % ranks),
			handoff_id: randomUUID(),
		};
	}

	private handover(members: Partial<PreprocessedRequest>): Handover {
		const id = (this.instance as EndpointRecord).instance_id;
		const routing: RoutingHints = { ...this.body.routing, prefill_worker_id: id };
		if (this.rank !== undefined) routing.prefill_dp_rank = this.rank;
		return {
			body: { routing, router_config_override: { ...DECODE_CONFIG }, ...members },
			overrides: DECODE_OVERRIDES satisfies RoutingOverrides,
		};
	}
}

/** A random room below 2^63 that says the rank: its remainder by the number of ranks. */
function roomOf(ranks: bigint, rank: bigint): bigint {
	const random = randomBytes(8).readBigUInt64BE() >> 1n;
	const room = random - (random % ranks) + rank;
	return room < 1n << 63n ? room : room - ranks;
}

/** The hints with the rank of the worker that the request goes to; the other leg's says nothing there. */
function onRank(routing: RoutingHints, rank: number | undefined): RoutingHints {
	const { dp_rank: _other, ...hints } = routing;
	return rank === undefined ? hints : { ...hints, dp_rank: rank };
}
