// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { SamplingOptions } from "./engine.js";
import { expNonPositive } from "./fast-exp.js";
import { Xoshiro128 } from "./prng.js";
import { Sampler } from "./sampler.js";
import { resolveSampling } from "./sampling-params.js";
import { TokenCounts } from "./token-counts.js";
import { maskOf } from "./token-mask.js";
import { TopKSelector } from "./top-k-selector.js";
import { argmax } from "./vocabulary-draw.js";

/** Probabilities by the definitions: full sort, no shortcut. Order: min_p, top_k, top_p. */
function naiveProbabilities(logits: number[], { temperature = 1, topK = 0, topP = 1, minP = 0 }: SamplingOptions) {
	const order = logits.map((_, i) => i).sort((a, b) => logits[b]! - logits[a]! || a - b);
	const max = logits[order[0]!]!;
	const mass = (i: number) => Math.exp((logits[i]! - max) / temperature);
	let kept = order.filter((i) => mass(i) >= minP);
	if (topK > 0) kept = kept.slice(0, topK);
	const total = kept.reduce((sum, i) => sum + mass(i), 0);
	const nucleus: number[] = [];
	let sum = 0;
	for (const i of kept) {
		if (topP < 1 && sum >= topP * total) break;
		nucleus.push(i);
		sum += mass(i);
	}
	return new Map(nucleus.map((i) => [i, mass(i) / sum]));
}

const NO_IDS: number[] = [];

const samplers = new Map<number, Sampler>();

function sample(logits: Float32Array, options: SamplingOptions, random: Xoshiro128, more = {}): number {
	const sampler = samplers.get(logits.length) ?? new Sampler(logits.length);
	samplers.set(logits.length, sampler);
	const input = { params: resolveSampling(options), random, tokenCounts: undefined, maskedIds: NO_IDS, ...more };
	return sampler.sample(logits, 0, input);
}

/** A generator that returns one chosen number. */
function fixed(value: number): Xoshiro128 {
	return Object.assign(new Xoshiro128(0n), { nextFloat: () => value });
}

const logitLists = fc.oneof(
	fc.array(fc.integer({ min: -40, max: 40 }), { minLength: 1, maxLength: 300 }).map((list) => list.map((x) => x / 4)),
	fc.array(fc.float({ min: -30, max: 30, noNaN: true }), { minLength: 1, maxLength: 300 }),
);
const options = fc.record({
	temperature: fc.constantFrom(0.1, 0.7, 1, 1.7, 20),
	topK: fc.constantFrom(0, -1, 1, 2, 7, 50, 1000),
	topP: fc.constantFrom(1, 0.999, 0.9, 0.5, 0.1, 1e-6),
	minP: fc.constantFrom(0, 0, 0.02, 0.3, 1),
});

