// SPDX-License-Identifier: Apache-2.0
import { describe, expect, test } from "vitest";
import { createGenerateHandler, type TokenTexts } from "./generate-handler.js";
import { RecordedRequest, RecordedResponse } from "./test-support/recorded-response.js";
import { ENGINE_INFO, ScriptedEngine } from "./test-support/scripted-engine.js";

const TEXTS: TokenTexts = {
	text: (id) => `<${id}>`,
	bytes: (id) => [id],
	stopScanner: (stops) => (id) => stops.includes(`<${id}>`),
};

function setUp(overrides: { loadTokenTexts?: () => Promise<TokenTexts> } = {}) {
	const engine = new ScriptedEngine();
	const handler = createGenerateHandler({
		engine,
		context: {
			maxModelLen: ENGINE_INFO.maxModelLen,
			vocabSize: ENGINE_INFO.vocabSize,
			eosTokenIds: ENGINE_INFO.eosTokenIds,
			samplingDefaults: {},
			requireMaxTokens: false,
		},
		loadTokenTexts: async () => TEXTS,
		...overrides,
	});
	const start = (payload: Record<string, unknown> = {}, id?: string) => {
		const request = new RecordedRequest({ token_ids: [1, 2, 3], ...payload }, id);
		const response = new RecordedResponse();
		const done = handler(request, response);
		return { request, response, done };
	};
	return { engine, start };
}

const USAGE = { promptTokens: 3, completionTokens: 1, cachedTokens: 2 };

describe("a stream", () => {
	test("one item per step, usage on the first and the last, then the end", () => {
		const { engine, start } = setUp();
		const { response } = start();
		engine.emit({ tokenIds: [7], ...USAGE });
		engine.emit({ tokenIds: [8] });
		expect(response.items).toHaveLength(2);
		expect(response.ended).toBe(0);
		engine.emit({ tokenIds: [2], finishReason: "eos", promptTokens: 3, completionTokens: 3, cachedTokens: 2 });
		expect(response.items).toEqual([
			{
				token_ids: [7],
				completion_usage: {
					prompt_tokens: 3,
					completion_tokens: 1,
					total_tokens: 4,
					prompt_tokens_details: { audio_tokens: null, cached_tokens: 2 },
				},
			},
			{ token_ids: [8] },
			{
				token_ids: [2],
				completion_usage: {
					prompt_tokens: 3,
					completion_tokens: 3,
					total_tokens: 6,
					prompt_tokens_details: { audio_tokens: null, cached_tokens: 2 },
				},
				finish_reason: "eos",
			},
		]);
		expect(response.ended).toBe(1);
	});

	test.each([
		["length", undefined],
		["stop", 9],
		["eos", undefined],
	] as const)("finish reason %s", (finishReason, stopReason) => {
		const { engine, start } = setUp();
		const { response } = start();
		engine.emit({ tokenIds: [9], finishReason, stopReason });
		expect(response.items[0]).toMatchObject({
			finish_reason: finishReason,
			...(stopReason === undefined ? {} : { stop_reason: stopReason }),
		});
	});

	test("several choices carry their index, and all must finish", () => {
		const { engine, start } = setUp();
		const { response } = start({ sampling_options: { n: 3 } });
		for (const index of [0, 1, 2]) engine.emit({ index, tokenIds: [10 + index] });
		engine.emit({ index: 1, tokenIds: [5], finishReason: "stop" });
		engine.emit({ index: 0, tokenIds: [6], finishReason: "length" });
		expect(response.ended).toBe(0);
		engine.emit({ index: 2, tokenIds: [7], finishReason: "length" });
		expect(response.ended).toBe(1);
		expect(response.items.map(({ index }) => index)).toEqual([0, 1, 2, 1, 0, 2]);
	});

	test("the same context id twice at once gives two requests to the engine", () => {
		const { engine, start } = setUp();
		start({}, "same");
		start({}, "same");
		expect(new Set(engine.requests.map(({ requestId }) => requestId)).size).toBe(2);
	});
});

describe("log-probabilities", () => {
	test("in the shape of the wire, with texts of tokens", async () => {
		const { engine, start } = setUp();
		const { response, done } = start({ output_options: { logprobs: 2 } });
		await done;
		engine.emit({
			tokenIds: [7],
			logProbs: [-0.5],
			topLogprobs: [
				[
					{ rank: 1, tokenId: 7, logprob: -0.5 },
					{ rank: 2, tokenId: 8, logprob: -1.5 },
				],
			],
		});
		expect(response.items).toEqual([
			{
				token_ids: [7],
				tokens: ["<7>"],
				log_probs: [-0.5],
				top_logprobs: [
					[
						{ rank: 1, token_id: 7, token: "<7>", logprob: -0.5, bytes: [7] },
						{ rank: 2, token_id: 8, token: "<8>", logprob: -1.5, bytes: [8] },
					],
				],
			},
		]);
	});

	test("texts are loaded once, and not for requests that do not ask", async () => {
		let loads = 0;
		const { start } = setUp({
			loadTokenTexts: async () => {
				loads++;
				return TEXTS;
			},
		});
		start();
		expect(loads).toBe(0);
		await start({ output_options: { logprobs: 0 } }).done;
		await start({ output_options: { logprobs: 0 } }).done;
		expect(loads).toBe(1);
	});

	test("a client that left while they were loaded costs no engine time", async () => {
		const { engine, start } = setUp();
		const { request, response, done } = start({ output_options: { logprobs: 0 } });
		request.cancel("disconnect", response);
		await done;
		expect(engine.requests).toEqual([]);
	});
});

