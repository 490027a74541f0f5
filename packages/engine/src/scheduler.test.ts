// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { BlockManager } from "./cache/block-manager.js";
import type { EngineRequest } from "./engine.js";
import { type DraftProposer, Scheduler, type SchedulerOptions } from "./scheduler.js";
import { Sequence } from "./sequence.js";

const LIMIT = 400;

function makeScheduler(
	options: Partial<Omit<SchedulerOptions, "blocks">> & { numBlocks?: number; enablePrefixCaching?: boolean } = {},
): Scheduler {
	const { numBlocks = 100, enablePrefixCaching, ...rest } = options;
	const blocks = new BlockManager({ numBlocks, blockSize: 4, enablePrefixCaching });
	return new Scheduler({ maxNumSeqs: 4, maxNumBatchedTokens: 16, blocks, ...rest });
}

function makeSequence(handle: number, promptLength: number, more: Partial<EngineRequest> = {}): Sequence {
	const tokenIds = Array.from({ length: promptLength }, (_, i) => handle * 1000 + i);
	return new Sequence(handle, 0, { requestId: "", tokenIds, sampling: {}, stop: {}, ...more }, LIMIT, 4);
}

interface Row {
	handle: number;
	start: number;
	end: number;
	wanted: number;
}

/** Runs the next step as an engine would: every row whose end is reached gets one more token. */
function step(scheduler: Scheduler): Row[] {
	const plan = scheduler.schedule();
	const rows = (plan?.rows ?? []).map(({ handle, start, end, wanted }) => ({ handle, start, end, wanted }));
	for (const sequence of plan?.rows ?? []) {
		const computed = sequence.end - sequence.numDrafts;
		scheduler.computed(sequence, computed, () => {});
		if (computed < sequence.length) continue;
		const finish = sequence.append(1);
		if (finish !== undefined) scheduler.finish(sequence, finish);
	}
	return rows;
}

function finishAll(scheduler: Scheduler): void {
	for (let i = 0; scheduler.hasWork; i++) {
		step(scheduler);
		if (i > 5000) throw new Error("the scheduler does not come to an end");
	}
}

const handles = (rows: Row[]) => rows.map(({ handle }) => handle);

