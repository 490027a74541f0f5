// SPDX-License-Identifier: Apache-2.0
import type { Logger, Span } from "@dynamo-ts/runtime";
import type { FrontendMetrics, ModelSeries } from "./frontend-metrics.js";
import type { Failure } from "./http-errors.js";
import { RequestRecord } from "./request-record.js";

/** Values of the metric label `endpoint`. */
export type ApiEndpoint = "chat_completions" | "completions";

/** What is known about a request when its body has been read. */
export interface TrackedRequest {
	readonly endpoint: ApiEndpoint;
	/** The model's label: its name, or `unknown_model`. */
	readonly model: string;
	readonly stream: boolean;
	readonly exchange: Exchange;
}

/** What the tracker needs of the HTTP request. */
export interface Exchange {
	readonly span: Span | undefined;
	readonly requestId: string;
	/** `performance.now()` when the request's head was read. */
	readonly receivedAt: number;
	/** Keeps the span open until {@link release}. */
	hold(): void;
	release(): void;
}

/** Label of requests for models that are not there; keeps the number of series bounded. */
export const UNKNOWN_MODEL = "unknown_model";

/** How a request ended. */
export type Outcome =
	| { readonly kind: "success" }
	| { readonly kind: "disconnected" }
	| { readonly kind: "failure"; readonly failure: Failure };

/**
 * Counts one request from its handler's entry to its end: gauges up here come down in {@link finish}, which works
 * once. Writes one line when it was received and one when it is completed.
 */
export class RequestTracker {
	readonly request: TrackedRequest;
	readonly metrics: FrontendMetrics;
	/** Generated tokens so far, of all choices. */
	outputTokens = 0;
	inputTokens = 0;
	cachedTokens: number | undefined;
	workerId: bigint | undefined;
	/** Milliseconds from {@link Exchange.receivedAt}; undefined before the first token. */
	timeToFirstTokenMs: number | undefined;
	/** The worker that computed the prompt, when that was another one. */
	prefillWorkerId: bigint | undefined;
	/** Why the first choice ended. */
	finishReason: string | undefined;
	/** What is done for the request is part of it. */
	readonly span: Span | undefined;
	/** Around {@link span}, where that is not the exchange's own. */
	private readonly outer: Span | undefined;
	private readonly record: RequestRecord;
	private series: ModelSeries | undefined;
	private stage: { name: string; phase: string; startedAt: number } | undefined;
	private lastTokenAt = 0;
	private latencySumMs = 0;
	private latencyCount = 0;
	private detokenizeMs = 0;
	private queued = true;
	private finished = false;

	constructor(request: TrackedRequest, metrics: FrontendMetrics, log: Logger) {
		this.request = request;
		this.metrics = metrics;
		const { endpoint, model, stream, exchange } = request;
		const type = stream ? "stream" : "unary";
		metrics.requestsStarted.withLabelValues(endpoint, model, type).inc();
		metrics.inflight.withLabelValues(model).inc();
		metrics.active.withLabelValues(model).inc();
		metrics.queued.withLabelValues(model).inc();
		exchange.hold();
		const { span: http, requestId } = exchange;
		if (endpoint === "completions") {
			const module = "dynamo_llm::http::service::openai";
			this.outer = http?.child("completions", { target: module, module });
			this.span = this.outer?.child("completions_single", { target: module, module });
		} else this.span = http;
		this.record = new RequestRecord(
			{ request_id: requestId, model, endpoint, request_type: type },
			log,
			http,
			this.span,
		);
	}

	private endSpans(): void {
		if (this.outer !== undefined) this.span?.end();
		this.outer?.end();
		this.request.exchange.release();
	}

	/**
	 * Moves the request to a stage of the pipeline; undefined: to none.
	 * @param phase which worker it is on its way to; none while it is preprocessed.
	 */
	enterStage(
		name: "preprocess" | "route" | "dispatch" | undefined,
		phase: "" | "prefill" | "decode" | "aggregated" = "",
	): void {
		const now = performance.now();
		if (this.stage !== undefined) {
			const { name: before, phase, startedAt } = this.stage;
			this.metrics.stageRequests.withLabelValues(phase, before).dec();
			const shown = before === "dispatch" ? "transport_roundtrip" : before;
			this.metrics.stageDuration.withLabelValues(shown).observe((now - startedAt) / 1000);
		}
		if (name === undefined) {
			this.stage = undefined;
			return;
		}
		this.stage = { name, phase, startedAt: now };
		this.metrics.stageRequests.withLabelValues(phase, name).inc();
	}