describe("log-probabilities of the prompt", () => {
	test("go with the first item and with the last", async () => {
		const { engine, start } = setUp();
		const { response, done } = start({ output_options: { prompt_logprobs: 1 } });
		await done;
		expect(engine.requests.at(-1)).toMatchObject({ promptLogprobs: 1, logprobs: undefined });
		engine.emit({
			tokenIds: [7],
			promptLogprobs: [
				null,
				{ tokenId: 2, logprob: -3, rank: 9, top: [{ rank: 1, tokenId: 8, logprob: -0.5 }] },
				{ tokenId: 3, logprob: Number.NEGATIVE_INFINITY, rank: 1, top: [] },
			],
		});
		engine.emit({ tokenIds: [8] });
		engine.emit({ finishReason: "length" });
		const engine_data = {
			prompt_logprobs: [
				null,
				{
					"2": { logprob: -3, rank: 9, decoded_token: "<2>" },
					"8": { logprob: -0.5, rank: 1, decoded_token: "<8>" },
				},
				{ "3": { logprob: -1e30, rank: 1, decoded_token: "<3>" } },
			],
		};
		expect(response.items).toEqual([
			{ token_ids: [7], engine_data },
			{ token_ids: [8] },
			{ token_ids: [], finish_reason: "length", engine_data },
		]);
	});
});

describe("best_of", () => {
	const candidates = { sampling_options: { n: 2, best_of: 3 } };

	test("sends the choices of the highest log-probability per token, the best first, with all tokens counted", async () => {
		const { engine, start } = setUp();
		const { response, done } = start({ ...candidates, output_options: { prompt_logprobs: 0 } });
		await done;
		expect(engine.requests.at(-1)).toMatchObject({ logprobs: 0, sampling: { n: 3 } });
		engine.emit({ index: 0, tokenIds: [10], logProbs: [-2], topLogprobs: [[]], promptLogprobs: [null] });
		engine.emit({ index: 1, tokenIds: [11], logProbs: [-1], topLogprobs: [[]] });
		engine.emit({ index: 2, tokenIds: [12], logProbs: [-0.5], topLogprobs: [[]], finishReason: "eos", ...USAGE });
		engine.emit({ index: 1, tokenIds: [5], logProbs: [-0.9], topLogprobs: [[]], finishReason: "length", ...USAGE });
		expect(response.items).toEqual([]);
		engine.emit({ index: 0, tokenIds: [6], logProbs: [-0.1], topLogprobs: [[]], finishReason: "length", ...USAGE });
		const completion_usage = {
			prompt_tokens: 3,
			completion_tokens: 5,
			total_tokens: 8,
			prompt_tokens_details: { audio_tokens: null, cached_tokens: 2 },
		};
		expect(response.items).toEqual([
			{
				token_ids: [12],
				index: 0,
				finish_reason: "eos",
				completion_usage,
				engine_data: { prompt_logprobs: [null] },
			},
			{
				token_ids: [11, 5],
				index: 1,
				finish_reason: "length",
				completion_usage,
				engine_data: { prompt_logprobs: [null] },
			},
		]);
		expect(response.ended).toBe(1);
	});

	test("log-probabilities go along when the client wants them", async () => {
		const { engine, start } = setUp();
		const { response, done } = start({ sampling_options: { best_of: 2 }, output_options: { logprobs: 0 } });
		await done;
		for (const index of [0, 1]) {
			engine.emit({ index, tokenIds: [7], logProbs: [-index], topLogprobs: [[]], finishReason: "length" });
		}
		expect(response.items).toEqual([
			{ token_ids: [7], tokens: ["<7>"], log_probs: [-0], top_logprobs: [[]], finish_reason: "length" },
		]);
	});

	test("what stands behind a stop string does not count, and is not waited for", async () => {
		const { engine, start } = setUp();
		const { response, done } = start({
			...candidates,
			sampling_options: { best_of: 2 },
			stop_conditions: { stop: ["<9>"], min_tokens: 2 },
		});
		await done;
		// Too early to stop here.
		engine.emit({ index: 0, tokenIds: [9], logProbs: [-1], topLogprobs: [[]] });
		engine.emit({ index: 0, tokenIds: [9], logProbs: [-1], topLogprobs: [[]] });
		engine.emit({ index: 0, tokenIds: [50], logProbs: [-100], topLogprobs: [[]] });
		engine.emit({ index: 1, tokenIds: [7, 9, 8], logProbs: [-3, -3, 0], topLogprobs: [[], [], []] });
		expect(response.items).toEqual([{ token_ids: [9, 9], finish_reason: "stop" }]);
		expect(response.ended).toBe(1);
		expect(engine.aborted).toEqual([engine.requests.at(-1)?.requestId]);
	});

	test("an error of one is the error of all; a stop by the client ends with what there is", async () => {
		const { engine, start } = setUp();
		const failed = start(candidates);
		await failed.done;
		engine.emit({ index: 2, finishReason: "error", error: { code: "internal", message: "why" } });
		expect(failed.response.error?.errorClass).toBe("Internal");
		expect(engine.aborted).toContain(engine.requests.at(-1)?.requestId);
		const stopped = start(candidates);
		await stopped.done;
		engine.emit({ index: 1, tokenIds: [7], logProbs: [-1], topLogprobs: [[]] });
		stopped.request.cancel("stop", stopped.response);
		for (const index of [0, 1, 2]) engine.emit({ index, finishReason: "cancelled" });
		expect(stopped.response.items.map((item) => item.finish_reason)).toEqual(["cancelled", "cancelled"]);
		expect(stopped.response.ended).toBe(1);
	});
});

