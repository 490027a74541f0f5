// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import OpenAI, {
	APIError,
	BadRequestError,
	InternalServerError,
	NotFoundError,
	UnprocessableEntityError,
} from "openai";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { refuse, type Script, sendAll } from "./scripted-worker.js";
import { MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack;
let client: OpenAI;
let script: Script;

const begin = async (config: Parameters<typeof startStack>[0] = {}): Promise<void> => {
	stack = await startStack(config);
	client = new OpenAI({ baseURL: `${stack.url}/v1`, apiKey: "none", maxRetries: 0 });
	await stack.worker({ script: (call) => script(call) });
};

beforeEach(() => begin());
afterEach(() => stack.close());

const request = { model: MODEL, messages: [{ role: "user" as const, content: "Hi" }] };
const stream = { ...request, stream: true as const, stream_options: { include_usage: true } };

describe("the OpenAI SDK", () => {
	it("streams, and skips keep-alive comments", async () => {
		await stack.close();
		// Not for the others: a comment before a refusal would decide the status.
		await begin({ sseKeepAliveIntervalMs: 5 });
		script = (call) => setTimeout(() => sendAll([70, 71])(call), 30);
		let text = "";
		let finish: string | null = null;
		let tokens = 0;
		for await (const chunk of await client.chat.completions.create(stream)) {
			text += chunk.choices[0]?.delta.content ?? "";
			finish = chunk.choices[0]?.finish_reason ?? finish;
			tokens = chunk.usage?.completion_tokens ?? tokens;
		}
		expect({ text: text.length > 0, finish, tokens }).toEqual({ text: true, finish: "length", tokens: 2 });
	});

	it("puts the same answer together from a stream as it gets in one piece", async () => {
		script = sendAll([70, 71, 72], "stop");
		const whole = await client.chat.completions.create(request);
		const folded = await client.chat.completions.stream(stream).finalChatCompletion();
		expect(folded.choices[0]?.message.content).toBe(whole.choices[0]?.message.content);
		expect(folded.usage).toEqual(whole.usage);
		const completion = await client.completions.create({ model: MODEL, prompt: " the" });
		expect(completion.choices[0]?.text).toBe(whole.choices[0]?.message.content);
	});

	it("gets all choices, in a stream as in one piece, and usage of all of them", async () => {
		script = (call) => {
			call
				.tokens([70, 71], 0)
				.tokens([72], 1)
				.finish("length", 1)
				.tokens([73], 2)
				.finish("stop", 0)
				.finish("stop", 2)
				.end();
		};
		const several = { n: 3, temperature: 1 };
		const whole = await client.chat.completions.create({ ...request, ...several });
		expect(whole.choices.map(({ index, finish_reason }) => [index, finish_reason])).toEqual([
			[0, "stop"],
			[1, "length"],
			[2, "stop"],
		]);
		expect(new Set(whole.choices.map(({ message }) => message.content)).size).toBe(3);
		expect(whole.usage?.completion_tokens).toBe(4);
		const folded = await client.chat.completions.stream({ ...stream, ...several }).finalChatCompletion();
		const shown = (choices: typeof whole.choices): unknown =>
			choices.map(({ index, finish_reason, message }) => [index, finish_reason, message.content]);
		expect(shown(folded.choices)).toEqual(shown(whole.choices));
		expect(folded.usage).toEqual(whole.usage);
	});

	it("reads log-probabilities of both APIs, as many as tokens", async () => {
		script = (call) => {
			for (const [id, logprob] of [
				[70, -0.5],
				[71, -1],
			] as const) {
				const top = [
					{ rank: 0, token_id: id, token: null, logprob },
					{ rank: 1, token_id: 90, token: null, logprob: -2 },
				];
				call.send({ token_ids: [id], log_probs: [logprob], top_logprobs: [top] });
			}
			call.finish("stop").end();
		};
		const wanted = { logprobs: true, top_logprobs: 2 };
		const whole = await client.chat.completions.create({ ...request, ...wanted });
		const entries = whole.choices[0]?.logprobs?.content ?? [];
		expect(entries.map(({ logprob }) => logprob)).toEqual([-0.5, -1]);
		expect(entries.map(({ top_logprobs }) => top_logprobs.length)).toEqual([2, 2]);
		expect(entries.map(({ token }) => token).join("")).toBe(whole.choices[0]?.message.content);
		expect(Buffer.from(entries.flatMap(({ bytes }) => bytes ?? [])).toString()).toBe(whole.choices[0]?.message.content);
		const streamed: unknown[] = [];
		for await (const chunk of await client.chat.completions.create({ ...stream, ...wanted })) {
			streamed.push(...(chunk.choices[0]?.logprobs?.content ?? []));
		}
		expect(streamed).toEqual(entries);

		const completion = await client.completions.create({ model: MODEL, prompt: "a", logprobs: 2 });
		const { tokens, token_logprobs, top_logprobs, text_offset } = completion.choices[0]?.logprobs ?? {};
		expect(tokens?.join("")).toBe(completion.choices[0]?.text);
		expect(token_logprobs).toEqual([-0.5, -1]);
		expect(top_logprobs).toHaveLength(2);
		expect(text_offset).toEqual([0, tokens?.[0]?.length]);
	});

	it("gets one choice per prompt of a list", async () => {
		script = (call) => sendAll(call.body.token_ids.slice(-1), "stop")(call);
		const prompt = [[70], [71], [72]];
		const whole = await client.completions.create({ model: MODEL, prompt: prompt as unknown as number[][] });
		expect(whole.choices.map(({ index }) => index)).toEqual([0, 1, 2]);
		expect(whole.usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 3, total_tokens: 6 });
		const texts = ["", "", ""];
		for await (const chunk of await client.completions.create({ model: MODEL, prompt, stream: true })) {
			for (const { index, text } of chunk.choices) texts[index] += text;
		}
		expect(texts).toEqual(whole.choices.map(({ text }) => text));
	});

	it("lists models", async () => {
		const ids: string[] = [];
		for await (const model of client.models.list()) ids.push(model.id);
		expect(ids).toEqual([MODEL]);
		expect((await client.models.retrieve(MODEL)).owned_by).toBe("nvidia");
	});

	it.each([
		["a bad value", { ...request, temperature: 3 }, BadRequestError, 400],
		["a model that is not there", { ...request, model: "nope" }, NotFoundError, 404],
	] as const)("raises the right class for %s", async (_name, body, errorClass, status) => {
		script = sendAll([70]);
		const error = await client.chat.completions.create(body).catch((thrown: unknown) => thrown);
		expect(error).toBeInstanceOf(errorClass);
		expect(error).not.toBeInstanceOf(UnprocessableEntityError);
		expect((error as APIError).status).toBe(status);
	});

	it("reads code, param and message of a refusal", async () => {
		script = sendAll([70]);
		const long = { ...request, messages: [{ role: "user" as const, content: "é".repeat(300) }] };
		const error = (await client.chat.completions.create(long).catch((thrown: unknown) => thrown)) as APIError;
		expect(error).toBeInstanceOf(BadRequestError);
		expect(error).toMatchObject({ code: "context_length_exceeded", param: "messages", type: "invalid_request_error" });
		expect(error.message).toContain("maximum context length is 256 tokens");
	});

	it.each([
		[new DynamoError("Internal", "x"), 500],
		[new DynamoError("Disconnected", "x"), 503],
		[new DynamoError("WorkerOverloaded", "x"), 529],
	])("raises InternalServerError for %s", async (error, status) => {
		script = refuse(() => error);
		const thrown = await client.chat.completions.create(stream).catch((e: unknown) => e);
		expect(thrown).toBeInstanceOf(InternalServerError);
		expect((thrown as APIError).status).toBe(status);
	});

	it.each([
		["fails at once", []],
		["fails behind tokens of the same packet", [70, 71]],
	])("raises when a stream %s", async (_name, ids) => {
		script = (call) => call.tokens(ids).finish({ error: "inside" }).end();
		let chunks = 0;
		const reading = (async () => {
			for await (const chunk of await client.chat.completions.create(stream)) chunks += chunk.choices.length;
		})();
		const error = await reading.catch((thrown: unknown) => thrown);
		expect(error).toBeInstanceOf(APIError);
		expect(String(error)).not.toContain("inside");
		expect(chunks).toBe(ids.length);
	});

	it("raises when a stream breaks in the middle, and keeps what came before", async () => {
		script = (call) => {
			call.tokens([70, 71, 72]);
			setTimeout(() => call.fail(new DynamoError("Disconnected", "gone")), 20);
		};
		let chunks = 0;
		const reading = (async () => {
			for await (const chunk of await client.chat.completions.create(stream)) chunks += chunk.choices.length;
		})();
		await expect(reading).rejects.toThrow(APIError);
		expect(chunks).toBe(3);
	});

	it("leaving a stream cancels the worker", async () => {
		let cancelled: Promise<string> | undefined;
		script = (call) => {
			cancelled = call.cancelled;
			call.tokens([70, 71, 72]);
		};
		for await (const _chunk of await client.chat.completions.create(stream)) break;
		expect(await cancelled).toBe("kill");
	});
});
