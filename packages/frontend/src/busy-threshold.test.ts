// SPDX-License-Identifier: Apache-2.0
// Limits above which workers get no more requests: read and set through /busy_threshold, felt by the next request.
import { DynamoError, encodeWorkerLoad, KV_METRICS_TOPIC, type WorkerLoad } from "@dynamo-ts/protocols/internal";
import type { RouterMode } from "@dynamo-ts/router";
import { afterEach, describe, expect, test, vi } from "vitest";
import type { ScriptedCall } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack | undefined;

afterEach(async () => {
	await stack?.close();
	stack = undefined;
});

const NONE = {
	active_decode_blocks_threshold: null,
	active_prefill_tokens_threshold: null,
	active_prefill_tokens_threshold_frac: null,
};

const post = (url: string, body: unknown, headers: Record<string, string> = {}) =>
	fetch(url, {
		method: "POST",
		headers: { "content-type": "application/json", ...headers },
		body: typeof body === "string" ? body : JSON.stringify(body),
	});

const limit = async (limits: object): Promise<Response> =>
	post(`${stack?.url}/busy_threshold`, { model: MODEL, ...limits });

async function publisher() {
	const endpoint = { namespace: "dynamo", component: "backend", name: "generate" };
	const runtime = await (stack as Stack).join();
	const events = await runtime.events.createPublisher({ kind: "endpoint", endpoint }, KV_METRICS_TOPIC);
	return (load: WorkerLoad): void => events.publish(encodeWorkerLoad(load));
}

const answerAtOnce = (call: ScriptedCall): void => void call.tokens([5]).finish("stop").end();

test("limits are merged, and hold at once for what workers told before", async () => {
	stack = await startStack();
	const card = { runtime_config: { total_kv_blocks: 100, max_num_batched_tokens: 10 } };
	const worker = await stack.worker({ script: answerAtOnce, card });
	const id = worker.record.instance_id;
	const tell = await publisher();
	const list = async () => (await (await fetch(`${stack?.url}/busy_threshold`)).json()) as unknown;
	const status = async () => (await post((stack as Stack).chat, chatBody({ max_tokens: 3 }))).status;
	expect(await list()).toEqual({ thresholds: [{ model: MODEL, ...NONE }] });

	tell({ workerId: id, dpRank: 0, kvUsedBlocks: 60n, activePrefillTokens: 25n });
	expect(await status()).toBe(200);
	// What the event plane brings is not awaited by anybody: the limit bites once it has come.
	await vi.waitFor(async () => {
		expect(await (await limit({ active_decode_blocks_threshold: 0.5 })).json()).toEqual({
			model: MODEL,
			...NONE,
			active_decode_blocks_threshold: 0.5,
		});
		expect(await status()).toBe(529);
	});
	const refused = await post(stack.chat, chatBody({ max_tokens: 3 }));
	expect(refused.headers.get("retry-after")).toBe("1");
	expect(await refused.json()).toMatchObject({ message: "Service temporarily overloaded", code: 529 });
	await limit({ active_decode_blocks_threshold: 0.6 });
	expect(await status()).toBe(200);
	await limit({ active_prefill_tokens_threshold: 24 });
	expect(await status()).toBe(529);
	await limit({ active_prefill_tokens_threshold: 25 });
	expect(await status()).toBe(200);
	await limit({ active_prefill_tokens_threshold_frac: 2 });
	expect(await status()).toBe(529);
	expect(await list()).toEqual({
		thresholds: [
			{
				model: MODEL,
				active_decode_blocks_threshold: 0.6,
				active_prefill_tokens_threshold: 25,
				active_prefill_tokens_threshold_frac: 2,
			},
		],
	});
	// Relief is at once, too.
	tell({ workerId: id, dpRank: 0, activePrefillTokens: 20n });
	await vi.waitFor(async () => expect(await status()).toBe(200));
	// A worker that joins later has the limits that were set, not those of the start.
	const page = await (await limit({})).json();
	expect(page).toMatchObject({ active_decode_blocks_threshold: 0.6 });
});

