// SPDX-License-Identifier: Apache-2.0
import { type DynamoError, isDynamoError } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type RequestContext, readBestOf, toEngineRequest } from "./generate-request.js";

const CONTEXT: RequestContext = {
	maxModelLen: 100,
	vocabSize: 1000,
	eosTokenIds: [2],
	samplingDefaults: {},
	requireMaxTokens: false,
};

/** As Dynamo's frontend sends a plain chat request. */
const PLAIN = {
	model: "m",
	token_ids: [1, 5, 6],
	stop_conditions: {
		max_tokens: null,
		stop: null,
		stop_token_ids: null,
		stop_token_ids_visible: null,
		stop_token_ids_hidden: [2],
		min_tokens: null,
		ignore_eos: null,
		max_thinking_tokens: null,
	},
	sampling_options: {
		n: null,
		best_of: null,
		presence_penalty: null,
		frequency_penalty: null,
		repetition_penalty: null,
		temperature: null,
		top_p: null,
		top_k: null,
		min_p: null,
		use_beam_search: null,
		length_penalty: null,
		seed: null,
		include_stop_str_in_output: null,
		guided_decoding: null,
	},
	output_options: {
		logprobs: null,
		prompt_logprobs: null,
		skip_special_tokens: null,
		formatted_prompt: null,
		return_tokens_as_token_ids: null,
	},
	eos_token_ids: [2],
	mdc_sum: "abc",
	annotations: [],
	routing: {},
	router_config_override: null,
};

function read(payload: unknown, context: Partial<RequestContext> = {}) {
	return toEngineRequest("id", payload, { ...CONTEXT, ...context });
}

function refusal(payload: unknown, context: Partial<RequestContext> = {}): DynamoError {
	try {
		read(payload, context);
	} catch (error) {
		if (isDynamoError(error)) return error;
		throw error;
	}
	throw new Error("it was accepted");
}

test("a plain request", () => {
	expect(read(PLAIN)).toEqual({
		requestId: "id",
		tokenIds: [1, 5, 6],
		sampling: { n: 1 },
		stop: { ignoreEos: false, stopTokenIds: [], eosTokenIds: [2] },
	});
});

test("token ids alone are enough", () => {
	expect(read({ token_ids: [1] }).stop.eosTokenIds).toEqual([2]);
});

test("token ids from typed arrays", () => {
	expect(read({ token_ids: new Uint32Array([1, 7]) }).tokenIds).toEqual(new Uint32Array([1, 7]));
	expect(read({ token_ids: new Uint16Array([1, 7]) }).tokenIds).toEqual([1, 7]);
	expect(read({ token_ids: new BigUint64Array([1n, 7n]) }).tokenIds).toEqual([1, 7]);
});

test("every member gets through", () => {
	const request = read({
		...PLAIN,
		stop_conditions: {
			...PLAIN.stop_conditions,
			max_tokens: 7,
			min_tokens: 3,
			stop_token_ids: [9],
			stop_token_ids_visible: [8, 9],
		},
		sampling_options: {
			...PLAIN.sampling_options,
			n: 2,
			best_of: 2,
			presence_penalty: 0.5,
			frequency_penalty: 0.25,
			repetition_penalty: 1.5,
			temperature: 0,
			top_p: 0.5,
			top_k: 40,
			min_p: 0.125,
			seed: 2n ** 63n,
			logit_bias: { "5": -100, "17": 2.5 },
		},
		output_options: { ...PLAIN.output_options, logprobs: 3 },
		routing: { priority: 4, cache_salt: "s", dp_rank: 0 },
	});
	expect(request).toEqual({
		requestId: "id",
		tokenIds: [1, 5, 6],
		sampling: {
			n: 2,
			presencePenalty: 0.5,
			frequencyPenalty: 0.25,
			repetitionPenalty: 1.5,
			temperature: 0,
			topP: 0.5,
			topK: 40,
			minP: 0.125,
			seed: 2n ** 63n,
			logitBias: [
				[5, -100],
				[17, 2.5],
			],
		},
		stop: { maxTokens: 7, minTokens: 3, ignoreEos: false, stopTokenIds: [9, 8], eosTokenIds: [2] },
		logprobs: 3,
		priority: 4,
		cacheSalt: "s",
	});
});

