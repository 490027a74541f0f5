// SPDX-License-Identifier: Apache-2.0
// Routers that tell each other what they gave to workers.
import {
	ACTIVE_SEQUENCES_TOPIC,
	decodeActiveSequences,
	type EventEnvelope,
	encodeActiveSequences,
} from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime } from "@dynamo-ts/runtime";
import { afterEach, expect, it, vi } from "vitest";
import type { KvRouterOptions } from "../kv-options.js";
import { KvPolicy } from "../kv-policy.js";

const ENDPOINT = { namespace: "n", component: "c", name: "generate" };
const SCOPE = { kind: "endpoint", endpoint: ENDPOINT } as const;
const WORKERS = { blockSize: 16, firstRank: 0, rankCount: 1, publishEvents: true };

const runtimes: DistributedRuntime[] = [];
const policies: KvPolicy[] = [];
let store = createMemStore();

afterEach(async () => {
	for (const policy of policies.splice(0)) await policy.close();
	for (const runtime of runtimes.splice(0).reverse()) await runtime.shutdown();
	store = createMemStore();
});

async function join(): Promise<DistributedRuntime> {
	const runtime = await DistributedRuntime.create({
		discoveryBackend: "mem",
		memStore: store,
		systemPort: -1,
		log: { filter: "off", format: "readable", ansi: false, localTime: false },
	});
	runtimes.push(runtime);
	return runtime;
}

async function router(options: Partial<KvRouterOptions> = {}) {
	const runtime = await join();
	const policy = new KvPolicy(WORKERS, { replicaSync: true, useKvEvents: false, ...options });
	policies.push(policy);
	await policy.open(runtime, ENDPOINT);
	const load = (workerId: bigint): number[] => {
		const { active, slots } = policy.scheduler;
		const slot = slots.find(workerId, 0);
		return slot === undefined ? [0, 0] : [active.blocksOf(slot), active.prefillTokensOf(slot)];
	};
	return { runtime, policy, load };
}

const prompt = (requestId: string, tokens: number) => ({
	requestId,
	tokenIds: Array.from({ length: tokens }, (_, i) => i),
});

it("each sees the load of all, and nothing of it when it is over", async () => {
	const [a, b] = [await router(), await router()];
	const request = prompt("r1", 40);
	a.policy.onStart(5n, "attempt", request);
	expect(a.load(5n)).toEqual([2, 40]);
	await vi.waitFor(() => expect(b.load(5n)).toEqual([2, 40]));
	a.policy.onFirstItem("attempt");
	await vi.waitFor(() => expect(b.load(5n)).toEqual([2, 0]));
	a.policy.onEnd(5n, "attempt");
	await vi.waitFor(() => expect(b.load(5n)).toEqual([0, 0]));
	expect([a.policy.scheduler.active.size, b.policy.scheduler.active.size, b.policy.replicaRequests]).toEqual([0, 0, 0]);
});

it("a router's own words, told by others or itself, count once", async () => {
	const a = await router();
	a.policy.onStart(5n, "attempt", prompt("r1", 40));
	const other = await join();
	const publisher = await other.events.createPublisher(SCOPE, ACTIVE_SEQUENCES_TOPIC);
	const echo = { requestId: "r1", worker: { workerId: 5n, dpRank: 0 }, routerId: a.runtime.instanceId };
	const late = { ...echo, requestId: "r2", routerId: 77n };
	for (const payload of encodeActiveSequences(
		[
			{ ...echo, change: { type: "free" } },
			{ ...late, change: { type: "add", tokenSequence: [1n], trackPrefillTokens: true } },
		],
		"batch",
	)) {
		publisher.publish(payload);
	}
	await vi.waitFor(() => expect(a.policy.replicaRequests).toBe(1));
	expect(a.load(5n)).toEqual([3, 40]);
});

it("a worker tells of prompts that are done, whoever sent them", async () => {
	const [a, b] = [await router(), await router()];
	a.policy.onStart(5n, "attempt", prompt("r1", 40));
	await vi.waitFor(() => expect(b.load(5n)).toEqual([2, 40]));
	const worker = await join();
	const publisher = await worker.events.createPublisher(SCOPE, ACTIVE_SEQUENCES_TOPIC);
	const told = { requestId: "r1", change: { type: "prefill_completed" } as const };
	// Of another worker first: that is not its request.
	const [wrong, right] = [6n, 5n].map((workerId) => ({ ...told, worker: { workerId, dpRank: 0 }, routerId: workerId }));
	for (const event of [wrong, right]) {
		for (const payload of encodeActiveSequences([event as NonNullable<typeof event>], "bare"))
			publisher.publish(payload);
	}
	await vi.waitFor(() => expect(b.load(5n)).toEqual([2, 0]));
});

it("sends what Dynamo sends: the request, then its prompt's end and its own in one batch", async () => {
	const a = await router();
	const listener = await join();
	const seen: EventEnvelope[] = [];
	await listener.events.subscribe(SCOPE, ACTIVE_SEQUENCES_TOPIC, { onEvent: (envelope) => void seen.push(envelope) });
	a.policy.onStart(5n, "attempt", { ...prompt("r1", 40), expectedOutputTokens: 9, loraName: "l" });
	await vi.waitFor(() => expect(seen).toHaveLength(1));
	a.policy.onFirstItem("attempt");
	a.policy.onEnd(5n, "attempt");
	await vi.waitFor(() => expect(seen).toHaveLength(2));
	const [first, second] = seen.map(({ payload }) => decodeActiveSequences(payload));
	const common = {
		requestId: "r1",
		worker: { workerId: 5n, dpRank: 0 },
		routerId: a.runtime.instanceId,
		loraName: "l",
	};
	expect(first).toMatchObject([
		{
			...common,
			change: {
				type: "add",
				trackPrefillTokens: true,
				expectedOutputTokens: 9n,
				prefillLoadHint: { initialEffectivePrefillTokens: 40n },
			},
		},
	]);
	expect(second?.map(({ change }) => change.type)).toEqual(["prefill_completed", "free"]);
});

it("of a router that is gone nothing is left; what it lost on the way runs out", async () => {
	const b = await router({ expiryMs: 30 });
	const a = await router();
	a.policy.onStart(5n, "attempt", prompt("r1", 40));
	await vi.waitFor(() => expect(b.load(5n)).toEqual([2, 40]));
	await vi.waitFor(() => {
		b.policy.scheduler.active.expire(performance.now());
		expect(b.load(5n)).toEqual([0, 0]);
	});
	const c = await router();
	a.policy.onStart(5n, "again", prompt("r2", 40));
	// Its two full blocks are believed to be there by now.
	await vi.waitFor(() => expect(c.load(5n)).toEqual([2, 8]));
	await a.runtime.shutdown();
	await vi.waitFor(() => expect([c.load(5n), c.policy.replicaRequests]).toEqual([[0, 0], 0]));
});
