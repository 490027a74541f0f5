// SPDX-License-Identifier: Apache-2.0
import type { RouterEvent, RouterEventData, WorkerKvAnswer } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SourceState } from "./source-state.js";

const event = (
	id: number | bigint,
	data: RouterEventData = { type: "removed", blockHashes: [BigInt(id)] },
): RouterEvent => ({
	workerId: 1n,
	dpRank: 0,
	eventId: BigInt(id),
	storageTier: "device",
	residencyDomain: "worker",
	data,
});

function recorder(): { state: SourceState; told: (bigint | "reset")[] } {
	const told: (bigint | "reset")[] = [];
	const state = new SourceState({ reset: () => told.push("reset"), apply: (one) => told.push(one.eventId) });
	return { state, told };
}

const dump = (...ids: number[]): WorkerKvAnswer => ({
	type: "dump",
	events: ids.map((id) => event(id)),
	lastEventId: BigInt(ids.at(-1) ?? 0),
});

describe("a worker's stream of events", () => {
	it("begins with a dump; what came meanwhile follows, without what the dump has", () => {
		const { state, told } = recorder();
		state.take(event(2));
		state.take(event(3));
		expect(told).toEqual([]);
		expect(state.wanted).toEqual({ kind: "dump" });
		state.answer(dump(1, 2));
		expect(told).toEqual(["reset", 1n, 2n, 3n]);
		expect(state.wanted).toBeUndefined();
	});

	it("a gap is asked for from the first missing one on", () => {
		const { state, told } = recorder();
		state.answer(dump(1, 2));
		state.take(event(5));
		state.take(event(6));
		expect(state.wanted).toEqual({ kind: "range", from: 3n });
		state.answer({ type: "events", events: [event(3), event(4), event(5)], lastEventId: 5n });
		expect(told).toEqual(["reset", 1n, 2n, 3n, 4n, 5n, 6n]);
		expect(state.wanted).toBeUndefined();
		expect(state.gaps).toBe(1);
	});

	it.each<[string, WorkerKvAnswer]>([
		["a range with a hole", { type: "events", events: [event(4)], lastEventId: 4n }],
		["a range that ends before what was seen", { type: "events", events: [], lastEventId: 1n }],
		["too new, by more than one", { type: "too_new", newestAvailable: 1n }],
		["an error", { type: "error", message: "no" }],
		["an invalid range", { type: "invalid_range", startId: 3n, endId: 2n }],
		["a failed dump", { type: "dump_failed" }],
	])("%s: everything is asked for", (_name, answer) => {
		const { state } = recorder();
		state.answer(dump(1, 2));
		state.take(event(4));
		expect(state.answer(answer)).toBe(false);
		expect(state.wanted).toEqual({ kind: "dump" });
	});

	it("a number that is past is ignored, but looked into: perhaps the worker counts anew", () => {
		const { state, told } = recorder();
		state.answer(dump(1, 2, 3));
		state.take(event(1));
		expect(told).toEqual(["reset", 1n, 2n, 3n]);
		expect(state.takeSuspicion()).toBe(true);
		expect(state.takeSuspicion()).toBe(false);
		state.check();
		expect(state.wanted).toEqual({ kind: "range", from: 4n });
		// It does: what was known goes first.
		expect(state.answer({ type: "too_new", newestAvailable: 1n })).toBe(false);
		state.asked();
		state.answer(dump(1));
		expect(told.slice(4)).toEqual(["reset", 1n]);
		state.take(event(2));
		expect(told.at(-1)).toBe(2n);
	});

	it("nothing new is good news", () => {
		const { state, told } = recorder();
		state.answer(dump(1));
		state.check();
		expect(state.answer({ type: "too_new", newestAvailable: 1n })).toBe(true);
		expect(state.wanted).toBeUndefined();
		expect(told).toEqual(["reset", 1n]);
	});

	it("more than can wait: everything is asked for, and that ends it", () => {
		const { state } = recorder();
		for (let id = 2; id < 3000; id++) state.take(event(id));
		expect(state.answer(dump(1))).toBe(false);
		state.asked();
		state.take(event(3000));
		expect(state.answer(dump(2999))).toBe(true);
		expect(state.cursor).toBe(3000n);
	});

	it("given up: nothing is known until a dump comes", () => {
		const { state, told } = recorder();
		state.answer(dump(1));
		state.giveUp();
		state.take(event(2));
		expect(told).toEqual(["reset", 1n, "reset"]);
		expect(state.wanted).toEqual({ kind: "dump" });
	});

	it("nobody to ask: what is missing is lost, and what was known with it", () => {
		const { state, told } = recorder();
		state.acceptLoss();
		state.take(event(7));
		state.acceptLoss();
		state.take(event(8));
		state.take(event(10));
		state.acceptLoss();
		expect(told).toEqual(["reset", 7n, 8n, "reset", 10n]);
	});

	it("whatever is lost, repeated or answered late, the state ends up as the worker's", () => {
		const step = fc.oneof(
			{
				weight: 5,
				arbitrary: fc.record({ do: fc.constant("event" as const), lost: fc.boolean(), twice: fc.boolean() }),
			},
			{ weight: 2, arbitrary: fc.record({ do: fc.constant("answer" as const), stale: fc.boolean() }) },
			{ weight: 1, arbitrary: fc.record({ do: fc.constant("fail" as const) }) },
			{ weight: 1, arbitrary: fc.record({ do: fc.constant("clear" as const) }) },
			{ weight: 1, arbitrary: fc.record({ do: fc.constant("check" as const) }) },
		);
		fc.assert(
			fc.property(
				fc.array(step, { maxLength: 60 }),
				fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 60 }),
				(steps, picks) => {
					// The worker: a set of blocks, its log, and what a buffer of ten still has.
					const blocks = new Set<bigint>();
					const log: RouterEvent[] = [];
					const known = new Set<bigint>();
					const state = new SourceState({
						reset: () => known.clear(),
						apply: ({ data }) => {
							if (data.type === "stored") for (const { blockHash } of data.blocks) known.add(blockHash);
							else if (data.type === "removed") for (const hash of data.blockHashes) known.delete(hash);
							else known.clear();
						},
					});
					const answer = (): WorkerKvAnswer | undefined => {
						const { wanted } = state;
						if (wanted === undefined) return undefined;
						const last = BigInt(log.length);
						if (wanted.kind === "range" && wanted.from > last) return { type: "too_new", newestAvailable: last };
						if (wanted.kind === "range" && wanted.from > last - 10n)
							return { type: "events", events: log.slice(Number(wanted.from) - 1), lastEventId: last };
						const events = [...blocks].map((hash) =>
							event(0, { type: "stored", parentHash: undefined, blocks: [{ blockHash: hash, tokensHash: hash }] }),
						);
						return { type: "dump", events, lastEventId: last };
					};
					const happen = (data: RouterEventData): RouterEvent => {
						const one = event(log.length + 1, data);
						log.push(one);
						return one;
					};
					let pending: WorkerKvAnswer | undefined;
					for (const [i, one] of steps.entries()) {
						const hash = BigInt(picks[i]!);
						if (one.do === "event") {
							const removing = blocks.has(hash);
							const told = happen(
								removing
									? { type: "removed", blockHashes: [hash] }
									: { type: "stored", parentHash: undefined, blocks: [{ blockHash: hash, tokensHash: hash }] },
							);
							if (removing) blocks.delete(hash);
							else blocks.add(hash);
							if (!one.lost) state.take(told);
							if (one.twice) state.take(told);
						} else if (one.do === "clear") {
							blocks.clear();
							state.take(happen({ type: "cleared" }));
						} else if (one.do === "check") state.check();
						else if (one.do === "fail") pending = undefined;
						else if (one.stale) {
							// The question is asked now and answered later.
							if (pending === undefined && state.wanted !== undefined) {
								state.asked();
								pending = answer();
							}
						} else if (pending !== undefined) {
							state.answer(pending);
							pending = undefined;
						} else {
							state.asked();
							const now = answer();
							if (now !== undefined) state.answer(now);
						}
					}
					if (pending !== undefined) state.answer(pending);
					state.check();
					for (let tries = 0; state.wanted !== undefined; tries++) {
						expect(tries).toBeLessThan(5);
						state.asked();
						state.answer(answer()!);
					}
					expect(known).toEqual(blocks);
				},
			),
			{ numRuns: 500 },
		);
	});
});