test("ignore_eos leaves no end-of-text id", () => {
	const conditions = { ...PLAIN.stop_conditions, ignore_eos: true, stop_token_ids_hidden: null };
	const request = read({ ...PLAIN, stop_conditions: conditions, eos_token_ids: [] });
	expect(request.stop).toMatchObject({ ignoreEos: true, eosTokenIds: [] });
});

test("the model's recommended values stand in for what is left out, and only for that", () => {
	const samplingDefaults = { temperature: 0.25, topP: 0.5, topK: 10, minP: 0.125, repetitionPenalty: 1.25 };
	expect(read(PLAIN, { samplingDefaults }).sampling).toMatchObject(samplingDefaults);
	const sampling_options = { ...PLAIN.sampling_options, temperature: 1, top_k: 0 };
	expect(read({ ...PLAIN, sampling_options }, { samplingDefaults }).sampling).toMatchObject({
		temperature: 1,
		topK: 0,
		topP: 0.5,
	});
});

test("a recommended temperature of 0 does not make several choices equal", () => {
	const samplingDefaults = { temperature: 0 };
	expect(read(PLAIN, { samplingDefaults }).sampling.temperature).toBe(0);
	const sampling_options = { ...PLAIN.sampling_options, n: 2 };
	expect(read({ ...PLAIN, sampling_options }, { samplingDefaults }).sampling.temperature).toBeUndefined();
});

test("max_tokens never passes the end of the context; none means its rest", () => {
	const conditions = { ...PLAIN.stop_conditions, max_tokens: 5000 };
	expect(read({ ...PLAIN, stop_conditions: conditions }).stop.maxTokens).toBe(97);
	expect(read(PLAIN).stop.maxTokens).toBeUndefined();
	expect(read({ ...PLAIN, stop_conditions: { ...conditions, max_tokens: 0 } }).stop.maxTokens).toBe(0);
});

test("tokens of a lost worker at the end of the prompt", () => {
	expect(read({ ...PLAIN, generated_tokens: 2 }).generatedTokens).toBe(2);
	expect(read(PLAIN).generatedTokens).toBeUndefined();
	for (const generated_tokens of [4, -1, 0.5]) {
		expect(() => read({ ...PLAIN, generated_tokens })).toThrow(/generated_tokens is/);
	}
});

test("allowed_token_ids and prompt_logprobs go to the engine", () => {
	const request = read({
		...PLAIN,
		extra_args: { sampling_options: { allowed_token_ids: [1, 5] } },
		output_options: { prompt_logprobs: 3, logprobs: 1 },
	});
	expect(request).toMatchObject({ promptLogprobs: 3, logprobs: 1, sampling: { allowedTokenIds: [1, 5] } });
});

test("best_of above n makes the engine generate more; 0 is none", () => {
	const of = (sampling_options: object) => ({ ...PLAIN, sampling_options });
	expect(read(of({ n: 2, best_of: 5 })).sampling.n).toBe(5);
	expect(readBestOf(of({ n: 2, best_of: 5 }))).toEqual({ n: 2, stops: [], minTokens: 0, withLogprobs: false });
	for (const same of [{ n: 2, best_of: 2 }, { best_of: 0 }, { best_of: 1 }, {}]) {
		expect(readBestOf(of(same))).toBeUndefined();
	}
	const full = {
		...of({ best_of: 2 }),
		stop_conditions: { stop: ["a"], min_tokens: 4 },
		output_options: { logprobs: 0 },
	};
	expect(readBestOf(full)).toEqual({ n: 1, stops: ["a"], minTokens: 4, withLogprobs: true });
	expect(() => readBestOf({ ...full, stop_conditions: { stop: [""] } })).toThrow(/list of texts/);
});

