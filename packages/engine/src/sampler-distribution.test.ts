// SPDX-License-Identifier: Apache-2.0
// Draws with fixed seeds against exact probabilities, for every combination of options.
import { describe, expect, it } from "vitest";
import type { SamplingOptions } from "./engine.js";
import { Xoshiro128 } from "./prng.js";
import { Sampler, type SamplerInput } from "./sampler.js";
import { resolveSampling } from "./sampling-params.js";
import { TokenCounts } from "./token-counts.js";
import { maskOf } from "./token-mask.js";

const VOCAB = 150;
const DRAWS = 2500;

interface Case {
	readonly options: SamplingOptions;
	/** Ids of the prompt and of the output so far. */
	readonly prompt: readonly number[];
	readonly output: readonly number[];
	readonly maskedIds: readonly number[];
	readonly allowed: readonly number[] | undefined;
}

/** Logits as vLLM defines them, before temperature; by the book, on a copy. */
function processed(logits: Float32Array, { options, prompt, output, maskedIds, allowed }: Case): number[] {
	const values = [...logits];
	for (const id of maskedIds) values[id] = Number.NEGATIVE_INFINITY;
	for (const [id, bias] of options.logitBias ?? []) values[id]! += bias;
	const repetition = options.repetitionPenalty ?? 1;
	for (const id of new Set([...prompt, ...output])) {
		values[id] = values[id]! > 0 ? values[id]! / repetition : values[id]! * repetition;
	}
	for (const id of new Set(output)) {
		const count = output.filter((other) => other === id).length;
		values[id]! -= (options.frequencyPenalty ?? 0) * count + (options.presencePenalty ?? 0);
	}
	return allowed === undefined ? values : values.map((v, id) => (allowed.includes(id) ? v : Number.NEGATIVE_INFINITY));
}

/** By the definitions: full sort, min_p, top_k, top_p, renormalized. */
function probabilities(values: readonly number[], options: SamplingOptions): number[] {
	const { temperature = 1, topK = 0, topP = 1, minP = 0 } = options;
	const order = values.map((_, i) => i).sort((a, b) => values[b]! - values[a]! || a - b);
	const mass = (i: number) => Math.exp((values[i]! - values[order[0]!]!) / temperature);
	let kept = order.filter((i) => mass(i) > 0 && mass(i) >= minP);
	if (topK > 0) kept = kept.slice(0, topK);
	const total = kept.reduce((sum, i) => sum + mass(i), 0);
	const result = new Array<number>(values.length).fill(0);
	let sum = 0;
	for (const i of kept) {
		if (topP < 1 && sum >= topP * total) break;
		result[i] = mass(i);
		sum += mass(i);
	}
	return result.map((value) => value / sum);
}

function countsOf({ options, prompt, output }: Case): TokenCounts | undefined {
	const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
	if (repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0) return undefined;
	const counts = new TokenCounts();
	for (const id of prompt) counts.addPromptToken(id);
	for (const id of output) counts.addOutputToken(id);
	return counts;
}

function inputOf(one: Case, seed: bigint): SamplerInput {
	return {
		params: resolveSampling(one.options),
		random: new Xoshiro128(seed),
		tokenCounts: countsOf(one),
		maskedIds: one.maskedIds,
		allowedTokens: one.allowed === undefined ? undefined : maskOf(one.allowed),
	};
}

/**
 * Fails when the counts are further from the probabilities than one in a million fair samples; tokens too rare for the
 * statistic are taken together.
 */
function expectFair(counts: readonly number[], shares: readonly number[], draws: number): void {
	let statistic = 0;
	let bins = 0;
	let rareCount = 0;
	let rareShare = 0;
	for (const [i, share] of shares.entries()) {
		if (share === 0) expect(counts[i], `token ${i} has no probability`).toBe(0);
		if (share * draws < 5) {
			rareCount += counts[i]!;
			rareShare += share;
			continue;
		}
		statistic += (counts[i]! - share * draws) ** 2 / (share * draws);
		bins++;
	}
	if (rareShare * draws >= 5) {
		statistic += (rareCount - rareShare * draws) ** 2 / (rareShare * draws);
		bins++;
	}
	if (bins < 2) return;
	// Wilson and Hilferty's approximation of the chi-square quantile; 4.75 standard deviations.
	const freedom = bins - 1;
	const limit = freedom * (1 - 2 / (9 * freedom) + 4.75 * Math.sqrt(2 / (9 * freedom))) ** 3;
	expect(statistic).toBeLessThan(limit);
}

const logits = (() => {
	const random = new Xoshiro128(99n);
	return Float32Array.from({ length: VOCAB }, () => random.nextFloat() * 8 - 3);
})();
const likeliest = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!);

/** All combinations of the named values. */
function product<T>(axes: { readonly [K in keyof T]: readonly T[K][] }): T[] {
	let all: Partial<T>[] = [{}];
	for (const [name, values] of Object.entries(axes) as [keyof T, readonly T[keyof T][]][]) {
		all = all.flatMap((one) => values.map((value) => ({ ...one, [name]: value })));
	}
	return all as T[];
}

