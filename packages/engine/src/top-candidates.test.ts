// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { SamplingOptions } from "./engine.js";
import { Xoshiro128 } from "./prng.js";
import { Sampler, type SamplerInput } from "./sampler.js";
import { resolveSampling } from "./sampling-params.js";
import { TokenCounts } from "./token-counts.js";
import { maskOf } from "./token-mask.js";

/** What a device gives of a row: the k likeliest and the log-sum-exp, in single precision. */
function topOf(logits: Float32Array, k: number) {
	const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b).slice(0, k);
	const max = logits[order[0]!]!;
	const sum = logits.reduce((all, x) => all + Math.exp(x - max), 0);
	return {
		k: order.length,
		ids: Int32Array.from(order),
		logits: Float32Array.from(order, (id) => logits[id]!),
		logSumExp: Math.fround(max + Math.log(sum)),
	};
}

function sampleTop(sampler: Sampler, top: ReturnType<typeof topOf>, input: SamplerInput): number {
	// Not the first row of its batch.
	const pad = 3;
	const ids = new Int32Array(pad + top.k);
	const logits = new Float32Array(pad + top.k);
	ids.set(top.ids, pad);
	logits.set(top.logits, pad);
	return sampler.sampleTop(ids, logits, top.k, pad, top.logSumExp, input);
}

const rows = fc
	.tuple(fc.integer({ min: 1, max: 400 }), fc.constantFrom(1, 4, 12, 30), fc.bigInt({ min: 0n, max: 1n << 60n }))
	.map(([size, spread, seed]) => {
		const random = new Xoshiro128(seed);
		// Quarter steps make equal logits common.
		return Float32Array.from({ length: size }, () => Math.round(random.nextFloat() ** 4 * spread * 4) / 4);
	});
const options = fc.record({
	temperature: fc.constantFrom(0, 0.3, 0.8, 1, 1, 1.3, 2),
	topK: fc.constantFrom(0, 0, 1, 5, 40, 1000),
	topP: fc.constantFrom(1, 1, 0.95, 0.5, 0.01),
	minP: fc.constantFrom(0, 0, 0.05, 0.5),
	presencePenalty: fc.constantFrom(0, 0, 0.5, -0.5),
	frequencyPenalty: fc.constantFrom(0, 0, 0.5),
	repetitionPenalty: fc.constantFrom(1, 1, 1.3, 0.8),
});
const seen = fc.array(fc.nat({ max: 500 }), { maxLength: 30 });

describe("Sampler.sampleTop", () => {
	it("draws what the whole row would give with the same random numbers, or says that it takes the row", () => {
		let decided = 0;
		let runs = 0;
		fc.assert(
			fc.property(
				rows,
				options,
				fc.constantFrom(1, 8, 64, 128),
				seen,
				fc.option(fc.array(fc.nat({ max: 500 }), { maxLength: 40 }), { freq: 3, nil: undefined }),
				fc.constantFrom<[number, number][]>([], [], [[0, -2]], [[1, 3]]),
				(logits, some, k, output, masked, bias) => {
					const one: SamplingOptions = { ...some, logitBias: bias.filter(([id]) => id < logits.length) };
					const sampler = new Sampler(logits.length);
					const top = topOf(logits, Math.min(k, logits.length));
					const penalties = some.presencePenalty !== 0 || some.frequencyPenalty !== 0 || some.repetitionPenalty !== 1;
					const counts = new TokenCounts();
					for (const [i, id] of output.entries()) {
						if (id >= logits.length) continue;
						if (i % 2 === 0) counts.addPromptToken(id);
						else counts.addOutputToken(id);
					}
					const params = resolveSampling(one);
					const more = {
						params,
						tokenCounts: penalties ? counts : undefined,
						maskedIds: output.slice(0, 2),
						allowedTokens:
							masked === undefined
								? undefined
								: maskOf([...logits.keys()].filter((id) => !masked.includes(id)).concat(top.ids[0]!)),
					};
					for (let i = 0; i < 8; i++) {
						const a = new Xoshiro128(BigInt(i));
						const b = new Xoshiro128(BigInt(i));
						const token = sampleTop(sampler, top, { ...more, random: a });
						runs++;
						if (token < 0) {
							expect(a.nextFloat()).toBe(b.nextFloat());
							continue;
						}
						decided++;
						expect(token).toBe(sampler.sample(logits, 0, { ...more, random: b }));
						expect(a.nextFloat()).toBe(b.nextFloat());
					}
				},
			),
			{ numRuns: 600, seed: 1 },
		);
		expect(decided / runs).toBeGreaterThan(0.2);
	});

	it("decides by itself what is common: greedy, top_k, a narrow top_p, min_p, and most plain draws", () => {
		const random = new Xoshiro128(4n);
		const logits = Float32Array.from({ length: 50_000 }, () => random.nextFloat() * 4);
		for (let i = 0; i < 20; i++) logits[i * 777] = 14 - i / 4;
		const sampler = new Sampler(logits.length);
		const top = topOf(logits, 64);
		const rate = (one: SamplingOptions, more = {}): number => {
			const base = { tokenCounts: undefined, maskedIds: [], params: resolveSampling(one), ...more };
			let decided = 0;
			for (let seed = 0n; seed < 40n; seed++) {
				if (sampleTop(sampler, top, { ...base, random: new Xoshiro128(seed) }) >= 0) decided++;
			}
			return decided / 40;
		};
		expect(rate({ temperature: 0 })).toBe(1);
		expect(rate({ temperature: 1.7, topK: 50 })).toBe(1);
		expect(rate({ topP: 0.7 })).toBe(1);
		expect(rate({ temperature: 0.5, topP: 0.95 })).toBe(1);
		expect(rate({ minP: 0.05 })).toBe(1);
		expect(rate({ temperature: 0.6 })).toBe(1);
		expect(rate({})).toBeGreaterThan(0.7);
		const counts = new TokenCounts();
		counts.addOutputToken(0);
		expect(rate({ temperature: 0, presencePenalty: 1 }, { tokenCounts: counts })).toBe(1);
		expect(rate({ temperature: 0 }, { maskedIds: [0, 777] })).toBe(1);
		// A bias can lift a token that is not at hand.
		expect(rate({ temperature: 0, logitBias: [[5, 1]] })).toBe(0);
		// So can a mask leave nothing of what is.
		expect(rate({ temperature: 0 }, { allowedTokens: maskOf([49_999]) })).toBe(0);
	});
});
