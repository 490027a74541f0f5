// SPDX-License-Identifier: Apache-2.0
// What requests demand of their way, sessions, and waiting for a turn, from the outside.
import { DEFAULT_KV_ROUTER_OPTIONS, type RouterMode, RouterPolicyConfig } from "@dynamo-ts/router";
import { Admission, PolicyProfile } from "@dynamo-ts/router/internal";
import { afterEach, describe, expect, test, vi } from "vitest";
import type { ScriptedCall, ScriptedWorker } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack | undefined;

afterEach(async () => {
	await stack?.close();
	stack = undefined;
	vi.restoreAllMocks();
});

const answerAtOnce = (call: ScriptedCall): void => void call.tokens([5]).finish("stop").end();

function ask(body: object = {}, headers: Record<string, string> = {}, signal?: AbortSignal): Promise<Response> {
	return fetch((stack as Stack).chat, {
		method: "POST",
		headers: { "content-type": "application/json", ...headers },
		body: JSON.stringify(chatBody({ max_tokens: 3, ...body })),
		...(signal === undefined ? {} : { signal }),
	});
}

/** How many of `n` requests each worker got. */
async function shares(workers: readonly ScriptedWorker[], n: number, body = {}, headers = {}): Promise<number[]> {
	const before = workers.map(({ calls }) => calls.length);
	for (let i = 0; i < n; i++) expect((await ask(body, headers)).status).toBe(200);
	return workers.map(({ calls }, i) => calls.length - (before[i] as number));
}

const withTaints = (...taints: string[]) => ({ runtime_config: { taints } });
const constraints = (routing_constraints: object) => ({ nvext: { routing_constraints } });

test.each<RouterMode>(["round-robin", "random", "kv"])(
	"%s: only workers with the taints that a request requires",
	async (mode) => {
		stack = await startStack({ routerMode: mode });
		const workers = [
			await stack.worker({ script: answerAtOnce, card: withTaints("eu", "fast") }),
			await stack.worker({ script: answerAtOnce, card: withTaints("eu") }),
			await stack.worker({ script: answerAtOnce, card: withTaints() }),
		];
		expect(await shares(workers, 6, constraints({ required_taints: ["eu", "fast"] }))).toEqual([6, 0, 0]);
		const [, , none] = await shares(workers, 8, constraints({ required_taints: ["eu"] }));
		expect(none).toBe(0);
		expect((await ask(constraints({ required_taints: ["us"] }))).status).toBe(503);
		const pin = { "x-worker-instance-id": String(workers[2]?.record.instance_id) };
		expect((await ask(constraints({ required_taints: ["eu"] }), pin)).status).toBe(503);
		expect((await ask({}, pin)).status).toBe(200);
	},
);

test("kv: preferred taints make a worker cheaper, or dearer", async () => {
	stack = await startStack({ routerMode: "kv" });
	const workers = [
		await stack.worker({ script: answerAtOnce, card: withTaints("fast") }),
		await stack.worker({ script: answerAtOnce, card: withTaints() }),
	];
	expect(await shares(workers, 5, constraints({ preferred_taints: { fast: 2 } }))).toEqual([5, 0]);
	expect(await shares(workers, 5, constraints({ preferred_taints: { fast: -2 } }))).toEqual([0, 5]);
});

test("kv: a rank that no worker has is a bad request", async () => {
	stack = await startStack({ routerMode: "kv" });
	const worker = await stack.worker({ script: answerAtOnce });
	const pin = { "x-dynamo-worker-instance-id": String(worker.record.instance_id) };
	expect((await ask({}, { ...pin, "x-data-parallel-rank": "3" })).status).toBe(400);
	expect((await ask({}, { ...pin, "x-dp-rank": "0" })).status).toBe(200);
});

describe("sessions", () => {
	const affinity = (mode: "hard" | "soft") => ({ sessionAffinity: { mode, ttlMs: 60_000 } });

	test.each<RouterMode>(["round-robin", "kv", "least-loaded"])("%s: stay with their worker", async (mode) => {
		stack = await startStack({ routerMode: mode, ...affinity("hard") });
		const workers = [await stack.worker({ script: answerAtOnce }), await stack.worker({ script: answerAtOnce })];
		for (const session of ["a", "b", "c"]) {
			const got = await shares(workers, 8, {}, { "x-dynamo-session-id": session });
			expect([...got].sort()).toEqual([0, 8]);
		}
		const long = await ask({}, { "x-dynamo-session-id": "x".repeat(2000) });
		expect(long.status).toBe(400);
	});

	test("move when their worker is gone", async () => {
		stack = await startStack(affinity("hard"));
		const workers = [await stack.worker({ script: answerAtOnce }), await stack.worker({ script: answerAtOnce })];
		const session = { "x-dynamo-session-id": "s" };
		const first = (await shares(workers, 3, {}, session)).indexOf(3);
		expect(first).toBeGreaterThanOrEqual(0);
		await workers[first]?.leave();
		await vi.waitFor(async () => expect((await ask({}, session)).status).toBe(200));
		expect((await shares(workers, 3, {}, session))[1 - first]).toBe(3);
	});

	test.each([
		["hard", 529],
		["soft", 200],
	] as const)("%s: when their worker is full, %i", async (mode, status) => {
		stack = await startStack({ ...affinity(mode), busyThresholds: { activePrefillTokens: 0 } });
		const held: ScriptedCall[] = [];
		const script = (call: ScriptedCall): void => {
			if (call.body.stop_conditions.max_tokens === 9) held.push(call);
			else answerAtOnce(call);
		};
		await stack.worker({ script });
		await stack.worker({ script });
		const session = { "x-dynamo-session-id": "s" };
		const first = ask({ max_tokens: 9 }, session);
		await vi.waitFor(() => expect(held).toHaveLength(1));
		expect((await ask({}, session)).status).toBe(status);
		held[0]?.tokens([5]).finish("stop").end();
		await first;
	});
});