describe("Scheduler", () => {
	it("has nothing to do when empty", () => {
		const scheduler = makeScheduler();
		expect(scheduler.hasWork).toBe(false);
		expect(scheduler.schedule()).toBeUndefined();
	});

	it("cuts prompts by the budget, wants logits at the end only, then generates", () => {
		const scheduler = makeScheduler();
		scheduler.add(makeSequence(1, 35));
		expect([1, 2, 3, 4].flatMap(() => step(scheduler))).toEqual([
			{ handle: 1, start: 0, end: 16, wanted: 0 },
			{ handle: 1, start: 16, end: 32, wanted: 0 },
			{ handle: 1, start: 32, end: 35, wanted: 1 },
			{ handle: 1, start: 35, end: 36, wanted: 1 },
		]);
	});

	it("gives every generating sequence its token in each step, and prompts what is left", () => {
		const scheduler = makeScheduler();
		const [first, second] = [makeSequence(1, 3), makeSequence(2, 50)];
		scheduler.add(first);
		step(scheduler);
		scheduler.add(second);
		expect(step(scheduler)).toEqual([
			{ handle: 1, start: 3, end: 4, wanted: 1 },
			{ handle: 2, start: 0, end: 15, wanted: 0 },
		]);
		scheduler.mixedPrefillTokens = 6;
		expect(step(scheduler)).toEqual([
			{ handle: 1, start: 4, end: 5, wanted: 1 },
			{ handle: 2, start: 15, end: 21, wanted: 0 },
		]);
	});

	it("keeps a place in the budget for prompts, however many generate", () => {
		const scheduler = makeScheduler({ maxNumSeqs: 10, maxNumBatchedTokens: 3 });
		for (let handle = 1; handle <= 5; handle++) {
			scheduler.add(makeSequence(handle, 9, { stop: { maxTokens: 30 } }));
		}
		for (let i = 0; i < 60; i++) {
			step(scheduler);
			expect(scheduler.numRunning).toBeLessThanOrEqual(3);
		}
		finishAll(scheduler);
	});

	it("lets a short prompt pass a long one, and the long one go on", () => {
		const scheduler = makeScheduler({ maxNumBatchedTokens: 8 });
		const long = makeSequence(1, 300);
		scheduler.add(long);
		step(scheduler);
		let steps = 0;
		for (let handle = 2; handle < 40; handle++) {
			const short = makeSequence(handle, 6, { stop: { maxTokens: 1 } });
			scheduler.add(short);
			const before = long.numComputed;
			for (let i = 0; short.status !== "finished"; i++) {
				expect(i).toBeLessThan(6);
				step(scheduler);
				steps++;
			}
			if (handle % 4 === 0) expect(long.numComputed).toBeGreaterThan(before - 1);
		}
		expect(long.numComputed).toBeGreaterThan((steps / 2 - 2) * 2);
	});

	it("takes the urgent first, then the first come", () => {
		const scheduler = makeScheduler({ maxNumSeqs: 1 });
		for (const [handle, priority] of [
			[1, 0],
			[2, 0],
			[3, 5],
			[4, 5],
		] as const) {
			scheduler.add(makeSequence(handle, 2, { priority, stop: { maxTokens: 1 } }));
		}
		const order = [1, 2, 3, 4].flatMap(() => handles(step(scheduler)));
		expect(order).toEqual([3, 4, 1, 2]);
	});

	it("starts behind what is in the cache, and waits for what is being computed", () => {
		const scheduler = makeScheduler({ maxNumBatchedTokens: 64 });
		const tokenIds = Array.from({ length: 22 }, (_, i) => i);
		const [first, second, other] = [1, 2, 3].map((handle) =>
			makeSequence(handle, 1, { tokenIds: handle === 3 ? [900, 901] : tokenIds }),
		) as [Sequence, Sequence, Sequence];
		for (const sequence of [first, second, other]) scheduler.add(sequence);
		expect(step(scheduler)).toMatchObject([
			{ handle: 1, start: 0, end: 22 },
			{ handle: 3, start: 0, end: 2 },
		]);
		expect(step(scheduler)).toMatchObject([{ handle: 1 }, { handle: 3 }, { handle: 2, start: 20, end: 22 }]);
		expect([first.numCached, second.numCached]).toEqual([0, 20]);
	});

	it("computes all of a prompt whose log-probabilities are wanted", () => {
		const scheduler = makeScheduler({ maxNumBatchedTokens: 64 });
		const tokenIds = Array.from({ length: 40 }, (_, i) => i);
		scheduler.add(makeSequence(1, 1, { tokenIds, stop: { maxTokens: 1 } }));
		finishAll(scheduler);
		scheduler.add(makeSequence(2, 1, { tokenIds, promptLogprobs: 1 }));
		expect([...step(scheduler), ...step(scheduler)]).toEqual([
			{ handle: 2, start: 0, end: 32, wanted: 32 },
			{ handle: 2, start: 32, end: 40, wanted: 8 },
		]);
	});

	it("takes the blocks of the last that came when there are none, and gives them back later", () => {
		const scheduler = makeScheduler({ numBlocks: 8, maxNumBatchedTokens: 64 });
		const [first, second] = [makeSequence(1, 10), makeSequence(2, 10)].map((sequence) => sequence) as [
			Sequence,
			Sequence,
		];
		for (const sequence of [first, second]) scheduler.add(sequence);
		while (scheduler.numPreemptions === 0) step(scheduler);
		expect([first.status, second.status]).toEqual(["running", "waiting"]);
		expect(second.numBlocks).toBe(0);
		const answered = second.outputLength;
		expect(answered).toBeGreaterThan(0);
		scheduler.finish(first, "stop");
		const rows = step(scheduler);
		expect(handles(rows)).toEqual([2]);
		// What is left of its own blocks is found again.
		expect(rows[0]!.start).toBeGreaterThan(0);
		expect(rows[0]).toMatchObject({ end: 10 + answered, wanted: 1 });
		expect(second.outputLength).toBe(answered + 1);
	});

	it("takes blocks from the least urgent, and for an urgent newcomer", () => {
		const scheduler = makeScheduler({ numBlocks: 8, maxNumBatchedTokens: 64 });
		const low = makeSequence(1, 14, { priority: -1 });
		const mid = makeSequence(2, 10);
		scheduler.add(low);
		step(scheduler);
		scheduler.add(mid);
		step(scheduler);
		expect(low.status).toBe("running");
		const high = makeSequence(3, 14, { priority: 9 });
		scheduler.add(high);
		step(scheduler);
		step(scheduler);
		expect([low.status, high.status]).toEqual(["waiting", "running"]);
	});

	it("does not let others overtake a prompt for which there is no room", () => {
		const scheduler = makeScheduler({ numBlocks: 10, maxNumBatchedTokens: 64 });
		scheduler.add(makeSequence(1, 20, { stop: { maxTokens: 8 } }));
		step(scheduler);
		scheduler.add(makeSequence(2, 30, { stop: { maxTokens: 1 } }));
		scheduler.add(makeSequence(3, 2, { stop: { maxTokens: 1 } }));
		const order: number[] = [];
		for (let i = 0; i < 20; i++)
			for (const handle of handles(step(scheduler))) if (!order.includes(handle)) order.push(handle);
		expect(order).toEqual([1, 2, 3]);
	});

	it("plans guesses within the budget and what may be generated", () => {
		const drafts: DraftProposer = {
			maxBatch: 1,
			propose: (sequence, limit) => {
				const count = Math.min(limit, 5);
				sequence.reserve(count);
				sequence.tokens.fill(7, sequence.length, sequence.length + count);
				return count;
			},
		};
		const scheduler = makeScheduler({ drafts });
		const one = makeSequence(1, 3, { stop: { maxTokens: 4 } });
		scheduler.add(one);
		step(scheduler);
		// Three more may come, the last of which needs no guess.
		expect(step(scheduler)).toEqual([{ handle: 1, start: 3, end: 6, wanted: 3 }]);
		expect(one.numComputed).toBe(4);
		const two = makeSequence(2, 3);
		scheduler.add(two);
		step(scheduler);
		// Two generate: no guesses.
		expect(step(scheduler)).toMatchObject([
			{ handle: 1, wanted: 1 },
			{ handle: 2, wanted: 1 },
		]);
	});

	it("frees blocks at once, in whatever state a sequence ends", () => {
		const blocks = new BlockManager({ numBlocks: 20, blockSize: 4 });
		const scheduler = new Scheduler({ maxNumSeqs: 2, maxNumBatchedTokens: 8, blocks });
		const [generating, prefilling, waiting] = [makeSequence(1, 3), makeSequence(2, 40), makeSequence(3, 3)] as const;
		scheduler.add(generating);
		step(scheduler);
		scheduler.add(prefilling);
		step(scheduler);
		scheduler.add(waiting);
		step(scheduler);
		expect([generating, prefilling, waiting].map((one) => one.status)).toEqual(["running", "running", "waiting"]);
		for (const one of [generating, prefilling, waiting]) scheduler.finish(one, "cancelled");
		scheduler.finish(waiting, "stop");
		expect(waiting.finishReason).toBe("cancelled");
		expect([blocks.numUsed, scheduler.hasWork]).toEqual([0, false]);
	});
});
