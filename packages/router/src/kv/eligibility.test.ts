// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { workerRecord } from "../test-support/worker-record.js";
import { type EligibilityFacts, eligibleWorkers, isBusy } from "./eligibility.js";

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
		const list = [workerRecord(1n), workerRecord(2n)];
		const facts: EligibilityFacts = {
			firstRank: 4,
			rankCount: 2,
			taintsOf: (id) => (id === 2n ? ["a", "b"] : []),
			isBusy: (id) => id === 2n,
		};
		const idle = { ...facts, isBusy: () => false };
		expect(eligibleWorkers([], {}, facts)).toBe("no_worker");
		expect(eligibleWorkers(list, {}, facts)).toEqual([workerRecord(1n)]);
		expect(eligibleWorkers(list, { pinned: 3n, dpRank: 7 }, facts)).toBe("not_allowed");
		expect(eligibleWorkers(list, { allowed: [3n] }, facts)).toBe("not_allowed");
		expect(eligibleWorkers(list, { dpRank: 6, requiredTaints: ["c"] }, facts)).toBe("dp_rank");
		expect(eligibleWorkers(list, { dpRank: 5, requiredTaints: ["c"] }, facts)).toBe("taints");
		expect(eligibleWorkers(list, { requiredTaints: ["a", "b"] }, facts)).toBe("overloaded");
		expect(eligibleWorkers(list, { pinned: 2n }, facts)).toBe("overloaded");
		expect(eligibleWorkers(list, { pinned: 2n, requiredTaints: ["b"] }, idle)).toEqual([workerRecord(2n)]);
		expect(eligibleWorkers(list, { allowed: [2n, 9n] }, idle)).toEqual([workerRecord(2n)]);
	});
});