describe("Sampler", () => {
	it("draws from the same tokens with the same probabilities as a naive implementation", () => {
		fc.assert(
			fc.property(logitLists, options, (list, one) => {
				const logits = Float32Array.from(list);
				const expected = naiveProbabilities([...logits], { ...one, topK: Math.max(0, one.topK) });
				// Walking u over [0, 1) in even steps gives each token its share of the steps, to within one or two.
				const steps = 200;
				const counts = new Map<number, number>();
				for (let i = 0; i < steps; i++) {
					const token = sample(logits, one, fixed((i + 0.5) / steps));
					counts.set(token, (counts.get(token) ?? 0) + 1);
				}
				for (const [token, count] of counts) {
					const share = expected.get(token);
					expect(share, `token ${token} is outside the allowed set`).toBeDefined();
					expect(Math.abs(count - share! * steps)).toBeLessThanOrEqual(1.01);
				}
				for (const [token, share] of expected) {
					if (share * steps > 1.01) expect(counts.has(token), `token ${token} is never drawn`).toBe(true);
				}
			}),
			{ numRuns: 300 },
		);
	});

	it("keeps the smallest nucleus that reaches top_p in a large vocabulary", () => {
		for (const temperature of [0.3, 1, 5, 100]) {
			const random = new Xoshiro128(9n);
			const logits = Float32Array.from({ length: 20_000 }, () => random.nextFloat() * 12 - 6);
			const expected = naiveProbabilities([...logits], { temperature, topP: 0.9 });
			const drawn = new Set<number>();
			const draws = new Xoshiro128(1n);
			for (let i = 0; i < 100; i++) drawn.add(sample(logits, { temperature, topP: 0.9 }, draws));
			for (const token of drawn) expect(expected.has(token)).toBe(true);
			// The very last place of the nucleus is reached, whatever its order.
			expect(expected.has(sample(logits, { temperature, topP: 0.9 }, fixed(1 - 2 ** -53)))).toBe(true);
		}
	});

	it("follows the distribution over many draws", () => {
		const logits = Float32Array.of(1, 2, 0, 3);
		const expected = naiveProbabilities([...logits], { temperature: 0.8, topP: 0.95 });
		const random = new Xoshiro128(42n);
		const counts = [0, 0, 0, 0];
		for (let i = 0; i < 20_000; i++) counts[sample(logits, { temperature: 0.8, topP: 0.95 }, random)]!++;
		for (let i = 0; i < 4; i++) expect(counts[i]! / 20_000).toBeCloseTo(expected.get(i) ?? 0, 1.7);
	});

	it("is greedy at temperature 0, with top_k 1 and with a tiny top_p", () => {
		fc.assert(
			fc.property(logitLists, (list) => {
				const logits = Float32Array.from(list);
				const best = logits.indexOf(Math.max(...logits));
				expect(argmax(logits, 0, logits.length)).toBe(best);
				for (const one of [{ temperature: 0 }, { temperature: 1e-6 }, { topK: 1 }, { topP: 1e-9 }]) {
					expect(sample(logits, one, new Xoshiro128(3n))).toBe(best);
				}
			}),
		);
	});

	it("applies bias, then penalties, as defined, and leaves the logits as they were", () => {
		const logits = Float32Array.of(2, -2, 1.5, 0.5);
		const before = logits.slice();
		const tokenCounts = new TokenCounts();
		tokenCounts.addPromptToken(0);
		tokenCounts.addPromptToken(1);
		for (const id of [1, 1, 2]) tokenCounts.addOutputToken(id);
		const sampling: SamplingOptions = {
			repetitionPenalty: 2,
			presencePenalty: 0.25,
			frequencyPenalty: 0.5,
			logitBias: [[2, 1]],
		};
		// 0: 2/2; 1: -2*2 - 0.5*2 - 0.25; 2: (1.5+1)/2 - 0.5 - 0.25; 3 untouched.
		const edited = [1, -5.25, 0.5, 0.5];
		const expected = naiveProbabilities(edited, {});
		const counts = [0, 0, 0, 0];
		for (let i = 0; i < 1000; i++) {
			counts[sample(logits, sampling, fixed((i + 0.5) / 1000), { tokenCounts })]!++;
		}
		for (let i = 0; i < 4; i++) expect(Math.abs(counts[i]! - expected.get(i)! * 1000)).toBeLessThanOrEqual(1.01);
		expect(logits).toEqual(before);
	});

	it("never draws a masked token, and says -1 when nothing is left", () => {
		const logits = Float32Array.of(5, 1, 1);
		const random = new Xoshiro128(1n);
		for (const one of [{}, { temperature: 0 }, { topK: 2 }, { topP: 0.5 }]) {
			for (let i = 0; i < 20; i++) expect(sample(logits, one, random, { maskedIds: [0] })).not.toBe(0);
			expect(sample(logits, one, random, { maskedIds: [0, 1, 2] })).toBe(-1);
			expect(sample(Float32Array.of(Number.NaN, Number.NaN), one, random)).toBe(-1);
			expect(sample(Float32Array.of(0, Number.POSITIVE_INFINITY), one, random)).toBe(-1);
		}
		expect(logits).toEqual(Float32Array.of(5, 1, 1));
	});

	it("gives exact log-probabilities of the model's own logits", () => {
		fc.assert(
			fc.property(logitLists, fc.nat({ max: 10 }), (list, count) => {
				const logits = Float32Array.from(list);
				const max = Math.max(...logits);
				const logSum = max + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - max), 0));
				const { logprob, top } = new Sampler(logits.length).logprobs(logits, 0, list.length - 1, count);
				expect(logprob).toBeCloseTo(logits.at(-1)! - logSum, 9);
				const sorted = [...logits].sort((a, b) => b - a).slice(0, count);
				expect(top.length).toBe(sorted.length);
				for (const [i, entry] of top.entries()) {
					expect(entry.rank).toBe(i + 1);
					expect(entry.logprob).toBeCloseTo(sorted[i]! - logSum, 9);
				}
			}),
		);
	});

	it("ranks a token of the prompt among all, the likeliest beside it", () => {
		const logits = Float32Array.of(9, 9, 2, 5, 5, 1);
		const sampler = new Sampler(3);
		const sum = Math.log(Math.exp(5) * 2 + Math.exp(1));
		const entry = sampler.promptLogprob(logits, 3, 2, 2);
		expect(entry).toMatchObject({ tokenId: 2, rank: 3 });
		expect(entry.logprob).toBeCloseTo(1 - sum, 9);
		expect(entry.top.map(({ rank, tokenId }) => [rank, tokenId])).toEqual([
			[1, 0],
			[2, 1],
		]);
		// Equals share the best rank.
		expect(sampler.promptLogprob(logits, 3, 1, 0)).toMatchObject({ tokenId: 1, rank: 1, top: [] });
	});

	it("draws only what a mask has, as if the other logits were -Infinity", () => {
		fc.assert(
			fc.property(logitLists, options, fc.array(fc.nat({ max: 320 })), fc.bigInt(), (list, one, ids, seed) => {
				const logits = Float32Array.from(list);
				const cut = logits.map((logit, id) => (ids.includes(id) ? logit : Number.NEGATIVE_INFINITY));
				for (const some of [one, { ...one, temperature: 0 }]) {
					const masked = sample(logits, some, new Xoshiro128(seed), { allowedTokens: maskOf(ids) });
					expect(masked).toBe(sample(cut, some, new Xoshiro128(seed)));
				}
			}),
		);
	});

	it("reads its row of a batch", () => {
		const logits = Float32Array.of(9, 0, 0, 0, 0, 9);
		const sampler = new Sampler(3);
		const input = {
			params: resolveSampling({ temperature: 0 }),
			random: new Xoshiro128(0n),
			tokenCounts: undefined,
			maskedIds: NO_IDS,
		};
		expect([sampler.sample(logits, 0, input), sampler.sample(logits, 3, input)]).toEqual([0, 2]);
	});
});

