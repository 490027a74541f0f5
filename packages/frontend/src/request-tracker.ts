// SPDX-License-Identifier: Apache-2.0
import type { Logger } from "@dynamo-ts/runtime";
import type { FrontendMetrics, ModelSeries } from "./frontend-metrics.js";
import type { Failure } from "./http-errors.js";

/** Values of the metric label `endpoint`. */
export type ApiEndpoint = "chat_completions" | "completions";

/** What is known about a request when its body has been read. */
export interface TrackedRequest {
	readonly endpoint: ApiEndpoint;
	/** The model's label: its name, or `unknown_model`. */
	readonly model: string;
	readonly stream: boolean;
	readonly requestId: string;
	readonly xRequestId: string | undefined;
	/** Path as requested. */
	readonly uri: string;
	/** `performance.now()` when the request's head was read. */
	readonly receivedAt: number;
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
	/** Milliseconds from {@link TrackedRequest.receivedAt}; undefined before the first token. */
	timeToFirstTokenMs: number | undefined;
	private readonly log: Logger;
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
		this.log = log;
		const { endpoint, model, stream } = request;
		const type = stream ? "stream" : "unary";
		metrics.requestsStarted.withLabelValues(endpoint, model, type).inc();
		metrics.inflight.withLabelValues(model).inc();
		metrics.active.withLabelValues(model).inc();
		metrics.queued.withLabelValues(model).inc();
		if (log.isEnabled("info")) {
			const { requestId, xRequestId, uri } = request;
			log.info("request received", {
				method: "POST",
				uri,
				endpoint,
				model,
				request_type: type,
				request_id: requestId,
				x_request_id: xRequestId,
			});
		}
	}

	/** Moves the request to a stage of the pipeline; undefined: to none. */
	enterStage(name: "preprocess" | "route" | "dispatch" | undefined): void {
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
		const phase = name === "preprocess" ? "" : "aggregated";
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
		const { model, receivedAt } = this.request;
		const series = this.metrics.seriesOf(model);
		this.series = series;
		this.timeToFirstTokenMs = now - receivedAt;
		series.timeToFirstToken.observe(this.timeToFirstTokenMs / 1000);
		this.metrics.inputTokens.withLabelValues(model).observe(this.inputTokens);
		this.leaveQueue();
		if (this.workerId !== undefined) {
			const labels = ["none", this.workerId.toString(), "decode"];
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
		const { endpoint, model, stream, receivedAt } = this.request;
		const type = stream ? "stream" : "unary";
		this.enterStage(undefined);
		this.leaveQueue();
		metrics.inflight.withLabelValues(model).dec();
		metrics.active.withLabelValues(model).dec();
		const errorType =
			outcome.kind === "success" ? "" : outcome.kind === "disconnected" ? "cancelled" : outcome.failure.errorType;
		const status = errorType === "" ? "success" : "error";
		metrics.requests.withLabelValues(endpoint, model, type, status, errorType).inc();
		const durationMs = performance.now() - receivedAt;
		metrics.requestDuration.withLabelValues(model).observe(durationMs / 1000);
		if (errorType === "cancelled") metrics.cancellations.withLabelValues(endpoint, model, type).inc();
		if (errorType === "overload") metrics.rejections.withLabelValues(endpoint, model).inc();
		if (outcome.kind === "disconnected") metrics.disconnectedClients.inc();
		if (outcome.kind === "failure" && errorType !== "cancelled") {
			metrics.failures.withLabelValues(outcome.failure.errorClass, outcome.failure.reason).inc();
		}
		this.finishTokens();
		this.logCompleted(outcome, status, durationMs);
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

	private logCompleted(outcome: Outcome, status: string, durationMs: number): void {
		const failure = outcome.kind === "failure" ? outcome.failure : undefined;
		// Refusals and outages are told by their counters; an internal error needs somebody to look.
		const serious = failure?.http.status === 500;
		if (!this.log.isEnabled(serious ? "error" : "info")) return;
		const { endpoint, model, stream, requestId, xRequestId, uri } = this.request;
		// One plain literal: a spread in it would make each further member slow to add.
		const fields = {
			method: "POST",
			uri,
			endpoint,
			model,
			request_type: stream ? "stream" : "unary",
			request_id: requestId,
			x_request_id: xRequestId,
			status,
			"request.outcome": outcome.kind === "failure" ? outcome.failure.errorType : outcome.kind,
			http_status: failure?.http.status,
			reason: failure?.reason,
			error: failure?.diagnostic,
			input_tokens: this.inputTokens,
			output_tokens: this.outputTokens,
			ttft_ms: this.timeToFirstTokenMs?.toFixed(2),
			avg_itl_ms: this.latencyCount === 0 ? undefined : (this.latencySumMs / this.latencyCount).toFixed(2),
			elapsed_ms: Math.round(durationMs),
			worker_id: this.workerId,
		};
		if (serious) this.log.error("request completed", fields);
		else this.log.info("request completed", fields);
	}
}
