// SPDX-License-Identifier: Apache-2.0
import { FRONTEND_LABELS, LABELS } from "../metric-names.js";
import { BUCKET_RANGES, computedBuckets } from "./computed-buckets.js";
import { counter, gauge, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const PARTS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 40, 50, 100];
const IMAGE_TOKENS = [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/** The frontend's families, below `dynamo_frontend` or what DYN_METRICS_PREFIX puts in its place; by name. */
export const FRONTEND_FAMILIES = {
	activeRequests: gauge("active_requests", "Requests in progress; the same value as inflight_requests", [LABELS.model]),
	audioPerRequest: histogram("audio_per_request", "Audio parts of a request", [LABELS.model], PARTS),
	cachedTokens: histogram(
		"cached_tokens",
		"Prompt tokens of a request that the engine found in its cache",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.inputSequenceTokens),
	),
	detokenizeTokenCount: counter("detokenize_token_count", "Tokens turned into text", []),
	detokenizeTotalUs: counter("detokenize_total_us", "Time spent on turning tokens into text, microseconds", []),
	disconnectedClients: gauge("disconnected_clients", "Clients that went away before their answer ended", []),
	eventLoopDelaySeconds: histogram(
		"event_loop_delay_seconds",
		"How late a tick of the event loop came, seconds",
		[],
		[0, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1],
	),
	eventLoopStallTotal: counter("event_loop_stall_total", "Ticks of the event loop that came more than 5 ms late", []),
	failuresTotal: counter("failures_total", "Failed requests by class and reason", [
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
	inflightRequests: gauge("inflight_requests", "Requests in progress", [LABELS.model]),
	inputSequenceTokens: histogram(
		"input_sequence_tokens",
		"Prompt tokens of a request",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.inputSequenceTokens),
	),
	interTokenLatencySeconds: histogram(
		"inter_token_latency_seconds",
		"Time from one output token to the next, seconds",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.interTokenLatencySeconds),
	),
	modelCancellationTotal: counter("model_cancellation_total", "Requests whose client went away", [
		FRONTEND_LABELS.apiEndpoint,
		LABELS.model,
		FRONTEND_LABELS.requestType,
	]),
	modelContextLength: gauge("model_context_length", "Context length of the model, tokens; 0 when unknown", [
		LABELS.model,
	]),
	modelKvCacheBlockSize: gauge("model_kv_cache_block_size", "Tokens in a KV cache block", [LABELS.model]),
	modelMaxNumBatchedTokens: gauge("model_max_num_batched_tokens", "Most tokens in a step of a worker", [LABELS.model]),
	modelMaxNumSeqs: gauge("model_max_num_seqs", "Most sequences that a worker runs at once", [LABELS.model]),
	modelMigrationDurationSeconds: histogram(
		"model_migration_duration_seconds",
		"Time from the loss of a worker to the outcome, seconds",
		[MORE_LABELS.migrationType, LABELS.model, MORE_LABELS.outcome],
		[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60],
	),
	modelMigrationLimit: gauge("model_migration_limit", "Most migrations of a request", [LABELS.model]),
	modelMigrationTotal: counter("model_migration_total", "Workers lost while they had a request", [
		MORE_LABELS.migrationType,
		LABELS.model,
	]),
	modelReady: gauge("model_ready", "1 while at least one request can be routed", [LABELS.model]),
	modelRejectionTotal: counter("model_rejection_total", "Requests refused because of overload", [
		FRONTEND_LABELS.apiEndpoint,
		LABELS.model,
	]),
	modelTotalKvBlocks: gauge("model_total_kv_blocks", "KV cache blocks of a worker", [LABELS.model]),
	outputSequenceTokens: histogram(
		"output_sequence_tokens",
		"Output tokens of a request",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.outputSequenceTokens),
	),
	outputTokensTotal: counter("output_tokens_total", "Output tokens", [LABELS.model]),
	queuedRequests: gauge("queued_requests", "Requests that wait for their first token", [LABELS.model]),
	requestDurationSeconds: histogram(
		"request_duration_seconds",
		"Time from the start of a request to its end, seconds",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.requestDurationSeconds),
	),
	requestsStartedTotal: counter("requests_started_total", "Requests whose body could be read", [
		FRONTEND_LABELS.apiEndpoint,
		LABELS.model,
		FRONTEND_LABELS.requestType,
	]),
	requestsTotal: counter("requests_total", "Requests that ended", [
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
	/** Not in Dynamo. */
	routerCacheWaitsTotal: counter(
		"router_cache_waits_total",
		"Requests that waited for a worker with more of their prompt in its cache, and whether it came to be the best choice",
		[LABELS.model, MORE_LABELS.outcome, FRONTEND_LABELS.workerType],
	),
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
		"stage_duration_seconds",
		"Time that a request spent in a stage, seconds",
		[FRONTEND_LABELS.stage],
		[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5],
	),
	stageRequests: gauge("stage_requests", "Requests that are in a stage now", [
		FRONTEND_LABELS.phase,
		FRONTEND_LABELS.stage,
	]),
	templateSeconds: histogram(
		"template_seconds",
		"Time to render a chat template, seconds",
		[],
		[0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05],
	),
	timeToFirstTokenSeconds: histogram(
		"time_to_first_token_seconds",
		"Time from the start of a request to its first token, seconds",
		[LABELS.model],
		computedBuckets(BUCKET_RANGES.timeToFirstTokenSeconds),
	),
	tokenizeSeconds: histogram(
		"tokenize_seconds",
		"Time to tokenize a prompt, seconds",
		[],
		[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1],
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
		"tokenizer_latency_ms",
		"Time of a tokenizer operation, milliseconds",
		[FRONTEND_LABELS.operation],
		[0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
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
		"worker_last_input_sequence_tokens",
		"Prompt tokens of the last request of a worker",
		[FRONTEND_LABELS.dpRank, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
	workerLastInterTokenLatencySeconds: gauge(
		"worker_last_inter_token_latency_seconds",
		"Last time between two tokens of a worker, seconds",
		[FRONTEND_LABELS.dpRank, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
	workerLastTimeToFirstTokenSeconds: gauge(
		"worker_last_time_to_first_token_seconds",
		"Last time to first token of a worker, seconds",
		[FRONTEND_LABELS.dpRank, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
} as const satisfies Record<string, MetricFamily>;
