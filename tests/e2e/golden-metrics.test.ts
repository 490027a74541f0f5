// SPDX-License-Identifier: Apache-2.0
// After the same requests our pages of metrics say what Dynamo 1.6.1's said: families, types, labels, bounds, values. What
// differs on purpose is listed here.
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
import {
	chat,
	completion,
	expectFrontendPage,
	expectTokensToFit,
	expectWorkerPage,
	leave,
	MODEL,
	send,
} from "./golden-pages.js";

const model = testModel("hf");
const checker = findPromtool();
/** Names of Dynamo, of vLLM and of prom-client that a linter does not like. */
const LINTS =
	/^(dynamo_frontend_(detokenize_token_count|detokenize_total_us|tokenizer_latency_ms) |dynamo_router_overhead_\w+_ms |vllm:\w+ (metric names should not contain ':'|non-counter metrics should not have "_total" suffix))/;

let fleet: Fleet;
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

describe.skipIf(model.missing)(titled("after the same requests", model.missing), () => {
	beforeAll(async () => {
		fleet = new Fleet();
		worker = await fleet.mocker(model.path, MODEL);
		frontend = await fleet.frontend(MODEL);
		await runLoad();
	}, 120_000);
	afterAll(() => fleet?.stop());

	test("a frontend's page says what Dynamo's says", async () => {
		await expectFrontendPage(frontend, "metrics_agg_after20.txt", { count: 13, cachedTokens: 458 });
	});

	test("the numbers of tokens fit together", async () => {
		const page = await scrape(frontend.url);
		const tokens = expectTokensToFit(page, 14, 2);
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

	test("a worker's page says what Dynamo's says", async () => {
		await expectWorkerPage(worker, "metrics_agg_after20.txt");
	});

	test.skipIf(checker.missing)(
		titled("promtool finds nothing but names that are as they are", checker.missing),
		async () => {
			for (const url of [frontend.url, worker.system]) {
				const { code, output } = promtool(["check", "metrics"], (await http(`${url}/metrics`)).body);
				// 3: lints; 1: the page cannot be read.
				expect([0, 3], output).toContain(code);
				expect(output.split("\n").filter((line) => line !== "" && !LINTS.test(line))).toEqual([]);
			}
		},
	);
});
