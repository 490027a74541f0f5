// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type CostInputs, DEFAULT_COST_WEIGHTS, drawByCost, idleInputs, workerCost } from "./cost.js";

const IDLE: CostInputs = { ...idleInputs(16), promptTokens: 115 };

function seeded(seed: number): () => number {
	let state = seed;
	return () => {
		state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
		return state / 2 ** 32;
	};
}

describe("the cost of a request at a worker", () => {
	// Logits that Dynamo 1.6.1 logged.
	it.each<[string, number, Partial<CostInputs>]>([
		["115 tokens, 7 blocks cached", 7.1875, { deviceBlocks: 7, decodeBlocks: 7 }],
		["121 tokens, nothing cached, decode not counted", 7.5625, { promptTokens: 121 }],
		["121 tokens, 7 blocks cached, decode not counted", 0.5625, { promptTokens: 121, deviceBlocks: 7 }],
	])("%s: %d", (_name, cost, inputs) => {
		expect(workerCost(DEFAULT_COST_WEIGHTS, { ...IDLE, ...inputs })).toBe(cost);
	});

	it("with every weight, by hand", () => {
		const weights = {
			overlapScoreCredit: 0.8,
			overlapScoreCreditDecay: 1.5,
			prefillLoadScale: 0.5,
			decodeActiveRequestWeight: 3,
			hostCacheHitWeight: 0.75,
			diskCacheHitWeight: 0.25,
			sharedCacheMultiplier: 0.5,
		};
		const inputs = {
			...IDLE,
			promptTokens: 160,
			activePrefillTokens: 96,
			leastActivePrefillTokens: 32,
			deviceBlocks: 4,
			hostBlocks: 2,
			diskBlocks: 1,
			sharedBlocks: 1,
			decodeBlocks: 12,
			activeRequests: 2,
		};
		// Backlog of 4 blocks above the least against 10 of its own: the credit falls to 0.8 / 1.6.
		expect(workerCost(weights, inputs)).toBeCloseTo(0.5 * (16 - 0.5 * 4 - 1.5 - 0.25 - 0.5) + 12 + 6, 12);
	});

	it("prefill never goes below nothing", () => {
		expect(workerCost({ ...DEFAULT_COST_WEIGHTS, overlapScoreCredit: 2 }, { ...IDLE, deviceBlocks: 7 })).toBe(0);
	});
});

describe("the draw", () => {
	it("without temperature takes the lowest, each of equal ones as often", () => {
		const random = seeded(1);
		const counts = [0, 0, 0, 0];
		for (let i = 0; i < 9000; i++) counts[drawByCost([5, 2, 2, 2], 4, 0, random)]!++;
		expect(counts[0]).toBe(0);
		for (const count of counts.slice(1)) expect(Math.abs(count - 3000)).toBeLessThan(250);
	});

	it("is never beyond the list and always a lowest one at temperature 0", () => {
		fc.assert(
			fc.property(fc.array(fc.integer({ min: 0, max: 9 }), { maxLength: 12 }), fc.nat(), (costs, seed) => {
				const at = drawByCost(costs, costs.length, 0, seeded(seed));
				if (costs.length === 0) expect(at).toBe(-1);
				else expect(costs[at]).toBe(Math.min(...costs));
				const warm = drawByCost(costs, costs.length, 0.7, seeded(seed));
				expect(warm >= (costs.length === 0 ? -1 : 0) && warm < costs.length).toBe(true);
			}),
		);
	});

	it("with temperature 0.5 draws 20, 16 and 12 as the recorded service did", () => {
		const random = seeded(7);
		const counts = [0, 0, 0];
		for (let i = 0; i < 20_000; i++) counts[drawByCost([20, 16, 12], 3, 0.5, random)]!++;
		const recorded = [0.09, 0.245, 0.665];
		for (const [i, count] of counts.entries()) expect(Math.abs(count / 20_000 - recorded[i]!)).toBeLessThan(0.015);
	});
});
