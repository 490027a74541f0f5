// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import type { EngineRequest, SamplingOptions } from "./engine.js";
import { checkSampling, resolveSampling } from "./sampling-params.js";
import { intersect, isAllowed, maskOf } from "./token-mask.js";

const check = (sampling: SamplingOptions, more: Partial<EngineRequest> = {}): string | undefined =>
	checkSampling({ requestId: "r", tokenIds: [1], sampling, stop: {}, ...more }, 100);

describe("checkSampling", () => {
	it.each<[SamplingOptions, string]>([
		[{ allowedTokenIds: [] }, "allowed_token_ids is empty"],
		[{ allowedTokenIds: [5, 100] }, "token id 100"],
		[{ allowedTokenIds: [-1] }, "token id -1"],
		[{ allowedTokenIds: [1.5] }, "token id 1.5"],
		[{ logitBias: [[100, 1]] }, "token id 100"],
		[{ topP: 0 }, "top_p"],
		[{ repetitionPenalty: 0 }, "repetition_penalty"],
	])("refuses %j", (sampling, text) => {
		expect(check(sampling)).toContain(text);
	});

	it("refuses more log-probabilities of the prompt than the API knows", () => {
		expect(check({}, { promptLogprobs: 21 })).toContain("prompt_logprobs");
		expect(check({}, { promptLogprobs: 0.5 })).toContain("prompt_logprobs");
		expect(check({}, { promptLogprobs: 20 })).toBeUndefined();
	});

	it("takes what can be done", () => {
		expect(check({ allowedTokenIds: [0, 99], logitBias: [[99, -100]], topK: -1, seed: -5n })).toBeUndefined();
	});
});

describe("resolveSampling", () => {
	it("knows whether a logit can be raised", () => {
		const raises = (options: SamplingOptions) => resolveSampling(options).mayRaise;
		expect(raises({ presencePenalty: 1, frequencyPenalty: 1, repetitionPenalty: 1.2, logitBias: [[1, -1]] })).toBe(
			false,
		);
		for (const one of [{ presencePenalty: -1 }, { frequencyPenalty: -1 }, { repetitionPenalty: 0.9 }]) {
			expect(raises(one)).toBe(true);
		}
		expect(raises({ logitBias: [[1, 0.5]] })).toBe(true);
	});
});

describe("token masks", () => {
	it("have the tokens they are made of, and none beyond their end", () => {
		const mask = maskOf([0, 31, 32, 70]);
		expect([...Array(200).keys()].filter((id) => isAllowed(mask, id))).toEqual([0, 31, 32, 70]);
		expect(isAllowed(undefined, 5)).toBe(true);
		expect(maskOf([]).length).toBe(0);
	});

	it("intersect", () => {
		const both = intersect(maskOf([1, 40, 99]), maskOf([1, 2, 40]), new Uint32Array(4));
		expect([...Array(128).keys()].filter((id) => isAllowed(both, id))).toEqual([1, 40]);
	});
});
