// SPDX-License-Identifier: Apache-2.0
// «NIM»: the same frontend by the metric names of NVIDIA NIM, which Datadog and Dynatrace read.
import { dashboard, graph, meanOver, quantiles, section, stat } from "./panels.js";

const MODEL = 'model_name="$model"';
const RATE = "[$__rate_interval]";
const total = (metric: string): string => `sum(increase(${metric}{${MODEL}}[$__range]))`;

export function nimDashboard() {
	const builder = dashboard({
		uid: "dynamo-nim",
		title: "NIM",
		note: "The frontend by NVIDIA NIM's metric names.",
		from: "now-1h",
		refresh: "10s",
		variables: [{ name: "model", label: "Model", query: "label_values(num_requests_running, model_name)" }],
	});
	section(builder, "Overview", [
		stat("Requests", total("request_success_total"), { unit: "short", span: 4 }),
		stat("Failed Requests", total("request_failure_total"), { unit: "short", span: 4, limits: [1, 100] }),
		stat("Prompt Tokens", total("prompt_tokens_total"), { unit: "short", span: 4 }),
		stat("Generated Tokens", total("generation_tokens_total"), { unit: "short", span: 4 }),
		stat("Average Latency", meanOver("e2e_request_latency_seconds", MODEL), { unit: "s", span: 4 }),
		stat("Average TTFT", meanOver("time_to_first_token_seconds", MODEL), { unit: "s", span: 4 }),
	]);
	section(builder, "Requests", [
		graph(
			"Requests By Outcome",
			[[`sum by (finished_reason) (rate(request_finish_total{${MODEL}}${RATE}))`, "{{finished_reason}}"]],
			{ unit: "reqps" },
		),
		graph("Concurrency", [
			[`sum(num_requests_running{${MODEL}})`, "running"],
			[`sum(num_requests_waiting{${MODEL}})`, "waiting"],
			[`sum(num_request_max{${MODEL}})`, "most that can run"],
		]),
		graph("KV Cache Usage", [[`avg(gpu_cache_usage_perc{${MODEL}})`, "used"]], { unit: "percentunit", max: 1 }),
		graph("Latency", quantiles("e2e_request_latency_seconds", MODEL), { unit: "s" }),
		graph("Time To First Token", quantiles("time_to_first_token_seconds", MODEL), { unit: "s" }),
		graph("Time Per Output Token", quantiles("time_per_output_token_seconds", MODEL), { unit: "s" }),
	]);
	section(builder, "Tokens", [
		graph(
			"Token Throughput",
			[
				[`sum(rate(prompt_tokens_total{${MODEL}}${RATE}))`, "prompt"],
				[`sum(rate(generation_tokens_total{${MODEL}}${RATE}))`, "generated"],
			],
			{ unit: "short", note: "Tokens per second." },
		),
		graph("Prompt Tokens Per Request", quantiles("request_prompt_tokens", MODEL), { unit: "short" }),
		graph("Generated Tokens Per Request", quantiles("request_generation_tokens", MODEL), { unit: "short" }),
	]);
	section(builder, "Process", [
		graph("CPU", [[`rate(process_cpu_seconds_total{job="dynamo-frontend"}${RATE})`, "{{instance}}"]], {
			unit: "short",
		}),
		graph(
			"Memory",
			[
				['process_resident_memory_bytes{job="dynamo-frontend"}', "resident {{instance}}"],
				['process_virtual_memory_bytes{job="dynamo-frontend"}', "virtual {{instance}}"],
			],
			{ unit: "bytes" },
		),
		graph("File Descriptors", [
			['process_open_fds{job="dynamo-frontend"}', "open {{instance}}"],
			['process_max_fds{job="dynamo-frontend"}', "limit {{instance}}"],
		]),
	]);
	return builder;
}
