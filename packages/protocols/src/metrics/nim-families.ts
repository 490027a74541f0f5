// SPDX-License-Identifier: Apache-2.0
import { lengthBuckets } from "./engine-families.js";
import { counter, gauge, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const MODEL = [MORE_LABELS.modelName];
const LENGTHS = lengthBuckets(100_000);
const GENERATION = [MORE_LABELS.generation];

/**
 * Names of NVIDIA NIM's page, which Datadog's and Dynatrace's integrations read from the frontend; as full names.
 * Source: https://docs.nvidia.com/nim/large-language-models/latest/observability.html
 */
export const NIM_FAMILIES = {
	e2eRequestLatencySeconds: histogram(
		"e2e_request_latency_seconds",
		"Time from the start of a request to its end, seconds",
		MODEL,
		[1, 2.5, 5, 10, 15, 20, 30, 40, 50, 60],
	),
	generationTokensTotal: counter("generation_tokens_total", "Tokens generated", MODEL),
	gpuCacheUsagePerc: gauge("gpu_cache_usage_perc", "Share of the workers' KV cache in use, 0 to 1", MODEL),
	numRequestMax: gauge("num_request_max", "Most requests that the workers run at once", MODEL),
	numRequestsRunning: gauge("num_requests_running", "Requests that have their first token and no end yet", MODEL),
	numRequestsWaiting: gauge("num_requests_waiting", "Requests that wait for their first token", MODEL),
	promptTokensTotal: counter("prompt_tokens_total", "Prompt tokens of requests that got a first token", MODEL),
	requestFailureTotal: counter(
		"request_failure_total",
		"Requests that ended for another reason than stop or length",
		MODEL,
	),
	requestFinishTotal: counter("request_finish_total", "Requests that ended, by reason", [
		MORE_LABELS.finishedReason,
		...MODEL,
	]),
	requestGenerationTokens: histogram("request_generation_tokens", "Tokens generated for a request", MODEL, LENGTHS),
	requestPromptTokens: histogram("request_prompt_tokens", "Prompt tokens of a request", MODEL, LENGTHS),
	requestSuccessTotal: counter("request_success_total", "Requests that ended with the reason stop or length", MODEL),
	timePerOutputTokenSeconds: histogram(
		"time_per_output_token_seconds",
		"Time from one output token to the next, seconds",
		MODEL,
		[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5],
	),
	timeToFirstTokenSeconds: histogram(
		"time_to_first_token_seconds",
		"Time from the start of a request to its first token, seconds",
		MODEL,
		[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10],
	),
	pythonGcCollectionsTotal: counter(
		"python_gc_collections_total",
		"Collections of garbage: of new objects (0), steps of marking (1), of everything (2)",
		GENERATION,
	),
	pythonGcObjectsCollectedTotal: counter(
		"python_gc_objects_collected_total",
		"Always 0: this runtime does not count the objects that it collects",
		GENERATION,
	),
	pythonGcObjectsUncollectableTotal: counter(
		"python_gc_objects_uncollectable_total",
		"Always 0: every object of this runtime can be collected",
		GENERATION,
	),
	pythonInfo: gauge("python_info", "1; the labels say what runs here instead of Python", [
		MORE_LABELS.implementation,
		MORE_LABELS.major,
		MORE_LABELS.minor,
		MORE_LABELS.patchlevel,
		MORE_LABELS.version,
	]),
} as const satisfies Record<string, MetricFamily>;
