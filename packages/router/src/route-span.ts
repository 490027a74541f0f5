// SPDX-License-Identifier: Apache-2.0
// The span of one attempt to have a request answered by an instance, and the lines about it.
import { type DynamoError, type EndpointRecord, errorReason } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, Logger, Span } from "@dynamo-ts/runtime";
import type { Router, RoutingDecision } from "./router.js";

/** What an attempt is for. */
export type RoutePhase = "Aggregated" | "Prefill" | "Decode";

/** The logs that lines about attempts go to. */
export interface RouteLogs {
	readonly selector: Logger;
	readonly pushRouter: Logger;
	readonly span: Logger;
	readonly migration: Logger;
}

export function routeLogs(runtime: DistributedRuntime): RouteLogs {
	return {
		selector: runtime.log.child("dynamo_kv_router::scheduling::selector"),
		pushRouter: runtime.log.child("dynamo_runtime::pipeline::network::egress::push_router"),
		span: runtime.log.child("request_span"),
		migration: runtime.log.child("dynamo_llm::migration"),
	};
}

/** Where attempts of a request belong. */
export interface RouteTrace {
	readonly parent: Span;
	readonly phase: RoutePhase;
	readonly logs: RouteLogs;
	readonly requestId: string;
	/** What a client that leaves does to a worker: its stream is dropped, or its request killed. */
	readonly cancelSignal: "stream_drop" | "kill";
	/** Attempts to have the request answered that came before those of this trace; absent: none. */
	readonly attemptsBefore?: number;
}

/** What is known of an attempt when it begins. */
export interface Attempt {
	readonly instance: EndpointRecord;
	/** Attempts before it. */
	readonly number: number;
	/** Tokens that were there before it; more than none only after a migration. */
	readonly tokensCompleted: number;
	readonly decision: RoutingDecision | undefined;
	/** The attempt that failed before it. */
	readonly previous: RouteSpan | undefined;
}

/** Opens the span of a choice, for policies whose choice has parts; undefined where nobody would see it. */
export function beginSelection(trace: RouteTrace | undefined, router: Router): Span | undefined {
	if (trace?.parent.recording !== true || router.name !== "kv") return undefined;
	const module = "dynamo_llm::kv_router::routing_host::kv";
	return trace.parent.child("kv_router.select_worker", { target: module, module });
}

/** One attempt; ended by the first call of a method. */
export class RouteSpan {
	private readonly trace: RouteTrace;
	/** Goes with the request to the worker. */
	readonly span: Span;
	private readonly workerId: bigint;
	private over = false;
	/** Why it failed. */
	private reason = "";

	constructor(trace: RouteTrace, router: Router, attempt: Attempt) {
		this.trace = trace;
		const { parent, logs, requestId, phase } = trace;
		const { instance, number, tokensCompleted, decision } = attempt;
		const workerId = instance.instance_id;
		this.workerId = workerId;
		attempt.previous?.movedOn(number);
		const kv = router.name === "kv";
		if (kv) {
			logs.selector.info(
				"Selected worker",
				{
					request_id: requestId,
					router_mode: router.name,
					worker_id: workerId,
					dp_rank: decision?.dpRank ?? 0,
					effective_cached_blocks: decision?.overlapBlocks,
					worker_type: phase.toLowerCase(),
				},
				parent,
			);
		} else {
			logs.pushRouter.info("Selected worker", { router_mode: router.name, worker_id: workerId }, parent);
		}
		const fields = kv
			? { dp_rank: String(decision?.dpRank ?? 0), overlap_blocks: String(decision?.overlapBlocks ?? 0), phase }
			: { router_mode: pascalCase(router.name) };
		this.span = parent.child(`${kv ? "kv_router" : "router"}.route_request`, {
			kind: "client",
			module: kv ? "dynamo_llm::kv_router::routing_host::kv" : "dynamo_runtime::pipeline::network::egress::push_router",
			fields: {
				request_id: requestId,
				...fields,
				worker_id: workerId.toString(),
				"request.attempt": String(number),
				"migration.is_retry": number > 0,
				...(phase === "Prefill" ? {} : { "migration.tokens_completed": String(tokensCompleted) }),
			},
		});
	}

	succeeded(): void {
		if (!this.finish("success")) return;
		this.trace.logs.span.info("route request completed", { "request.outcome": "success" }, this.span);
		this.span.end();
	}

	cancelled(): void {
		if (!this.finish("cancelled")) return;
		const { cancelSignal } = this.trace;
		this.span.set("cancellation.signal", cancelSignal);
		const fields = { "request.outcome": "cancelled", "cancellation.signal": cancelSignal };
		this.trace.logs.span.info("route request cancelled", fields, this.span);
		this.span.end();
	}

	failed(error: DynamoError): void {
		if (!this.finish("error")) return;
		const reason = errorReason(error);
		this.reason = reason;
		this.span.set("error.type", reason);
		this.span.fail(reason.slice(reason.lastIndexOf(".") + 1));
		this.trace.logs.span.warn(
			"route request failed",
			{ "request.outcome": "error", "error.type": reason, error },
			this.span,
		);
		this.span.end();
	}

	/** Nobody else is tried after it. */
	noMore(error: DynamoError): void {
		const { logs, parent } = this.trace;
		logs.migration.warn("migration retries exhausted", { "migration.reason": this.reason, error }, parent);
	}

	private movedOn(attempt: number): void {
		const { logs, parent } = this.trace;
		const fields = {
			"migration.from_worker_id": this.workerId.toString(),
			"migration.reason": this.reason,
			"request.attempt": String(attempt),
		};
		logs.migration.info("migration retry scheduled", fields, parent);
	}

	private finish(outcome: string): boolean {
		if (this.over) return false;
		this.over = true;
		this.span.set("request.outcome", outcome);
		return true;
	}
}

/** `round-robin` as Dynamo's spans have it: `RoundRobin`. */
function pascalCase(name: string): string {
	return name.replace(/(^|-)([a-z])/g, (_all, _dash, letter: string) => letter.toUpperCase());
}
