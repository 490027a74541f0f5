// SPDX-License-Identifier: Apache-2.0
// Eight simulated workers behind each policy: is the load spread, and does what is cached get used?
import { blockHashes, type EndpointRecord, type RouterBlock } from "@dynamo-ts/protocols/internal";
import { describe, expect, test } from "vitest";
import { KvPolicy } from "./kv-policy.js";
import { RoundRobinPolicy } from "./round-robin.js";
import type { Router, RoutingRequest } from "./router.js";
import { workerRecord } from "./test-support/worker-record.js";

const WORKERS = 8;
const BLOCK_SIZE = 16;
/** Milliseconds. */
const PREFILL_PER_BLOCK = 2;
const DECODE = 400;
/** Blocks of each worker's cache. */
const CAPACITY = 4096;

function seeded(seed: number): () => number {
	let state = seed;
	return () => {
		state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
		return state / 2 ** 32;
	};
}

/** A worker with one queue for prompts and a cache that forgets the blocks that were used the longest ago. */
class SimulatedWorker {
	readonly record: EndpointRecord;
	requests = 0;
	cachedTokens = 0;
	/** When the prompts that it has are computed, milliseconds. */
	busyUntil = 0;
	readonly #cache = new Map<bigint, RouterBlock>();

	constructor(id: bigint) {
		this.record = workerRecord(id);
	}

