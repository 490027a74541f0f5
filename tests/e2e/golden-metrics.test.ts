// SPDX-License-Identifier: Apache-2.0
// After the same requests our pages of metrics say what Dynamo 1.6.1's said: families, types, labels, bounds, values. What
// differs on purpose is listed here.
import { METRICS } from "@dynamo-ts/protocols/internal";
import {
	Fleet,
	findPromtool,
	type HttpChild,
	http,
	promtool,
	scrape,
	testModel,
	titled,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { chat, compare, completion, leave, MODEL, recordedPage, send, unexpected } from "./golden-pages.js";

const model = testModel("hf");
const checker = findPromtool();
/** Names of Dynamo, of vLLM and of prom-client that a linter does not like. */
const LINTS =
	/^(dynamo_frontend_(detokenize_token_count|detokenize_total_us|tokenizer_latency_ms) |dynamo_router_overhead_\w+_ms |vllm:\w+ (metric names should not contain ':'|non-counter metrics should not have "_total" suffix))/;
/** There is no cache of encoded prompts here, so that each prompt is a miss and all of its tokens are encoded. */
const UNCACHED_PROMPTS: Record<string, readonly [number, string]> = {
	"dynamo_frontend_tokenizer_cache_hits_total{}": [-13, "no cache"],
	"dynamo_frontend_tokenizer_cache_misses_total{}": [13, "no cache"],
	'dynamo_frontend_tokenizer_cache_cached_tokens_total{model="smol"}': [-458, "no cache"],
};

const fleet = new Fleet();
let worker: WorkerChild;
let frontend: HttpChild;

async function runLoad(): Promise<void> {
	// The recorded run had one in twelve of them as `responses`.
	await send(frontend, chat(), 200, 6);
	await send(frontend, chat({ stream: true }), 200, 6);
	await send(frontend, completion(), 200);
	await send(frontend, completion({ stream: true }), 200);
	await send(frontend, chat({ model: "nope" }), 404);
	await send(frontend, chat({ messages: [] }), 400);
	await send(frontend, chat({ temperature: 9 }), 400);
	await leave(frontend, chat({ stream: true, max_tokens: 2000 }), 3, 10_000);
	await leave(frontend, chat({ max_tokens: 2000 }), 1, 300);
	await untilFrontendIdle(frontend);
	await untilWorkerIdle(worker);
}

beforeAll(async () => {
	if (model.missing) return;
	worker = await fleet.mocker(model.path, MODEL);
	frontend = await fleet.frontend(MODEL);
	await runLoad();
}, 120_000);
afterAll(() => fleet.stop());

describe("after the same requests", () => {
	test(titled("a frontend's page says what Dynamo's says", model.missing), async (context) => {
		context.skip(model.missing !== "", model.missing);
		const recorded = recordedPage("frontend/fixtures/observability/metrics_agg_after20.txt");
		const ours = await scrape(frontend.url);
		compare(recorded, ours, {
			// Of Rust's runtime.
			missing: /^dynamo_tokio_/,
			loose:
				/(seconds|_ms|sequence_tokens)_sum\{|uptime|event_loop|_us\{|_bytes_|worker_last_|output_tokens_total|detokenize_token_count|uncached_tokens_total|inter_token_latency_seconds_count|worker_id/,
			changed: {
				'dynamo_frontend_request_duration_seconds_count{model="smol"}': [-1, "no request for embeddings"],
				'dynamo_frontend_failures_total{class="NotFound",reason="request.not_found"}': [-1, "the same"],
				...UNCACHED_PROMPTS,
			},
		});
		const names = [...Object.values(METRICS.nim)].map(({ name }): string => name);
		expect(unexpected(recorded, ours, names)).toEqual([]);
	});

	test(titled("the numbers of tokens fit together", model.missing), async (context) => {
		context.skip(model.missing !== "", model.missing);
		const page = await scrape(frontend.url);
		const tokens = page.sum("dynamo_frontend_output_tokens_total");
		// 14 whole answers of eight tokens, and the beginnings of two.
		expect(tokens).toBeGreaterThan(14 * 8);
		expect(page.sum("dynamo_frontend_output_sequence_tokens_sum")).toBe(tokens);
		expect(page.sum("dynamo_frontend_detokenize_token_count")).toBe(tokens);
		expect(page.sum("dynamo_frontend_inter_token_latency_seconds_count")).toBe(tokens - 16);
		expect(page.sum("time_per_output_token_seconds_count")).toBe(tokens - 16);
		expect(page.sum("generation_tokens_total")).toBe(tokens);
		expect(page.sum("request_success_total")).toBe(14);
		expect(page.sum("request_finish_total", { finished_reason: "abort" })).toBe(2);
		const engine = await scrape(worker.system);
		// What the engine made before it heard that nobody reads any more counts there alone.
		expect(engine.sum("vllm:generation_tokens_total")).toBeGreaterThanOrEqual(tokens);
		expect(engine.sum("vllm:request_success_total", { finished_reason: "length" })).toBe(14);
		expect(engine.sum("vllm:request_success_total", { finished_reason: "abort" })).toBe(2);
	});

	test(titled("a worker's page says what Dynamo's says", model.missing), async (context) => {
		context.skip(model.missing !== "", model.missing);
		const recorded = recordedPage("worker/fixtures/observability/metrics_agg_after20.txt");
		const ours = await scrape(worker.system);
		compare(recorded, ours, {
			// Dynamo's worker takes a client that left for a failure to publish.
			missing: /^dynamo_component_errors_total/,
			loose:
				/(seconds|_ms|sequence_tokens)_sum\{|uptime|_bytes_total|inter_token_latency_seconds_count|worker_kv_query_source/,
			changed: {},
		});
		expect(unexpected(recorded, ours)).toEqual([]);
		// NIM's names would be counted twice.
		for (const { name } of Object.values(METRICS.nim)) expect(ours.families.has(name), name).toBe(false);
	});

	test(
		titled("promtool finds nothing but names that are as they are", model.missing || checker.missing),
		async (context) => {
			context.skip((model.missing || checker.missing) !== "", model.missing || checker.missing);
			for (const url of [frontend.url, worker.system]) {
				const { code, output } = promtool(["check", "metrics"], (await http(`${url}/metrics`)).body);
				// 3: lints; 1: the page cannot be read.
				expect([0, 3], output).toContain(code);
				expect(output.split("\n").filter((line) => line !== "" && !LINTS.test(line))).toEqual([]);
			}
		},
	);
});
