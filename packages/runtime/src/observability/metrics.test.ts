// SPDX-License-Identifier: Apache-2.0
import { parsePrometheus } from "@dynamo-ts/testing/internal";
import { describe, expect, it, vi } from "vitest";
import type { FamilySnapshot } from "./metric-families.js";
import { createMetricsRegistry, sanitizeLabel, sanitizeMetricName, scrapeTogether } from "./metrics.js";

const endpointRegistry = () => {
	const root = createMetricsRegistry({ labels: { worker_id: "7c97daa84dbf2478" } });
	const endpoint = root
		.level({ labels: { dynamo_namespace: "dynamo" } })
		.level({ labels: { dynamo_component: "backend" } })
		.level({ labels: { dynamo_endpoint: "generate" } });
	return { root, endpoint };
};

describe("metrics registry", () => {
	it("adds prefix and labels of each level, sorted, and shows all on the root's page", async () => {
		const { root, endpoint } = endpointRegistry();
		const counter = endpoint.createCounter("requests_total", "Total requests", { region: "us-west" });
		counter.inc();
		counter.inc(2);
		root.createGauge("uptime_seconds", "Uptime").set(1.5);
		expect(await root.scrape()).toBe(
			[
				"# HELP dynamo_component_requests_total Total requests",
				"# TYPE dynamo_component_requests_total counter",
				'dynamo_component_requests_total{dynamo_component="backend",dynamo_endpoint="generate",dynamo_namespace="dynamo",region="us-west",worker_id="7c97daa84dbf2478"} 3',
				"# HELP dynamo_component_uptime_seconds Uptime",
				"# TYPE dynamo_component_uptime_seconds gauge",
				'dynamo_component_uptime_seconds{worker_id="7c97daa84dbf2478"} 1.5',
				"",
			].join("\n"),
		);
		expect(await endpoint.scrape()).toBe(await root.scrape());
	});

	it("writes histograms with le last, then sum and count", async () => {
		const root = createMetricsRegistry({ prefix: "x" });
		const latency = root.createHistogram("latency_seconds", "Latency", { a: "1" }, [0.001, 0.01]);
		expect(await root.scrape()).toContain('x_latency_seconds_count{a="1"} 0');
		latency.observe(0.005);
		latency.observe(7);
		expect(await root.scrape()).toBe(
			[
				"# HELP x_latency_seconds Latency",
				"# TYPE x_latency_seconds histogram",
				'x_latency_seconds_bucket{a="1",le="0.001"} 0',
				'x_latency_seconds_bucket{a="1",le="0.01"} 1',
				'x_latency_seconds_bucket{a="1",le="+Inf"} 2',
				'x_latency_seconds_sum{a="1"} 7.005',
				'x_latency_seconds_count{a="1"} 2',
				"",
			].join("\n"),
		);
	});

	it("vectors: no series prints nothing; series by position; removal", async () => {
		const root = createMetricsRegistry({ prefix: "" });
		const vec = root.createCounterVec("requests_by_model", "By model", ["model_type", "model_size"]);
		expect(await root.scrape()).toBe("");
		vec.withLabelValues("llama", "7b").inc();
		vec.withLabelValues("llama", "7b").inc();
		vec.withLabelValues('a"b\\c\nd', "1b");
		const page = await root.scrape();
		expect(page).toContain('requests_by_model{model_size="7b",model_type="llama"} 2\n');
		expect(page).toContain('requests_by_model{model_size="1b",model_type="a\\"b\\\\c\\nd"} 0\n');
		vec.remove("llama", "7b");
		expect(await root.scrape()).not.toContain("7b");
		vec.withLabelValues("llama", "2b");
		vec.withLabelValues("llama", "3b");
		vec.removeWhere("model_type", "llama");
		expect((await root.scrape()).match(/^requests_by_model\{/gm)).toHaveLength(1);
		vec.reset();
		expect(await root.scrape()).toBe("");
		expect(() => vec.withLabelValues("one")).toThrow("has the labels [model_type, model_size]: 1 values");
		const gauge = root.createGaugeVec("g", "G", ["id"]).withLabelValues("0");
		gauge.set(5);
		gauge.inc();
		gauge.dec(2);
		expect(await root.scrape()).toContain('g{id="0"} 4\n');
		root.createHistogramVec("h", "H", ["id"], {}, [1]).withLabelValues("0").observe(2);
		expect(await root.scrape()).toContain('h_bucket{id="0",le="+Inf"} 1\n');
	});

	it("the same family at two endpoints has a series each", async () => {
		const root = createMetricsRegistry();
		for (const name of ["one", "two"]) {
			root
				.level({ labels: { dynamo_endpoint: name } })
				.createCounter("requests_total", "R")
				.inc();
		}
		expect((await root.scrape()).match(/^dynamo_component_requests_total\{/gm)).toHaveLength(2);
	});

	it("refuses what would make a page wrong", () => {
		const root = createMetricsRegistry({ labels: { worker_id: "1" } });
		root.createCounter("a_total", "A");
		expect(() => root.createCounter("a_total", "A")).toThrow("exists already");
		expect(() => root.createGauge("a_total", "A")).toThrow("is a counter");
		expect(() => root.createCounterVec("a_total", "A", ["x"])).toThrow("a counter with the labels []");
		expect(() => root.createCounter("b", "B", { dynamo_endpoint: "x" })).toThrow("is set by the runtime");
		expect(() => root.createCounter("b", "B", { worker_id: "x" })).toThrow("given twice");
		expect(() => root.createCounterVec("b", "B", [])).toThrow("at least one label");
		expect(() => root.createCounterVec("b", "B", ["x", "x"])).toThrow("given twice");
		expect(() => root.createHistogram("b", "B", {}, [2, 1])).toThrow("rising");
		expect(() => root.createCounter("___", "B")).toThrow("no metric name");
	});

	it("sanitises names", () => {
		expect(sanitizeMetricName("123test")).toBe("_123test");
		expect(sanitizeMetricName("-test")).toBe("_test");
		expect(sanitizeMetricName("a.b:c")).toBe("a_b:c");
		expect(sanitizeLabel("__test")).toBe("test");
		expect(sanitizeLabel("a:b")).toBe("a_b");
		expect(() => sanitizeLabel("__")).toThrow("no label name");
	});

	it("runs update callbacks before a scrape, appends exposition callbacks, and survives their errors", async () => {
		const errors: unknown[] = [];
		const root = createMetricsRegistry({ prefix: "p" }, (error) => errors.push(error));
		const gauge = root.createGauge("g", "G");
		root.addUpdateCallback(() => gauge.set(3));
		root.addUpdateCallback(() => {
			throw new Error("update");
		});
		root.addExpositionCallback(() => "vllm:x 1");
		root.addExpositionCallback(() => {
			throw new Error("exposition");
		});
		root.addExpositionCallback(() => "vllm:y 2\n");
		expect(await root.scrape()).toBe("# HELP p_g G\n# TYPE p_g gauge\np_g 3\nvllm:x 1\nvllm:y 2\n");
		expect(errors).toHaveLength(2);
	});

	it("waits for callbacks that answer later, but not for those that never do", async () => {
		vi.useFakeTimers();
		try {
			const errors: unknown[] = [];
			const root = createMetricsRegistry({ prefix: "p" }, (error) => errors.push(error));
			const gauge = root.createGauge("g", "G");
			let stuck = 0;
			root.addUpdateCallback(async () => {
				await Promise.resolve();
				gauge.set(4);
			});
			root.addExpositionCallback(() => {
				stuck++;
				return new Promise<string>(() => {});
			});
			root.addExpositionCallback(async () => "x 1");
			root.addExpositionCallback(async () => {
				throw new Error("later");
			});
			const scrape = root.scrape();
			await vi.advanceTimersByTimeAsync(1000);
			expect(await scrape).toBe("# HELP p_g G\n# TYPE p_g gauge\np_g 4\nx 1\n");
			expect(errors.map(String)).toEqual(["Error: later", "Error: a metrics callback did not answer within 1000 ms"]);
			// The one that is still at it is not asked again.
			expect(await root.scrape()).toContain("x 1\n");
			expect(stuck).toBe(1);
		} finally {
			vi.useRealTimers();
		}
	});

	it("takes families as data and gives them, each name once", async () => {
		const root = createMetricsRegistry({ prefix: "" });
		root.createCounter("own_total", "Own", { a: 'b"' }).inc(2);
		root.createHistogram("h", "H", {}, [1, 2]).observe(1.5);
		const typed: FamilySnapshot[] = [
			{ name: "own_total", help: "Other", type: "counter", series: [{ labels: {}, value: 1 }] },
			{ name: "engine_g", help: "G", type: "gauge", series: [{ labels: { z: "1", b: "2" }, value: 7 }] },
			{ name: "none", help: "N", type: "gauge", series: [] },
		];
		root.addTypedCallback(() => typed);
		const page = await root.scrape();
		expect(page.startsWith('# HELP engine_g G\n# TYPE engine_g gauge\nengine_g{b="2",z="1"} 7\n# HELP h H\n')).toBe(
			true,
		);
		expect(page.match(/# TYPE own_total/g)).toHaveLength(1);
		expect(page).not.toContain("none");
		expect(await root.collect()).toEqual([
			{ name: "own_total", help: "Own", type: "counter", series: [{ labels: { a: 'b"' }, value: 2 }] },
			{
				name: "h",
				help: "H",
				type: "histogram",
				series: [{ labels: {}, value: { bounds: [1, 2], counts: [0, 1, 0], sum: 1.5 } }],
			},
			...typed,
		]);
	});

	it("several registries make one page, and one group of families can come last", async () => {
		const one = createMetricsRegistry({ prefix: "b" });
		const two = createMetricsRegistry({ prefix: "" });
		one.createGauge("x", "X");
		two.createGauge("a_y", "Y");
		two.createGauge("c", "C");
		two.addExpositionCallback(() => "text 1");
		const names = (page: string) => [...page.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name);
		const page = await scrapeTogether([one, two.level({ prefix: "z" })], "a_");
		expect(names(page)).toEqual(["b_x", "c", "a_y"]);
		expect(page.endsWith("\ntext 1\n")).toBe(true);
	});

	it("tells of the process in the names of prom-client", async () => {
		const root = createMetricsRegistry();
		root.addProcessMetrics();
		const page = parsePrometheus(await root.scrape());
		expect(page.value("process_resident_memory_bytes")).toBeGreaterThan(1e6);
		expect(page.value("process_start_time_seconds")).toBeGreaterThan(1e9);
		expect(page.families.get("nodejs_eventloop_lag_seconds")?.type).toBe("gauge");
		for (const { name, type } of page.families.values())
			if (name.endsWith("_total")) expect([name, type]).toEqual([name, "counter"]);
	});
});
