// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { http } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { sendAll } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

interface Recorded {
	readonly http_path: string;
	readonly http_request: Record<string, unknown>;
	readonly worker_bodies: Record<string, unknown>[];
	readonly http_response: string;
}

/** Requests to Dynamo 1.6.1 and what its worker received. */
const recorded = JSON.parse(
	readFileSync(new URL("../fixtures/preprocessed-requests.json", import.meta.url), "utf8"),
) as Record<string, Recorded>;
const cases = Object.entries(recorded).filter(([, { http_path }]) => http_path !== "/v1/responses");

const ROUNDED = ["presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p"];

/** The recording went over the wire, where floats have 32 bits. */
function asOnTheWire(body: Record<string, unknown>): Record<string, unknown> {
	const copy = JSON.parse(JSON.stringify(body, (_key, value) => (typeof value === "bigint" ? Number(value) : value)));
	for (const name of ROUNDED) {
		const value = copy.sampling_options[name];
		if (typeof value === "number") copy.sampling_options[name] = Math.fround(value);
	}
	return copy;
}

/** Keys of all levels, in order. */
function keys(value: unknown): unknown {
	if (Array.isArray(value) || typeof value !== "object" || value === null) return null;
	return Object.entries(value).map(([key, inner]) => [key, keys(inner)]);
}

let stack: Stack;
beforeEach(async () => {
	stack = await startStack();
});
afterEach(() => stack.close());

const folder = process.env.DYNAMO_TEST_MODEL_HF;

describe.skipIf(folder === undefined)("with the real model's files (DYNAMO_TEST_MODEL_HF)", () => {
	it.each(cases)("%s: the worker gets what Dynamo's worker got", async (_name, recording) => {
		const worker = await stack.worker({
			model: "tsagg",
			folder: folder as string,
			script: sendAll([28120, 905]),
			card: { runtime_config: {} },
		});
		const answer = await http(stack.url + recording.http_path, { body: recording.http_request });
		expect(answer.status, answer.body).toBe(200);
		const sum = worker.calls[0]?.body.mdc_sum;
		const got = worker.calls.map(({ body }) => asOnTheWire(body as never));
		const expected = recording.worker_bodies.map((body) => ({ ...body, mdc_sum: sum }));
		for (const body of got) {
			// Ours; Dynamo does not forward it.
			if ("logit_bias" in recording.http_request) delete (body.sampling_options as { logit_bias?: unknown }).logit_bias;
		}
		expect(got).toEqual(expected);
		expect(got.map(keys)).toEqual(expected.map(keys));
		const usage = JSON.parse(recording.http_response).usage;
		expect(answer.json.usage.prompt_tokens).toBe(usage.prompt_tokens);
	});

	it("the folder is a model folder", () => {
		expect(readFileSync(join(folder as string, "tokenizer.json")).length).toBeGreaterThan(0);
	});
});

