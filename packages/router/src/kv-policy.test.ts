// SPDX-License-Identifier: Apache-2.0
import { blockHashes, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime } from "@dynamo-ts/runtime";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { KvWorkers } from "./kv-options.js";
import { KvPolicy } from "./kv-policy.js";
import type { RoutingRequest } from "./router.js";
import { workerRecord } from "./test-support/worker-record.js";

const ONE_RANK: KvWorkers = { blockSize: 16, firstRank: 0, rankCount: 1, publishEvents: true };

function instances(count: number): EndpointRecord[] {
	return Array.from({ length: count }, (_, i) => workerRecord(BigInt(i + 1)));
}

const prompt = (start: number, count = 160): RoutingRequest => ({
	tokenIds: Array.from({ length: count }, (_, i) => start + i),
});

/** Sends a request through the policy to its end. @returns who got it. */
function serve(policy: KvPolicy, candidates: readonly EndpointRecord[], request: RoutingRequest): bigint {
	const { instance_id } = policy.pick(candidates, request) as EndpointRecord;
	policy.onStart(instance_id, "r", request);
	policy.onFirstItem("r");
	policy.onEnd(instance_id, "r");
	return instance_id;
}

afterEach(() => {
	vi.useRealTimers();
	vi.restoreAllMocks();
});