describe("cancelling", () => {
	test.each(["kill", "disconnect"] as const)("%s aborts in the engine and sends nothing more", (kind) => {
		const { engine, start } = setUp();
		const { request, response } = start();
		engine.emit({ tokenIds: [7] });
		request.cancel(kind, response);
		expect(engine.aborted).toEqual([engine.requests[0]!.requestId]);
		engine.emit({ finishReason: "cancelled" });
		expect(response.items).toHaveLength(1);
		expect(response).toMatchObject({ ended: 0, error: undefined });
	});

	test("before the first token", () => {
		const { engine, start } = setUp();
		const { request, response } = start();
		request.cancel("kill", response);
		expect(engine.aborted).toHaveLength(1);
	});

	test("stop ends the stream in order", () => {
		const { engine, start } = setUp();
		const { request, response } = start();
		engine.emit({ tokenIds: [7] });
		request.cancel("stop", response);
		expect(response.ended).toBe(0);
		engine.emit({ finishReason: "cancelled", promptTokens: 3, completionTokens: 1, cachedTokens: 0 });
		expect(response.items.at(-1)).toMatchObject({ token_ids: [], finish_reason: "cancelled" });
		expect(response.ended).toBe(1);
	});

	test("a kill after the end does nothing", () => {
		const { engine, start } = setUp();
		const { request, response } = start();
		engine.emit({ tokenIds: [7], finishReason: "length" });
		request.cancel("kill", response);
		expect(engine.aborted).toEqual([]);
	});
});

describe("errors", () => {
	test.each([
		["invalid_argument", "InvalidArgument", undefined],
		["context_length_exceeded", "InvalidArgument", "context_length_exceeded"],
		["overloaded", "WorkerOverloaded", undefined],
		["internal", "Internal", undefined],
		["engine_failed", "Unavailable", undefined],
	] as const)("%s of the engine", (code, errorClass, openAiCode) => {
		const { engine, start } = setUp();
		const { response } = start();
		engine.emit({ finishReason: "error", error: { code, message: "why" } });
		expect(response.error).toMatchObject({ errorClass, code: openAiCode });
		expect(response.error?.message).toContain("why");
	});

	test("the text of an internal error stays inside", () => {
		const { engine, start } = setUp();
		const { response } = start();
		engine.emit({ finishReason: "error", error: { code: "internal", message: "/secret/path" } });
		expect(response.error?.publicMessage).toBeUndefined();
	});

	test("of one choice ends the others", () => {
		const { engine, start } = setUp();
		const { response } = start({ sampling_options: { n: 2 } });
		engine.emit({ index: 1, finishReason: "error", error: { code: "internal", message: "why" } });
		expect(engine.aborted).toHaveLength(1);
		engine.emit({ index: 0, finishReason: "cancelled" });
		expect(response.items).toEqual([]);
		expect(response.error?.errorClass).toBe("Internal");
	});

	test("an engine that closes lets the request go elsewhere", async () => {
		const { engine, start } = setUp();
		const { response } = start();
		await engine.close();
		expect(response.error?.reason).toBe("backend.engine_shutdown");
		const late = start();
		expect(late.response.error?.reason).toBe("backend.engine_shutdown");
	});

	test("a bad request is thrown for the runtime to answer", () => {
		const { engine, start } = setUp();
		expect(() => start({ token_ids: [] })).toThrow(/prompt is empty/);
		expect(engine.requests).toEqual([]);
	});
});
