// SPDX-License-Identifier: Apache-2.0
// Full names of the series that a live view of a cluster reads from pages of metrics. Several names for one thing: engines
// differ, and the first that is on a page counts.
import { LABELS } from "./metric-names.js";
import { fullMetricName, METRICS } from "./metrics/metric-catalogue.js";

const { component, engine, vllm } = METRICS;
const ours = ({ name }: { readonly name: string }): string => fullMetricName("engine", name);

/** Of a worker; all are summed over their labels but the shares, which are averaged. */
export const WORKER_SERIES = {
	/** Requests that the engine computes. */
	running: [
		vllm.numRequestsRunning.name,
		ours(engine.runningRequests),
		"sglang:num_running_reqs",
		fullMetricName("component", component.inflightRequests.name),
	],
	/** Requests that wait for the engine. */
	waiting: [vllm.numRequestsWaiting.name, ours(engine.waitingRequests), "sglang:num_queue_reqs"],
	/** Share of the KV cache in use, 0 to 1. */
	kvUsage: [
		vllm.kvCacheUsagePerc.name,
		ours(engine.gpuCacheUsagePercent),
		vllm.gpuCacheUsagePerc.name,
		"sglang:token_usage",
	],
	/** Tokens that the engine generated; counter. The last one lacks the first token of each answer: all that Dynamo's mocker has. */
	tokens: [
		vllm.generationTokensTotal.name,
		ours(engine.decodeTokensTotal),
		`${vllm.interTokenLatencySeconds.name}_count`,
	],
	/** Prompt tokens that the engine computed; counter. */
	promptTokens: [ours(engine.prefillTokensTotal), vllm.promptTokensTotal.name],
	/** Prompt tokens (or blocks) found in the cache, and looked for; counters. */
	cacheHits: [vllm.prefixCacheHitsTotal.name, ours(engine.cacheHitTokensTotal)],
	cacheQueries: [vllm.prefixCacheQueriesTotal.name, ours(engine.cacheQueryTokensTotal)],
	/** Requests taken; counter. */
	requests: [fullMetricName("component", component.requestsTotal.name)],
	uptime: [fullMetricName("component", component.uptimeSeconds.name)],
} as const;

/** Labels that a worker's own requests have, where other endpoints are on the page too. */
export const GENERATE_ENDPOINT = { [LABELS.endpoint]: "generate" } as const;
