// SPDX-License-Identifier: Apache-2.0
// After the same requests to a prefill and a decode worker behind the router `kv` our pages of metrics say what Dynamo 1.6.1's
// said. What differs on purpose is listed here.
import {
	Fleet,
	type HttpChild,
	scrape,
	testModel,
	titled,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
	type Changes,
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

/** What workers say about the ends of requests is for other routers, so that ours listens only with --router-replica-sync. */
const SEQUENCES = "dynamo_component_router_active_sequence";
const DECODE = '{dynamo_component="backend",dynamo_namespace="dynamo",routing_group="default",worker_type="decode"}';
const UNHEARD_WORKERS: Changes = {
	[`${SEQUENCES}_ingress_drain_batches_total${DECODE}`]: [-27, "not listened to"],
	[`${SEQUENCES}_ingress_events_applied_total${DECODE}`]: [-27, "not listened to"],
	[`${SEQUENCES}_zmq_ingress_sources{dynamo_component="backend",dynamo_namespace="dynamo"}`]: [-1, "not listened to"],
};

let fleet: Fleet;
let prefill: WorkerChild;
let decode: WorkerChild;
let frontend: HttpChild;

/** The recorded run was one of twenty requests and the thirteen before it. */
async function runLoad(): Promise<void> {
	// Some of them were recorded as `responses` and `messages`.
	await send(frontend, chat(), 200, 13);
	await send(frontend, chat({ stream: true }), 200, 7);
	await send(frontend, completion(), 200, 2);
	await send(frontend, completion({ stream: true }), 200);
	await send(frontend, chat({ model: "nope" }), 404, 2);
	await send(frontend, chat({ messages: [] }), 400, 2);
	await send(frontend, chat({ temperature: 9 }), 400);
	for (let i = 0; i < 2; i++) {
		await leave(frontend, chat({ stream: true, max_tokens: 2000 }), 3, 10_000);
		await leave(frontend, chat({ max_tokens: 2000 }), 1, 300);
	}
	await untilFrontendIdle(frontend);
	for (const worker of [prefill, decode]) await untilWorkerIdle(worker);
}

describe.skipIf(model.missing)(titled("after the same requests to prefill and decode workers", model.missing), () => {
	beforeAll(async () => {
		fleet = new Fleet();
		prefill = await fleet.mocker(model.path, MODEL, ["--disaggregation-mode", "prefill"]);
		decode = await fleet.mocker(model.path, MODEL, ["--disaggregation-mode", "decode"]);
		frontend = await fleet.frontend(MODEL, ["--router-mode", "kv"]);
		await runLoad();
	}, 120_000);
	afterAll(() => fleet?.stop());

	test("a frontend's page says what Dynamo's says", async () => {
		const prompts = { count: 23, cachedTokens: 766 };
		await expectFrontendPage(frontend, "metrics_disagg_after20.txt", prompts, {
			// One client of the recorded run left when its answer was ready.
			'dynamo_frontend_requests_total{error_type="",model="smol",request_type="unary",status="success"}': [
				-1,
				"a client that left counts as one",
			],
			'dynamo_frontend_requests_total{error_type="cancelled",model="smol",request_type="unary",status="error"}': [
				1,
				"the same",
			],
			'dynamo_frontend_stage_duration_seconds_count{stage="transport_roundtrip"}': [
				-1,
				"what a router asks a worker is no stage of a request",
			],
			'dynamo_component_router_inter_token_latency_seconds_count{dynamo_component="backend",dynamo_namespace="dynamo"}':
				[27, "counted in each router mode, one per answer of several tokens"],
			...UNHEARD_WORKERS,
		});
	});

	test("the numbers of tokens fit together", async () => {
		const page = await scrape(frontend.url);
		const tokens = expectTokensToFit(page, 23, 4);
		// A prefill worker's one token comes before those of the answer.
		expect(page.sum("dynamo_component_router_output_sequence_tokens_sum")).toBe(tokens + 27);
		const prompts = page.sum("dynamo_frontend_input_sequence_tokens_sum");
		for (const phase of ["prefill", "decode"]) {
			expect(page.sum("dynamo_component_router_input_sequence_tokens_sum", { phase })).toBe(prompts);
		}
		expect((await scrape(decode.system)).sum("vllm:generation_tokens_total")).toBeGreaterThanOrEqual(tokens);
	});

	test("each worker's page says what Dynamo's says", async () => {
		await expectWorkerPage(prefill, "metrics_disagg_prefill_after20.txt", false);
		await expectWorkerPage(decode, "metrics_disagg_decode_after20.txt");
	});
});
