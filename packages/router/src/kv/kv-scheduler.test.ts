// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { blockHashes, decodeBody, workerKvAnswerFromWire } from "@dynamo-ts/protocols/internal";
import { describe, expect, it } from "vitest";
import { type KvRequest, KvScheduler, type KvSchedulerOptions } from "./kv-scheduler.js";

const fixture = (name: string): string =>
	readFileSync(new URL(`../../../protocols/fixtures/kv/${name}`, import.meta.url), "utf8");

function seeded(seed: number): () => number {
	let state = seed;
	return () => {
		state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
		return state / 2 ** 32;
	};
}

function requestOf(tokens: readonly number[], blockSize: number): KvRequest {
	return { promptTokens: tokens.length, ...blockHashes(tokens, blockSize) };
}

/** `count` tokens that no other beginning has. */
const tokensFrom = (start: number, count: number): number[] => Array.from({ length: count }, (_, i) => start + i);

function setUp(
	workers: number,
	options: Partial<KvSchedulerOptions> = {},
): { scheduler: KvScheduler; slots: number[] } {
	const scheduler = new KvScheduler({ blockSize: 16, random: seeded(3), ...options });
	return { scheduler, slots: Array.from({ length: workers }, (_, i) => scheduler.slots.obtain(BigInt(i + 1), 0)) };
}

/** The engine computed the prompt and keeps it. */
function store({ tree }: KvScheduler, slot: number, { tokensHashes, sequenceHashes }: KvRequest): void {
	const blocks = tokensHashes.map((tokensHash, i) => ({ tokensHash, blockHash: sequenceHashes[i] as bigint }));
	tree.apply(slot, "device", { type: "stored", parentHash: undefined, blocks });
}

describe("the choice by cache and load", () => {
	it("of nobody is nobody", () => {
		const { scheduler } = setUp(0);
		expect(scheduler.choose(requestOf([1, 2], 16), [])).toBeUndefined();
	});

	it("finds the holder by what a real mocker published", () => {
		const vectors = JSON.parse(fixture("hash_vectors.json")) as {
			tokens: number[];
			block_size: number;
			published_by_mocker?: boolean;
		}[];
		const { scheduler } = setUp(0);
		const { response_tcp_hex: answers } = JSON.parse(fixture("worker_kv_query_exchange.json")) as {
			response_tcp_hex: { hex: string }[];
		};
		const holders = new Set<bigint>();
		for (const { hex } of answers) {
			const frame = Buffer.from(hex, "hex");
			const at = frame.indexOf(Buffer.from("82a464617461", "hex"));
			if (at < 0) continue;
			const answer = workerKvAnswerFromWire((decodeBody(frame.subarray(at), "msgpack") as { data: unknown }).data);
			for (const { workerId, dpRank, storageTier, data } of answer.type === "dump" ? answer.events : []) {
				holders.add(workerId);
				expect(scheduler.tree.apply(scheduler.slots.obtain(workerId, dpRank), storageTier, data)).toBe(true);
			}
		}
		const stranger = scheduler.slots.obtain(1n, 0);
		const eligible = [stranger, ...[...holders].map((id) => scheduler.slots.find(id, 0) as number)];
		const published = vectors.filter((vector) => vector.published_by_mocker);
		expect(published.length).toBe(2);
		const chosen = published.map(({ tokens, block_size }) => {
			const request = requestOf(tokens, block_size);
			const choice = scheduler.choose(request, eligible);
			expect(choice?.slot).not.toBe(stranger);
			expect(choice?.overlapBlocks).toBe(request.tokensHashes.length);
			// Nothing but the tokens behind the last full block is left to compute, and the blocks to be held.
			expect(choice?.cost).toBe((tokens.length % block_size) / block_size + request.tokensHashes.length);
			return choice?.slot;
		});
		expect(chosen.length).toBe(2);
	});

	it("computes what is left as the recorded service did: 310 tokens, 48 of them cached", () => {
		const { scheduler, slots } = setUp(2);
		store(scheduler, slots[1] as number, requestOf(tokensFrom(0, 48), 16));
		const choice = scheduler.choose(requestOf(tokensFrom(0, 310), 16), slots);
		expect(choice).toMatchObject({ slot: slots[1], overlapBlocks: 3, effectivePrefillTokens: 262 });
	});

	it("leaves a holder that has more to do than the prefix saves", () => {
		const { scheduler, slots } = setUp(2);
		const [first, second] = slots as [number, number];
		const prompt = requestOf(tokensFrom(0, 64), 16);
		store(scheduler, first, prompt);
		expect(scheduler.choose(prompt, slots)?.slot).toBe(first);
		const other = requestOf(tokensFrom(5000, 160), 16);
		scheduler.admit("other", first, other, 160, 0);
		expect(scheduler.choose(prompt, slots)?.slot).toBe(second);
		scheduler.active.prefillDone("other");
		scheduler.active.free("other");
		expect(scheduler.choose(prompt, slots)?.slot).toBe(first);
	});

	it("a common system prompt does not send all to one of eight workers, unrelated prompts even less so", () => {
		for (const [commonTokens, most] of [
			[512, 1.5],
			[0, 1.2],
		] as const) {
			const { scheduler, slots } = setUp(8);
			const common = tokensFrom(0, commonTokens);
			const random = seeded(11);
			const counts = slots.map(() => 0);
			const running: { id: string; end: number; request: KvRequest; slot: number }[] = [];
			let hits = 0;
			for (let i = 0; i < 500; i++) {
				for (const done of running.filter(({ end }) => end <= i)) {
					scheduler.active.free(done.id);
					running.splice(running.indexOf(done), 1);
				}
				const tokens = [...common, ...tokensFrom(10_000 + i * 1000, 64 + Math.floor(random() * 256))];
				const request = requestOf(tokens, 16);
				const choice = scheduler.choose(request, slots);
				if (choice === undefined) throw new Error("nobody was chosen");
				counts[slots.indexOf(choice.slot)]!++;
				if (choice.overlapBlocks > 0) hits++;
				scheduler.admit(`${i}`, choice.slot, request, choice.effectivePrefillTokens, i);
				store(scheduler, choice.slot, request);
				// Tokens come a few requests later, the end some time after that.
				running.push({ id: `${i}`, end: i + 20 + Math.floor(random() * 30), request, slot: choice.slot });
				if (i >= 4) scheduler.active.prefillDone(`${i - 4}`);
			}
			expect(Math.max(...counts) / (500 / 8)).toBeLessThan(most);
			if (commonTokens > 0) expect(hits).toBeGreaterThanOrEqual(500 - 8 * 4);
			for (const { id } of running) scheduler.active.free(id);
			expect(scheduler.active.size).toBe(0);
		}
	});

	it("numbers of workers that left are used again, once nothing is known of them", () => {
		const { scheduler, slots } = setUp(3);
		const [first, second, third] = slots as [number, number, number];
		const prompt = requestOf(tokensFrom(0, 64), 16);
		store(scheduler, second, prompt);
		scheduler.admit("r", third, prompt, 64, 0);
		scheduler.sweep(new Set());
		expect(slots.map((slot) => scheduler.slots.workerOf(slot) !== undefined)).toEqual([false, true, true]);
		expect(scheduler.slots.obtain(9n, 0)).toBe(first);
		scheduler.tree.clear(second);
		scheduler.active.free("r");
		scheduler.sweep(new Set([first]));
		expect(slots.map((slot) => scheduler.slots.workerOf(slot)?.workerId)).toEqual([9n, undefined, undefined]);
	});
});
