// SPDX-License-Identifier: Apache-2.0
// Full names of the series that a live view of a cluster reads from pages of metrics. Several names for one thing: engines
// differ, and the first that is on a page counts.

/** Of a worker; all are summed over their labels but the shares, which are averaged. */
export const WORKER_SERIES = {
	/** Requests that the engine computes. */
	running: [
		"vllm:num_requests_running",
		"dynamo_component_engine_running_requests",
		"sglang:num_running_reqs",
		"dynamo_component_inflight_requests",
	],
	/** Requests that wait for the engine. */
	waiting: ["vllm:num_requests_waiting", "dynamo_component_engine_waiting_requests", "sglang:num_queue_reqs"],
	/** Share of the KV cache in use, 0 to 1. */
	kvUsage: [
		"vllm:kv_cache_usage_perc",
		"dynamo_component_gpu_cache_usage_percent",
		"vllm:gpu_cache_usage_perc",
		"sglang:token_usage",
	],
	/** Tokens that the engine generated; counter. */
	tokens: ["vllm:generation_tokens_total", "dynamo_component_engine_decode_tokens_total"],
	/** Prompt tokens that the engine computed; counter. */
	promptTokens: ["dynamo_component_engine_prefill_tokens_total", "vllm:prompt_tokens_total"],
	/** Prompt tokens (or blocks) found in the cache, and looked for; counters. */
	cacheHits: ["vllm:prefix_cache_hits_total", "dynamo_component_engine_cache_hit_tokens_total"],
	cacheQueries: ["vllm:prefix_cache_queries_total", "dynamo_component_engine_cache_query_tokens_total"],
	/** Requests taken; counter. */
	requests: ["dynamo_component_requests_total"],
	uptime: ["dynamo_component_uptime_seconds"],
} as const;

/** Labels that a worker's own requests have, where other endpoints are on the page too. */
export const GENERATE_ENDPOINT = { dynamo_endpoint: "generate" } as const;