describe("the policy kv", () => {
	it("without events believes for a while that a prompt stays where it went", () => {
		vi.useFakeTimers({ toFake: ["performance"] });
		const policy = new KvPolicy(ONE_RANK, { useKvEvents: false, ttlMs: 5000 });
		const list = instances(8);
		const first = serve(policy, list, prompt(0));
		for (let i = 0; i < 10; i++) expect(serve(policy, list, prompt(0))).toBe(first);
		vi.advanceTimersByTime(4000);
		expect(serve(policy, list, prompt(0))).toBe(first);
		vi.advanceTimersByTime(4000);
		// The last one made it younger.
		expect(serve(policy, list, prompt(0))).toBe(first);
		expect(policy.scheduler.tree.size).toBe(10);
		vi.advanceTimersByTime(5001);
		policy.pick([], prompt(0));
		expect(policy.scheduler.tree.size).toBe(0);
		expect(policy.scheduler.active.size).toBe(0);
	});

	it("leaves a worker's cache out of account that another adapter or tenant filled", () => {
		const policy = new KvPolicy(ONE_RANK, { useKvEvents: false });
		const list = instances(64);
		const owner = serve(policy, list, { ...prompt(0), cacheSalt: "a" });
		expect(serve(policy, list, { ...prompt(0), cacheSalt: "a" })).toBe(owner);
		const others = [{ ...prompt(0) }, { ...prompt(0), cacheSalt: "b" }, { ...prompt(0), loraName: "a" }];
		for (const other of others) expect(policy.scheduler.tree.find(hashesOf(other)).count).toBe(0);
	});

	it("counts a prompt that another worker computes as blocks alone, none of them shared", () => {
		const policy = new KvPolicy(ONE_RANK, { useKvEvents: false });
		const decode = { overlapScoreCredit: 0, assumeKvReuse: false, trackPrefillTokens: false };
		const list = instances(1);
		const request = { ...prompt(0, 117), overrides: decode };
		for (const id of ["a", "b"]) {
			policy.pick(list, request);
			policy.onStart(1n, id, request);
		}
		const { active, slots } = policy.scheduler;
		const slot = slots.find(1n, 0) as number;
		expect([active.blocksOf(slot), active.prefillTokensOf(slot)]).toEqual([14, 0]);
		const { overrides: _, ...plain } = request;
		expect(policy.explain(1n, plain)).toEqual({
			dpRank: 0,
			promptBlocks: 8,
			overlapBlocks: 7,
			cachedTokens: 112,
			activePrefillTokens: 0,
			decodeBlocks: 22,
			queueDepth: 0,
		});
		for (const id of ["a", "b"]) policy.onEnd(1n, id);
		expect(active.size).toBe(0);
	});

	it.each([
		["decode: full blocks", { trackActiveBlocks: true }, { overlapScoreCredit: 0, trackPrefillTokens: false }, 0, 7],
		["prefill, cold", { trackActiveBlocks: false }, undefined, 0, 121 / 16],
		["prefill, seven blocks cached", { trackActiveBlocks: false }, undefined, 7, 9 / 16],
	])("costs what Dynamo's does: %s", (_title, options, overrides, cachedBlocks, cost) => {
		const policy = new KvPolicy(ONE_RANK, options);
		const { scheduler } = policy;
		const request = { ...prompt(0, 121), overrides };
		const hashed = { promptTokens: 121, ...blockHashes(request.tokenIds ?? [], 16), overrides };
		const slot = scheduler.slots.obtain(1n, 0);
		const blocks = hashed.tokensHashes
			.slice(0, cachedBlocks)
			.map((tokensHash, i) => ({ tokensHash, blockHash: hashed.sequenceHashes[i] as bigint }));
		if (cachedBlocks > 0) scheduler.tree.apply(slot, "device", { type: "stored", parentHash: undefined, blocks });
		expect(scheduler.choose(hashed, [slot])?.cost).toBe(cost);
	});

	it("chooses between the ranks of a worker, and keeps to the one that the client names", () => {
		const policy = new KvPolicy({ ...ONE_RANK, firstRank: 2, rankCount: 2 }, { useKvEvents: false });
		const list = instances(1);
		const request = prompt(0);
		const named = { ...request, dpRank: 3 };
		policy.pick(list, named);
		expect(policy.rankFor(1n, named)).toBe(3);
		policy.onStart(1n, "r", named);
		policy.pick(list, request);
		// Its prompt is there, but the load counts too: with the prompt done the cache decides.
		policy.onFirstItem("r");
		policy.onEnd(1n, "r");
		const again = { ...request };
		expect(policy.pick(list, again)).toBe(list[0]);
		expect(policy.rankFor(1n, again)).toBe(3);
	});

	it("gives no slot to a rank that the worker does not have, and passes it on as it is", () => {
		const policy = new KvPolicy({ ...ONE_RANK, rankCount: 2 }, { useKvEvents: false });
		for (let dpRank = 0; dpRank < 100; dpRank++) {
			const named = { ...prompt(0), dpRank };
			expect(policy.rankFor(1n, named)).toBe(dpRank);
			policy.onStart(1n, `${dpRank}`, named);
		}
		expect(policy.scheduler.slots.capacity).toBe(2);
		expect(policy.scheduler.active.size).toBe(100);
	});

	it("counts requests that somebody else placed", () => {
		const policy = new KvPolicy(ONE_RANK, { useKvEvents: false, assumeKvReuse: false });
		const list = instances(2);
		policy.onStart(1n, "a", prompt(0));
		policy.onStart(1n, "b", prompt(0));
		const slot = policy.scheduler.slots.find(1n, 0) as number;
		// Nothing is shared: ten blocks each.
		expect(policy.scheduler.active.blocksOf(slot)).toBe(20);
		expect(policy.pick(list, prompt(5000))?.instance_id).toBe(2n);
		policy.onEnd(1n, "a");
		policy.onEnd(1n, "b");
		expect(policy.scheduler.active.size).toBe(0);
	});

	it("says aloud when events are expected and none come, and how to cure it", async () => {
		const runtime = await DistributedRuntime.create({
			discoveryBackend: "mem",
			memStore: createMemStore(),
			systemPort: -1,
			log: { filter: "off", format: "readable", ansi: false, localTime: false },
		});
		const log = runtime.log.child("test");
		const error = vi.spyOn(log, "error");
		vi.spyOn(runtime.log, "child").mockReturnValue(log);
		const policy = new KvPolicy(ONE_RANK, { eventsDeadlineMs: 1 });
		await policy.open(runtime, { namespace: "n", component: "backend", name: "generate" });
		const told = new Promise<string>((resolve) => error.mockImplementation((message: string) => resolve(message)));
		serve(policy, instances(1), prompt(0));
		expect(await told).toMatch(/No KV event came .*DYN_EVENT_PLANE.*--no-router-kv-events/s);
		await policy.close();
		await runtime.shutdown();
	});
});

function hashesOf(request: RoutingRequest): bigint[] {
	return blockHashes(request.tokenIds ?? [], 16, request).tokensHashes;
}
