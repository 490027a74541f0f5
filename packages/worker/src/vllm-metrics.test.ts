// SPDX-License-Identifier: Apache-2.0
import { createMockEngine, type Engine, type EngineInfo, type EngineOutput, type KvFetch } from "@dynamo-ts/engine";
import { createMetricsRegistry } from "@dynamo-ts/runtime";
import { parsePrometheus } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, expect, it } from "vitest";
import { VllmMetrics } from "./vllm-metrics.js";

const registry = () => createMetricsRegistry({ prefix: "" });
let metrics: ReturnType<typeof registry>;
let engine: Engine;
let watched: Engine;
let info: EngineInfo;

beforeEach(async () => {
	metrics = registry();
	engine = createMockEngine({ speedupRatio: 0, blockSize: 4, maxModelLen: 300, maxNumSeqs: 2 });
	info = await engine.start();
	watched = new VllmMetrics(metrics, engine, info, "smol").watch(engine);
});
afterEach(() => engine.close());

const page = async () => parsePrometheus(await metrics.scrape());

/** Runs a request; `abortAfter` outputs it is cancelled. */
function run(requestId: string, maxTokens: number, n = 1, abortAfter?: number): Promise<EngineOutput[]> {
	return new Promise((resolve) => {
		const outputs: EngineOutput[] = [];
		let open = n;
		watched.submit(
			{
				requestId,
				tokenIds: Array.from({ length: 10 }, (_, i) => i + 1),
				sampling: { n },
				stop: { maxTokens, ignoreEos: true },
			},
			(output) => {
				outputs.push(output);
				if (outputs.length === abortAfter) watched.abort(requestId);
				if (output.finishReason !== undefined && --open === 0) resolve(outputs);
			},
		);
	});
}

it("counts what the engine gives a request, and its end once", async () => {
	await run("a", 8);
	await run("b", 3);
	const all = await page();
	const value = (name: string, labels = {}) => all.value(`vllm:${name}`, labels);
	expect(value("time_to_first_token_seconds_count")).toBe(2);
	expect(value("inter_token_latency_seconds_count")).toBe(7 + 2);
	expect(value("e2e_request_latency_seconds_count")).toBe(2);
	expect(value("prompt_tokens_total")).toBe(20);
	expect(value("generation_tokens_total")).toBe(11);
	expect(value("request_generation_tokens_sum")).toBe(11);
	expect(value("request_prompt_tokens_sum")).toBe(20);
	expect(value("request_params_max_tokens_sum")).toBe(11);
	// The second prompt finds the first two blocks of four.
	expect(value("request_prefill_kv_computed_tokens_sum")).toBe(10 + 2);
	expect(value("prefix_cache_queries_total")).toBe(20);
	expect(value("prefix_cache_hits_total")).toBe(8);
	expect(value("request_prefill_kv_computed_tokens_created")).toBeGreaterThan(1.7e9);
	expect(all.families.get("vllm:request_prefill_kv_computed_tokens_created")?.type).toBe("gauge");
	expect(value("request_success_total", { finished_reason: "length" })).toBe(2);
	expect(value("request_success_total", { finished_reason: "abort" })).toBe(0);
	expect(value("iteration_tokens_total_sum")).toBe(12 + 11 - 2);
	for (const time of ["queue", "prefill", "decode", "inference"]) {
		expect(value(`request_${time}_time_seconds_count`), time).toBe(2);
	}
	expect(value("request_time_per_output_token_seconds_count")).toBe(2);
	expect(value("num_requests_running")).toBe(0);
	expect(value("num_requests_waiting")).toBe(0);
	expect(value("kv_cache_usage_perc")).toBe(0);
	// Bounds of lengths end where the model does.
	expect(value("request_prompt_tokens_bucket", { le: "200" })).toBe(2);
	expect(value("request_prompt_tokens_bucket", { le: "500" })).toBeUndefined();
});

it("a cancelled request has its tokens and its reason, and no length or time", async () => {
	await run("a", 100, 1, 3);
	const all = await page();
	expect(all.value("vllm:request_success_total", { finished_reason: "abort" })).toBe(1);
	expect(all.value("vllm:time_to_first_token_seconds_count")).toBe(1);
	expect(all.value("vllm:generation_tokens_total")).toBe(3);
	expect(all.value("vllm:e2e_request_latency_seconds_count")).toBe(0);
	expect(all.value("vllm:request_prompt_tokens_count")).toBe(0);
	expect(all.value("vllm:num_requests_running")).toBe(0);
});

it("each choice of a request is counted by itself", async () => {
	await run("a", 5, 3);
	const all = await page();
	expect(all.value("vllm:time_to_first_token_seconds_count")).toBe(3);
	expect(all.value("vllm:inter_token_latency_seconds_count")).toBe(12);
	expect(all.value("vllm:request_success_total", { finished_reason: "length" })).toBe(3);
	expect(all.value("vllm:request_params_n_sum")).toBe(9);
});

it("a refused request is an error", async () => {
	await new Promise<void>((resolve) => {
		watched.submit(
			{ requestId: "bad", tokenIds: Array.from({ length: 400 }, () => 1), sampling: {}, stop: { maxTokens: 1 } },
			(output) => output.finishReason !== undefined && resolve(),
		);
	});
	const all = await page();
	expect(all.value("vllm:request_success_total", { finished_reason: "error" })).toBe(1);
	expect(all.value("vllm:prompt_tokens_total")).toBe(0);
});

it.each([
	["was fetched is not computed", true, 1],
	["could not be fetched is computed", false, 10],
])("a prompt that %s", async (_name, complete, computed) => {
	const finished: boolean[] = [];
	const fetch: KvFetch = {
		tokens: 9,
		firstBlock: 0,
		numBlocks: 3,
		signal: new AbortController().signal,
		memory: () => new Uint8Array(4),
		written: () => {},
		finish: (whole) => finished.push(whole),
	};
	const fetching: Engine = {
		...engine,
		stats: () => engine.stats(),
		submit: (request, onOutput) => {
			request.fetchKv?.(fetch);
			const counts = { promptTokens: 10, completionTokens: 1, cachedTokens: 0 };
			onOutput({ index: 0, tokenIds: [1], finishReason: "length", ...counts } as EngineOutput);
		},
	};
	const own = registry();
	const meter = new VllmMetrics(own, fetching, info, "smol").watch(fetching);
	const fetchKv = (given: KvFetch): void => given.finish(complete);
	const request = {
		requestId: "a",
		tokenIds: Array.from({ length: 10 }, (_, i) => i),
		sampling: {},
		stop: {},
		fetchKv,
	};
	meter.submit(request, () => {});
	expect(finished).toEqual([complete]);
	const all = parsePrometheus(await own.scrape());
	expect(all.value("vllm:request_prefill_kv_computed_tokens_sum", {})).toBe(computed);
});
