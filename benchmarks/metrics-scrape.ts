// SPDX-License-Identifier: Apache-2.0
// What a page of metrics with many series costs: to make it, and to get it from a worker's system server while requests
// count on. prom-client makes the same page beside it. A page is made in one go: nothing else runs meanwhile.
import { createRequire } from "node:module";
import { performance } from "node:perf_hooks";
import { DistributedRuntime, type MetricsRegistry } from "@dynamo-ts/runtime/internal";
import { report } from "./lib.js";

const SERIES = Number(process.argv[2] ?? 10_000);
const SCRAPES = Number(process.argv[3] ?? 100);
const BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
/** Lines of a histogram's child: its bounds, the infinite one, sum and count. */
const LINES = BOUNDS.length + 3;
const LABELS = ["model", "endpoint", "request_type"];

// A dependency of the runtime, not of the workspace.
type PromClient = typeof import("../packages/runtime/node_modules/prom-client/index.js");
const ofRuntime = createRequire(new URL("../packages/runtime/package.json", import.meta.url));
const promClient = ofRuntime("prom-client") as PromClient;

const valuesOf = (i: number): string[] => [`Acme/Some-Model-${i}B-Instruct`, "chat_completions", "stream"];

/** A fifth of the series are counters, a fifth gauges, the rest lines of histograms, as on a frontend's page. */
const counters = Math.round(SERIES / 5);
const histograms = Math.round((SERIES - 2 * counters) / LINES);

/** @returns what counts once in each series. */
function fill(registry: MetricsRegistry): () => void {
	const counter = registry.createCounterVec("requests_total", "Requests", LABELS);
	const gauge = registry.createGaugeVec("inflight_requests", "Requests under way", LABELS);
	const histogram = registry.createHistogramVec("duration_seconds", "Time of a request, seconds", LABELS, {}, BOUNDS);
	const children = (count: number) => Array.from({ length: count }, (_, i) => valuesOf(i));
	const c = children(counters).map((values) => counter.withLabelValues(...values));
	const g = children(counters).map((values) => gauge.withLabelValues(...values));
	const h = children(histograms).map((values) => histogram.withLabelValues(...values));
	return () => {
		for (const one of c) one.inc();
		for (const one of g) one.set(Math.random() * 100);
		for (const one of h) one.observe(Math.random());
	};
}

function fillPromClient(registry: InstanceType<PromClient["Registry"]>): () => void {
	const about = { labelNames: LABELS, registers: [registry], help: "-" };
	const counter = new promClient.Counter({ ...about, name: "dynamo_component_requests_total" });
	const gauge = new promClient.Gauge({ ...about, name: "dynamo_component_inflight_requests" });
	const histogram = new promClient.Histogram({ ...about, name: "dynamo_component_duration_seconds", buckets: BOUNDS });
	return () => {
		for (let i = 0; i < counters; i++) {
			counter.labels(...valuesOf(i)).inc();
			gauge.labels(...valuesOf(i)).set(Math.random() * 100);
		}
		for (let i = 0; i < histograms; i++) histogram.labels(...valuesOf(i)).observe(Math.random());
	};
}

/** Times of `SCRAPES` pages, with counting between them. */
async function measure(name: string, count: () => void, page: () => Promise<string>) {
	for (let i = 0; i < 20; i++) {
		count();
		await page();
	}
	const times: number[] = [];
	let cpu = 0;
	let text = "";
	for (let i = 0; i < SCRAPES; i++) {
		count();
		await new Promise((resolve) => setTimeout(resolve, 5));
		const [began, before] = [performance.now(), process.cpuUsage()];
		text = await page();
		times.push(performance.now() - began);
		const { user, system } = process.cpuUsage(before);
		cpu += user + system;
	}
	times.sort((a, b) => a - b);
	return {
		page: name,
		series: text.split("\n").filter((line) => line !== "" && !line.startsWith("#")).length,
		KiB: Math.round(text.length / 1024),
		"median (ms)": times[Math.floor(times.length / 2)]!.toFixed(1),
		"p99 (ms)": times[Math.floor(times.length * 0.99)]!.toFixed(1),
		"CPU (ms)": (cpu / SCRAPES / 1000).toFixed(1),
	};
}

const runtime = await DistributedRuntime.create({
	discoveryBackend: "mem",
	systemPort: 0,
	systemHost: "127.0.0.1",
	log: { filter: "off", format: "readable", ansi: false, localTime: false },
});
const count = fill(runtime.metrics);
const registry = new promClient.Registry();
const countPromClient = fillPromClient(registry);
const url = `${runtime.systemServer?.url}/metrics`;
report(`A page of metrics with ${SERIES} series`, [
	await measure("ours, made", count, () => runtime.metrics.scrape()),
	await measure("prom-client, made", countPromClient, () => registry.metrics()),
	await measure("ours, got over HTTP by the same process", count, async () => (await fetch(url)).text()),
]);
await runtime.shutdown();
