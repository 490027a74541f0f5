// SPDX-License-Identifier: Apache-2.0
// Whole runs of the policy kv, at random: workers that come, store, evict and leave, and requests in any state at any time.
import { blockHashes, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { expect, test } from "vitest";
import type { KvRouterOptions } from "./kv-options.js";
import { KvPolicy } from "./kv-policy.js";
import type { RoutingRequest } from "./router.js";
import { workerRecord } from "./test-support/worker-record.js";

const BLOCK_SIZE = 4;
const WORKERS = 5;
const RANKS = 2;

const endpointOf = (worker: number, generation: number): EndpointRecord =>
	workerRecord(BigInt(worker + 1 + generation * 100));

/** Prompts have beginnings in common; the last block may be partial. */
const TOKENS = fc.array(fc.nat(1), { minLength: 1, maxLength: 22 });
const WORKER = fc.nat(WORKERS - 1);
const RANK = fc.nat(RANKS - 1);
const TIER = fc.constantFrom("device" as const, "host_pinned" as const, "disk" as const);
const REQUEST = fc.nat(9);

const STEP = fc.oneof(
	{
		weight: 3,
		arbitrary: fc.record({ do: fc.constant("store" as const), worker: WORKER, rank: RANK, tokens: TOKENS, tier: TIER }),
	},
	{
		weight: 1,
		arbitrary: fc.record({ do: fc.constant("evict" as const), worker: WORKER, rank: RANK, tokens: TOKENS, tier: TIER }),
	},
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("leave" as const), worker: WORKER }) },
	{
		weight: 4,
		arbitrary: fc.record({
			do: fc.constant("start" as const),
			id: REQUEST,
			tokens: TOKENS,
			rank: fc.option(RANK, { nil: undefined }),
			decodeOnly: fc.boolean(),
			temperature: fc.constantFrom(undefined, 0, 0.7),
		}),
	},
	{ weight: 2, arbitrary: fc.record({ do: fc.constantFrom("first" as const, "end" as const), id: REQUEST }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constant("tokens" as const), id: REQUEST, count: fc.nat(9) }) },
);

const OPTIONS: fc.Arbitrary<Partial<KvRouterOptions>> = fc.record({
	useKvEvents: fc.boolean(),
	trackOutputBlocks: fc.boolean(),
	assumeKvReuse: fc.boolean(),
	predictedTtlMs: fc.constantFrom(undefined, 60_000),
	temperature: fc.constantFrom(0, 0.5),
});

