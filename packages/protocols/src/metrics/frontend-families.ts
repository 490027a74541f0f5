// SPDX-License-Identifier: Apache-2.0
import {
	FRONTEND_BUCKETS,
	FRONTEND_FIXED_METRICS,
	FRONTEND_LABELS,
	FRONTEND_METRICS,
	LABELS,
} from "../metric-names.js";
import { BUCKET_RANGES, computedBuckets } from "./computed-buckets.js";
import { counter, gauge, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const PARTS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 40, 50, 100];
const IMAGE_TOKENS = [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/** The frontend's families, below `dynamo_frontend` or what DYN_METRICS_PREFIX puts in its place; by name. */
export const FRONTEND_FAMILIES = {
	activeRequests: gauge(FRONTEND_METRICS.activeRequests, "Requests in progress; the same value as inflight_requests", [
		LABELS.model,
	]),
	audioPerRequest: histogram("audio_per_request", "Audio parts of a request", [LABELS.model], PARTS),
	cachedTokens: histogram(
		FRONTEND_METRICS.cachedTokens,
		"Prompt tokens of a request that the engine found in its cache",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.inputSequenceTokens),
	),
	detokenizeTokenCount: counter(FRONTEND_FIXED_METRICS.detokenizeTokenCount, "Tokens turned into text", []),
	detokenizeTotalUs: counter(
		FRONTEND_FIXED_METRICS.detokenizeTotalUs,
		"Time spent on turning tokens into text, microseconds",
		[],
	),
	disconnectedClients: gauge(
		FRONTEND_METRICS.disconnectedClients,
		"Clients that went away before their answer ended",
		[],
	),
	eventLoopDelaySeconds: histogram(
		FRONTEND_FIXED_METRICS.eventLoopDelaySeconds,
		"How late a tick of the event loop came, seconds",
		[],
		FRONTEND_BUCKETS.eventLoopDelaySeconds,
	),
	eventLoopStallTotal: counter(
		FRONTEND_FIXED_METRICS.eventLoopStallTotal,
		"Ticks of the event loop that came more than 5 ms late",
		[],
	),
	failuresTotal: counter(FRONTEND_METRICS.failuresTotal, "Failed requests by class and reason", [
		FRONTEND_LABELS.errorClass,
		FRONTEND_LABELS.reason,
	]),
	imageTokensPerRequest: histogram(
		"image_tokens_per_request",
		"Placeholder tokens for images in a request",
		[LABELS.model],
		IMAGE_TOKENS,
	),
	imagesPerRequest: histogram("images_per_request", "Image parts of a request", [LABELS.model], PARTS),
	inflightRequests: gauge(FRONTEND_METRICS.inflightRequests, "Requests in progress", [LABELS.model]),
	inputSequenceTokens: histogram(
		FRONTEND_METRICS.inputSequenceTokens,
		"Prompt tokens of a request",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.inputSequenceTokens),
	),
	interTokenLatencySeconds: histogram(
		FRONTEND_METRICS.interTokenLatencySeconds,
		"Time from one output token to the next, seconds",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.interTokenLatencySeconds),
	),
	modelCancellationTotal: counter(FRONTEND_METRICS.modelCancellationTotal, "Requests whose client went away", [
		FRONTEND_LABELS.apiEndpoint,
		LABELS.model,
		FRONTEND_LABELS.requestType,
	]),
	modelContextLength: gauge(
		FRONTEND_METRICS.modelContextLength,
		"Context length of the model, tokens; 0 when unknown",
		[LABELS.model],
	),
	modelKvCacheBlockSize: gauge(FRONTEND_METRICS.modelKvCacheBlockSize, "Tokens in a KV cache block", [LABELS.model]),
	modelMaxNumBatchedTokens: gauge(FRONTEND_METRICS.modelMaxNumBatchedTokens, "Most tokens in a step of a worker", [
		LABELS.model,
	]),
	modelMaxNumSeqs: gauge(FRONTEND_METRICS.modelMaxNumSeqs, "Most sequences that a worker runs at once", [LABELS.model]),
	modelMigrationDurationSeconds: histogram(
		FRONTEND_METRICS.modelMigrationDurationSeconds,
		"Time from the loss of a worker to the outcome, seconds",
		[MORE_LABELS.migrationType, LABELS.model, MORE_LABELS.outcome],
		FRONTEND_BUCKETS.modelMigrationSeconds,
	),
	modelMigrationLimit: gauge(FRONTEND_METRICS.modelMigrationLimit, "Most migrations of a request", [LABELS.model]),
	modelMigrationTotal: counter(FRONTEND_METRICS.modelMigrationTotal, "Workers lost while they had a request", [
		MORE_LABELS.migrationType,
		LABELS.model,
	]),
	modelReady: gauge(FRONTEND_METRICS.modelReady, "1 while at least one request can be routed", [LABELS.model]),
	modelRejectionTotal: counter(FRONTEND_METRICS.modelRejectionTotal, "Requests refused because of overload", [
		FRONTEND_LABELS.apiEndpoint,
		LABELS.model,
	]),
	modelTotalKvBlocks: gauge(FRONTEND_METRICS.modelTotalKvBlocks, "KV cache blocks of a worker", [LABELS.model]),
	outputSequenceTokens: histogram(
		FRONTEND_METRICS.outputSequenceTokens,
		"Output tokens of a request",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.outputSequenceTokens),
	),
	outputTokensTotal: counter(FRONTEND_METRICS.outputTokensTotal, "Output tokens", [LABELS.model]),
	queuedRequests: gauge(FRONTEND_METRICS.queuedRequests, "Requests that wait for their first token", [LABELS.model]),
	requestDurationSeconds: histogram(
		FRONTEND_METRICS.requestDurationSeconds,
		"Time from the start of a request to its end, seconds",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.requestDurationSeconds),
	),
	requestsStartedTotal: counter(FRONTEND_METRICS.requestsStartedTotal, "Requests whose body could be read", [
		FRONTEND_LABELS.apiEndpoint,
		LABELS.model,
		FRONTEND_LABELS.requestType,
	]),
	requestsTotal: counter(FRONTEND_METRICS.requestsTotal, "Requests that ended", [
		FRONTEND_LABELS.apiEndpoint,
		LABELS.errorType,
		LABELS.model,
		FRONTEND_LABELS.requestType,
		FRONTEND_LABELS.status,
	]),
	routerAdmissionReceivedTotal: counter("router_admission_received_total", "Choices of a worker asked of the router", [
		LABELS.model,
		MORE_LABELS.policyClass,
		FRONTEND_LABELS.workerType,
	]),
	routerAdmissionRejectedTotal: counter("router_admission_rejected_total", "Choices refused because of a deadline", [
		LABELS.model,
		MORE_LABELS.policyClass,
		FRONTEND_LABELS.reason,
		FRONTEND_LABELS.workerType,
	]),
	routerQueueBackpressureTotal: counter(
		"router_queue_backpressure_total",
		"Choices refused because a limit of the queue was reached",
		[LABELS.model, MORE_LABELS.policyClass, FRONTEND_LABELS.reason, FRONTEND_LABELS.workerType],
	),
	routerQueuePendingCachedTokens: gauge(
		"router_queue_pending_cached_tokens",
		"Cached prompt tokens of the requests in the router queue",
		[LABELS.model, MORE_LABELS.policyClass, FRONTEND_LABELS.workerType],
	),
	routerQueuePendingIslTokens: gauge(
		"router_queue_pending_isl_tokens",
		"Prompt tokens of the requests in the router queue",
		[LABELS.model, MORE_LABELS.policyClass, FRONTEND_LABELS.workerType],
	),
	routerQueuePendingRequests: gauge("router_queue_pending_requests", "Requests in the router queue", [
		LABELS.model,
		MORE_LABELS.policyClass,
		FRONTEND_LABELS.workerType,
	]),
	stageDurationSeconds: histogram(
		FRONTEND_FIXED_METRICS.stageDurationSeconds,
		"Time that a request spent in a stage, seconds",
		[FRONTEND_LABELS.stage],
		FRONTEND_BUCKETS.stageDurationSeconds,
	),
	stageRequests: gauge(FRONTEND_FIXED_METRICS.stageRequests, "Requests that are in a stage now", [
		FRONTEND_LABELS.phase,
		FRONTEND_LABELS.stage,
	]),
	templateSeconds: histogram(
		FRONTEND_FIXED_METRICS.templateSeconds,
		"Time to render a chat template, seconds",
		[],
		FRONTEND_BUCKETS.templateSeconds,
	),
	timeToFirstTokenSeconds: histogram(
		FRONTEND_METRICS.timeToFirstTokenSeconds,
		"Time from the start of a request to its first token, seconds",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.timeToFirstTokenSeconds),
	),
	tokenizeSeconds: histogram(
		FRONTEND_FIXED_METRICS.tokenizeSeconds,
		"Time to tokenize a prompt, seconds",
		[],
		FRONTEND_BUCKETS.tokenizeSeconds,
	),
	tokenizerCacheCachedTokensTotal: counter(
		"tokenizer_cache_cached_tokens_total",
		"Tokens taken from the tokenizer cache",
		[LABELS.model],
	),
	tokenizerCacheHitsTotal: counter(
		"tokenizer_cache_hits_total",
		"Prompts whose beginning was in the tokenizer cache",
		[],
	),
	tokenizerCacheMissesTotal: counter(
		"tokenizer_cache_misses_total",
		"Prompts whose beginning was not in the tokenizer cache",
		[],
	),
	tokenizerCacheUncachedTokensTotal: counter("tokenizer_cache_uncached_tokens_total", "Tokens that had to be encoded", [
		LABELS.model,
	]),
	tokenizerLatencyMs: histogram(
		FRONTEND_FIXED_METRICS.tokenizerLatencyMs,
		"Time of a tokenizer operation, milliseconds",
		[FRONTEND_LABELS.operation],
		FRONTEND_BUCKETS.tokenizerLatencyMs,
	),
	videosPerRequest: histogram("videos_per_request", "Video parts of a request", [LABELS.model], PARTS),
	workerActiveDecodeBlocks: gauge("worker_active_decode_blocks", "KV blocks that the router counts for a worker", [
		FRONTEND_LABELS.dpRank,
		LABELS.workerId,
		FRONTEND_LABELS.workerType,
	]),
	workerActivePrefillTokens: gauge(
		"worker_active_prefill_tokens",
		"Prompt tokens in prefill that the router counts for a worker",
		[FRONTEND_LABELS.dpRank, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
	workerLastInputSequenceTokens: gauge(
		FRONTEND_METRICS.workerLastInputSequenceTokens,
		"Prompt tokens of the last request of a worker",
		[FRONTEND_LABELS.dpRank, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
	workerLastInterTokenLatencySeconds: gauge(
		FRONTEND_METRICS.workerLastInterTokenLatencySeconds,
		"Last time between two tokens of a worker, seconds",
		[FRONTEND_LABELS.dpRank, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
	workerLastTimeToFirstTokenSeconds: gauge(
		FRONTEND_METRICS.workerLastTimeToFirstTokenSeconds,
		"Last time to first token of a worker, seconds",
		[FRONTEND_LABELS.dpRank, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
} as const satisfies Record<string, MetricFamily>;