const filters = product<SamplingOptions>({
	temperature: [0.6, 1, 1.5],
	topK: [0, 12],
	topP: [1, 0.8, 0.999],
	minP: [0, 0.02],
});
const prompt = likeliest.slice(0, 4);
const output = [likeliest[0]!, likeliest[0]!, likeliest[5]!, 3, 3, 3];
const changes = {
	none: { options: {}, prompt: [], output: [], maskedIds: [], allowed: undefined },
	"repetition penalty": { options: { repetitionPenalty: 1.4 }, prompt, output, maskedIds: [], allowed: undefined },
	"all penalties": {
		options: { repetitionPenalty: 1.2, presencePenalty: 0.7, frequencyPenalty: 0.4 },
		prompt,
		output,
		maskedIds: [],
		allowed: undefined,
	},
	"penalties that reward": {
		options: { presencePenalty: -1, frequencyPenalty: -0.3, repetitionPenalty: 0.8 },
		prompt,
		output,
		maskedIds: [],
		allowed: undefined,
	},
	bias: {
		options: { logitBias: [[likeliest[0]!, -100] as const, [3, 5] as const, [likeliest[2]!, 1] as const] },
		prompt: [],
		output: [],
		maskedIds: [],
		allowed: undefined,
	},
	"ids before the least length": {
		options: {},
		prompt: [],
		output: [],
		maskedIds: likeliest.slice(1, 3),
		allowed: undefined,
	},
	"a mask": { options: {}, prompt: [], output: [], maskedIds: [], allowed: likeliest.filter((id) => id % 3 !== 0) },
	"a mask of few, and penalties": {
		options: { repetitionPenalty: 1.3, presencePenalty: 0.2 },
		prompt,
		output,
		maskedIds: [likeliest[1]!],
		allowed: [...likeliest.slice(0, 6), 140, 141, 149],
	},
} satisfies Record<string, Case>;

describe.each(Object.entries(changes))("draws with %s", (_name, change) => {
	it.each(filters.map((options) => [JSON.stringify(options), options] as const))("follow %s", (_text, options) => {
		const one: Case = { ...change, options: { ...change.options, ...options } };
		const before = logits.slice();
		const sampler = new Sampler(VOCAB);
		const input = inputOf(one, 7n);
		const counts = new Array<number>(VOCAB).fill(0);
		for (let i = 0; i < DRAWS; i++) counts[sampler.sample(logits, 0, input)]!++;
		expectFair(counts, probabilities(processed(logits, one), one.options), DRAWS);
		expect(logits).toEqual(before);
	});

	it("are the likeliest at temperature 0", () => {
		const one: Case = { ...change, options: { ...change.options, temperature: 0 } };
		const values = processed(logits, one);
		expect(new Sampler(VOCAB).sample(logits, 0, inputOf(one, 1n))).toBe(values.indexOf(Math.max(...values)));
	});
});

describe("a drafted token that is verified by a draw", () => {
	it.each(filters.slice(0, 12).map((options) => [JSON.stringify(options), options] as const))(
		"is accepted as often as it is likely, else replaced by the others in proportion: %s",
		(_text, options) => {
			const one: Case = { ...changes["all penalties"], options: { ...changes["all penalties"].options, ...options } };
			const shares = probabilities(processed(logits, one), one.options);
			const draft = shares.indexOf(Math.max(...shares));
			const sampler = new Sampler(VOCAB);
			const input = inputOf(one, 3n);
			const replaced = new Array<number>(VOCAB).fill(0);
			let accepted = 0;
			for (let i = 0; i < DRAWS; i++) {
				const token = sampler.sample(logits, 0, input);
				if (token === draft) accepted++;
				else replaced[token]!++;
			}
			expectFair([accepted, DRAWS - accepted], [shares[draft]!, 1 - shares[draft]!], DRAWS);
			const others = shares.map((share, id) => (id === draft ? 0 : share / (1 - shares[draft]!)));
			expectFair(replaced, others, DRAWS - accepted);
		},
	);

	it("gives the text that the seed gives without drafts", () => {
		const row = (tokens: readonly number[]): Float32Array => {
			const random = new Xoshiro128(BigInt(tokens.at(-1) ?? 0) * 31n + BigInt(tokens.length));
			return Float32Array.from({ length: VOCAB }, () => random.nextFloat() * 6);
		};
		const options = { temperature: 0.9, topP: 0.9, repetitionPenalty: 1.2, presencePenalty: 0.5 };
		const run = (draftsOf: (tokens: readonly number[]) => number[]): number[] => {
			const sampler = new Sampler(VOCAB);
			const counts = new TokenCounts();
			const input = {
				params: resolveSampling(options),
				random: new Xoshiro128(5n),
				tokenCounts: counts,
				maskedIds: [],
			};
			const tokens: number[] = [];
			while (tokens.length < 60) {
				const drafts = draftsOf(tokens);
				for (let i = 0; ; i++) {
					const token = sampler.sample(row(tokens), 0, input);
					counts.addOutputToken(token);
					tokens.push(token);
					if (token !== drafts[i]) break;
				}
			}
			return tokens.slice(0, 60);
		};
		const plain = run(() => []);
		// Right drafts, wrong ones, and right ones that end in a wrong one.
		expect(run((tokens) => plain.slice(tokens.length, tokens.length + 4))).toEqual(plain);
		expect(run(() => [1, 2, 3])).toEqual(plain);
		expect(run((tokens) => [...plain.slice(tokens.length, tokens.length + 2), 0])).toEqual(plain);
	});
});