describe("requests wait", () => {
	const waiting = { ...DEFAULT_KV_ROUTER_OPTIONS, profile: PolicyProfile.single("fcfs", 0) };
	const card = { runtime_config: { max_num_batched_tokens: 100 } };

	/** One worker that answers nothing until it is told to. */
	async function slow(config: object) {
		const admitted = vi.spyOn(Admission.prototype, "admit");
		stack = await startStack({ routerMode: "kv", ...config });
		const held: ScriptedCall[] = [];
		const worker = await stack.worker({ script: (call) => void held.push(call), card });
		const release = (i: number): void => void held[i]?.tokens([5]).finish("stop").end();
		/** Resolves when so many requests wait. */
		const queued = (n: number): Promise<void> =>
			vi.waitFor(() => expect((admitted.mock.contexts[0] as Admission | undefined)?.waiting).toBe(n));
		return { held, worker, release, queued };
	}

	test("until their worker has computed what it has; by priority, then by arrival", async () => {
		const { held, release, queued } = await slow({ kvRouter: waiting });
		const order: number[] = [];
		const send = async (n: number, headers = {}): Promise<number> => {
			const { status } = await ask({ max_tokens: n }, headers);
			return status;
		};
		const all = [send(1)];
		await vi.waitFor(() => expect(held).toHaveLength(1));
		all.push(send(2));
		await queued(1);
		all.push(send(3, { "x-dynamo-request-strict-priority": "7" }));
		await queued(2);
		all.push(send(4, { "x-dynamo-request-priority": "1000" }));
		await queued(3);
		expect(held).toHaveLength(1);
		for (let i = 0; i < 4; i++) {
			await vi.waitFor(() => expect(held).toHaveLength(i + 1));
			order.push(held[i]?.body.stop_conditions.max_tokens ?? 0);
			release(i);
		}
		expect(await Promise.all(all)).toEqual([200, 200, 200, 200]);
		expect(order).toEqual([1, 3, 4, 2]);
	});

	test("no longer than their client; then the next one is up", async () => {
		const { held, release, queued } = await slow({ kvRouter: waiting });
		const first = ask({ max_tokens: 1 });
		await vi.waitFor(() => expect(held).toHaveLength(1));
		const abort = new AbortController();
		const second = ask({ max_tokens: 2 }, {}, abort.signal).catch(() => "gone");
		await queued(1);
		const third = ask({ max_tokens: 3 });
		await queued(2);
		abort.abort();
		expect(await second).toBe("gone");
		await queued(1);
		release(0);
		await vi.waitFor(() => expect(held).toHaveLength(2));
		expect(held[1]?.body.stop_conditions.max_tokens).toBe(3);
		release(1);
		expect([(await first).status, (await third).status]).toEqual([200, 200]);
	});

	test("until another worker comes", async () => {
		const { held, release, queued } = await slow({ kvRouter: waiting });
		const first = ask({ max_tokens: 1 });
		await vi.waitFor(() => expect(held).toHaveLength(1));
		const second = ask({ max_tokens: 2 });
		await queued(1);
		await (stack as Stack).worker({ script: answerAtOnce, card });
		expect((await second).status).toBe(200);
		release(0);
		await first;
	});

	test("or are refused where the policy file leaves no room for their class", async () => {
		const policyConfig = RouterPolicyConfig.parse(`
models:
  ${MODEL}:
    default_policy_family: f
    uncached_isl_buckets: [{ min_tokens: 0, bucket: all }]
    policy_classes:
      - { name: usual, policy_family: f, cache_bucket: all, quantum: 1, prefill_busy_threshold: 0 }
      - { name: batch, quantum: 1, prefill_busy_threshold: 0, request_queue_limit_per_worker: 0 }
`);
		const { held, release, queued } = await slow({ policyConfig });
		const first = ask({ max_tokens: 1 });
		await vi.waitFor(() => expect(held).toHaveLength(1));
		const refused = await ask({}, { "x-dynamo-meta-policy-class": "batch" });
		expect([refused.status, refused.headers.get("retry-after")]).toEqual([529, "1"]);
		const second = ask({ max_tokens: 2 });
		await queued(1);
		release(0);
		await vi.waitFor(() => expect(held).toHaveLength(2));
		release(1);
		expect([(await first).status, (await second).status]).toEqual([200, 200]);
	});
});
