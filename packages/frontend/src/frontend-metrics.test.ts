// SPDX-License-Identifier: Apache-2.0
import { createMetricsRegistry } from "@dynamo-ts/runtime";
import { type PromPage, parsePrometheus } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { frontendConfigFromEnv } from "./config.js";
import { FrontendMetrics } from "./frontend-metrics.js";
import type { WorkerSet } from "./worker-set.js";

const SET = {
	answers: true,
	publicNames: ["smol", "other-name"],
	modelTypes: new Set(["Chat", "Completions"]),
	contextWindow: 2048,
	card: { kv_cache_block_size: 64, runtime_config: { max_num_seqs: 256, total_kv_blocks: null } },
} as unknown as WorkerSet;

let metrics: FrontendMetrics;
beforeEach(() => {
	metrics = new FrontendMetrics({
		prefix: "dynamo_frontend",
		buckets: frontendConfigFromEnv({}).buckets,
		migrationLimit: 3,
		nim: { python: true },
		workersOf: () => ({ maxRequests: 512, cacheUsages: [0.25, 0.75] }),
	});
});
afterEach(() => metrics.close());

const scrape = async (): Promise<PromPage> => parsePrometheus(await metrics.scrape(createMetricsRegistry()));

/** Names of the families that show a model. */
const familiesOf = (page: PromPage, model: string) =>
	[...page.families.values()]
		.filter(({ samples }) => samples.some(({ labels }) => labels.model === model))
		.map(({ name }) => name.replace("dynamo_frontend_", ""));

describe("a model that appears", () => {
	it("is there with all its series, at 0", async () => {
		metrics.onSet(SET);
		const page = await scrape();
		for (const model of SET.publicNames) {
			expect(familiesOf(page, model)).toMatchInlineSnapshot(`
				[
				  "active_requests",
				  "audio_per_request",
				  "cached_tokens",
				  "image_tokens_per_request",
				  "images_per_request",
				  "inflight_requests",
				  "input_sequence_tokens",
				  "inter_token_latency_seconds",
				  "model_cancellation_total",
				  "model_context_length",
				  "model_kv_cache_block_size",
				  "model_max_num_seqs",
				  "model_migration_limit",
				  "model_migration_total",
				  "model_rejection_total",
				  "output_sequence_tokens",
				  "output_tokens_total",
				  "queued_requests",
				  "request_duration_seconds",
				  "requests_started_total",
				  "requests_total",
				  "time_to_first_token_seconds",
				  "tokenizer_cache_cached_tokens_total",
				  "tokenizer_cache_uncached_tokens_total",
				  "videos_per_request",
				]
			`);
		}
		const counted = [...page.families.values()].filter(({ name }) => !name.includes("model_"));
		for (const { samples } of counted) {
			for (const { labels, value } of samples) if (labels.model !== undefined) expect(value).toBe(0);
		}
		const labels = { model: "smol", endpoint: "completions", request_type: "stream" };
		expect(page.value("dynamo_frontend_requests_total", { ...labels, status: "success", error_type: "" })).toBe(0);
		expect(page.value("dynamo_frontend_requests_total", { ...labels, error_type: "overload" })).toBe(0);
		expect(page.value("dynamo_frontend_model_max_num_seqs", { model: "smol" })).toBe(256);
		expect(page.value("dynamo_frontend_model_migration_limit", { model: "smol" })).toBe(3);
		expect(page.value("dynamo_frontend_model_total_kv_blocks", { model: "smol" })).toBeUndefined();
	});

	it("has only what its kinds of requests need", async () => {
		metrics.onSet({ ...SET, modelTypes: new Set(["Completions"]) } as unknown as WorkerSet);
		const page = await scrape();
		expect(page.select("dynamo_frontend_requests_started_total", { endpoint: "chat_completions" })).toEqual([]);
	});
});

describe("NIM's names", () => {
	const nim = { model_name: "smol" };

	it("are there at 0 with a model, and go with it", async () => {
		metrics.onSet(SET);
		const names = (page: PromPage) =>
			[...page.families.values()].filter(({ samples }) => samples.some(({ labels }) => labels.model_name === "smol"));
		let page = await scrape();
		expect(names(page)).toHaveLength(14);
		for (const { name, samples } of names(page)) {
			const own = samples.filter(({ labels }) => labels.model_name === "smol");
			if (!name.startsWith("num_request_max") && !name.startsWith("gpu_")) {
				expect(
					own.every(({ value }) => value === 0),
					name,
				).toBe(true);
			}
		}
		expect(page.value("num_request_max", nim)).toBe(512);
		expect(page.value("gpu_cache_usage_perc", nim)).toBe(0.5);
		metrics.onGone("smol");
		await scrape();
		page = await scrape();
		expect(names(page)).toEqual([]);
	});

	it("tell of this process where they mean Python", async () => {
		const page = await scrape();
		expect(page.value("python_info", { implementation: "Node", version: process.versions.node })).toBe(1);
		for (const generation of ["0", "1", "2"]) {
			expect(page.value("python_gc_collections_total", { generation })).toBeGreaterThanOrEqual(0);
			expect(page.value("python_gc_objects_uncollectable_total", { generation })).toBe(0);
		}
	});

	it("have no part in what nobody asked for", async () => {
		const without = new FrontendMetrics({ prefix: "dynamo_frontend", buckets: frontendConfigFromEnv({}).buckets });
		without.onSet(SET);
		const page = await without.scrape(createMetricsRegistry());
		expect(page).not.toMatch(/model_name|python_/);
		without.close();
	});
});

describe("a model that goes", () => {
	it("is shown once more, so that nothing that was counted is lost, and then no more", async () => {
		metrics.onSet(SET);
		metrics.seriesOf("smol").tokens.outputTokens.inc(5);
		metrics.onGone("smol");
		expect((await scrape()).value("dynamo_frontend_output_tokens_total", { model: "smol" })).toBe(5);
		const page = await scrape();
		expect(familiesOf(page, "smol")).toEqual([]);
		expect(familiesOf(page, "other-name")).not.toEqual([]);
	});

	it("stays while a request is under way, whose end is counted", async () => {
		metrics.onSet(SET);
		const series = metrics.seriesOf("smol");
		series.begin();
		metrics.onGone("smol");
		await scrape();
		expect((await scrape()).value("dynamo_frontend_inflight_requests", { model: "smol" })).toBe(1);
		series.leaveQueue();
		series.end();
		expect((await scrape()).value("dynamo_frontend_inflight_requests", { model: "smol" })).toBe(0);
		expect(familiesOf(await scrape(), "smol")).toEqual([]);
	});

	it("goes on where it was when it comes back in time", async () => {
		metrics.onSet(SET);
		metrics.seriesOf("smol").tokens.outputTokens.inc(5);
		metrics.onGone("smol");
		metrics.onSet(SET);
		await scrape();
		expect((await scrape()).value("dynamo_frontend_output_tokens_total", { model: "smol" })).toBe(5);
	});

	it("does not wait for a scrape for ever", async () => {
		for (let i = 0; i < 500; i++) {
			metrics.onSet({ ...SET, publicNames: [`m${i}`] } as unknown as WorkerSet);
			metrics.onGone(`m${i}`);
		}
		const page = await scrape();
		expect(page.select("dynamo_frontend_inflight_requests")).toHaveLength(100);
		expect(page.value("dynamo_frontend_inflight_requests", { model: "m499" })).toBe(0);
	});
});
