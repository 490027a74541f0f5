// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import type { EngineRequest } from "./engine.js";
import type { SlotCopy } from "./kv-slots.js";
import { Scheduler, type StepPlan } from "./scheduler.js";
import { Sequence } from "./sequence.js";

const LIMIT = 64;

function makeScheduler(numSlots = 3): Scheduler {
	return new Scheduler({ numSlots, maxModelLen: LIMIT, chunkSize: 8, blockSize: 4 });
}

function makeSequence(handle: number, promptLength: number, more: Partial<EngineRequest> = {}, choice = 0): Sequence {
	const tokenIds = Array.from({ length: promptLength }, (_, i) => handle * 100 + i);
	return new Sequence(handle + choice, choice, { requestId: "", tokenIds, sampling: {}, stop: {}, ...more }, LIMIT);
}

/** Runs the next step as an engine would; every row gets one more token. */
function step(scheduler: Scheduler): { plan: StepPlan | undefined; copies: SlotCopy[] } {
	const plan = scheduler.schedule();
	const copies = [...(plan?.copies ?? [])];
	if (plan?.kind === "prefill") {
		for (const joined of scheduler.completePrefill(plan, copies)) joined.append(1);
	} else if (plan?.kind === "decode") {
		for (let i = 0; i < plan.batchSize; i++) {
			scheduler.row(i).numComputed++;
			scheduler.row(i).append(1);
		}
	}
	return { plan, copies };
}

describe("Scheduler", () => {
	it("has nothing to do when empty", () => {
		const scheduler = makeScheduler();
		expect(scheduler.hasWork).toBe(false);
		expect(scheduler.schedule()).toBeUndefined();
		expect(scheduler.totalBlocks).toBe(48);
	});

	it("cuts prompts at fixed places and asks for logits at the end only", () => {
		const scheduler = makeScheduler();
		scheduler.add(makeSequence(1, 19));
		const chunks = [1, 2, 3].map(() => step(scheduler).plan);
		expect(chunks).toMatchObject([
			{ kind: "prefill", start: 0, end: 8, isLast: false },
			{ kind: "prefill", start: 8, end: 16, isLast: false },
			{ kind: "prefill", start: 16, end: 19, isLast: true },
		]);
		expect(step(scheduler).plan).toMatchObject({ kind: "decode", batchSize: 1 });
	});

	it("keeps rows without holes: the last one moves down", () => {
		const scheduler = makeScheduler();
		const sequences = [1, 2, 3].map((handle) => makeSequence(handle, 5));
		for (const sequence of sequences) scheduler.add(sequence);
		while (scheduler.numWaiting > 0 || scheduler.numRunning < 3) step(scheduler);
		expect(sequences.map((sequence) => sequence.slot)).toEqual([0, 1, 2]);
		const { numComputed } = sequences[2]!;
		scheduler.finish(sequences[0]!, "length");
		expect(scheduler.numRunning).toBe(2);
		expect(step(scheduler)).toMatchObject({
			plan: { kind: "decode", batchSize: 2 },
			copies: [{ from: 2, to: 0, length: numComputed }],
		});
		expect(sequences.map((sequence) => sequence.slot)).toEqual([-1, 1, 0]);
		for (const sequence of sequences) scheduler.finish(sequence, "length");
		expect(scheduler.schedule()).toBeUndefined();
		expect(scheduler.usedBlocks).toBe(0);
	});

	it("copies nothing when several rows end together", () => {
		const scheduler = makeScheduler();
		const sequences = [1, 2, 3].map((handle) => makeSequence(handle, 5));
		for (const sequence of sequences) scheduler.add(sequence);
		while (scheduler.numRunning < 3) step(scheduler);
		for (const sequence of sequences.slice(1)) scheduler.finish(sequence, "eos");
		expect(step(scheduler).copies).toEqual([]);
	});

	it("moves a prompt into place when the batch has shrunk beneath it", () => {
		const scheduler = makeScheduler();
		const [first, second, third] = [makeSequence(1, 3), makeSequence(2, 3), makeSequence(3, 20)];
		scheduler.add(first);
		scheduler.add(second);
		while (scheduler.numRunning < 2 || scheduler.numWaiting > 0) step(scheduler);
		step(scheduler);
		scheduler.add(third);
		while (third.status === "waiting") step(scheduler);
		expect(third.slot).toBe(2);
		scheduler.finish(second, "cancelled");
		const copies: SlotCopy[] = [];
		while (third.status !== "running") copies.push(...step(scheduler).copies);
		expect(copies).toEqual([{ from: 2, to: 1, length: 20 }]);
		expect(third.slot).toBe(1);
	});

	it("takes the other choices of a request along, as many as find a slot", () => {
		const scheduler = makeScheduler();
		const choices = [0, 1, 2, 3].map((choice) => makeSequence(10, 12, { sampling: { n: 4 } }, choice));
		for (const choice of choices) scheduler.add(choice);
		step(scheduler);
		expect(step(scheduler).copies).toEqual([
			{ from: 0, to: 1, length: 12 },
			{ from: 0, to: 2, length: 12 },
		]);
		expect(choices.map((choice) => choice.status)).toEqual(["running", "running", "running", "waiting"]);
		scheduler.finish(choices[0]!, "length");
		// Its place goes to the one that waits, which finds the first chunk of the prompt in a slot.
		const { plan } = step(scheduler);
		expect(plan).toMatchObject({ kind: "decode", batchSize: 2 });
		expect(step(scheduler).plan).toMatchObject({ kind: "prefill", start: 8, end: 12, isLast: true });
		expect(choices[3]!.numCached).toBe(8);
	});

	it("ends a sequence in any state, once", () => {
		const scheduler = makeScheduler(1);
		const [first, second] = [makeSequence(1, 20), makeSequence(2, 3)];
		scheduler.add(first);
		scheduler.add(second);
		step(scheduler);
		expect([first.status, second.status]).toEqual(["prefilling", "waiting"]);
		scheduler.finish(first, "cancelled");
		scheduler.finish(first, "error");
		expect(first).toMatchObject({ status: "finished", finishReason: "cancelled", slot: -1 });
		step(scheduler);
		expect(second.status).toBe("running");
		scheduler.finish(second, "stop");
		expect(scheduler.hasWork).toBe(false);
	});

	it("counts the blocks of what runs", () => {
		const scheduler = makeScheduler();
		scheduler.add(makeSequence(1, 9));
		expect(scheduler.usedBlocks).toBe(0);
		step(scheduler);
		expect(scheduler.usedBlocks).toBe(3);
	});
});

