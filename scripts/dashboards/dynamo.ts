// SPDX-License-Identifier: Apache-2.0
// «Dynamo Dashboard»: a model as its clients see it, then routing, then its workers. Titles and queries follow Dynamo's
// dashboard of that name, so that what people know of it is true here.
import { dashboard, graph, meanOver, type Query, quantiles, section, stat } from "./panels.js";

const MODEL = 'model="$model"';
const RATE = "[$__rate_interval]";
const F = "dynamo_frontend";
const C = "dynamo_component";
const MS = " * 1000";

/** Increase over the range of the dashboard. */
const total = (metric: string, more = ""): string => `sum(increase(${metric}{${MODEL}${more}}[$__range]))`;

const OUTCOMES = ["cancelled", "validation", "not_found", "not_implemented", "overload", "unavailable", "internal"];

const KV_EVENTS = [
	["stored", "ok"],
	["stored", "parent_block_not_found"],
	["stored", "invalid_block"],
	["removed", "ok"],
	["removed", "block_not_found"],
	["cleared", "ok"],
] as const;

const OVERHEAD = ["block_hashing", "seq_hashing", "indexer_find_matches", "scheduling", "total"] as const;

function overhead(): Query[] {
	return OVERHEAD.flatMap((part): Query[] => {
		const metric = `dynamo_router_overhead_${part}_ms`;
		const [p50, p90, , average] = quantiles(metric, "");
		return [p50, p90, average].map((query): Query => [query![0], `${part} ${query![1]}`]);
	});
}

function perWorker(metric: string): Query[] {
	return quantiles(metric, MODEL, ["instance"]);
}

