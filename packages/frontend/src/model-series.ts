// SPDX-License-Identifier: Apache-2.0
import type { Counter, Gauge, Histogram } from "@dynamo-ts/runtime/internal";
import type { FrontendMetrics } from "./frontend-metrics.js";
import type { NimSeries } from "./nim-metrics.js";

/** Endpoints' labels, by the kind of model that they need. */
const ENDPOINTS = [
	["Chat", "chat_completions"],
	["Completions", "completions"],
] as const;
const REQUEST_TYPES = ["stream", "unary"] as const;
/** Ways to fail that requests of a known model have. */
const ERROR_TYPES = [
	"cancelled",
	"internal",
	"not_found",
	"not_implemented",
	"overload",
	"response_timeout",
	"unavailable",
	"validation",
] as const;
const MIGRATION_TYPES = ["new_request", "ongoing_request"] as const;

/** What is counted of requests that got a token. */
export class TokenSeries {
	readonly timeToFirstToken: Histogram;
	readonly interTokenLatency: Histogram;
	readonly inputTokens: Histogram;
	readonly outputSequenceTokens: Histogram;
	readonly outputTokens: Counter;
	readonly cachedTokens: Histogram;
	readonly images: Histogram;
	readonly audio: Histogram;
	readonly videos: Histogram;
	/** The same for agents that know NIM's names; undefined where that is off. */
	readonly nim: NimSeries | undefined;

	constructor(metrics: FrontendMetrics, model: string, nim: NimSeries | undefined) {
		this.nim = nim;
		this.timeToFirstToken = metrics.timeToFirstToken.withLabelValues(model);
		this.interTokenLatency = metrics.interTokenLatency.withLabelValues(model);
		this.inputTokens = metrics.inputTokens.withLabelValues(model);
		this.outputSequenceTokens = metrics.outputSequenceTokens.withLabelValues(model);
		this.outputTokens = metrics.outputTokens.withLabelValues(model);
		this.cachedTokens = metrics.cachedTokens.withLabelValues(model);
		this.images = metrics.images.withLabelValues(model);
		this.audio = metrics.audio.withLabelValues(model);
		this.videos = metrics.videos.withLabelValues(model);
	}
}

/** The series of one model, looked up once: a request takes them with it, and a token finds them at hand. */
export class ModelSeries {
	readonly model: string;
	readonly requestDuration: Histogram;
	private readonly metrics: FrontendMetrics;
	private readonly inflight: Gauge;
	private readonly active: Gauge;
	private readonly queued: Gauge;
	private tokenSeries: TokenSeries | undefined;
	/** Known models only. */
	private nimSeries: NimSeries | undefined;
	private requests = 0;
	private waiting = 0;

	constructor(metrics: FrontendMetrics, model: string) {
		this.metrics = metrics;
		this.model = model;
		this.requestDuration = metrics.requestDuration.withLabelValues(model);
		this.inflight = metrics.inflight.withLabelValues(model);
		this.active = metrics.active.withLabelValues(model);
		this.queued = metrics.queued.withLabelValues(model);
	}

	/** Made when first asked for: no request for an unknown model ever gets a token. */
	get tokens(): TokenSeries {
		this.tokenSeries ??= new TokenSeries(this.metrics, this.model, this.nimSeries);
		return this.tokenSeries;
	}

	get nim(): NimSeries | undefined {
		return this.nimSeries;
	}

	/** A request is under way. */
	get busy(): boolean {
		return this.requests > 0;
	}

	/** Requests that have their first token and no end yet. */
	get running(): number {
		return this.requests - this.waiting;
	}

	/** Requests that wait for their first token. */
	get queuedRequests(): number {
		return this.waiting;
	}

	/** Makes the series of all outcomes, so that a query finds a 0 and not nothing. */
	announce(types: ReadonlySet<string>, nim: NimSeries | undefined): void {
		const { metrics, model } = this;
		this.nimSeries ??= nim;
		this.tokenSeries ??= new TokenSeries(metrics, model, this.nimSeries);
		for (const [type, endpoint] of ENDPOINTS) {
			if (!types.has(type)) continue;
			metrics.rejections.withLabelValues(endpoint, model);
			for (const requestType of REQUEST_TYPES) {
				metrics.requestsStarted.withLabelValues(endpoint, model, requestType);
				metrics.cancellations.withLabelValues(endpoint, model, requestType);
				metrics.requests.withLabelValues(endpoint, "", model, requestType, "success");
				for (const errorType of ERROR_TYPES) {
					metrics.requests.withLabelValues(endpoint, errorType, model, requestType, "error");
				}
			}
		}
		metrics.imageTokens.withLabelValues(model);
		metrics.tokensEncoded.withLabelValues(model);
		metrics.tokensFromCache.withLabelValues(model);
		for (const type of MIGRATION_TYPES) metrics.migrations.withLabelValues(type, model);
	}

	/** A request begins; {@link leaveQueue} (once, if at all) and {@link end} follow. */
	begin(): void {
		this.requests++;
		this.waiting++;
		this.inflight.inc();
		this.active.inc();
		this.queued.inc();
	}

	/** Its first token is there, or never will be. */
	leaveQueue(): void {
		this.waiting--;
		this.queued.dec();
	}

	end(): void {
		this.requests--;
		this.inflight.dec();
		this.active.dec();
	}
}