test("nothing is left of requests that ended, nor of workers that left", () => {
	fc.assert(
		fc.property(OPTIONS, fc.array(STEP, { maxLength: 80 }), (options, steps) => {
			const workers = { blockSize: BLOCK_SIZE, firstRank: 0, rankCount: RANKS, publishEvents: true };
			const policy = new KvPolicy(workers, options);
			const { scheduler } = policy;
			const generation = new Array<number>(WORKERS).fill(0);
			let live = generation.map((_, i) => endpointOf(i, 0));
			/** What each worker's rank holds, by tier, as lists of names. */
			const held = new Map<string, Set<string>>();
			const under = new Map<number, EndpointRecord>();
			const end = (id: number): void => {
				const record = under.get(id);
				if (record === undefined) return;
				under.delete(id);
				policy.onEnd(record.instance_id, String(id));
			};
			for (const step of steps) {
				switch (step.do) {
					case "store":
					case "evict": {
						const { instance_id } = live[step.worker] as EndpointRecord;
						const { tokensHashes, sequenceHashes } = blockHashes(step.tokens, BLOCK_SIZE);
						const slot = scheduler.slots.obtain(instance_id, step.rank);
						const key = `${instance_id}/${step.rank}/${step.tier}`;
						const names = held.get(key) ?? new Set();
						held.set(key, names);
						if (step.do === "store") {
							const blocks = tokensHashes.map((tokensHash, i) => ({
								tokensHash,
								blockHash: sequenceHashes[i] as bigint,
							}));
							scheduler.tree.apply(slot, step.tier, { type: "stored", parentHash: undefined, blocks });
							for (const name of sequenceHashes) names.add(String(name));
						} else {
							const last = sequenceHashes.slice(-1);
							scheduler.tree.apply(slot, step.tier, { type: "removed", blockHashes: last });
							for (const name of last) names.delete(String(name));
						}
						break;
					}
					case "leave": {
						const { instance_id } = live[step.worker] as EndpointRecord;
						for (const [id, record] of under) if (record.instance_id === instance_id) end(id);
						for (let rank = 0; rank < RANKS; rank++) {
							const slot = scheduler.slots.find(instance_id, rank);
							if (slot !== undefined) scheduler.tree.clear(slot);
						}
						const next = ++(generation[step.worker] as number);
						generation[step.worker] = next;
						live = live.map((record, i) => (i === step.worker ? endpointOf(i, next) : record));
						break;
					}
					case "start": {
						if (under.has(step.id)) break;
						const overrides = {
							...(step.decodeOnly ? { overlapScoreCredit: 0, assumeKvReuse: false, trackPrefillTokens: false } : {}),
							...(step.temperature === undefined ? {} : { temperature: step.temperature }),
						};
						const request: RoutingRequest = { tokenIds: step.tokens, dpRank: step.rank, overrides };
						const record = policy.pick(live, request) as EndpointRecord;
						const rank = policy.rankFor(record.instance_id, request) as number;
						expect(step.rank === undefined || rank === step.rank).toBe(true);
						if (options.useKvEvents === true && options.predictedTtlMs === undefined) {
							const { sequenceHashes } = blockHashes(step.tokens, BLOCK_SIZE);
							const names = held.get(`${record.instance_id}/${rank}/device`) ?? new Set();
							const missing = sequenceHashes.findIndex((name) => !names.has(String(name)));
							const { overlapBlocks } = policy.explain(record.instance_id, request);
							expect(overlapBlocks).toBe(missing < 0 ? sequenceHashes.length : missing);
						}
						policy.onStart(record.instance_id, String(step.id), request);
						under.set(step.id, record);
						break;
					}
					case "first":
						if (under.has(step.id)) policy.onFirstItem(String(step.id));
						break;
					case "tokens":
						if (under.has(step.id)) policy.onTokens(String(step.id), step.count);
						break;
					case "end":
						end(step.id);
				}
				expect(scheduler.active.size).toBe(under.size);
			}
			for (const id of [...under.keys()]) end(id);
			const loads = live.flatMap(({ instance_id }) => policy.loadsOf(instance_id));
			expect(loads).toHaveLength(WORKERS * RANKS);
			for (const { activeBlocks, prefillTokens } of loads) expect([activeBlocks, prefillTokens]).toEqual([0, 0]);
			expect(scheduler.active.size).toBe(0);
			// Whoever is not there any more has no number, but where it is believed to hold something.
			policy.pick([...live], { tokenIds: [1] });
			if (options.useKvEvents === true && options.predictedTtlMs === undefined) {
				const known = new Set(live.map(({ instance_id }) => instance_id));
				for (let slot = 0; slot < scheduler.slots.capacity; slot++) {
					const worker = scheduler.slots.workerOf(slot);
					expect(worker === undefined || known.has(worker.workerId)).toBe(true);
				}
			}
		}),
		{ numRuns: 300 },
	);
});

test("a request's own temperature and weight hold in place of the router's", () => {
	const policy = new KvPolicy({ blockSize: BLOCK_SIZE, firstRank: 0, rankCount: 1, publishEvents: true });
	const live = Array.from({ length: 3 }, (_, i) => endpointOf(i, 0));
	const tokenIds = Array.from({ length: 40 }, (_, i) => i);
	const { tokensHashes, sequenceHashes } = blockHashes(tokenIds, BLOCK_SIZE);
	const blocks = tokensHashes.map((tokensHash, i) => ({ tokensHash, blockHash: sequenceHashes[i] as bigint }));
	const slot = policy.scheduler.slots.obtain(1n, 0);
	policy.scheduler.tree.apply(slot, "device", { type: "stored", parentHash: undefined, blocks });
	const chosen = (overrides: RoutingRequest["overrides"]): Set<bigint | undefined> =>
		new Set(Array.from({ length: 200 }, () => policy.pick(live, { tokenIds, overrides })?.instance_id));
	expect(chosen(undefined)).toEqual(new Set([1n]));
	expect(chosen({ temperature: 5 }).size).toBe(3);
	// Without weight on prompts nothing speaks for the holder.
	expect(chosen({ prefillLoadScale: 0 }).size).toBe(3);
	expect(chosen({ overlapScoreCredit: 0 }).size).toBe(3);
});
