// SPDX-License-Identifier: Apache-2.0
// What the page of a frontend shows of its routers.
import { DEFAULT_KV_ROUTER_OPTIONS } from "@dynamo-ts/router";
import { PolicyProfile } from "@dynamo-ts/router/internal";
import { afterEach, expect, test, vi } from "vitest";
import type { ScriptedCall } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack | undefined;

afterEach(async () => {
	await stack?.close();
	stack = undefined;
});

const PLACE = { dynamo_component: "backend", dynamo_namespace: "dynamo" };

function ask(body: object = {}, signal?: AbortSignal): Promise<Response> {
	return fetch((stack as Stack).chat, {
		method: "POST",
		headers: { "content-type": "application/json" },
		body: JSON.stringify(chatBody({ max_tokens: 3, ...body })),
		...(signal === undefined ? {} : { signal }),
	});
}

const threeTokens = (call: ScriptedCall): void => void call.tokens([5]).tokens([6]).tokens([7]).finish("stop").end();

test("round-robin: requests, times and tokens; nothing of cache or queue", async () => {
	stack = await startStack();
	const worker = await stack.worker({ script: threeTokens });
	for (let i = 0; i < 4; i++) expect((await ask()).status).toBe(200);
	const page = await stack.metrics();
	const router = { ...PLACE, router_id: stack.runtime.instanceId.toString() };
	const value = (name: string, more = {}) => page.value(`dynamo_component_router_${name}`, { ...router, ...more });
	expect([value("requests_started_total"), value("requests_total")]).toEqual([4, 4]);
	expect(value("time_to_first_token_seconds_count")).toBe(4);
	expect([value("output_sequence_tokens_count"), value("output_sequence_tokens_sum")]).toEqual([4, 12]);
	expect(value("inter_token_latency_seconds_count")).toBe(4);
	const phase = { model: MODEL, phase: "aggregated" };
	expect([value("input_sequence_tokens_count", phase), value("input_sequence_tokens_sum", phase)]).toEqual([4, 40]);
	expect(value("kv_hit_rate_count")).toBe(0);
	expect(page.select("dynamo_frontend_router_queue_pending_requests")).toEqual([]);
	expect(page.select("dynamo_component_router_worker_registered")).toEqual([]);
	expect(page.value("dynamo_router_overhead_total_ms_count", { router_id: router.router_id })).toBe(0);
	// Which of its ranks takes a request is the worker's affair.
	const last = { dp_rank: "none", worker_id: worker.record.instance_id.toString(), worker_type: "decode" };
	expect(page.select("dynamo_frontend_worker_last_input_sequence_tokens")).toMatchObject([{ labels: last, value: 10 }]);
	expect(page.select("dynamo_frontend_worker_active_decode_blocks")).toEqual([]);
});

test("kv: choices, workers and what waits, until it is over", async () => {
	const kvRouter = { ...DEFAULT_KV_ROUTER_OPTIONS, eventsDeadlineMs: 20, profile: PolicyProfile.single("fcfs", 0) };
	stack = await startStack({ routerMode: "kv", kvRouter });
	const held: ScriptedCall[] = [];
	const card = { runtime_config: { max_num_batched_tokens: 100 }, kv_cache_block_size: 4 };
	const worker = await stack.worker({ script: (call) => void held.push(call), card });
	const id = worker.record.instance_id.toString();
	const { metrics } = stack;
	const queue = { model: MODEL, policy_class: "default", worker_type: "decode" };
	const rank = { dp_rank: "0", worker_id: id, worker_type: "decode" };
	const announced = await metrics();
	for (const reason of ["request_limit", "raw_isl_token_limit", "cached_token_limit"]) {
		expect(announced.value("dynamo_frontend_router_queue_backpressure_total", { ...queue, reason })).toBe(0);
	}
	expect(
		announced.value("dynamo_component_kv_cache_events_applied", { ...PLACE, event_type: "stored", status: "ok" }),
	).toBe(0);

	const first = ask();
	await vi.waitFor(() => expect(held).toHaveLength(1));
	const abort = new AbortController();
	const second = ask({}, abort.signal).catch(() => "gone");
	await vi.waitFor(async () => {
		const page = await metrics();
		expect(page.value("dynamo_frontend_router_queue_pending_requests", queue)).toBe(1);
		expect(page.value("dynamo_frontend_router_queue_pending_isl_tokens", queue)).toBe(10);
		expect(page.value("dynamo_frontend_worker_active_prefill_tokens", rank)).toBe(10);
		expect(page.value("dynamo_frontend_worker_active_decode_blocks", rank)).toBe(2);
		const registered = { ...PLACE, dp_rank: "0", router_worker_id: id, worker_type: "decode" };
		expect(page.value("dynamo_component_router_worker_registered", registered)).toBe(1);
		// The worker publishes no events: that is seen.
		const target = { ...PLACE, model: MODEL, target_component: "backend" };
		expect(page.value("dynamo_component_router_kv_events_missing", target)).toBe(1);
		const mismatch = { ...target, target_endpoint: "generate", target_namespace: "dynamo", worker_type: "decode" };
		expect(page.value("dynamo_component_router_kv_event_source_mismatch_workers", mismatch)).toBe(1);
	});
	abort.abort();
	expect(await second).toBe("gone");
	await vi.waitFor(async () => {
		expect((await metrics()).value("dynamo_frontend_router_queue_pending_requests", queue)).toBe(0);
	});
	held[0]?.tokens([5]).finish("stop").end();
	expect((await first).status).toBe(200);
	const page = await metrics();
	expect(page.value("dynamo_frontend_router_admission_received_total", queue)).toBe(2);
	for (const name of ["router_queue_pending_requests", "router_queue_pending_isl_tokens"]) {
		expect(page.value(`dynamo_frontend_${name}`, queue)).toBe(0);
	}
	for (const name of ["active_prefill_tokens", "active_decode_blocks"]) {
		expect(page.value(`dynamo_frontend_worker_${name}`, rank)).toBe(0);
	}
	for (const name of ["input_sequence_tokens", "time_to_first_token_seconds", "inter_token_latency_seconds"]) {
		expect(page.select(`dynamo_frontend_worker_last_${name}`)).toMatchObject([{ labels: rank }]);
	}
	const router = { ...PLACE, router_id: stack.runtime.instanceId.toString() };
	expect(page.value("dynamo_component_router_kv_hit_rate_count", router)).toBe(1);
	expect(page.value("dynamo_router_overhead_total_ms_count", { router_id: router.router_id })).toBe(1);
	// Nothing is left of a worker and a model that are gone.
	await worker.leave();
	await vi.waitFor(async () => {
		const gone = await metrics();
		for (const name of ["dynamo_frontend_worker_active_decode_blocks", "dynamo_component_router_worker_registered"]) {
			expect(gone.select(name)).toEqual([]);
		}
	});
});