	/** Takes a prompt. @returns what is new in its cache and what left it, and when the prompt is computed. */
	take(
		tokens: readonly number[],
		now: number,
	): { stored: RouterBlock[]; parent: bigint | undefined; removed: bigint[] } {
		this.requests++;
		const { tokensHashes, sequenceHashes } = blockHashes(tokens, BLOCK_SIZE);
		let hits = 0;
		while (hits < sequenceHashes.length && this.#cache.has(sequenceHashes[hits] as bigint)) hits++;
		this.cachedTokens += hits * BLOCK_SIZE;
		const blocks = sequenceHashes.map((blockHash, i) => ({ blockHash, tokensHash: tokensHashes[i] as bigint }));
		// Leaves are older than what leads to them.
		for (const block of [...blocks].reverse()) {
			this.#cache.delete(block.blockHash);
			this.#cache.set(block.blockHash, block);
		}
		const removed: bigint[] = [];
		for (const hash of this.#cache.keys()) {
			if (this.#cache.size <= CAPACITY) break;
			this.#cache.delete(hash);
			removed.push(hash);
		}
		this.busyUntil = Math.max(this.busyUntil, now) + (blocks.length - hits + 1) * PREFILL_PER_BLOCK;
		return { stored: blocks.slice(hits), parent: sequenceHashes[hits - 1], removed };
	}
}

interface Outcome {
	/** Requests of the busiest worker, as a multiple of the mean; and of the idlest. */
	readonly busiest: number;
	readonly idlest: number;
	/** Share of all prompt tokens that was cached. */
	readonly hitRate: number;
}

/** Sends prompts at random moments, so many milliseconds apart on average, and lets time pass in jumps. */
function simulate(
	router: Router,
	prompts: readonly (readonly number[])[],
	meanGap: number,
	random: () => number,
): Outcome {
	const workers = Array.from({ length: WORKERS }, (_, i) => new SimulatedWorker(BigInt(i + 1)));
	const candidates = workers.map(({ record }) => record);
	const later: { at: number; run: () => void }[] = [];
	const runUntil = (now: number): void => {
		later.sort((a, b) => a.at - b.at);
		while (later.length > 0 && later[0]!.at <= now) later.shift()!.run();
	};
	let now = 0;
	for (const [n, tokenIds] of prompts.entries()) {
		now += -Math.log(1 - random()) * meanGap;
		runUntil(now);
		const request: RoutingRequest = { tokenIds };
		const record = router.pick(candidates, request) as EndpointRecord;
		const { instance_id: id } = record;
		const worker = workers.find((one) => one.record === record) as SimulatedWorker;
		router.onStart?.(id, String(n), request);
		const { stored, parent, removed } = worker.take(tokenIds, now);
		const computed = worker.busyUntil;
		later.push({
			at: computed,
			run: () => {
				router.onFirstItem?.(String(n));
				if (!(router instanceof KvPolicy)) return;
				const { slots, tree } = router.scheduler;
				const slot = slots.obtain(id, 0);
				tree.apply(slot, "device", { type: "removed", blockHashes: removed });
				tree.apply(slot, "device", { type: "stored", parentHash: parent, blocks: stored });
			},
		});
		later.push({ at: computed + DECODE * (0.5 + random()), run: () => router.onEnd?.(id, String(n)) });
	}
	runUntil(Number.POSITIVE_INFINITY);
	const mean = prompts.length / WORKERS;
	const counts = workers.map(({ requests }) => requests);
	return {
		busiest: Math.max(...counts) / mean,
		idlest: Math.min(...counts) / mean,
		hitRate:
			workers.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0) /
			prompts.reduce((sum, { length }) => sum + length, 0),
	};
}

const tokensOf = (random: () => number, count: number): number[] =>
	Array.from({ length: count }, () => Math.floor(random() * 30_000));

const kvPolicy = (random: () => number, useKvEvents = true): KvPolicy =>
	new KvPolicy(
		{ blockSize: BLOCK_SIZE, firstRank: 0, rankCount: 1, publishEvents: true },
		{ useKvEvents, expiryMs: Number.POSITIVE_INFINITY },
		random,
	);

describe.each([1, 2, 3])("with the seed %d", (seed) => {
	for (const [name, useKvEvents] of [
		["events", true],
		["assumptions", false],
	] as const) {
		test(`kv by ${name}: a system prompt that all have in common does not draw all requests to one worker`, () => {
			const random = seeded(seed);
			const system = tokensOf(random, 512);
			const prompts = Array.from({ length: 500 }, () => [...system, ...tokensOf(random, 256)]);
			const { busiest, idlest, hitRate } = simulate(kvPolicy(random, useKvEvents), prompts, 20, random);
			expect(busiest).toBeLessThanOrEqual(1.5);
			expect(idlest).toBeGreaterThanOrEqual(0.5);
			// Two thirds of each prompt are common; each worker computes them once.
			expect(hitRate).toBeGreaterThan(0.6);
		});
	}

	test("kv: unrelated prompts are spread evenly", () => {
		const random = seeded(seed);
		const prompts = Array.from({ length: 500 }, () => tokensOf(random, 512));
		const { busiest, idlest, hitRate } = simulate(kvPolicy(random), prompts, 20, random);
		expect(busiest).toBeLessThanOrEqual(1.2);
		expect(idlest).toBeGreaterThanOrEqual(0.8);
		expect(hitRate).toBe(0);
	});

	test("kv: prompts of several groups stay with the workers that have them, more than in turn", () => {
		const random = seeded(seed);
		const groups = Array.from({ length: 24 }, () => tokensOf(random, 1024));
		const prompts = Array.from({ length: 500 }, () => [
			...(groups[Math.floor(random() * 24)] as number[]),
			...tokensOf(random, 128),
		]);
		const kv = simulate(kvPolicy(random), prompts, 25, random);
		const inTurn = simulate(new RoundRobinPolicy(), prompts, 25, random);
		// 24 of 500 prompts are the first of their group; the rest could have 8 of 9 blocks cached.
		expect(kv.hitRate).toBeGreaterThan(0.65);
		expect(kv.hitRate).toBeGreaterThan(inTurn.hitRate + 0.05);
		expect(kv.busiest).toBeLessThanOrEqual(1.5);
	});
});

test("round-robin is exact", () => {
	const random = seeded(1);
	const prompts = Array.from({ length: 500 }, () => tokensOf(random, 64));
	const { busiest, idlest } = simulate(new RoundRobinPolicy(), prompts, 20, random);
	expect((busiest - idlest) * (500 / WORKERS)).toBeLessThan(1.01);
});

test("of equal workers each is taken as often as the others", () => {
	const policy = kvPolicy(seeded(5));
	const candidates = Array.from({ length: WORKERS }, (_, i) => new SimulatedWorker(BigInt(i + 1)).record);
	const counts = new Map<bigint, number>();
	for (let n = 0; n < 4000; n++) {
		const { instance_id: id } = policy.pick(candidates, { tokenIds: [1, 2, 3] }) as EndpointRecord;
		counts.set(id, (counts.get(id) ?? 0) + 1);
	}
	expect(counts.size).toBe(WORKERS);
	// Six standard deviations of a fair draw.
	for (const count of counts.values()) expect(Math.abs(count - 500)).toBeLessThan(126);
});
