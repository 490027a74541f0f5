// SPDX-License-Identifier: Apache-2.0
import { blockHashes, type DynamoError, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { KvRouterOptions } from "../kv-options.js";
import { KvPolicy } from "../kv-policy.js";
import type { RoutingRequest } from "../router.js";
import { workerRecord } from "../test-support/worker-record.js";
import type { Ticket } from "./admission.js";

const WORKERS = [workerRecord(1n), workerRecord(2n)];
const text = (first: number, tokens: number): number[] => Array.from({ length: tokens }, (_, i) => first + i);
/** What worker 1 holds. */
const PROMPT = text(0, 512);

const policies: KvPolicy[] = [];
beforeEach(() => {
	vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
});
afterEach(async () => {
	for (const policy of policies.splice(0)) await policy.close();
	expect(vi.getTimerCount()).toBe(0);
	vi.useRealTimers();
});

/** A policy that assumes what workers hold from what they were given, and what dispatching does with it. */
function bench(options: Partial<KvRouterOptions> = {}, workers: readonly EndpointRecord[] = WORKERS) {
	const card = { blockSize: 16, firstRank: 0, rankCount: 1, publishEvents: true };
	const policy = new KvPolicy(card, { useKvEvents: false, ...options });
	policies.push(policy);
	const sent = new Map<string, bigint>();
	const refused = new Map<string, DynamoError>();
	const outcomes: string[] = [];
	if (policy.cacheWait !== undefined) policy.cacheWait.observer = (outcome) => outcomes.push(outcome);
	const send = (id: string, request: RoutingRequest, candidates: readonly EndpointRecord[]): void => {
		const target = policy.pick(candidates, request) as EndpointRecord;
		sent.set(id, target.instance_id);
		policy.onStart(target.instance_id, id, request);
	};
	const ask = (
		id: string,
		tokenIds: number[],
		{ settled, ...more }: Partial<RoutingRequest> & { settled?: boolean } = {},
	): Ticket | undefined => {
		const request = { tokenIds, ...more };
		const candidates = workers.filter(({ instance_id }) => (more.pinned ?? instance_id) === instance_id);
		const ticket = policy.admit({
			request,
			settled,
			candidates: () => candidates,
			onTurn: () => send(id, request, candidates),
			onRefused: (error) => void refused.set(id, error),
		});
		if (ticket === undefined) send(id, request, candidates);
		return ticket;
	};
	const end = (id: string): void => policy.onEnd(sent.get(id) as bigint, id);
	/** Worker 1 has the prompt in its cache, and so much else to do that it costs more. */
	const prepare = (): void => {
		ask("first", PROMPT, { pinned: 1n });
		end("first");
		ask("other", text(100_000, 1024), { pinned: 1n });
	};
	return { policy, sent, refused, outcomes, ask, end, prepare };
}

/** What was put off to the end of the turn has been done. */
const turn = async (): Promise<void> => {
	for (let i = 0; i < 5; i++) await Promise.resolve();
};

describe("a request waits for a worker that holds its prompt", () => {
	it("until that has less to do", async () => {
		const { ask, end, prepare, sent, outcomes, policy } = bench();
		prepare();
		expect(policy.cacheWait?.size).toBe(0);
		expect(ask("wants it", [...PROMPT, 1, 2, 3])).toBeDefined();
		await turn();
		expect(sent.has("wants it")).toBe(false);
		end("other");
		await turn();
		expect(sent.get("wants it")).toBe(1n);
		expect([outcomes, policy.cacheWait?.size]).toEqual([["found"], 0]);
	});

	it("not longer than it may", async () => {
		const { ask, prepare, sent, outcomes } = bench({ cacheWaitMs: 20 });
		prepare();
		ask("wants it", PROMPT);
		vi.advanceTimersByTime(12);
		ask("came later", PROMPT);
		vi.advanceTimersByTime(7);
		expect(sent.has("wants it")).toBe(false);
		vi.advanceTimersByTime(1);
		expect([sent.get("wants it"), sent.has("came later")]).toEqual([2n, false]);
		vi.advanceTimersByTime(12);
		expect(sent.has("came later")).toBe(true);
		expect(outcomes).toEqual(["in_vain", "in_vain"]);
	});

	it("and is then picked for with what is known by then", () => {
		const workers = [...WORKERS, workerRecord(3n)];
		const { ask, prepare, sent, policy } = bench({}, workers);
		prepare();
		ask("a little", text(200_000, 16), { pinned: 3n });
		ask("wants it", PROMPT);
		const { tokensHashes, sequenceHashes } = blockHashes(PROMPT, 16);
		const blocks = tokensHashes.map((tokensHash, i) => ({ tokensHash, blockHash: sequenceHashes[i] as bigint }));
		const { slots, tree } = policy.scheduler;
		tree.apply(slots.obtain(3n, 0), "device", { type: "stored", parentHash: undefined, blocks });
		vi.advanceTimersByTime(10);
		expect(sent.get("wants it")).toBe(3n);
	});

	it("or until its client leaves", async () => {
		const { ask, end, prepare, sent, policy } = bench();
		prepare();
		const ticket = ask("wants it", PROMPT);
		ticket?.cancel();
		ticket?.cancel();
		end("other");
		await turn();
		expect([sent.has("wants it"), policy.cacheWait?.size]).toEqual([false, 0]);
	});

	it("or until the router closes", async () => {
		const { ask, prepare, refused, policy } = bench();
		prepare();
		ask("wants it", PROMPT);
		await policy.close();
		expect(refused.get("wants it")?.errorClass).toBe("Unavailable");
	});

	it("and those after it do not go at once because it did", async () => {
		const { ask, end, prepare, sent } = bench();
		prepare();
		for (const id of ["a", "b", "c"]) ask(id, [...PROMPT, ...text(Number.parseInt(id, 16) * 10_000, 1024)]);
		end("other");
		await turn();
		expect([...sent.keys()]).toEqual(["first", "other", "a"]);
		vi.advanceTimersByTime(10);
		expect(sent.size).toBe(5);
	});
});

describe("a request goes at once", () => {
	it.each([
		["when waiting is not wanted", { cacheWaitMs: 0 }, {}, PROMPT],
		["when chance has a say", { temperature: 0.5 }, {}, PROMPT],
		["when the request wants chance to have a say", {}, { overrides: { temperature: 0.5 } }, PROMPT],
		["when caches do not count for it", {}, { overrides: { overlapScoreCredit: 0 } }, PROMPT],
		["when it is bound to a worker", {}, { pinned: 2n }, PROMPT],
		["when its worker is known", {}, { settled: true }, PROMPT],
		["when there is little to gain", {}, {}, PROMPT.slice(0, 255)],
		["when nobody has anything of it", {}, {}, text(500_000, 512)],
	])("%s", (_, options: Partial<KvRouterOptions>, more: Partial<RoutingRequest> & { settled?: boolean }, prompt) => {
		const { ask, prepare, sent } = bench(options);
		prepare();
		expect(ask("it", prompt, more)).toBeUndefined();
		expect(sent.has("it")).toBe(true);
	});

	it("when the worker with its prompt is the cheapest, and is picked once", () => {
		const { ask, end, sent, policy } = bench();
		ask("first", PROMPT, { pinned: 1n });
		end("first");
		const choose = vi.spyOn(policy.scheduler, "choose");
		expect(ask("again", PROMPT)).toBeUndefined();
		expect(sent.get("again")).toBe(1n);
		expect(choose).toHaveBeenCalledTimes(1);
	});
});

it("no request is lost or sent twice, and nothing is left, whatever happens", async () => {
	const step = fc.oneof(
		{ weight: 5, arbitrary: fc.record({ ask: fc.nat(3), rest: fc.nat(600) }) },
		{ weight: 3, arbitrary: fc.record({ first: fc.nat() }) },
		{ weight: 3, arbitrary: fc.record({ end: fc.nat() }) },
		{ weight: 1, arbitrary: fc.record({ cancel: fc.nat() }) },
		{ weight: 2, arbitrary: fc.record({ ms: fc.nat(12) }) },
	);
	let waited = 0;
	await fc.assert(
		fc.asyncProperty(fc.array(step, { maxLength: 80 }), async (steps) => {
			const { ask, end, policy, sent, outcomes } = bench({}, [workerRecord(1n), workerRecord(2n), workerRecord(3n)]);
			const tickets = new Map<string, Ticket>();
			const asked = new Set<string>();
			const cancelled = new Set<string>();
			const running = (): string[] => [...sent.keys()].filter((id) => policy.scheduler.active.has(id));
			for (const [i, one] of steps.entries()) {
				const nth = (ids: string[], n: number): string | undefined => ids[n % Math.max(1, ids.length)];
				if ("ask" in one) {
					const id = String(i);
					asked.add(id);
					const ticket = ask(id, [...text(one.ask * 1000, 512), ...text(i * 100_000, one.rest)]);
					if (ticket !== undefined) tickets.set(id, ticket);
				} else if ("first" in one) policy.onFirstItem(nth(running(), one.first) ?? "");
				else if ("end" in one) {
					const id = nth(running(), one.end);
					if (id !== undefined) end(id);
				} else if ("cancel" in one) {
					const waiting = [...tickets.keys()].filter((id) => !sent.has(id) && !cancelled.has(id));
					const id = nth(waiting, one.cancel);
					if (id === undefined) continue;
					tickets.get(id)?.cancel();
					cancelled.add(id);
				} else vi.advanceTimersByTime(one.ms);
				await turn();
			}
			vi.advanceTimersByTime(10);
			for (const id of running()) end(id);
			expect(new Set([...sent.keys(), ...cancelled])).toEqual(asked);
			expect([...cancelled].filter((id) => sent.has(id))).toEqual([]);
			expect([policy.cacheWait?.size, policy.scheduler.active.size, vi.getTimerCount()]).toEqual([0, 0, 0]);
			expect(outcomes.length + cancelled.size).toBe(tickets.size);
			waited += tickets.size;
			await policy.close();
		}),
		{ numRuns: 60 },
	);
	expect(waited).toBeGreaterThan(0);
});
