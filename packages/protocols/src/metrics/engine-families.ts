// SPDX-License-Identifier: Apache-2.0
import { LABELS } from "../metric-names.js";
import { counter, gauge, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const OF_MODEL = [LABELS.component, LABELS.namespace, LABELS.model, LABELS.workerId];
const BLOCKS_IN_USE = "Blocks of the KV cache in use";
const BLOCKS = "Blocks of the KV cache";
const USAGE = "Share of the KV cache in use, 0 to 1";
const HIT_RATE = "Share of prompt tokens found in the KV cache, 0 to 1";

/**
 * A worker's engine, below `dynamo_component`. The first three are names of Dynamo's real engines, those with `kvstats`
 * the names of Dynamo 0.9, which dashboards still use; the others are our own.
 */
export const ENGINE_FAMILIES = {
	totalBlocks: gauge("total_blocks", BLOCKS, OF_MODEL),
	gpuCacheUsagePercent: gauge("gpu_cache_usage_percent", USAGE, OF_MODEL),
	kvCacheHitRate: gauge("kv_cache_hit_rate", HIT_RATE, OF_MODEL),
	kvstatsActiveBlocks: gauge("kvstats_active_blocks", BLOCKS_IN_USE, OF_MODEL),
	kvstatsTotalBlocks: gauge("kvstats_total_blocks", BLOCKS, OF_MODEL),
	kvstatsGpuCacheUsagePercent: gauge("kvstats_gpu_cache_usage_percent", USAGE, OF_MODEL),
	kvstatsGpuPrefixCacheHitRate: gauge("kvstats_gpu_prefix_cache_hit_rate", HIT_RATE, OF_MODEL),
	runningRequests: gauge("engine_running_requests", "Sequences that the engine computes", OF_MODEL),
	waitingRequests: gauge("engine_waiting_requests", "Sequences that wait for the engine", OF_MODEL),
	prefillTokensTotal: counter("engine_prefill_tokens_total", "Prompt tokens computed", OF_MODEL),
	decodeTokensTotal: counter("engine_decode_tokens_total", "Tokens generated", OF_MODEL),
	stepsTotal: counter("engine_steps_total", "Engine steps", OF_MODEL),
	stepSecondsTotal: counter("engine_step_seconds_total", "Time in engine steps, seconds", OF_MODEL),
	modelSecondsTotal: counter("engine_model_seconds_total", "Time in the model alone, seconds", OF_MODEL),
	preemptionsTotal: counter("engine_preemptions_total", "Sequences set back because the cache was full", OF_MODEL),
	cachedBlocks: gauge("engine_cached_blocks", "Blocks that a prompt with the same beginning would find", OF_MODEL),
	cacheQueryTokensTotal: counter(
		"engine_cache_query_tokens_total",
		"Prompt tokens looked for in the KV cache",
		OF_MODEL,
	),
	cacheHitTokensTotal: counter("engine_cache_hit_tokens_total", "Prompt tokens found in the KV cache", OF_MODEL),
	draftTokensTotal: counter("engine_draft_tokens_total", "Tokens guessed by speculation", OF_MODEL),
	acceptedTokensTotal: counter("engine_accepted_tokens_total", "Guessed tokens that were right", OF_MODEL),
	modelLoadSeconds: gauge("engine_model_load_seconds", "Time that loading the model took, seconds", OF_MODEL),
	deviceInfo: gauge("engine_device_info", "1; the labels say where the model runs, and why not on CUDA", [
		LABELS.component,
		LABELS.device,
		LABELS.namespace,
		LABELS.model,
		LABELS.note,
		LABELS.workerId,
	]),
} as const satisfies Record<string, MetricFamily>;

const ENGINE = [MORE_LABELS.engine, MORE_LABELS.modelName];
const REQUEST_SECONDS = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680];
const TOKEN_SECONDS = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80];
const FIRST_TOKEN_SECONDS = [
	0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];

/**
 * Bounds 1, 2, 5, 10, 20, 50 ... up to a number of tokens, as vLLM has them for lengths of requests (there: up to the
 * model's longest).
 */
export function lengthBuckets(most: number): number[] {
	const bounds: number[] = [];
	for (let step = 1; step <= most; step *= 10) {
		for (const bound of [step, 2 * step, 5 * step]) if (bound <= most) bounds.push(bound);
	}
	return bounds.length === 0 ? [1] : bounds;
}

const LENGTHS = lengthBuckets(100_000);

