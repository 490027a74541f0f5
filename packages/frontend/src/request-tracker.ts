// SPDX-License-Identifier: Apache-2.0
import type { Logger, Span } from "@dynamo-ts/runtime";
import type { Gauge } from "@dynamo-ts/runtime/internal";
import type { FrontendMetrics } from "./frontend-metrics.js";
import type { Failure } from "./http-errors.js";
import type { ModelSeries, TokenSeries } from "./model-series.js";
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

/** How many parts of a request are something else than text. */
export interface MediaParts {
	readonly images: number;
	readonly audio: number;
	readonly videos: number;
}

export const NO_MEDIA: MediaParts = { images: 0, audio: 0, videos: 0 };

/** Label of requests for models that are not there; keeps the number of series bounded. */
export const UNKNOWN_MODEL = "unknown_model";

/** Types of errors of requests that were never meant for a worker. */
const NOT_SERVED: ReadonlySet<string> = new Set(["validation", "not_found", "not_implemented"]);

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
	/** Its data-parallel rank, where the router chose that, too. */
	workerRank: number | undefined;
	/** Parts of the request that are not text. */
	media: MediaParts = NO_MEDIA;
	/** Milliseconds from {@link Exchange.receivedAt}; undefined before the first token. */
	timeToFirstTokenMs: number | undefined;
	/** The worker that computed the prompt, when that was another one. */
	prefillWorkerId: bigint | undefined;
	prefillWorkerRank: number | undefined;
	/** Why the first choice ended. */
	finishReason: string | undefined;
	/** What is done for the request is part of it. */
	readonly span: Span | undefined;
	/** Around {@link span}, where that is not the exchange's own. */
	private readonly outer: Span | undefined;
	private readonly record: RequestRecord;
	private readonly series: ModelSeries;
	/** Set with the first token. */
	private tokens: TokenSeries | undefined;
	private stage: { name: string; phase: string; startedAt: number } | undefined;
	/** Where the worker's last latency is shown; undefined until its first token. */
	private workerLatency: Gauge | undefined;
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
		this.series = metrics.seriesOf(model);
		this.series.begin();
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
		let { tokens } = this;
		if (tokens === undefined) {
			tokens = this.onFirstToken(now);
			if (count > 1) this.observeLatency(tokens, 0, count - 1);
		} else {
			this.observeLatency(tokens, (now - this.lastTokenAt) / count, count);
		}
		this.lastTokenAt = now;
		this.outputTokens += count;
		this.detokenizeMs += detokenizeMs;
		tokens.outputTokens.inc(count);
		tokens.nim?.generationTokens.inc(count);
	}

	private onFirstToken(now: number): TokenSeries {
		const { media } = this;
		const { tokens } = this.series;
		this.tokens = tokens;
		this.timeToFirstTokenMs = now - this.request.exchange.receivedAt;
		tokens.timeToFirstToken.observe(this.timeToFirstTokenMs / 1000);
		tokens.inputTokens.observe(this.inputTokens);
		tokens.nim?.timeToFirstToken.observe(this.timeToFirstTokenMs / 1000);
		tokens.nim?.promptTokens.inc(this.inputTokens);
		tokens.images.observe(media.images);
		tokens.audio.observe(media.audio);
		tokens.videos.observe(media.videos);
		this.leaveQueue();
		const { prefillWorkerId, workerId } = this;
		const prompted = prefillWorkerId ?? workerId;
		if (prompted !== undefined) {
			const rank = prefillWorkerId === undefined ? this.workerRank : this.prefillWorkerRank;
			const labels = [rankLabel(rank), prompted.toString(), prefillWorkerId === undefined ? "decode" : "prefill"];
			this.metrics.workerTimeToFirstToken.withLabelValues(...labels).set(this.timeToFirstTokenMs / 1000);
			this.metrics.workerInputTokens.withLabelValues(...labels).set(this.inputTokens);
		}
		if (workerId !== undefined) {
			const labels = [rankLabel(this.workerRank), workerId.toString(), "decode"];
			this.workerLatency = this.metrics.workerInterTokenLatency.withLabelValues(...labels);
		}
		return tokens;
	}

	private observeLatency(tokens: TokenSeries, perTokenMs: number, count: number): void {
		const seconds = perTokenMs / 1000;
		const { interTokenLatency, nim } = tokens;
		for (let i = 0; i < count; i++) {
			interTokenLatency.observe(seconds);
			nim?.timePerOutputToken.observe(seconds);
		}
		this.workerLatency?.set(seconds);
		this.latencySumMs += perTokenMs * count;
		this.latencyCount += count;
	}

	private leaveQueue(): void {
		if (!this.queued) return;
		this.queued = false;
		this.series.leaveQueue();
	}

	/** Ends the count; only the first call does anything. */
	finish(outcome: Outcome): void {
		if (this.finished) return;
		this.finished = true;
		const { metrics, series } = this;
		const { endpoint, model, stream, exchange } = this.request;
		const type = stream ? "stream" : "unary";
		this.enterStage(undefined);
		this.leaveQueue();
		series.end();
		const errorType =
			outcome.kind === "success" ? "" : outcome.kind === "disconnected" ? "cancelled" : outcome.failure.errorType;
		const status = errorType === "" ? "success" : "error";
		metrics.requests.withLabelValues(endpoint, errorType, model, type, status).inc();
		const durationMs = performance.now() - exchange.receivedAt;
		series.requestDuration.observe(durationMs / 1000);
		if (errorType === "cancelled") metrics.cancellations.withLabelValues(endpoint, model, type).inc();
		if (errorType === "overload") metrics.rejections.withLabelValues(endpoint, model).inc();
		if (outcome.kind === "disconnected") metrics.disconnectedClients.inc();
		if (outcome.kind === "failure" && errorType !== "cancelled") {
			metrics.failures.withLabelValues(outcome.failure.errorClass, outcome.failure.reason).inc();
		}
		this.finishTokens();
		this.tellNim(outcome, errorType, durationMs / 1000);
		this.tell(outcome, durationMs);
		this.endSpans();
	}

	private finishTokens(): void {
		const { metrics, tokens } = this;
		if (tokens === undefined) return;
		tokens.outputSequenceTokens.observe(this.outputTokens);
		if (this.cachedTokens !== undefined) tokens.cachedTokens.observe(this.cachedTokens);
		metrics.detokenizeTokens.inc(this.outputTokens);
		metrics.detokenizeMicros.inc(Math.round(this.detokenizeMs * 1000));
		metrics.tokenizerLatencyMs.withLabelValues("detokenize").observe(this.detokenizeMs / this.outputTokens);
	}

	/** What is wrong with a request itself is no failure of the service. */
	private tellNim(outcome: Outcome, errorType: string, seconds: number): void {
		const { nim } = this.series;
		if (nim === undefined || NOT_SERVED.has(errorType)) return;
		const ended = outcome.kind === "success" ? "success" : errorType === "cancelled" ? "cancelled" : "failed";
		nim.ended(ended, this.finishReason, seconds, this.inputTokens, this.outputTokens);
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

/** As Dynamo's frontend has it: a rank where the router looks at ranks. */
function rankLabel(rank: number | undefined): string {
	return rank === undefined ? "none" : String(rank);
}