describe("TopKSelector", () => {
	it("equals a sort, ties by position", () => {
		fc.assert(
			fc.property(fc.array(fc.integer({ min: 0, max: 9 })), fc.nat({ max: 200 }), (list, k) => {
				const selector = new TopKSelector();
				selector.select(Float32Array.from(list), 0, list.length, k);
				const order = list.map((_, i) => i).sort((a, b) => list[b]! - list[a]! || a - b);
				expect([...selector.ids.subarray(0, selector.size)]).toEqual(order.slice(0, k));
			}),
		);
	});
});

describe("expNonPositive", () => {
	it("is e^x to twelve digits", () => {
		fc.assert(
			fc.property(fc.double({ min: -699, max: 0, noNaN: true }), (x) => {
				expect(Math.abs(expNonPositive(x) / Math.exp(x) - 1)).toBeLessThan(1e-12);
			}),
		);
		expect([expNonPositive(0), expNonPositive(Number.NEGATIVE_INFINITY), expNonPositive(Number.NaN)]).toEqual([
			1, 0, 0,
		]);
	});
});

describe("Xoshiro128", () => {
	it("is fixed by its seed and uniform", () => {
		const draw = (seed: bigint) => {
			const random = new Xoshiro128(seed);
			return Array.from({ length: 4 }, () => random.nextFloat());
		};
		expect(draw(7n)).toEqual(draw(7n + (1n << 64n)));
		expect(draw(7n)).not.toEqual(draw(8n));
		const random = new Xoshiro128(-1n);
		const bins = new Array(16).fill(0);
		for (let i = 0; i < 16_000; i++) bins[Math.floor(random.nextFloat() * 16)]++;
		// 16 bins, 15 degrees of freedom: 50 is beyond any chance.
		expect(bins.reduce((sum, n) => sum + (n - 1000) ** 2 / 1000, 0)).toBeLessThan(50);
	});
});