/** vLLM's names for what an engine does, as full names; times are seconds, as the names say. */
export const VLLM_FAMILIES = {
	cacheConfigInfo: gauge("vllm:cache_config_info", "1; the labels say how the KV cache is made", [
		MORE_LABELS.blockSize,
		MORE_LABELS.cacheDtype,
		...ENGINE,
		MORE_LABELS.numGpuBlocks,
	]),
	e2eRequestLatencySeconds: histogram(
		"vllm:e2e_request_latency_seconds",
		"Time from a request's entry to its end",
		ENGINE,
		REQUEST_SECONDS,
	),
	generationTokensTotal: counter("vllm:generation_tokens_total", "Tokens generated", ENGINE),
	gpuCacheUsagePerc: gauge("vllm:gpu_cache_usage_perc", "The same as kv_cache_usage_perc, by its old name", ENGINE),
	interTokenLatencySeconds: histogram(
		"vllm:inter_token_latency_seconds",
		"Time from one token of a request to the next",
		ENGINE,
		TOKEN_SECONDS,
	),
	iterationTokensTotal: histogram(
		"vllm:iteration_tokens_total",
		"Tokens in an engine step, of prompts and answers",
		ENGINE,
		[1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384],
	),
	kvCacheUsagePerc: gauge("vllm:kv_cache_usage_perc", USAGE, ENGINE),
	numPreemptionsTotal: counter("vllm:num_preemptions_total", "Sequences set back because the cache was full", ENGINE),
	numRequestsRunning: gauge("vllm:num_requests_running", "Sequences that the engine computes", ENGINE),
	numRequestsWaiting: gauge("vllm:num_requests_waiting", "Sequences that wait for the engine", ENGINE),
	prefixCacheHitsTotal: counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the KV cache", ENGINE),
	prefixCacheQueriesTotal: counter(
		"vllm:prefix_cache_queries_total",
		"Prompt tokens looked for in the KV cache",
		ENGINE,
	),
	promptTokensTotal: counter("vllm:prompt_tokens_total", "Prompt tokens of requests that began", ENGINE),
	requestDecodeTimeSeconds: histogram(
		"vllm:request_decode_time_seconds",
		"Time from a request's first token to its last",
		ENGINE,
		REQUEST_SECONDS,
	),
	requestGenerationTokens: histogram(
		"vllm:request_generation_tokens",
		"Tokens generated for a request",
		ENGINE,
		LENGTHS,
	),
	requestInferenceTimeSeconds: histogram(
		"vllm:request_inference_time_seconds",
		"Time from a request's first step to its last token",
		ENGINE,
		REQUEST_SECONDS,
	),
	requestParamsMaxTokens: histogram(
		"vllm:request_params_max_tokens",
		"Most tokens that a request asked for",
		ENGINE,
		LENGTHS,
	),
	requestParamsN: histogram("vllm:request_params_n", "Choices that a request asked for", ENGINE, [1, 2, 5, 10, 20]),
	requestPrefillKvComputedTokens: histogram(
		"vllm:request_prefill_kv_computed_tokens",
		"Prompt tokens of a request that were computed and not found in the KV cache",
		ENGINE,
		LENGTHS,
	),
	requestPrefillKvComputedTokensCreated: gauge(
		"vllm:request_prefill_kv_computed_tokens_created",
		"When the histogram was made, seconds since 1970",
		ENGINE,
	),
	requestPrefillTimeSeconds: histogram(
		"vllm:request_prefill_time_seconds",
		"Time from a request's first step to its first token",
		ENGINE,
		REQUEST_SECONDS,
	),
	requestPromptTokens: histogram("vllm:request_prompt_tokens", "Prompt tokens of a request", ENGINE, LENGTHS),
	requestQueueTimeSeconds: histogram(
		"vllm:request_queue_time_seconds",
		"Time from a request's entry to its first step",
		ENGINE,
		REQUEST_SECONDS,
	),
	requestSuccessTotal: counter("vllm:request_success_total", "Requests that ended, by reason", [
		...ENGINE,
		MORE_LABELS.finishedReason,
	]),
	requestTimePerOutputTokenSeconds: histogram(
		"vllm:request_time_per_output_token_seconds",
		"Mean time per token of a request after its first",
		ENGINE,
		TOKEN_SECONDS,
	),
	timeToFirstTokenSeconds: histogram(
		"vllm:time_to_first_token_seconds",
		"Time from a request's entry to its first token",
		ENGINE,
		FIRST_TOKEN_SECONDS,
	),
} as const satisfies Record<string, MetricFamily>;
