// SPDX-License-Identifier: Apache-2.0
import type { DynamoError, EndpointRecord } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { KvRouterOptions } from "../kv-options.js";
import { KvPolicy } from "../kv-policy.js";
import type { RoutingRequest } from "../router.js";
import { workerRecord } from "../test-support/worker-record.js";
import type { Ticket } from "./admission.js";
import { type PolicyClass, PolicyProfile } from "./policy-profile.js";

const policies: KvPolicy[] = [];
afterEach(async () => {
	for (const policy of policies.splice(0)) await policy.close();
	vi.useRealTimers();
});

/** A policy and what dispatching does with it. */
function bench(options: Partial<KvRouterOptions>, workers = [workerRecord(1n), workerRecord(2n)]) {
	const card = { blockSize: 16, firstRank: 0, rankCount: 1, publishEvents: true, maxNumBatchedTokens: 100 };
	const policy = new KvPolicy(card, { useKvEvents: false, ...options });
	policies.push(policy);
	const sent = new Map<string, bigint>();
	const refused = new Map<string, DynamoError>();
	const list = { workers };
	const send = (id: string, request: RoutingRequest): void => {
		const target = policy.pick(list.workers, request) as EndpointRecord;
		sent.set(id, target.instance_id);
		policy.onStart(target.instance_id, id, request);
	};
	const ask = (id: string, tokens: number, more: Partial<RoutingRequest> = {}): Ticket | undefined => {
		const start = Number(id.replace(/\D/g, "")) * 100_000;
		const request = { tokenIds: Array.from({ length: tokens }, (_, i) => start + i), ...more };
		const ticket = policy.admit({
			request,
			candidates: () => list.workers.filter(({ instance_id }) => (more.pinned ?? instance_id) === instance_id),
			onTurn: () => send(id, request),
			onRefused: (error) => void refused.set(id, error),
		});
		if (ticket === undefined) send(id, request);
		return ticket;
	};
	const end = (id: string): void => policy.onEnd(sent.get(id) as bigint, id);
	return { policy, sent, refused, ask, end, list };
}

const turns = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const limit = (more: Partial<PolicyClass> = {}): Partial<KvRouterOptions> => {
	const only = { name: "default", order: "fcfs" as const, quantum: 1, prefillBusyThresholdFrac: 0.5, ...more };
	return { profile: new PolicyProfile([only], new Map(), new Map(), "", [{ minTokens: 0 }]) };
};

describe("a request waits", () => {
	it("only when every worker has more to compute than the limit, and until one has less", async () => {
		const { ask, policy, sent } = bench(limit());
		expect(ask("1", 51)).toBeUndefined();
		expect(ask("2", 51)).toBeUndefined();
		expect(new Set(sent.values()).size).toBe(2);
		for (const [ahead, id] of ["3", "4"].entries()) {
			expect(policy.admission.waiting).toBe(ahead);
			expect(ask(id, 10)).toBeDefined();
		}
		expect(policy.admission.stats()).toEqual([
			{ policyClass: "default", requests: 2, promptTokens: 20, cachedTokens: 0 },
		]);
		await turns();
		expect(sent.size).toBe(2);
		policy.onFirstItem("1");
		await turns();
		expect([sent.get("3"), sent.get("4")]).toEqual([sent.get("1"), sent.get("1")]);
		expect(policy.admission.waiting).toBe(0);
	});

	it("no further than it has to: each that goes makes its worker busier", async () => {
		const { ask, policy, sent, end } = bench(limit(), [workerRecord(1n)]);
		ask("1", 60);
		for (const id of ["2", "3", "4"]) ask(id, 60);
		end("1");
		await turns();
		expect([...sent.keys()]).toEqual(["1", "2"]);
		policy.onFirstItem("2");
		await turns();
		expect([...sent.keys()]).toEqual(["1", "2", "3"]);
	});

	it("behind those that wait already, even when there is room again", async () => {
		const { ask, policy, sent } = bench(limit(), [workerRecord(1n)]);
		ask("1", 60);
		ask("2", 10);
		policy.onFirstItem("1");
		expect(ask("3", 10)).toBeDefined();
		await turns();
		expect([...sent.keys()]).toEqual(["1", "2", "3"]);
	});

	it("until there is another worker", async () => {
		const { ask, policy, list, sent } = bench(limit(), [workerRecord(1n)]);
		ask("1", 60);
		ask("2", 60);
		list.workers = [workerRecord(1n), workerRecord(9n)];
		policy.recheck();
		await turns();
		expect(sent.get("2")).toBe(9n);
	});

	it("for its own worker, without keeping back those that can go elsewhere", async () => {
		const { ask, policy, sent } = bench(limit());
		ask("1", 60, { pinned: 1n });
		policy.scheduler.active.free("1");
		policy.onStart(1n, "1", { tokenIds: Array.from({ length: 60 }, (_, i) => i) });
		ask("2", 60);
		ask("3", 10, { pinned: 1n });
		ask("4", 10);
		policy.onFirstItem("2");
		await turns();
		expect([sent.has("3"), sent.get("4")]).toEqual([false, sent.get("2")]);
		policy.onFirstItem("1");
		await turns();
		expect(sent.has("3")).toBe(true);
	});

	it("and leaves when its client does", async () => {
		const { ask, policy, sent } = bench(limit(), [workerRecord(1n)]);
		ask("1", 60);
		const ticket = ask("2", 10);
		ask("3", 10);
		ticket?.cancel();
		ticket?.cancel();
		expect(policy.admission.stats()[0]).toMatchObject({ requests: 1, promptTokens: 10 });
		policy.onFirstItem("1");
		await turns();
		expect([...sent.keys()]).toEqual(["1", "3"]);
	});
});