describe("refusals", () => {
	test.each([
		["no map", 5, /must be a map/],
		["a list", [], /must be a map/],
		["no tokens", {}, /no token_ids/],
		["an empty prompt", { token_ids: [] }, /prompt is empty/],
		["a text among the ids", { token_ids: [1, "2"] }, /token_ids\[1\] is not a token id/],
		["a negative id", { token_ids: [-1] }, /token_ids\[0\]/],
		["a fraction", { token_ids: [1.5] }, /token_ids\[0\]/],
		["an id outside the vocabulary", { token_ids: [1, 1000] }, /1000 tokens/],
		["a section of the wrong kind", { ...PLAIN, stop_conditions: 3 }, /stop_conditions must be a map/],
		["temperature as text", { ...PLAIN, sampling_options: { temperature: "1" } }, /temperature must be a number/],
		["beam search", { ...PLAIN, sampling_options: { use_beam_search: true } }, /beam_search/],
		["best_of below n", { ...PLAIN, sampling_options: { n: 3, best_of: 2 } }, /best_of=2 and n=3/],
		[
			"a bad list of tokens to choose from",
			{ ...PLAIN, extra_args: { sampling_options: { allowed_token_ids: [-1] } } },
			/allowed_token_ids/,
		],
		["guided decoding", { ...PLAIN, sampling_options: { guided_decoding: { regex: "a" } } }, /guided decoding/],
		["seed as text", { ...PLAIN, sampling_options: { seed: "1" } }, /seed/],
		["a bad bias", { ...PLAIN, sampling_options: { logit_bias: { x: 1 } } }, /logit_bias/],
		["images", { ...PLAIN, multi_modal_data: {} }, /multi_modal_data/],
		["another rank", { ...PLAIN, routing: { dp_rank: 9 } }, /dp_rank 9 is out of bounds for dp_size 1/],
		["an adapter", { ...PLAIN, routing: { lora_name: "x" } }, /LoRA/],
		["ignore_eos as text", { ...PLAIN, stop_conditions: { ignore_eos: "yes" } }, /ignore_eos/],
		["too many stop ids", { ...PLAIN, eos_token_ids: new Array(2000).fill(1) }, /at most 1024/],
	])("%s", (_name, payload, message) => {
		const error = refusal(payload);
		expect(error.errorClass).toBe("InvalidArgument");
		expect(error.publicMessage).toMatch(message);
	});

	test("a prompt that fills the context has OpenAI's code and both numbers", () => {
		const error = refusal({ ...PLAIN, token_ids: new Array(100).fill(1) });
		expect(error).toMatchObject({ errorClass: "InvalidArgument", code: "context_length_exceeded" });
		expect(error.publicMessage).toMatch(/maximum context length is 100 tokens.*prompt has 100 tokens/);
		expect(read({ ...PLAIN, token_ids: new Array(99).fill(1) }).tokenIds).toHaveLength(99);
	});

	test("without max_tokens where it is required, in the words of Dynamo's mocker", () => {
		const error = refusal(PLAIN, { requireMaxTokens: true });
		expect(error.message).toBe("max_output_tokens must be specified for mocker");
		expect(error.publicMessage).toBe("`max_output_tokens` (or `max_tokens`) is required by the mocker worker");
	});

	test("any payload is read or refused, nothing else is thrown", () => {
		const members = Object.keys(PLAIN);
		const anything = fc.dictionary(
			fc.constantFrom(...members),
			fc.anything({ withBigInt: true, withTypedArray: true }),
		);
		fc.assert(
			fc.property(anything, (payload) => {
				try {
					read(payload);
				} catch (error) {
					expect(isDynamoError(error) && error.errorClass === "InvalidArgument").toBe(true);
				}
			}),
			{ numRuns: 500 },
		);
	});
});
