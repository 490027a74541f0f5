// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { type Eligible, eligibleWorkers, isBusy } from "./eligibility.js";

const worker = (workerId: bigint, more: Partial<Eligible> = {}): Eligible => ({ workerId, dpRank: 0, ...more });

describe("who may take a request", () => {
	it("a worker is busy above half of its blocks, not at half", () => {
		const limit = { activeDecodeBlocks: 0.5 };
		expect(isBusy(limit, { kvUsedBlocks: 9000, totalKvBlocks: 16384 })).toBe(true);
		expect(isBusy(limit, { kvUsedBlocks: 8192, totalKvBlocks: 16384 })).toBe(false);
		expect(isBusy(limit, { kvUsedBlocks: 9000 })).toBe(false);
		expect(isBusy({}, { kvUsedBlocks: 9000, totalKvBlocks: 16384 })).toBe(false);
	});

	it("either limit of prompt tokens makes a worker busy", () => {
		const fill = { activePrefillTokens: 1000, maxNumBatchedTokens: 800 };
		expect(isBusy({ activePrefillTokens: 999 }, fill)).toBe(true);
		expect(isBusy({ activePrefillTokens: 1000 }, fill)).toBe(false);
		expect(isBusy({ activePrefillTokens: 5000, activePrefillTokensFrac: 1.2 }, fill)).toBe(true);
	});

	it("what leaves nobody is named, in the order of the checks", () => {
		const busy = worker(2n, { kvUsedBlocks: 9, totalKvBlocks: 10, taints: ["a"] });
		const list = [worker(1n), busy];
		const limits = { activeDecodeBlocks: 0.5 };
		expect(eligibleWorkers([], {}, limits)).toBe("no_worker");
		expect(eligibleWorkers(list, {}, limits)).toEqual([worker(1n)]);
		expect(eligibleWorkers(list, { pinned: 3n, dpRank: 7 }, limits)).toBe("not_allowed");
		expect(eligibleWorkers(list, { allowed: new Set([3n]) }, limits)).toBe("not_allowed");
		expect(eligibleWorkers(list, { dpRank: 7, requiredTaints: ["b"] }, limits)).toBe("dp_rank");
		expect(eligibleWorkers(list, { requiredTaints: ["b"] }, limits)).toBe("taints");
		expect(eligibleWorkers(list, { requiredTaints: ["a"] }, limits)).toBe("overloaded");
		expect(eligibleWorkers(list, { pinned: 2n }, limits)).toBe("overloaded");
		expect(eligibleWorkers(list, { pinned: 2n }, {})).toEqual([busy]);
	});
});