export function dynamoDashboard() {
	const builder = dashboard({
		uid: "97ae8df9-138a-4f7a-9b0f-635b77d818fe",
		title: "Dynamo Dashboard",
		note: "Requests, tokens and latencies of one model, KV routing, and the workers behind it.",
		from: "now-1h",
		refresh: "10s",
		variables: [{ name: "model", label: "Model", query: `label_values(${F}_input_sequence_tokens_count, model)` }],
	});
	section(builder, "Overview", [
		stat(
			"Request Success Rate",
			`(${total(`${F}_requests_total`)} - (${total(`${F}_requests_total`, ', error_type="internal"')} or vector(0))) / ${total(`${F}_requests_total`)}${" * 100"}`,
			{ unit: "percent", note: "Requests that did not end with an internal error." },
		),
		stat("Total Requests", total(`${F}_requests_total`), { unit: "short" }),
		stat("Input Tokens", total(`${F}_input_sequence_tokens_sum`), { unit: "short" }),
		stat("Output Tokens", total(`${F}_output_sequence_tokens_sum`), { unit: "short" }),
		stat("Average TTFT", meanOver(`${F}_time_to_first_token_seconds`, MODEL, MS), { unit: "ms", span: 4 }),
		stat("Average ITL", meanOver(`${F}_inter_token_latency_seconds`, MODEL, MS), { unit: "ms", span: 4 }),
		stat("Average E2E Latency", meanOver(`${F}_request_duration_seconds`, MODEL), { unit: "s", span: 4 }),
	]);
	section(builder, "Frontend", [
		graph("Frontend RPS", [[`sum by (model) (rate(${F}_requests_total{${MODEL}}${RATE}))`, "{{model}}"]], {
			unit: "reqps",
		}),
		graph("E2E Request Latency (p50/p90/p99)", quantiles(`${F}_request_duration_seconds`, MODEL), { unit: "s" }),
		graph(
			"Request Outcome Breakdown",
			[
				[`sum(rate(${F}_requests_total{${MODEL}, status="success"}${RATE}))`, "success"],
				...OUTCOMES.map(
					(type): Query => [`sum(rate(${F}_requests_total{${MODEL}, error_type="${type}"}${RATE})) or vector(0)`, type],
				),
			],
			{ unit: "reqps" },
		),
		graph("Inflight vs Queued Requests", [
			[`sum(${F}_active_requests{${MODEL}})`, "in flight"],
			[`sum(${F}_queued_requests{${MODEL}})`, "waiting for the first token"],
			[`sum by (stage) (${F}_stage_requests{stage=~"preprocess|route|dispatch"})`, "{{stage}} (all models)"],
		]),
		graph("TTFT (p50/p90/p99)", quantiles(`${F}_time_to_first_token_seconds`, MODEL, [], MS), { unit: "ms" }),
		graph("ITL (p50/p90/p99)", quantiles(`${F}_inter_token_latency_seconds`, MODEL, [], MS), { unit: "ms" }),
		graph("ISL Distribution", quantiles(`${F}_input_sequence_tokens`, MODEL), { unit: "short" }),
		graph("Output Size Distribution", quantiles(`${F}_output_sequence_tokens`, MODEL), { unit: "short" }),
		graph("Cached Tokens", quantiles(`${F}_cached_tokens`, MODEL), { unit: "short" }),
	]);
	section(builder, "KV Routing", [
		graph(
			"Per-Worker Active Decode Blocks",
			[[`${F}_worker_active_decode_blocks`, "{{worker_id}}/{{dp_rank}} {{worker_type}}"]],
			{ note: "As the router counts them; with router mode kv or busy thresholds." },
		),
		graph(
			"Per-Worker Active Prefill Tokens",
			[[`${F}_worker_active_prefill_tokens`, "{{worker_id}}/{{dp_rank}} {{worker_type}}"]],
			{ note: "As the router counts them; with router mode kv or busy thresholds." },
		),
		graph("KV Hit Rate Distribution", quantiles(`${C}_router_kv_hit_rate`, ""), {
			unit: "percentunit",
			max: 1,
			note: "Share of a prompt's blocks that the chosen worker was expected to have.",
		}),
		graph("Routing Overhead Breakdown", overhead(), { unit: "ms", span: 12 }),
		graph(
			"KV Events Applied Breakdown",
			KV_EVENTS.map(
				([type, status]): Query => [
					`sum(rate(${C}_kv_cache_events_applied{event_type="${type}", status="${status}"}${RATE})) or vector(0)`,
					`${type}/${status}`,
				],
			),
			{ unit: "ops", span: 12 },
		),
	]);
	section(builder, "Workers", [
		graph(
			"Worker Request Breakdown Per Worker",
			[
				[`sum by (instance) (rate(${C}_requests_total{${MODEL}}${RATE}))`, "requests {{instance}}"],
				[`sum by (instance) (rate(${C}_cancellation_total{${MODEL}}${RATE}))`, "cancelled {{instance}}"],
				[
					`sum by (instance, error_type) (rate(${C}_errors_total{${MODEL}}${RATE})) or vector(0)`,
					"{{error_type}} {{instance}}",
				],
			],
			{ unit: "reqps" },
		),
		graph("Worker Request Duration Per Worker (p50/p90/p99)", perWorker(`${C}_request_duration_seconds`), {
			unit: "s",
		}),
		graph(
			"Component Throughput (bytes/sec)",
			[
				[
					`sum by (instance) (rate(${C}_response_bytes_total{dynamo_endpoint="generate", ${MODEL}}${RATE}))`,
					"responses {{instance}}",
				],
				[
					`sum by (instance) (rate(${C}_request_bytes_total{dynamo_endpoint="generate", ${MODEL}}${RATE}))`,
					"requests {{instance}}",
				],
			],
			{ unit: "Bps" },
		),
		graph(
			"Token Generation Per Worker",
			[[`sum by (instance) (rate(vllm:generation_tokens_total{model_name="$model"}${RATE}))`, "{{instance}}"]],
			{ unit: "short", note: "Tokens per second." },
		),
		graph(
			"Requests In The Engine",
			[
				[`sum by (instance) (vllm:num_requests_running{model_name="$model"})`, "running {{instance}}"],
				[`sum by (instance) (vllm:num_requests_waiting{model_name="$model"})`, "waiting {{instance}}"],
			],
			{},
		),
		graph("KV Cache Usage", [[`avg by (instance) (vllm:kv_cache_usage_perc{model_name="$model"})`, "{{instance}}"]], {
			unit: "percentunit",
			max: 1,
			limits: [0.8, 0.95],
		}),
		graph("KV Cache Blocks", [
			[`sum by (instance) (${C}_kvstats_active_blocks{${MODEL}})`, "active {{instance}}"],
			[`sum by (instance) (${C}_kvstats_total_blocks{${MODEL}})`, "total {{instance}}"],
		]),
		graph("Prefix Cache Hit Rate", [[`avg by (instance) (${C}_kv_cache_hit_rate{${MODEL}})`, "{{instance}}"]], {
			unit: "percentunit",
			max: 1,
		}),
		graph("Component Uptime", [[`max by (instance) (${C}_uptime_seconds)`, "{{instance}}"]], { unit: "s" }),
	]);
	return builder;
}