describe("a request is refused", () => {
	it("when the class has no room, and counted", () => {
		const { ask, policy } = bench(limit({ requestLimit: 1 }));
		const full: unknown[] = [];
		policy.admission.observer = { onReceived: () => {}, onFull: (...args) => full.push(args), onLate: () => {} };
		ask("1", 60);
		ask("2", 60);
		ask("3", 10);
		ask("4", 10);
		expect(() => ask("5", 10)).toThrow(/queue "default" has no room: requests 2, limit 2/);
		expect(full).toEqual([["default", { kind: "requests", current: 2, limit: 2 }]]);
	});

	it("when it has waited too long", () => {
		vi.useFakeTimers();
		const { ask, refused, policy } = bench({ ...limit(), queueDeadlineMs: 5000 }, [workerRecord(1n)]);
		ask("1", 60);
		ask("2", 10);
		vi.advanceTimersByTime(4900);
		expect(refused.size).toBe(0);
		vi.advanceTimersByTime(1200);
		expect(refused.get("2")?.errorClass).toBe("WorkerOverloaded");
		expect(policy.admission.waiting).toBe(0);
		expect(vi.getTimerCount()).toBe(0);
	});

	it("when the router closes", async () => {
		const { ask, refused, policy } = bench(limit(), [workerRecord(1n)]);
		ask("1", 60);
		ask("2", 10);
		await policy.close();
		expect(() => ask("3", 10)).toThrow("the router closes");
		expect(refused.get("2")?.errorClass).toBe("Unavailable");
	});
});

it("no request is lost or sent twice, and nothing is left, whatever happens", async () => {
	const step = fc.oneof(
		{ weight: 5, arbitrary: fc.record({ ask: fc.nat(120), strict: fc.nat(2) }) },
		{ weight: 3, arbitrary: fc.record({ first: fc.nat() }) },
		{ weight: 3, arbitrary: fc.record({ end: fc.nat() }) },
		{ weight: 1, arbitrary: fc.record({ cancel: fc.nat() }) },
		{ weight: 1, arbitrary: fc.record({ turn: fc.constant(true) }) },
	);
	await fc.assert(
		fc.asyncProperty(fc.array(step, { maxLength: 80 }), async (steps) => {
			const { ask, end, policy, sent, refused } = bench(limit());
			const tickets = new Map<string, Ticket>();
			const asked = new Set<string>();
			const cancelled = new Set<string>();
			const running = (): string[] => [...sent.keys()].filter((id) => policy.scheduler.active.has(id));
			for (const [i, one] of steps.entries()) {
				if ("ask" in one) {
					const id = String(i);
					asked.add(id);
					const ticket = ask(id, one.ask, { strictPriority: one.strict });
					if (ticket !== undefined) tickets.set(id, ticket);
				} else if ("first" in one) policy.onFirstItem(running()[one.first % Math.max(1, running().length)] ?? "");
				else if ("end" in one) {
					const id = running()[one.end % Math.max(1, running().length)];
					if (id !== undefined) end(id);
				} else if ("cancel" in one) {
					const waiting = [...tickets.keys()].filter((id) => !sent.has(id) && !cancelled.has(id));
					const id = waiting[one.cancel % Math.max(1, waiting.length)];
					if (id === undefined) continue;
					tickets.get(id)?.cancel();
					cancelled.add(id);
				} else await turns();
			}
			for (let round = 0; round <= steps.length; round++) {
				for (const id of running()) end(id);
				await turns();
			}
			expect(new Set([...sent.keys(), ...cancelled])).toEqual(asked);
			expect([...cancelled].filter((id) => sent.has(id))).toEqual([]);
			expect([refused.size, policy.admission.waiting, policy.scheduler.active.size]).toEqual([0, 0, 0]);
			await policy.close();
		}),
		{ numRuns: 60 },
	);
});
