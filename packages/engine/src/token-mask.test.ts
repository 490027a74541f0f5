// SPDX-License-Identifier: Apache-2.0
// Grammars and lists of allowed tokens in the engine, with a model that knows nothing of them.
import { describe, expect, it } from "vitest";
import type { EngineRequest } from "./engine.js";
import { EngineCore, type EngineCoreOptions } from "./engine-core.js";
import { FakeModelRunner } from "./mock/fake-model-runner.js";
import { FINISH_REASONS, RECORD_SIZE } from "./step-outputs.js";
import { maskOf, type TokenMask } from "./token-mask.js";

const EOS = 96;
const DIGITS = Array.from({ length: 10 }, (_, i) => 48 + i);
const WORD = [70, 71, 72];

/** One to three digits, then a word, then the end; counts how often it is asked. */
class DigitsThenWord implements TokenMask {
	asked = 0;
	private digits = 0;
	private letters = 0;
	private readonly words = [
		maskOf(DIGITS),
		maskOf([...DIGITS, WORD[0]!]),
		...WORD.map((id) => maskOf([id])),
		maskOf([EOS]),
	];

	mask(): Uint32Array {
		this.asked++;
		if (this.letters > 0) return this.words[2 + this.letters]!;
		return this.words[this.digits === 0 ? 0 : this.digits < 3 ? 1 : 2]!;
	}

	accept(token: number): void {
		if (DIGITS.includes(token)) this.digits++;
		else this.letters++;
	}
}

function run(
	core: EngineCore,
	choices: number,
): { tokens: number[][]; ends: (string | undefined)[]; errors: string[] } {
	const tokens: number[][] = Array.from({ length: choices }, () => []);
	const ends: (string | undefined)[] = [];
	const errors: string[] = [];
	for (let more = true; more; ) {
		more = core.hasWork;
		if (more) core.step();
		const { records = [], errors: failed = [] } = core.outputs.take() ?? {};
		for (const [, error] of failed) errors.push(error.message);
		for (let i = 0; i < records.length; i += RECORD_SIZE) {
			const [handle, token, code] = records.slice(i, i + RECORD_SIZE) as [number, number, number];
			if (token >= 0) tokens[handle]!.push(token);
			if (code > 0) ends[handle] = FINISH_REASONS[code - 1];
		}
	}
	return { tokens, ends, errors };
}

function make(options: EngineCoreOptions = {}, maxNumSeqs = 4): EngineCore {
	return new EngineCore(new FakeModelRunner({ maxNumSeqs, maxModelLen: 64 }), options);
}

const request = (more: Partial<EngineRequest>): EngineRequest => ({
	requestId: "r",
	tokenIds: [1, 2, 3],
	sampling: {},
	stop: { maxTokens: 12, eosTokenIds: [EOS] },
	...more,
});

describe("a grammar", () => {
	it.each([
		["greedy", { temperature: 0 }, {}],
		["sampled", { temperature: 1.5, seed: 3 }, {}],
		["top_k and penalties", { temperature: 1, topK: 2, presencePenalty: 2, repetitionPenalty: 1.3, seed: 1 }, {}],
		["with guesses", { temperature: 0.8, seed: 9 }, { speculative: { method: "ngram", numTokens: 4 } }],
		["alone in its batch", { temperature: 0.8, seed: 9 }, { maxNumBatchedTokens: 3 }],
	] as const)("is followed to its end, each choice by its own: %s", (_name, sampling, options) => {
		const grammars: DigitsThenWord[] = [];
		const core = make({ ...options, tokenMask: () => grammars[grammars.push(new DigitsThenWord()) - 1] });
		core.submit(0, request({ sampling: { ...sampling, n: 3 } }));
		const { tokens, ends } = run(core, 3);
		for (const [i, list] of tokens.entries()) {
			const digits = list.findIndex((id) => !DIGITS.includes(id));
			expect(digits).toBeGreaterThanOrEqual(1);
			expect(digits).toBeLessThanOrEqual(3);
			expect(list.slice(digits)).toEqual([...WORD, EOS]);
			expect(ends[i]).toBe("eos");
			expect(grammars[i]!.asked).toBe(list.length);
		}
		expect(grammars).toHaveLength(3);
	});

	it("and a list of allowed tokens both hold", () => {
		const core = make({ tokenMask: () => new DigitsThenWord() });
		const allowed = [49, 50, ...WORD, EOS];
		core.submit(0, request({ sampling: { temperature: 1, seed: 4, allowedTokenIds: allowed } }));
		const { tokens } = run(core, 1);
		expect(tokens[0]!.every((id) => allowed.includes(id))).toBe(true);
		expect(tokens[0]!.slice(-4)).toEqual([...WORD, EOS]);
	});

	it("that leaves nothing ends its sequence with an error that says so, and no other", () => {
		const core = make({ tokenMask: ({ requestId }) => (requestId === "r" ? new DigitsThenWord() : undefined) });
		core.submit(0, request({ sampling: { allowedTokenIds: WORD } }));
		core.submit(1, request({ requestId: "free", sampling: { temperature: 0 } }));
		const { tokens, ends, errors } = run(core, 2);
		expect(errors).toEqual(["no token is left that may come next"]);
		expect(ends).toEqual(["error", expect.stringMatching(/length|eos/)]);
		expect(tokens[0]).toEqual([]);
	});

	it("goes on where it was when its sequence had to give its blocks away", () => {
		const text = (interrupted: boolean): number[] => {
			const runner = new FakeModelRunner({ maxNumSeqs: 4, maxModelLen: 64, blockSize: 2, numBlocks: 10 });
			const core = new EngineCore(runner, {
				tokenMask: ({ requestId }) => (requestId === "r" ? new DigitsThenWord() : undefined),
			});
			core.submit(0, request({ sampling: { seed: 8 } }));
			for (let i = 0; i < 3; i++) core.step();
			const urgent = { requestId: "urgent", tokenIds: new Array(13).fill(5), priority: 1, stop: { maxTokens: 2 } };
			if (interrupted) core.submit(1, request(urgent));
			const { tokens } = run(core, 2);
			expect(core.stats().preemptions).toBe(interrupted ? 1 : 0);
			return tokens[0]!;
		};
		expect(text(true)).toEqual(text(false));
	});
});

describe("allowed token ids", () => {
	it("are all that is said, by every choice and whatever else is asked for", () => {
		const core = make();
		const allowed = [3, 40, 95];
		core.submit(0, request({ sampling: { n: 2, temperature: 1, topP: 0.9, seed: 2, allowedTokenIds: allowed } }));
		core.submit(2, request({ sampling: { temperature: 0, allowedTokenIds: [7] } }));
		const { tokens, ends } = run(core, 3);
		expect(tokens.slice(0, 2).every((list) => list.every((id) => allowed.includes(id)))).toBe(true);
		expect(tokens[2]).toEqual(new Array(12).fill(7));
		// The end is not among them.
		expect(ends).toEqual(["length", "length", "length"]);
	});
});
