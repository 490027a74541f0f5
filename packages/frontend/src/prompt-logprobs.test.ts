// SPDX-License-Identifier: Apache-2.0
import type { WirePromptLogprobs } from "@dynamo-ts/protocols/internal";
import { http, openStream, type SseStream } from "@dynamo-ts/testing/internal";
import { Tokenizer } from "@dynamo-ts/tokenizers";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { ScriptedCall } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack, TINY_MODEL } from "./test-support/stack.js";

let stack: Stack;
let tokenizer: Tokenizer;
let prompt: number[];
let answer: number[];
const PROMPT = " the é of";

beforeEach(async () => {
	stack = await startStack();
	tokenizer = await Tokenizer.fromFile(`${TINY_MODEL}/tokenizer.json`);
	prompt = await tokenizer.encode(PROMPT);
	answer = await tokenizer.encode(" Hello world");
});
afterEach(() => stack.close());

const ofPrompt = (): WirePromptLogprobs =>
	prompt.map((id, i) =>
		i === 0
			? null
			: { [id]: { logprob: -i, rank: 3 }, "263": { logprob: -0.5, rank: 1 }, "268": { logprob: -0.75, rank: 2 } },
	);

/** Tokens with log-probabilities; those of the prompt with the item of that number. */
function play(call: ScriptedCall, withItem: number): void {
	const engine_data = { prompt_logprobs: ofPrompt() };
	const items = [
		...answer.map((id) => ({ token_ids: [id], log_probs: [-0.25] })),
		{ finish_reason: "length" as const },
	];
	for (const [i, item] of items.entries()) call.send(i === withItem ? { ...item, engine_data } : item);
	call.end();
}

/** The chunks of a stream that has ended. */
function chunksOf(stream: SseStream): Record<string, unknown>[] {
	const lines = stream
		.text()
		.split("\n")
		.filter((line) => line.startsWith("data: {"));
	return lines.map((line) => JSON.parse(line.slice("data: ".length)));
}

/** The four lists of a completion's logprobs, joined over chunks. */
function joined(chunks: { choices: { logprobs?: Record<string, unknown[]> }[] }[]): Record<string, unknown[]> {
	const all: Record<string, unknown[]> = {};
	for (const { choices } of chunks) {
		for (const [name, list] of Object.entries(choices[0]?.logprobs ?? {})) all[name] = [...(all[name] ?? []), ...list];
	}
	return all;
}

describe("echo with logprobs", () => {
	it.each([0, 2])(
		"shows the prompt's tokens before the others, whole and streamed (they come with item %i)",
		async (at) => {
			const worker = await stack.worker({ script: (call) => play(call, at) });
			const body = { model: MODEL, prompt: PROMPT, echo: true, logprobs: 1 };
			const whole = await http(stack.completions, { body });
			expect(worker.calls[0]?.body.output_options).toMatchObject({ logprobs: 1, prompt_logprobs: 1 });
			const [choice] = whole.json.choices;
			expect(choice.text).toBe(`${PROMPT} Hello world`);
			expect(choice).not.toHaveProperty("prompt_logprobs");
			const { tokens, token_logprobs, top_logprobs, text_offset } = choice.logprobs;
			expect(token_logprobs).toEqual([null, ...prompt.slice(1).map((_, i) => -(i + 1)), -0.25, -0.25]);
			expect(tokens.slice(-2)).toEqual([" Hello", " world"]);
			expect(tokens).toHaveLength(prompt.length + 2);
			expect(top_logprobs[0]).toBeNull();
			expect(top_logprobs[1]).toEqual({ " Hello": -0.5, [tokens[1]]: -1 });
			// Each token's text begins where its offset says; é is two tokens of one character.
			for (const [i, token] of tokens.entries()) {
				if (!token.includes("\ufffd")) expect(choice.text.slice(text_offset[i]).startsWith(token)).toBe(true);
			}
			expect(text_offset.at(-2)).toBe(PROMPT.length);
			const stream = await openStream(
				stack.completions,
				{ ...body, stream: true },
				{ kind: "completions", logprobs: true },
			);
			const summary = await stream.finished();
			expect(summary.choices[0]?.text).toBe(choice.text);
			expect(joined(chunksOf(stream) as never)).toEqual(choice.logprobs);
		},
	);

	it("names no number where the worker has none, and still lists every token", async () => {
		await stack.worker({ script: (call) => play(call, -1) });
		const body = { model: MODEL, prompt, echo: true, logprobs: 0, n: 2, temperature: 1 };
		const whole = await http(stack.completions, { body });
		expect(whole.json.choices[0].text).toBe(`${PROMPT} Hello world`);
		expect(whole.json.choices[0].logprobs.token_logprobs).toEqual([...prompt.map(() => null), -0.25, -0.25]);
	});

	it("keeps a client's larger prompt_logprobs, and shows both", async () => {
		const worker = await stack.worker({ script: (call) => play(call, 0) });
		const body = { model: MODEL, prompt: PROMPT, echo: true, logprobs: 1, prompt_logprobs: 4 };
		const { json } = await http(stack.completions, { body });
		expect(worker.calls[0]?.body.output_options).toMatchObject({ logprobs: 1, prompt_logprobs: 4 });
		expect(json.choices[0].prompt_logprobs).toEqual(ofPrompt());
		expect(json.choices[0].logprobs.tokens).toHaveLength(prompt.length + 2);
	});
});