	/**
	 * Counts tokens of one delta. Called once per delta, so it does no more than it must.
	 * @param count tokens in the delta, at least 1.
	 * @param now `performance.now()` when it arrived.
	 * @param detokenizeMs time that it took to make text of them.
	 */
	onTokens(count: number, now: number, detokenizeMs: number): void {
		let series = this.series;
		if (series === undefined) {
			series = this.onFirstToken(now);
			if (count > 1) this.observeLatency(series, 0, count - 1);
		} else {
			this.observeLatency(series, (now - this.lastTokenAt) / count, count);
		}
		this.lastTokenAt = now;
		this.outputTokens += count;
		this.detokenizeMs += detokenizeMs;
		series.outputTokens.inc(count);
	}

	private onFirstToken(now: number): ModelSeries {
		const { model, exchange } = this.request;
		const series = this.metrics.seriesOf(model);
		this.series = series;
		this.timeToFirstTokenMs = now - exchange.receivedAt;
		series.timeToFirstToken.observe(this.timeToFirstTokenMs / 1000);
		this.metrics.inputTokens.withLabelValues(model).observe(this.inputTokens);
		this.leaveQueue();
		const prompted = this.prefillWorkerId ?? this.workerId;
		if (prompted !== undefined) {
			const labels = ["none", prompted.toString(), this.prefillWorkerId === undefined ? "decode" : "prefill"];
			this.metrics.workerTimeToFirstToken.withLabelValues(...labels).set(this.timeToFirstTokenMs / 1000);
			this.metrics.workerInputTokens.withLabelValues(...labels).set(this.inputTokens);
		}
		return series;
	}

	private observeLatency(series: ModelSeries, perTokenMs: number, count: number): void {
		for (let i = 0; i < count; i++) series.interTokenLatency.observe(perTokenMs / 1000);
		this.latencySumMs += perTokenMs * count;
		this.latencyCount += count;
	}

	private leaveQueue(): void {
		if (!this.queued) return;
		this.queued = false;
		this.metrics.queued.withLabelValues(this.request.model).dec();
	}

	/** Ends the count; only the first call does anything. */
	finish(outcome: Outcome): void {
		if (this.finished) return;
		this.finished = true;
		const { metrics } = this;
		const { endpoint, model, stream, exchange } = this.request;
		const type = stream ? "stream" : "unary";
		this.enterStage(undefined);
		this.leaveQueue();
		metrics.inflight.withLabelValues(model).dec();
		metrics.active.withLabelValues(model).dec();
		const errorType =
			outcome.kind === "success" ? "" : outcome.kind === "disconnected" ? "cancelled" : outcome.failure.errorType;
		const status = errorType === "" ? "success" : "error";
		metrics.requests.withLabelValues(endpoint, model, type, status, errorType).inc();
		const durationMs = performance.now() - exchange.receivedAt;
		metrics.requestDuration.withLabelValues(model).observe(durationMs / 1000);
		if (errorType === "cancelled") metrics.cancellations.withLabelValues(endpoint, model, type).inc();
		if (errorType === "overload") metrics.rejections.withLabelValues(endpoint, model).inc();
		if (outcome.kind === "disconnected") metrics.disconnectedClients.inc();
		if (outcome.kind === "failure" && errorType !== "cancelled") {
			metrics.failures.withLabelValues(outcome.failure.errorClass, outcome.failure.reason).inc();
		}
		this.finishTokens();
		this.tell(outcome, durationMs);
		this.endSpans();
	}

	private finishTokens(): void {
		if (this.outputTokens === 0) return;
		const { metrics } = this;
		const { model } = this.request;
		metrics.outputSequenceTokens.withLabelValues(model).observe(this.outputTokens);
		if (this.cachedTokens !== undefined) metrics.cachedTokens.withLabelValues(model).observe(this.cachedTokens);
		metrics.detokenizeTokens.inc(this.outputTokens);
		metrics.detokenizeMicros.inc(Math.round(this.detokenizeMs * 1000));
		metrics.tokenizerLatencyMs.withLabelValues("detokenize").observe(this.detokenizeMs / this.outputTokens);
		if (this.workerId !== undefined && this.latencyCount > 0) {
			const perToken = this.latencySumMs / this.latencyCount / 1000;
			metrics.workerInterTokenLatency.withLabelValues("none", this.workerId.toString(), "decode").set(perToken);
		}
	}

	private tell(outcome: Outcome, durationMs: number): void {
		this.record.completed({
			failure: outcome.kind === "failure" ? outcome.failure : undefined,
			cancelled: outcome.kind === "disconnected",
			durationMs,
			inputTokens: this.inputTokens,
			outputTokens: this.outputTokens,
			ttftMs: this.timeToFirstTokenMs,
			avgItlMs: this.latencyCount === 0 ? undefined : this.latencySumMs / this.latencyCount,
			prefillWorkerId: this.prefillWorkerId,
			decodeWorkerId: this.workerId,
			finishReason: this.finishReason,
		});
	}
}
