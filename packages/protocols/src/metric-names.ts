// SPDX-License-Identifier: Apache-2.0

/** Label names, each spelt once. */
export const LABELS = {
	namespace: "dynamo_namespace",
	component: "dynamo_component",
	endpoint: "dynamo_endpoint",
	model: "model",
	workerId: "worker_id",
	errorType: "error_type",
	topic: "topic",
	device: "device",
	note: "note",
} as const;

/** Prefixes of metric families; a family's full name is `{prefix}_{name}`. */
export const METRIC_PREFIXES = {
	component: "dynamo_component",
	workHandler: "dynamo_work_handler",
	frontend: "dynamo_frontend",
} as const;

/** Families of each served endpoint and of the runtime itself, below {@link METRIC_PREFIXES}.component. */
export const COMPONENT_METRICS = {
	uptimeSeconds: "uptime_seconds",
	requestsTotal: "requests_total",
	requestBytesTotal: "request_bytes_total",
	responseBytesTotal: "response_bytes_total",
	inflightRequests: "inflight_requests",
	requestDurationSeconds: "request_duration_seconds",
	cancellationTotal: "cancellation_total",
	errorsTotal: "errors_total",
} as const;

/** Families of the event plane, below {@link METRIC_PREFIXES}.component; by topic. */
export const EVENT_METRICS = {
	publishedTotal: "event_plane_published_total",
	droppedTotal: "event_plane_dropped_total",
	receivedTotal: "event_plane_received_total",
	lostTotal: "event_plane_lost_total",
	malformedTotal: "event_plane_malformed_total",
} as const;

/** Families of the process' request handling as a whole, below {@link METRIC_PREFIXES}.workHandler. */
export const WORK_HANDLER_METRICS = {
	networkTransitSeconds: "network_transit_seconds",
	timeToFirstResponseSeconds: "time_to_first_response_seconds",
	poolActiveTasks: "pool_active_tasks",
} as const;

/** Families of a worker's limits on requests; full names, without labels. */
export const ADMISSION_METRICS = {
	engineRequest: "dynamo_engine_request",
	requestQueue: "dynamo_request_queue",
	rejectionRequestTotal: "dynamo_rejection_request_total",
} as const;

/** Upper bounds of histograms, seconds; without the last, infinite one. */
export const RUNTIME_BUCKETS = {
	requestDurationSeconds: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600],
	networkTransitSeconds: [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1],
	timeToFirstResponseSeconds: [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
} as const;

/**
 * Families of the HTTP frontend, below {@link METRIC_PREFIXES}.frontend. All of them follow
 * DYN_METRICS_PREFIX.
 */
export const FRONTEND_METRICS = {
	requestsStartedTotal: "requests_started_total",
	requestsTotal: "requests_total",
	inflightRequests: "inflight_requests",
	activeRequests: "active_requests",
	queuedRequests: "queued_requests",
	disconnectedClients: "disconnected_clients",
	timeToFirstTokenSeconds: "time_to_first_token_seconds",
	interTokenLatencySeconds: "inter_token_latency_seconds",
	requestDurationSeconds: "request_duration_seconds",
	inputSequenceTokens: "input_sequence_tokens",
	outputSequenceTokens: "output_sequence_tokens",
	outputTokensTotal: "output_tokens_total",
	cachedTokens: "cached_tokens",
	failuresTotal: "failures_total",
	modelCancellationTotal: "model_cancellation_total",
	modelRejectionTotal: "model_rejection_total",
	modelReady: "model_ready",
	modelContextLength: "model_context_length",
	modelKvCacheBlockSize: "model_kv_cache_block_size",
	modelMaxNumBatchedTokens: "model_max_num_batched_tokens",
	modelMaxNumSeqs: "model_max_num_seqs",
	modelMigrationDurationSeconds: "model_migration_duration_seconds",
	modelMigrationLimit: "model_migration_limit",
	modelMigrationTotal: "model_migration_total",
	modelTotalKvBlocks: "model_total_kv_blocks",
	workerLastTimeToFirstTokenSeconds: "worker_last_time_to_first_token_seconds",
	workerLastInterTokenLatencySeconds: "worker_last_inter_token_latency_seconds",
	workerLastInputSequenceTokens: "worker_last_input_sequence_tokens",
} as const;

/** Families of the HTTP frontend that keep the prefix `dynamo_frontend`. */
export const FRONTEND_FIXED_METRICS = {
	detokenizeTokenCount: "detokenize_token_count",
	detokenizeTotalUs: "detokenize_total_us",
	eventLoopDelaySeconds: "event_loop_delay_seconds",
	eventLoopStallTotal: "event_loop_stall_total",
	stageRequests: "stage_requests",
	stageDurationSeconds: "stage_duration_seconds",
	templateSeconds: "template_seconds",
	tokenizeSeconds: "tokenize_seconds",
	tokenizerLatencyMs: "tokenizer_latency_ms",
} as const;

/** Label names of the frontend's families beside {@link LABELS}. */
export const FRONTEND_LABELS = {
	status: "status",
	requestType: "request_type",
	apiEndpoint: "endpoint",
	errorClass: "class",
	reason: "reason",
	stage: "stage",
	phase: "phase",
	operation: "operation",
	dpRank: "dp_rank",
	workerType: "worker_type",
} as const;

/** Upper bounds of the frontend's fixed histograms; units as in the names. */
export const FRONTEND_BUCKETS = {
	eventLoopDelaySeconds: [0, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1],
	stageDurationSeconds: [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5],
	templateSeconds: [0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05],
	tokenizeSeconds: [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1],
	tokenizerLatencyMs: [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
	modelMigrationSeconds: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60],
} as const;

/**
 * Families of a worker's engine, below {@link METRIC_PREFIXES}.component. The kvstats ones are the names of Dynamo 0.9,
 * which dashboards still use.
 */
export const ENGINE_METRICS = {
	totalBlocks: "total_blocks",
	gpuCacheUsagePercent: "gpu_cache_usage_percent",
	kvCacheHitRate: "kv_cache_hit_rate",
	kvstatsActiveBlocks: "kvstats_active_blocks",
	kvstatsTotalBlocks: "kvstats_total_blocks",
	kvstatsGpuCacheUsagePercent: "kvstats_gpu_cache_usage_percent",
	kvstatsGpuPrefixCacheHitRate: "kvstats_gpu_prefix_cache_hit_rate",
	runningRequests: "engine_running_requests",
	waitingRequests: "engine_waiting_requests",
	prefillTokensTotal: "engine_prefill_tokens_total",
	decodeTokensTotal: "engine_decode_tokens_total",
	stepsTotal: "engine_steps_total",
	stepSecondsTotal: "engine_step_seconds_total",
	modelSecondsTotal: "engine_model_seconds_total",
	preemptionsTotal: "engine_preemptions_total",
	cachedBlocks: "engine_cached_blocks",
	cacheQueryTokensTotal: "engine_cache_query_tokens_total",
	cacheHitTokensTotal: "engine_cache_hit_tokens_total",
	draftTokensTotal: "engine_draft_tokens_total",
	acceptedTokensTotal: "engine_accepted_tokens_total",
	modelLoadSeconds: "engine_model_load_seconds",
	deviceInfo: "engine_device_info",
} as const;