describe("fields that Dynamo does not send on, or not like that", () => {
	it("logit_bias goes with the sampling options", async () => {
		const worker = await stack.worker({ script: sendAll([70]) });
		await http(stack.chat, { body: chatBody({ logit_bias: { 50: 10, 70: -100 } }) });
		await http(stack.chat, { body: chatBody({ logit_bias: {} }) });
		expect(worker.calls.map(({ body }) => body.sampling_options.logit_bias)).toEqual([{ 50: 10, 70: -100 }, undefined]);
	});

	it("stop ids: from stop_token_ids and from stop; looked for here even with ignore_eos", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens([70, 71, 72]) });
		const completions = async (more: Record<string, unknown>) =>
			(await http(stack.chat, { body: chatBody(more) })).json.usage.completion_tokens;
		expect(await completions({ stop_token_ids: [71] })).toBe(2);
		expect(await completions({ stop: [72], stop_token_ids: [90] })).toBe(3);
		expect(await completions({ stop_token_ids: [71], ignore_eos: true })).toBe(2);
		expect(worker.calls.map(({ body }) => body.stop_conditions)).toMatchObject([
			{ stop: null, stop_token_ids: [71], stop_token_ids_hidden: [2], ignore_eos: null },
			{ stop: null, stop_token_ids: [90, 72], stop_token_ids_hidden: [2] },
			{ stop_token_ids: null, stop_token_ids_hidden: null, ignore_eos: true },
		]);
	});

	it.each([
		[{ guided_regex: "a+" }, { regex: "a+" }],
		[{ guided_choice: ["a", "b"] }, { choice: ["a", "b"] }],
		[{ guided_grammar: "root ::= a" }, { grammar: "root ::= a" }],
		[{ guided_json: { type: "object" } }, { json: { type: "object" } }],
		[{ response_format: { type: "json_object" } }, { json: { type: "object" } }],
		[{ response_format: { type: "text" } }, null],
	])("%j constrains as %j", async (more, expected) => {
		const worker = await stack.worker({ script: sendAll([70]) });
		await http(stack.chat, { body: chatBody(more) });
		expect(worker.calls[0]?.body.sampling_options.guided_decoding).toEqual(expected);
	});

	const fn = (name: string, parameters?: unknown): unknown => ({ type: "function", function: { name, parameters } });
	const defined = { type: "object", properties: { a: { $ref: "#/$defs/q" } }, $defs: { q: { type: "number" } } };
	const callOf = (name: string, parameters: unknown): unknown => ({
		properties: { name: { type: "string", enum: [name] }, parameters },
		required: ["name", "parameters"],
	});

	it.each([
		["none", { tools: [fn("f")], tool_choice: "auto" }, null],
		[
			"one function",
			{ tools: [fn("f", defined)], tool_choice: { type: "function", function: { name: "f" } } },
			defined,
		],
		[
			"any function",
			{ tools: [fn("f"), fn("g", {})], tool_choice: "required" },
			{
				type: "array",
				minItems: 1,
				items: { type: "object", anyOf: [callOf("f", { type: "object", properties: {} }), callOf("g", {})] },
			},
		],
		[
			"one call, definitions at the root",
			{
				tools: [fn("f", defined)],
				tool_choice: "required",
				parallel_tool_calls: false,
				response_format: { type: "json_object" },
			},
			{
				type: "array",
				minItems: 1,
				items: { type: "object", anyOf: [callOf("f", { type: "object", properties: defined.properties })] },
				maxItems: 1,
				$defs: defined.$defs,
			},
		],
	])("a tool choice constrains the text: %s", async (_name, more, expected) => {
		const worker = await stack.worker({ script: sendAll([70]) });
		expect((await http(stack.chat, { body: chatBody(more) })).status).toBe(200);
		const json = worker.calls[0]?.body.sampling_options.guided_decoding;
		expect(JSON.stringify(json)).toBe(JSON.stringify(expected === null ? null : { json: expected }));
	});

	it.each([
		["a guided_* field beside a required call", { tools: [fn("f")], tool_choice: "required", guided_regex: "a" }],
		[
			"definitions that contradict each other",
			{ tools: [fn("f", defined), fn("g", { $defs: { q: {} } })], tool_choice: "required" },
		],
		["content without parts", { messages: [{ role: "user", content: [] }] }],
		["a worker that is not there", { nvext: { decode_worker_id: 5 } }],
		["a rank without its worker", { nvext: { dp_rank: 0 } }],
	])("%s: 400", async (_name, more) => {
		const worker = await stack.worker({ script: sendAll([70]) });
		const answer = await http(stack.chat, { body: chatBody(more) });
		expect([answer.status, answer.json.message]).toEqual([400, "Invalid request"]);
		expect(worker.calls).toHaveLength(0);
	});

	it.each([
		[{ top_k: 0 }, { sampling_options: { top_k: -1 } }],
		[{ stop_token_ids: [] }, { stop_conditions: { stop_token_ids: [] } }],
		[{ logprobs: true }, { output_options: { logprobs: 1 } }],
		[{ logprobs: true, top_logprobs: 0 }, { output_options: { logprobs: 0 } }],
		[
			{ allowed_token_ids: [5], detokenize: true },
			{ extra_args: { sampling_options: { detokenize: true, allowed_token_ids: [5] } } },
		],
		[{ cache_salt: "root" }, { routing: { cache_salt: "root" }, extra_args: { nvext: { cache_salt: "root" } } }],
		[
			{ mm_processor_kwargs: { a: 1 }, media_io_kwargs: {} },
			{ mm_processor_kwargs: { a: 1 }, media_io_kwargs: {} },
		],
		[{ nvext: { request_timestamp_ms: 5.5, router: {} } }, { request_timestamp_ms: 5.5, router: {} }],
		[{ nvext: { token_data: [5, 6] } }, { token_ids: [5, 6], extra_args: { nvext: { token_in: true } } }],
		[{ nvext: { agent_hints: { latency_sensitivity: 2.5 } } }, { routing: { priority_jump: 2.5 } }],
		[
			{ nvext: { agent_hints: { priority: -3, strict_priority: 2 } } },
			{ routing: { priority_jump: 0, strict_priority: 2, priority: -3 } },
		],
	])("%j is sent on", async (more, expected) => {
		const worker = await stack.worker({ script: sendAll([70]) });
		expect((await http(stack.chat, { body: chatBody(more) })).status).toBe(200);
		expect(worker.calls[0]?.body).toMatchObject(expected);
	});

	it("routing headers win over nvext; those that are no numbers are ignored", async () => {
		const worker = await stack.worker({ script: sendAll([70]) });
		const id = worker.record.instance_id;
		const ask = async (headers: Record<string, string>, nvext = {}): Promise<unknown> => {
			expect((await http(stack.chat, { headers, body: chatBody({ nvext }) })).status).toBe(200);
			return worker.calls.at(-1)?.body.routing;
		};
		const pinned = { backend_instance_id: id, decode_worker_id: id };
		expect(await ask({ "x-dynamo-worker-instance-id": String(id) }, { decode_worker_id: 7 })).toEqual(pinned);
		expect(await ask({ "x-dynamo-worker-instance-id": String(id), "x-dynamo-dp-rank": "1" })).toEqual({
			...pinned,
			dp_rank: 1,
		});
		expect(await ask({ "x-dynamo-prefill-instance-id": "5", "x-dynamo-prefill-dp-rank": "2" })).toEqual({
			prefill_worker_id: 5n,
			prefill_dp_rank: 2,
		});
		expect(await ask({ "x-dynamo-worker-instance-id": "zz", "x-dynamo-dp-rank": "-1" })).toEqual({});
	});

	it("completions: token_data takes the place of the prompt, U+0000 is left out, no_stop_trim goes along", async () => {
		const worker = await stack.worker({ script: sendAll([70]) });
		const ask = async (more: Record<string, unknown>) => {
			expect((await http(stack.completions, { body: { model: MODEL, ...more } })).status).toBe(200);
			return worker.calls.at(-1)?.body;
		};
		expect(await ask({ prompt: "x", nvext: { token_data: [5, 6] } })).toMatchObject({ token_ids: [5, 6] });
		expect((await ask({ prompt: "a\0b" }))?.token_ids).toEqual((await ask({ prompt: "ab" }))?.token_ids);
		expect(Object.keys((await ask({ prompt: "x", no_stop_trim: false }))?.output_options ?? {})[0]).toBe(
			"no_stop_trim",
		);
	});

	it("greed_sampling, token_data, max_thinking_tokens and cache_salt of nvext", async () => {
		const worker = await stack.worker({ script: sendAll([70]) });
		const nvext = { greed_sampling: true, token_data: [5, 6, 7], max_thinking_tokens: 9, cache_salt: "s" };
		await http(stack.chat, { body: chatBody({ temperature: 1, top_p: 0.5, nvext }) });
		expect(worker.calls[0]?.body).toMatchObject({
			token_ids: [5, 6, 7],
			sampling_options: { temperature: 0, top_p: null },
			stop_conditions: { max_thinking_tokens: 9 },
			routing: { cache_salt: "s" },
			extra_args: { nvext: { cache_salt: "s" } },
		});
	});

	it.each([[{ detokenize: false }, "detokenize"]])("%j is refused by name", async (more, param) => {
		await stack.worker({ script: sendAll([70]) });
		const answer = await http(stack.chat, { body: chatBody(more) });
		expect([answer.status, answer.json.error.param]).toEqual([400, param]);
	});

	it("continue_final_message: the prompt ends inside the last message", async () => {
		const worker = await stack.worker({ script: sendAll([70]) });
		const messages = [
			{ role: "user", content: "Hi" },
			{ role: "assistant", content: " the capital" },
		];
		const body = { messages, continue_final_message: true, add_generation_prompt: false };
		const answer = await http(stack.chat, { body: chatBody(body) });
		expect(answer.status, answer.body).toBe(200);
		expect(worker.calls[0]?.body.token_ids.at(-1)).not.toBe(2);
	});

	it("a template that refuses: 400 without the inside", async () => {
		await stack.worker({ script: sendAll([70]) });
		const messages = [{ role: "assistant", content: null, tool_calls: [] }];
		const answer = await http(stack.chat, { body: chatBody({ messages }) });
		expect([answer.status, answer.json.message]).toEqual([400, "Invalid request"]);
	});
});