describe("Sequence", () => {
	it("grows, and ends at its own limit or the context's", () => {
		const request: EngineRequest = { requestId: "", tokenIds: [1, 2], sampling: {}, stop: { maxTokens: 3 } };
		const short = new Sequence(1, 0, request, LIMIT);
		expect([short.append(5), short.append(6), short.append(7)]).toEqual([undefined, undefined, "length"]);
		expect([...short.tokens.subarray(0, short.length)]).toEqual([1, 2, 5, 6, 7]);
		const long = new Sequence(1, 0, { ...request, stop: {} }, 2000);
		expect(long.maxTokens).toBe(1998);
		for (let i = 0; i < 1997; i++) expect(long.append(i)).toBeUndefined();
		expect(long.append(9)).toBe("length");
		expect(long.tokens[2 + 1500]).toBe(1500);
	});

	it("masks its end ids until the least length", () => {
		const stop = { minTokens: 2, eosTokenIds: [7], stopTokenIds: [8] };
		const sequence = new Sequence(1, 0, { requestId: "", tokenIds: [1], sampling: {}, stop }, LIMIT);
		expect(sequence.maskedIds).toEqual([7, 8]);
		sequence.append(1);
		sequence.append(1);
		expect(sequence.maskedIds).toEqual([]);
		expect(sequence.append(7)).toBe("eos");
	});

	it("counts prompt tokens only for the repetition penalty", () => {
		const make = (sampling: EngineRequest["sampling"]) =>
			new Sequence(1, 0, { requestId: "", tokenIds: [4, 4, 5], sampling, stop: {} }, LIMIT).tokenCounts;
		expect(make({})).toBeUndefined();
		expect(make({ presencePenalty: 1 })).toMatchObject({ ids: [], counts: [] });
		const counts = make({ repetitionPenalty: 1.1 })!;
		counts.addOutputToken(5);
		counts.addOutputToken(6);
		expect(counts).toMatchObject({ ids: [4, 5, 6], counts: [0, 1, 1] });
	});
});
