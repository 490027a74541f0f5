// SPDX-License-Identifier: Apache-2.0
// «Dynamo Disaggregated Analysis»: prefill and decode side by side. What needs Kubernetes, cAdvisor, the node exporter or
// NVIDIA's DCGM exporter stands in the last row.
import { dashboard, graph, type Query, section } from "./panels.js";

const NS = 'namespace=~"$namespace"';
const RATE = "[$__rate_interval]";
const F = "dynamo_frontend";
const C = "dynamo_component";
const PREFILL = `dynamo_component="prefill", dynamo_endpoint="generate", ${NS}`;
const DECODE = `dynamo_component="backend", dynamo_endpoint="generate", ${NS}`;

function mean(metric: string, selector: string, by: string): string {
	const part = (name: string) => `sum by (${by}) (rate(${metric}_${name}{${selector}}${RATE}))`;
	return `${part("sum")} / (${part("count")} > 0)`;
}

const p99 = (metric: string, selector: string, by: string): string =>
	`histogram_quantile(0.99, sum by (${by}, le) (rate(${metric}_bucket{${selector}}${RATE})))`;

const durations = (selector: string): Query[] => [
	[mean(`${C}_request_duration_seconds`, selector, "instance"), "average {{instance}}"],
	[p99(`${C}_request_duration_seconds`, selector, "instance"), "p99 {{instance}}"],
];

export function disaggregatedDashboard() {
	const builder = dashboard({
		uid: "dynamo-disagg-analysis",
		title: "Dynamo Disaggregated Analysis",
		note: "Prefill and decode workers: where a request's time goes, and how full each side is.",
		from: "now-30m",
		refresh: "10s",
		variables: [
			{ name: "namespace", label: "Namespace", query: `label_values(${F}_requests_total, namespace)`, all: true },
		],
	});
	const frontendMean = (title: string, metric: string, unit: string) =>
		graph(title, [[mean(`${F}_${metric}`, NS, "model"), "{{model}}"]], { unit });
	section(builder, "Frontend", [
		graph("Frontend Requests / Sec", [[`sum by (model) (rate(${F}_requests_total{${NS}}${RATE}))`, "{{model}}"]], {
			unit: "reqps",
		}),
		frontendMean("Frontend Avg Time to First Token", "time_to_first_token_seconds", "s"),
		frontendMean("Frontend Avg Request Duration", "request_duration_seconds", "s"),
		frontendMean("Frontend Avg Inter-Token Latency", "inter_token_latency_seconds", "s"),
		graph(
			"Frontend Avg Input/Output Sequence Length",
			[
				[mean(`${F}_input_sequence_tokens`, NS, "model"), "input {{model}}"],
				[mean(`${F}_output_sequence_tokens`, NS, "model"), "output {{model}}"],
			],
			{ unit: "short" },
		),
		graph("Frontend Queued Requests", [[`sum by (model) (${F}_queued_requests{${NS}})`, "{{model}}"]], {
			limits: [10, 50],
		}),
	]);
	section(builder, "Prefill", [
		graph("Prefill Worker Processing Time", durations(PREFILL), { unit: "s" }),
		graph(
			"Prefill Throughput",
			[[`sum by (instance) (rate(${C}_requests_total{${PREFILL}}${RATE}))`, "{{instance}}"]],
			{
				unit: "reqps",
			},
		),
		graph(
			"Prefill Tokens Computed",
			[[`sum by (instance) (rate(vllm:request_prefill_kv_computed_tokens_sum{${NS}}${RATE}))`, "{{instance}}"]],
			{ unit: "short", note: "Prompt tokens per second that were not in the cache." },
		),
		graph(
			"Component Latency – Prefill vs Decode",
			[
				[mean(`${C}_request_duration_seconds`, PREFILL, "dynamo_component"), "prefill"],
				[mean(`${C}_request_duration_seconds`, DECODE, "dynamo_component"), "decode"],
			],
			{ unit: "s" },
		),
		graph(
			"KV Transfer Estimated Latency",
			[[mean(`${C}_router_kv_transfer_estimated_latency_seconds`, NS, "instance"), "{{instance}}"]],
			{ unit: "s", note: "From the end of prefill to the first token of decode." },
		),
		graph("Prefill Requests Running", [[`sum by (instance) (${C}_inflight_requests{${PREFILL}})`, "{{instance}}"]]),
	]);
	section(builder, "Decode", [
		graph(
			"Decode Worker – Request Throughput",
			[[`sum by (instance) (rate(${C}_requests_total{${DECODE}}${RATE}))`, "{{instance}}"]],
			{ unit: "reqps" },
		),
		graph("Decode Worker – Avg Request Duration", durations(DECODE), { unit: "s" }),
		graph(
			"Decode Tokens Generated",
			[[`sum by (instance) (rate(vllm:generation_tokens_total{${NS}}${RATE}))`, "{{instance}}"]],
			{ unit: "short", note: "Tokens per second." },
		),
		graph("KV Cache Utilization", [[`avg by (instance) (${C}_gpu_cache_usage_percent{${NS}})`, "{{instance}}"]], {
			unit: "percentunit",
			max: 1,
			limits: [0.8, 0.95],
		}),
		graph("KV Cache Blocks", [
			[`sum by (instance) (${C}_kvstats_active_blocks{${NS}})`, "active {{instance}}"],
			[`sum by (instance) (${C}_kvstats_total_blocks{${NS}})`, "total {{instance}}"],
		]),
		graph(
			"Worker Data Transfer",
			[
				[`sum by (instance) (rate(${C}_request_bytes_total{${NS}}${RATE}))`, "requests {{instance}}"],
				[`sum by (instance) (rate(${C}_response_bytes_total{${NS}}${RATE}))`, "responses {{instance}}"],
			],
			{ unit: "Bps" },
		),
	]);
	section(builder, "GPUs and nodes (need their exporters)", [
		graph("GPU Compute Utilization", [[`DCGM_FI_DEV_GPU_UTIL{${NS}}`, "GPU {{gpu}}"]], { unit: "percent", max: 100 }),
		graph("GPU Memory Bandwidth", [[`DCGM_FI_DEV_MEM_COPY_UTIL{${NS}}`, "GPU {{gpu}}"]], { unit: "percent", max: 100 }),
		graph("GPU Memory Used", [[`DCGM_FI_DEV_FB_USED{${NS}} / 1024`, "GPU {{gpu}}"]], { unit: "gbytes" }),
		graph(
			"NVLink Bandwidth",
			[
				[`rate(DCGM_FI_PROF_NVLINK_TX_BYTES{${NS}}${RATE})`, "sent GPU {{gpu}}"],
				[`rate(DCGM_FI_PROF_NVLINK_RX_BYTES{${NS}}${RATE})`, "received GPU {{gpu}}"],
			],
			{ unit: "Bps" },
		),
		graph(
			"Worker CPU Usage",
			[[`sum by (pod) (rate(container_cpu_usage_seconds_total{${NS}, container!=""}${RATE}))`, "{{pod}}"]],
			{ unit: "short", note: "Cores." },
		),
		graph(
			"Node CPU Utilization",
			[[`100 * (1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}${RATE})))`, "{{instance}}"]],
			{ unit: "percent", max: 100 },
		),
	]);
	return builder;
}
