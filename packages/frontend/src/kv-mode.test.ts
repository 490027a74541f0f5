// SPDX-License-Identifier: Apache-2.0
// The router mode kv from the outside: what a request leaves behind in the router, however it ends.
import { DynamoError, encodeWorkerLoad, KV_METRICS_TOPIC } from "@dynamo-ts/protocols/internal";
import { KvPolicy } from "@dynamo-ts/router";
import { afterEach, expect, test, vi } from "vitest";
import type { ScriptedCall } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack | undefined;

afterEach(async () => {
	await stack?.close();
	stack = undefined;
	vi.restoreAllMocks();
});

const post = (url: string, body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal) =>
	fetch(url, {
		method: "POST",
		headers: { "content-type": "application/json", ...headers },
		body: JSON.stringify(body),
		...(signal === undefined ? {} : { signal }),
	});

test("nothing is left of requests that end well, fail, are moved, are pinned or given up", async () => {
	const started = vi.spyOn(KvPolicy.prototype, "onStart");
	const ended = vi.spyOn(KvPolicy.prototype, "onEnd");
	const first = vi.spyOn(KvPolicy.prototype, "onFirstItem");
	stack = await startStack({ routerMode: "kv", migrationLimit: 2 });
	let cut = 0;
	const script = (call: ScriptedCall): void => {
		if (call.body.stop_conditions.max_tokens === 50) {
			call.tokens([5]);
			return;
		}
		if (call.body.stop_conditions.max_tokens === 6) {
			call.fail(new DynamoError("InvalidArgument", "no"));
			return;
		}
		if (call.body.stop_conditions.max_tokens === 7 && cut++ === 0) {
			call.tokens([5, 6]);
			call.fail(new DynamoError("Disconnected", "gone"));
			return;
		}
		call.tokens([5, 6]).finish("stop").end();
	};
	const worker = await stack.worker({ script });
	await stack.worker({ script });
	const { chat, completions } = stack;
	expect((await post(chat, chatBody({ max_tokens: 3 }))).status).toBe(200);
	expect((await post(chat, chatBody({ max_tokens: 6 }))).status).toBeGreaterThanOrEqual(400);
	expect((await post(chat, chatBody({ max_tokens: 7 }))).status).toBe(200);
	const pin = { "x-dynamo-worker-instance-id": String(worker.record.instance_id) };
	expect((await post(chat, chatBody({ max_tokens: 3 }), pin)).status).toBe(200);
	// Two prompts at once, and two requests with the same id.
	expect((await post(completions, { model: MODEL, prompt: [[1, 2], [3]], max_tokens: 3 })).status).toBe(200);
	const twins = [1, 2].map(() => post(chat, chatBody({ max_tokens: 3 }), { "x-request-id": "twin" }));
	for (const answer of await Promise.all(twins)) expect(answer.status).toBe(200);
	const abort = new AbortController();
	const stream = await post(chat, chatBody({ max_tokens: 50, stream: true }), {}, abort.signal);
	await stream.body?.getReader().read();
	abort.abort();
	await vi.waitFor(() => expect(ended.mock.calls.length).toBe(started.mock.calls.length));
	expect(started.mock.calls.length).toBe(10);
	expect(new Set(started.mock.calls.map(([, id]) => id)).size).toBe(10);
	expect(first.mock.calls.length).toBe(9);
	const [policy] = started.mock.contexts as KvPolicy[];
	expect(policy?.scheduler.active.size).toBe(0);
	expect(started.mock.contexts.every((one) => one === policy)).toBe(true);
});

test("direct: a request that names no worker is a bad one", async () => {
	stack = await startStack({ routerMode: "direct" });
	const worker = await stack.worker({ script: (call) => call.tokens([5]).finish("stop").end() });
	expect((await post(stack.chat, chatBody({ max_tokens: 3 }))).status).toBe(400);
	const pin = { "x-dynamo-worker-instance-id": String(worker.record.instance_id) };
	expect((await post(stack.chat, chatBody({ max_tokens: 3 }), pin)).status).toBe(200);
});

test("a worker above the limit gets nothing, at the limit it does; when all are above, 529", async () => {
	stack = await startStack({ busyThresholds: { activeDecodeBlocks: 0.5 } });
	const card = { runtime_config: { total_kv_blocks: 100 } };
	const script = (call: ScriptedCall): void => void call.tokens([5]).finish("stop").end();
	const workers = [await stack.worker({ script, card }), await stack.worker({ script, card })] as const;
	const runtime = await stack.join();
	const scope = {
		kind: "endpoint" as const,
		endpoint: { namespace: "dynamo", component: "backend", name: "generate" },
	};
	const publisher = await runtime.events.createPublisher(scope, KV_METRICS_TOPIC);
	const tell = (i: 0 | 1, used: bigint): void =>
		publisher.publish(encodeWorkerLoad({ workerId: workers[i].record.instance_id, dpRank: 0, kvUsedBlocks: used }));
	const { chat } = stack;
	const pin = (i: 0 | 1) => ({ "x-dynamo-worker-instance-id": String(workers[i].record.instance_id) });
	const status = async (headers = {}): Promise<number> =>
		(await post(chat, chatBody({ max_tokens: 3 }), headers)).status;
	tell(0, 51n);
	await vi.waitFor(async () => expect(await status(pin(0))).toBe(529));
	const before = workers[0].calls.length;
	for (let i = 0; i < 6; i++) expect(await status()).toBe(200);
	expect(workers[0].calls.length).toBe(before);
	tell(1, 90n);
	await vi.waitFor(async () => expect(await status()).toBe(529));
	tell(0, 50n);
	await vi.waitFor(async () => expect(await status(pin(0))).toBe(200));
	expect(await status(pin(1))).toBe(529);
});