test("what a worker told is forgotten when it is lost, until it is there again and tells anew", async () => {
	stack = await startStack();
	const { metrics } = stack;
	const waiting: ScriptedCall[] = [];
	const card = { runtime_config: { total_kv_blocks: 100 } };
	const worker = await stack.worker({ script: (call) => void waiting.push(call), card });
	const tell = await publisher();
	const usage = async () => (await metrics()).value("gpu_cache_usage_perc", { model_name: MODEL });
	const load = { workerId: worker.record.instance_id, dpRank: 0, kvUsedBlocks: 60n };
	const answer = post(stack.chat, chatBody({ max_tokens: 3 }));
	await vi.waitFor(() => expect(waiting).toHaveLength(1));
	tell(load);
	await vi.waitFor(async () => expect(await usage()).toBe(0.6));
	waiting[0]?.fail(new DynamoError("Unavailable", "the engine is gone"));
	expect((await answer).status).toBe(503);
	expect(await usage()).toBe(0);
	// What was under way when it was lost does not count.
	const deadline = performance.now() + 100;
	while (performance.now() < deadline) {
		tell(load);
		expect(await usage()).toBe(0);
	}
	await vi.waitFor(
		async () => {
			tell(load);
			expect(await usage()).toBe(0.6);
		},
		{ timeout: 10_000, interval: 100 },
	);
}, 15_000);

test.each<RouterMode>(["round-robin", "kv"])(
	"%s: prompts of its own requests count until their first token",
	async (mode) => {
		stack = await startStack({ routerMode: mode, busyThresholds: { activePrefillTokens: 0 } });
		const waiting: ScriptedCall[] = [];
		const worker = await stack.worker({ script: (call) => void waiting.push(call) });
		const { chat } = stack;
		const first = post(chat, chatBody({ max_tokens: 3 }));
		await vi.waitFor(() => expect(waiting).toHaveLength(1));
		expect((await post(chat, chatBody({ max_tokens: 3 }))).status).toBe(529);
		waiting[0]?.tokens([5]);
		await vi.waitFor(async () => {
			const second = post(chat, chatBody({ max_tokens: 3 }));
			await vi.waitFor(() => expect(waiting).toHaveLength(2));
			waiting[1]?.tokens([5]).finish("stop").end();
			expect((await second).status).toBe(200);
		});
		waiting[0]?.finish("stop").end();
		expect((await first).status).toBe(200);
		expect(worker.calls).toHaveLength(2);
	},
);

describe("refusals", () => {
	test("what is no body, what is out of range, who is not there", async () => {
		stack = await startStack();
		await stack.worker({ script: answerAtOnce });
		const url = `${stack.url}/busy_threshold`;
		const answers = await Promise.all(
			[
				"{",
				"{}",
				{ model: 5 },
				{ model: MODEL, active_decode_blocks_threshold: 1.85 },
				{ model: MODEL, active_prefill_tokens_threshold_frac: -1 },
				{ model: "nope", active_decode_blocks_threshold: 0.5 },
			].map(async (body) => {
				const answer = await post(url, body);
				return [answer.status, ((await answer.json()) as { error: string }).error];
			}),
		);
		expect(answers).toEqual([
			[400, expect.stringMatching(/EOF/)],
			[422, expect.stringMatching(/missing field `model`/)],
			[422, expect.stringMatching(/invalid type: integer `5`/)],
			[400, "active_decode_blocks_threshold must be between 0.0 and 1.0, got 1.85"],
			[400, expect.stringMatching(/greater than or equal to 0.0, got -1/)],
			[404, "Model 'nope' not found. Thresholds can only be set for discovered models."],
		]);
		const unread = await post(url, { model: "nope" });
		expect([unread.status, await unread.json()]).toEqual([200, { model: "nope", ...NONE }]);
	});

	test("without the routes for operators there is nothing", async () => {
		stack = await startStack({ disableAdminApi: true });
		expect((await fetch(`${stack.url}/busy_threshold`)).status).toBe(404);
	});
});
