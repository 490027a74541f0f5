// SPDX-License-Identifier: Apache-2.0
// What log lines and spans say about one inference request: one line when it was received, one when it is completed,
// and the attributes of its span.
import type { Logger, Span, SpanValue } from "@dynamo-ts/runtime";
import type { ErrorTypeLabel, Failure } from "./http-errors.js";

/** What is known of a request at its end. */
export interface RequestSummary {
	/** Undefined: the answer is complete, or the client left. */
	readonly failure: Failure | undefined;
	readonly cancelled: boolean;
	readonly durationMs: number;
	readonly inputTokens: number;
	readonly outputTokens: number;
	readonly ttftMs: number | undefined;
	readonly avgItlMs: number | undefined;
	readonly prefillWorkerId: bigint | undefined;
	readonly decodeWorkerId: bigint | undefined;
	/** Why the first choice ended. */
	readonly finishReason: string | undefined;
}

/** What both lines say. */
export interface RequestIdentity {
	readonly request_id: string;
	readonly model: string;
	readonly endpoint: string;
	readonly request_type: string;
}

/** Dynamo's words for what a request ended with. */
const DETAILS: Record<ErrorTypeLabel, string> = {
	"": "",
	validation: "invalid request parameters",
	not_found: "model or resource not found",
	overload: "service overloaded or rate limited",
	unavailable: "no backend worker available",
	cancelled: "cancelled before completion",
	internal: "internal server error",
	not_implemented: "feature not implemented",
};

/** Writes the two lines, in the span that the request is handled in. */
export class RequestRecord {
	private readonly identity: RequestIdentity;
	private readonly log: Logger;
	/** `http-request`; gets what becomes known. */
	private readonly http: Span | undefined;
	/** Where the lines belong: the same, or one within it. */
	private readonly span: Span | undefined;

	constructor(identity: RequestIdentity, log: Logger, http: Span | undefined, span: Span | undefined) {
		this.identity = identity;
		this.log = log;
		this.http = http;
		this.span = span;
		http?.set("model", identity.model);
		log.info("request received", { ...identity }, span);
	}

	completed(summary: RequestSummary): void {
		const { failure, cancelled, durationMs } = summary;
		const outcome = cancelled ? "cancelled" : failure === undefined ? "success" : "error";
		const facts = factsOf(summary, outcome);
		for (const [name, value] of Object.entries(facts)) this.http?.set(name, value);
		const { http } = this;
		http?.setAttribute("gen_ai.usage.prompt_tokens", summary.inputTokens);
		http?.setAttribute("gen_ai.usage.completion_tokens", summary.outputTokens);
		http?.setAttribute("gen_ai.completion.0.finish_reason", summary.finishReason);
		const line = {
			...this.identity,
			status: outcome,
			elapsed_ms: String(Math.round(durationMs)),
			finish_reason: summary.finishReason,
			// A line in a span of its own would not show what stands in the outer one.
			...(this.span === this.http ? {} : facts),
		};
		if (outcome === "success") {
			this.log.info("request completed", line, this.span);
			return;
		}
		const errorType = cancelled ? "cancelled" : (failure as Failure).errorType;
		const error = { error_type: errorType, error_detail: DETAILS[errorType] };
		if (cancelled || errorType === "cancelled") {
			this.log.info("request completed", { ...line, ...error }, this.span);
			return;
		}
		const { reason, diagnostic } = failure as Failure;
		this.http?.fail();
		this.log.error("request completed", { ...line, ...error, reason, error: diagnostic }, this.span);
	}
}

/** As text, which is what Dynamo's spans have; tokens only of requests that came to a worker. */
function factsOf(summary: RequestSummary, outcome: string): Record<string, SpanValue> {
	const { inputTokens, outputTokens, ttftMs, avgItlMs, prefillWorkerId, decodeWorkerId } = summary;
	const facts: Record<string, SpanValue> = {};
	if (decodeWorkerId !== undefined) {
		facts.input_tokens = String(inputTokens);
		facts.output_tokens = String(outputTokens);
		facts.image_count = "0";
		facts.video_count = "0";
		facts.audio_count = "0";
		if (ttftMs !== undefined) facts.ttft_ms = ttftMs.toFixed(2);
		if (avgItlMs !== undefined) facts.avg_itl_ms = avgItlMs.toFixed(2);
		facts.prefill_worker_id = (prefillWorkerId ?? decodeWorkerId).toString();
		facts.decode_worker_id = decodeWorkerId.toString();
	}
	facts["request.outcome"] = outcome;
	return facts;
}
