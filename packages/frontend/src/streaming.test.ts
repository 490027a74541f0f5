// SPDX-License-Identifier: Apache-2.0
import { join } from "node:path";
import { http, openStream } from "@dynamo-ts/testing/internal";
import { Tokenizer } from "@dynamo-ts/tokenizers";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { sendAll } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack, TINY_MODEL } from "./test-support/stack.js";

const EOS = 2;
let tokenizer: Tokenizer;
let hello: number[];
let stack: Stack;

beforeAll(async () => {
	tokenizer = await Tokenizer.fromFile(join(TINY_MODEL, "tokenizer.json"));
	hello = await tokenizer.encode(" Hello world is Paris");
});
beforeEach(async () => {
	stack = await startStack();
});
afterEach(() => stack.close());

/** Ids and times differ from run to run. */
function fixed(text: string): string {
	return text.replace(/(chatcmpl|cmpl)-[0-9a-f-]{36}/g, "$1-ID").replace(/"created":\d+/g, '"created":1');
}

describe("chat", () => {
	it("a stream has the bytes that Dynamo's has", async () => {
		await stack.worker({ script: sendAll(hello.slice(0, 2)) });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat", model: MODEL });
		await stream.finished();
		expect(stream.status).toBe(200);
		expect(stream.headers).toMatchObject({
			"content-type": "text/event-stream",
			"cache-control": "no-cache",
			"x-accel-buffering": "no",
			"transfer-encoding": "chunked",
		});
		const tail = '],"created":1,"model":"tiny","object":"chat.completion.chunk"}\n\n';
		const head = 'data: {"id":"chatcmpl-ID","choices":[{"index":0,"delta":';
		expect(fixed(stream.text())).toBe(
			`${head}{"content":" Hello","role":"assistant"},"finish_reason":null,"logprobs":null}${tail}` +
				`${head}{"content":" world"},"finish_reason":null,"logprobs":null}${tail}` +
				`${head}{},"finish_reason":"length","logprobs":null}${tail}` +
				"data: [DONE]\n\n",
		);
	});

	it("an answer in one piece has the bytes that Dynamo's has", async () => {
		await stack.worker({
			script: (call) =>
				call
					.send({
						token_ids: hello.slice(0, 2),
						completion_usage: {
							prompt_tokens: 1,
							completion_tokens: 1,
							total_tokens: 2,
							prompt_tokens_details: { audio_tokens: null, cached_tokens: 3 },
						},
					})
					.finish("stop")
					.end(),
		});
		const answer = await http(stack.chat, { body: chatBody() });
		expect(answer.status).toBe(200);
		expect(answer.headers["content-type"]).toBe("application/json");
		const prompt = answer.json.usage.prompt_tokens;
		expect(fixed(answer.body)).toBe(
			'{"id":"chatcmpl-ID","choices":[{"index":0,"message":{"content":" Hello world","refusal":null,"role":"assistant"},' +
				'"finish_reason":"stop","logprobs":null}],"created":1,"model":"tiny","object":"chat.completion",' +
				`"usage":{"prompt_tokens":${prompt},"completion_tokens":2,"total_tokens":${prompt + 2},"prompt_tokens_details":{"cached_tokens":3}}}`,
		);
	});

	it.each([
		["no usage", {}, {}, {}],
		["include_usage", { stream_options: { include_usage: true } }, { includeUsage: true }, {}],
		[
			"continuous without include_usage: none, as in Dynamo",
			{ stream_options: { continuous_usage_stats: true } },
			{},
			{},
		],
		[
			"both",
			{ stream_options: { include_usage: true, continuous_usage_stats: true } },
			{ includeUsage: true, continuousUsage: true },
			{},
		],
		["forced", {}, { includeUsage: true }, { forceIncludeUsage: true }],
	])("usage mode: %s", async (_name, request, expectations, config) => {
		if (Object.keys(config).length > 0) {
			await stack.close();
			stack = await startStack(config);
		}
		await stack.worker({ script: sendAll(hello) });
		const stream = await openStream(stack.chat, chatBody({ stream: true, ...request }), {
			kind: "chat",
			...expectations,
		});
		const summary = await stream.finished();
		const unary = await http(stack.chat, { body: chatBody() });
		if ("includeUsage" in expectations) expect(summary.usage).toEqual(unary.json.usage);
		expect(summary.choices[0]?.text).toBe(unary.json.choices[0].message.content);
	});

	it("a stop string ends the stream, cancels the worker and does not leak", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens(hello) });
		const body = chatBody({ stream: true, stop: ["o world is", "zzz"] });
		const summary = await (await openStream(stack.chat, body, { kind: "chat" })).finished();
		expect(summary.choices[0]).toMatchObject({ text: " Hell", finishReason: "stop" });
		expect(await (await worker.call(0)).cancelled).toBe("kill");
	});

	it("EOS ends the stream and cancels the worker", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens([hello[0] as number, EOS, ...hello]) });
		const summary = await (await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" })).finished();
		expect(summary.choices[0]).toMatchObject({ text: " Hello", finishReason: "stop" });
		await (await worker.call(0)).cancelled;
	});

	it("a choice that ends at once still has its role and finish reason", async () => {
		await stack.worker({ script: sendAll([], "stop") });
		const summary = await (await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" })).finished();
		expect(summary.choices[0]).toMatchObject({ text: "", role: "assistant", finishReason: "stop" });
	});

	it("a worker that gives no finish reason has finished when its stream is complete", async () => {
		await stack.worker({ script: (call) => call.tokens(hello).end() });
		const summary = await (await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" })).finished();
		expect(summary.choices[0]?.finishReason).toBe("stop");
	});

	it("n=2: each choice has its own text, stop and logprobs", async () => {
		const worker = await stack.worker({
			script: (call) => {
				const [a, b, c, d] = hello as [number, number, number, number];
				call.tokens([a], 1).tokens([a], 0).tokens([b], 1).tokens([c], 0).tokens([d], 0);
				call.finish("length", 0).tokens([EOS], 1);
			},
		});
		const body = chatBody({ stream: true, n: 2, temperature: 1, stream_options: { include_usage: true } });
		const stream = await openStream(stack.chat, body, { kind: "chat", choices: 2, includeUsage: true });
		const summary = await stream.finished();
		expect(summary.choices.map(({ text, finishReason }) => [text, finishReason])).toEqual([
			[" Hello is Paris", "length"],
			[" Hello world", "stop"],
		]);
		expect(summary.usage?.completion_tokens).toBe(6);
		expect((await worker.call(0)).body.sampling_options.n).toBe(2);
		await (await worker.call(0)).cancelled;
		const unary = await http(stack.chat, { body: { ...body, stream: false, stream_options: undefined } });
		expect(unary.json.choices.map((c: { message: { content: string } }) => c.message.content)).toEqual([
			" Hello is Paris",
			" Hello world",
		]);
	});

	it("log-probabilities: one entry per token, the same in a stream and in one piece", async () => {
		const cut = await tokenizer.encode("é");
		await stack.worker({
			script: (call) => {
				for (const id of [...hello.slice(0, 1), ...cut, EOS]) {
					call.send({
						token_ids: [id],
						log_probs: [-0.25],
						top_logprobs: [[{ rank: 0, token_id: id, token: null, logprob: -0.25 }]],
					});
				}
			},
		});
		const request = chatBody({ logprobs: true, top_logprobs: 1 });
		const stream = await openStream(
			stack.chat,
			{ ...request, stream: true, stream_options: { include_usage: true } },
			{ kind: "chat", logprobs: true, includeUsage: true },
		);
		const summary = await stream.finished();
		const unary = await http(stack.chat, { body: request });
		expect(summary.choices[0]?.logprobs).toEqual(unary.json.choices[0].logprobs.content);
		expect(unary.json.choices[0].logprobs.content[0]).toEqual({
			token: " Hello",
			logprob: -0.25,
			token_id: hello[0],
			bytes: [...Buffer.from(" Hello")],
			top_logprobs: [{ token: " Hello", logprob: -0.25, bytes: [...Buffer.from(" Hello")] }],
		});
		expect(unary.json.usage.completion_tokens).toBe(4);
	});

	it("annotations come first, in comment lines", async () => {
		const worker = await stack.worker({ script: sendAll(hello) });
		const body = chatBody({
			stream: true,
			nvext: { annotations: ["formatted_prompt", "token_ids", "llm_metrics", "request_id"] },
		});
		const stream = await openStream(stack.chat, body, { kind: "chat" });
		const summary = await stream.finished();
		const id = summary.id?.replace("chatcmpl-", "");
		const { token_ids } = (await worker.call(0)).body;
		expect(summary.comments).toEqual([
			`"${id}"`,
			JSON.stringify(JSON.stringify(token_ids)),
			JSON.stringify("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
		]);
		expect(stream.text()).toMatch(/^event: request_id\n: "[^\n]*"\n\nevent: token_ids\n: "\[/);
		expect((await worker.call(0)).request.id).toBe(id);
	});

	it("nvext.extra_fields: the worker on every chunk, timings on the last", async () => {
		const worker = await stack.worker({ script: sendAll(hello) });
		const body = chatBody({ stream: true, nvext: { extra_fields: ["worker_id", "timing", "other"] } });
		const stream = await openStream(stack.chat, body, { kind: "chat" });
		await stream.finished();
		const chunks = stream
			.text()
			.split("\n\n")
			.filter((line) => line.startsWith("data: {"));
		const id = worker.served.record.instance_id.toString();
		expect(
			chunks.every((chunk) => chunk.includes(`"worker_id":{"prefill_worker_id":${id},"decode_worker_id":${id}}`)),
		).toBe(true);
		expect(chunks.filter((chunk) => chunk.includes('"timing":{"request_received_ms":'))).toEqual([chunks.at(-1)]);
	});
});

describe("completions", () => {
	it("a stream has the bytes that Dynamo's has", async () => {
		await stack.worker({ script: sendAll(hello.slice(0, 2)) });
		const body = { model: MODEL, prompt: " the", stream: true };
		const stream = await openStream(stack.completions, body, { kind: "completions" });
		await stream.finished();
		const head = 'data: {"id":"cmpl-ID","choices":[{"text":';
		const tail = '}],"created":1,"model":"tiny","system_fingerprint":null,"object":"text_completion","usage":null}\n\n';
		expect(fixed(stream.text())).toBe(
			`${head}" Hello","index":0${tail}${head}" world","index":0${tail}` +
				`${head}"","index":0,"finish_reason":"length"${tail}data: [DONE]\n\n`,
		);
	});

	it("an answer in one piece has the bytes that Dynamo's has", async () => {
		await stack.worker({ script: sendAll(hello.slice(0, 2)) });
		const answer = await http(stack.completions, { body: { model: MODEL, prompt: " the" } });
		expect(fixed(answer.body)).toBe(
			'{"id":"cmpl-ID","choices":[{"text":" Hello world","index":0,"finish_reason":"length"}],"created":1,"model":"tiny",' +
				'"system_fingerprint":null,"object":"text_completion","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}',
		);
	});

	it.each([
		["token ids", [1, 5, 6], [[1, 5, 6]]],
		["lists of token ids", [[5], [6, 7]], [[5], [6, 7]]],
	])("prompts as %s", async (_name, prompt, expected) => {
		const worker = await stack.worker({ script: sendAll(hello) });
		const answer = await http(stack.completions, { body: { model: MODEL, prompt } });
		expect(answer.status).toBe(200);
		expect(worker.calls.map(({ body }) => body.token_ids)).toEqual(expected);
		expect(answer.json.usage).toMatchObject({
			prompt_tokens: expected.flat().length,
			completion_tokens: hello.length * expected.length,
		});
	});

	it("several prompts: one worker request each, ids and indexes by prompt", async () => {
		const worker = await stack.worker({
			script: (call) => {
				const text = tokenizer.decode(call.body.token_ids);
				tokenizer.encode(text + text).then((ids) => sendAll(ids)(call));
			},
		});
		const body = { model: MODEL, prompt: [" the", " of"], stream: true, n: 1 };
		const stream = await openStream(stack.completions, body, { kind: "completions", choices: 2, idPerChoice: true });
		const summary = await stream.finished();
		expect(summary.choices.map(({ index, text }) => [index, text])).toEqual([
			[0, " the the"],
			[1, " of of"],
		]);
		expect(worker.calls.map(({ request }) => request.id.slice(-2))).toEqual(["-0", "-1"]);
		const unary = await http(stack.completions, { body: { ...body, stream: false } });
		expect(unary.json.choices.map((choice: { text: string }) => choice.text)).toEqual([" the the", " of of"]);
	});

	it("echo shows the prompt first", async () => {
		await stack.worker({ script: sendAll(hello.slice(0, 1)) });
		const body = { model: MODEL, prompt: " the", echo: true };
		expect((await http(stack.completions, { body })).json.choices[0].text).toBe(" the Hello");
		const stream = await openStream(stack.completions, { ...body, stream: true }, { kind: "completions" });
		expect((await stream.finished()).choices[0]?.text).toBe(" the Hello");
	});

	it("several prompts: each is shown once, before what is its own; annotations come once", async () => {
		await stack.worker({ script: sendAll(hello.slice(0, 1)) });
		const body = { model: MODEL, prompt: [" the", " of"], echo: true };
		const texts = [" the Hello", " of Hello"];
		const answer = await http(stack.completions, { body });
		expect(answer.json.choices.map(({ text }: { text: string }) => text)).toEqual(texts);
		const streamed = { ...body, stream: true, nvext: { annotations: ["request_id"] } };
		const options = { kind: "completions", choices: 2, idPerChoice: true } as const;
		const stream = await openStream(stack.completions, streamed, options);
		expect((await stream.finished()).choices.map(({ text }) => text)).toEqual(texts);
		expect(stream.text().split("event: request_id").length - 1).toBe(1);
	});

	it("suffix is refused, not ignored", async () => {
		await stack.worker({ script: sendAll(hello) });
		const answer = await http(stack.completions, { body: { model: MODEL, prompt: "a", suffix: "b" } });
		expect(answer.status).toBe(400);
		expect(answer.json.error).toMatchObject({ type: "invalid_request_error", param: "suffix" });
	});

	it("log-probabilities in the legacy shape", async () => {
		await stack.worker({
			script: (call) =>
				call
					.send({
						token_ids: hello.slice(0, 2),
						log_probs: [-1, -2],
						top_logprobs: [[{ rank: 0, token_id: 70, token: null, logprob: -1 }], []],
					})
					.finish("length")
					.end(),
		});
		const answer = await http(stack.completions, { body: { model: MODEL, prompt: "a", logprobs: 1 } });
		expect(answer.json.choices[0].logprobs).toEqual({
			tokens: [" Hello", " world"],
			token_logprobs: [-1, -2],
			top_logprobs: [{ [tokenizer.decode([70])]: -1, " Hello": -1 }, { " world": -2 }],
			text_offset: [0, 6],
		});
	});
});

describe("silence", () => {
	it("is filled with comment events where that is asked for", async () => {
		await stack.close();
		stack = await startStack({ sseKeepAliveIntervalMs: 5 });
		const worker = await stack.worker({ script: () => {} });
		const opening = openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		const call = await worker.call(0);
		const stream = await opening;
		await expect.poll(() => stream.validator.summary().comments.length).toBeGreaterThanOrEqual(3);
		sendAll(hello)(call);
		const summary = await stream.finished();
		expect(stream.text()).toContain(":\n\n");
		expect(summary.choices[0]?.text).toBe(tokenizer.decode(hello));
	});
});

describe("a slow reader", () => {
	it("makes the worker wait, and gets everything in the end", async () => {
		const total = 60_000;
		const id = hello[0] as number;
		let most = 0;
		const worker = await stack.worker({
			script: (call) => {
				let sent = 0;
				const pump = (): void => {
					most = Math.max(most, call.response.bufferedBytes);
					// Goes on only while little is waiting, as an engine that feels back-pressure would.
					for (let i = 0; i < 100 && call.response.bufferedBytes < 500 && sent < total; i++, sent++) call.tokens([id]);
					if (sent < total) setImmediate(pump);
					else call.finish("length").end();
				};
				pump();
			},
		});
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		stream.pause();
		const call = await worker.call(0);
		await expect.poll(() => call.response.bufferedBytes, { timeout: 20_000 }).toBeGreaterThanOrEqual(400);
		stream.resume();
		const summary = await stream.finished();
		expect(summary.choices[0]?.contentChunks).toBe(total);
		expect(most).toBeLessThan(2000);
	});
});