describe("prompt_logprobs", () => {
	it("stand in each choice of a completion, in streams where it finishes", async () => {
		await stack.worker({ script: (call) => play(call, 0) });
		const body = { model: MODEL, prompt: [PROMPT, PROMPT], prompt_logprobs: 2 };
		const whole = await http(stack.completions, { body });
		expect(whole.json.choices.map((choice: Record<string, unknown>) => choice.prompt_logprobs)).toEqual([
			ofPrompt(),
			ofPrompt(),
		]);
		const stream = await openStream(
			stack.completions,
			{ ...body, prompt: PROMPT, stream: true },
			{ kind: "completions", choices: 1 },
		);
		await stream.finished();
		const with_ = (chunksOf(stream) as Record<string, Record<string, unknown>[]>[]).filter(
			({ choices }) => choices?.[0]?.prompt_logprobs !== undefined,
		);
		expect(with_).toHaveLength(1);
		expect(with_[0]?.choices?.[0]?.finish_reason).toBe("length");
	});

	it("of a chat stream come with its end", async () => {
		await stack.worker({ script: (call) => play(call, 0) });
		const stream = await openStream(stack.chat, chatBody({ stream: true, prompt_logprobs: 2 }), { kind: "chat" });
		await stream.finished();
		const with_ = chunksOf(stream).filter((chunk) => "prompt_logprobs" in chunk);
		expect(with_).toHaveLength(1);
		expect(with_[0]).toMatchObject({ prompt_logprobs: ofPrompt(), choices: [{ finish_reason: "length" }] });
	});

	it("of another form are the worker's fault", async () => {
		await stack.worker({
			script: (call) => call.send({ token_ids: [5], engine_data: { prompt_logprobs: [3] as never } }).end(),
		});
		expect((await http(stack.chat, { body: chatBody({ prompt_logprobs: 2 }) })).status).toBe(500);
	});
});

describe("best_of", () => {
	it("counts what the worker generated, not only what it sent", async () => {
		const worker = await stack.worker({
			script: (call) =>
				call
					.send({
						token_ids: answer,
						finish_reason: "length",
						completion_usage: { prompt_tokens: 4, completion_tokens: 9, total_tokens: 13 },
					})
					.end(),
		});
		const body = { model: MODEL, prompt: PROMPT, temperature: 1 };
		const best = await http(stack.completions, { body: { ...body, best_of: 3 } });
		expect(best.json.usage).toMatchObject({ completion_tokens: 9, total_tokens: 13 });
		expect(best.json.choices).toHaveLength(1);
		expect(worker.calls[0]?.body.sampling_options).toMatchObject({ n: null, best_of: 3 });
		const plain = await http(stack.completions, { body: { ...body, best_of: 1 } });
		expect(plain.json.usage.completion_tokens).toBe(answer.length);
	});

	it("cannot be streamed when it is more than n", async () => {
		await stack.worker({ script: (call) => play(call, -1) });
		const body = { model: MODEL, prompt: PROMPT, temperature: 1, stream: true };
		const refused = await http(stack.completions, { body: { ...body, n: 2, best_of: 3 } });
		expect(refused.status).toBe(400);
		expect(refused.json.error).toMatchObject({ param: "best_of", type: "invalid_request_error" });
		const stream = await openStream(stack.completions, { ...body, best_of: 1 }, { kind: "completions" });
		expect((await stream.finished()).done).toBe(true);
	});
});
