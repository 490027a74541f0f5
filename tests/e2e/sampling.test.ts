// SPDX-License-Identifier: Apache-2.0
// Sampling options and log-probabilities from the client to the model and back, with a real small model.
import { type HttpChild, http, openStream, startOwnHttp, testModel, titled } from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const gguf = testModel("gguf");
const missing = gguf.missing;

interface Logprobs {
	tokens: string[];
	token_logprobs: (number | null)[];
	top_logprobs: (Record<string, number> | null)[];
	text_offset: number[];
}
interface Choice {
	index: number;
	text: string;
	finish_reason: string;
	logprobs: Logprobs;
}

const mean = (list: readonly (number | null)[]): number =>
	list.reduce((sum: number, value) => sum + (value ?? 0), 0) / list.length;
const idsOf = ({ tokens }: Logprobs): number[] => tokens.map((token) => Number(token.replace("token_id:", "")));

describe.skipIf(missing)(titled("sampling, end to end", missing), () => {
	let server: HttpChild;

	beforeAll(async () => {
		server = await startOwnHttp("serve", ["--model-name", "smol"], {}, "smol");
	}, 120_000);
	afterAll(async () => {
		await server?.child.stop();
	});

	async function complete(more: Record<string, unknown>) {
		const body = { model: "smol", prompt: "The capital of France is", max_tokens: 12, temperature: 0, ...more };
		const answer = await http(`${server.url}/v1/completions`, { body });
		expect([answer.status, answer.status === 200 ? "" : answer.body]).toEqual([200, ""]);
		return answer.json as { choices: Choice[]; usage: { completion_tokens: number; prompt_tokens: number } };
	}

	test("a text that was generated has the same log-probabilities as a prompt", async () => {
		const ids = { return_tokens_as_token_ids: true };
		const echoed = await complete({ ...ids, logprobs: 0, echo: true });
		const length = echoed.usage.prompt_tokens;
		const all = idsOf(echoed.choices[0]!.logprobs);
		expect(all).toHaveLength(length + echoed.usage.completion_tokens);
		// Twice: what is in the prefix cache has to be computed again.
		for (let i = 0; i < 2; i++) {
			const forced = await complete({ ...ids, prompt: all, logprobs: 2, echo: true, max_tokens: 1 });
			const { token_logprobs, top_logprobs } = forced.choices[0]!.logprobs;
			const expected = echoed.choices[0]!.logprobs.token_logprobs;
			expect(token_logprobs[0]).toBeNull();
			for (let at = 1; at < all.length; at++) {
				expect(Math.abs(token_logprobs[at]! - expected[at]!)).toBeLessThan(0.1);
				// Each is among its alternatives' names, which are at most the two asked for and itself.
				const top = top_logprobs[at]!;
				expect(Object.keys(top)).toContain(`token_id:${all[at]}`);
				expect(Object.keys(top).length).toBeLessThanOrEqual(3);
			}
		}
	});

	test("prompt_logprobs of a chat: one entry per token, the token itself in each", async () => {
		const body = { model: "smol", messages: [{ role: "user", content: "Hi" }], max_tokens: 2, prompt_logprobs: 1 };
		const { json } = await http(`${server.url}/v1/chat/completions`, { body });
		expect(json.prompt_logprobs).toHaveLength(json.usage.prompt_tokens);
		expect(json.prompt_logprobs[0]).toBeNull();
		for (const entry of json.prompt_logprobs.slice(1)) {
			const ranks = Object.values(entry as Record<string, { rank: number }>).map(({ rank }) => rank);
			expect(ranks).toContain(1);
			expect(ranks.length).toBeLessThanOrEqual(2);
		}
	});

	test("n choices, streamed, are those of the same seed in one piece", async () => {
		const more = { n: 3, temperature: 1, seed: 11, logprobs: 1 };
		const whole = await complete(more);
		expect(new Set(whole.choices.map(({ text }) => text)).size).toBe(3);
		const stream = await openStream(
			`${server.url}/v1/completions`,
			{
				model: "smol",
				prompt: "The capital of France is",
				max_tokens: 12,
				...more,
				stream: true,
				stream_options: { include_usage: true },
			},
			{ kind: "completions", model: "smol", choices: 3, includeUsage: true, logprobs: true },
		);
		const summary = await stream.finished();
		expect(summary.choices.map(({ text }) => text)).toEqual(whole.choices.map(({ text }) => text));
		expect(summary.usage?.completion_tokens).toBe(whole.usage.completion_tokens);
	});

	test("best_of sends the likeliest per token of the choices that n would have sent", async () => {
		const more = { temperature: 1.2, seed: 5, logprobs: 0, stop: ["."] };
		const all = await complete({ ...more, n: 4 });
		const best = await complete({ ...more, n: 2, best_of: 4 });
		const ranked = [...all.choices].sort((a, b) => mean(b.logprobs.token_logprobs) - mean(a.logprobs.token_logprobs));
		expect(best.choices.map(({ text }) => text)).toEqual(ranked.slice(0, 2).map(({ text }) => text));
		expect(best.choices.map(({ index }) => index)).toEqual([0, 1]);
		// Choices behind whose stop string nobody looks may have run on in the first request.
		expect(best.usage.completion_tokens).toBe(all.usage.completion_tokens);
	});

	test("allowed_token_ids, logit_bias and penalties decide what is drawn", async () => {
		const ids = { return_tokens_as_token_ids: true, logprobs: 0 };
		const plain = idsOf((await complete(ids)).choices[0]!.logprobs);
		const allowed = plain.slice(0, 3);
		for (const temperature of [0, 1]) {
			const only = idsOf((await complete({ ...ids, allowed_token_ids: allowed, temperature })).choices[0]!.logprobs);
			expect(only.every((id) => allowed.includes(id))).toBe(true);
			expect(only).toHaveLength(12);
		}
		const biased = idsOf((await complete({ ...ids, logit_bias: { [plain[0]!]: -100 } })).choices[0]!.logprobs);
		expect(biased).not.toContain(plain[0]);
		const two = { allowed_token_ids: allowed.slice(0, 2), ...ids };
		const turns = idsOf((await complete({ ...two, frequency_penalty: 2 })).choices[0]!.logprobs);
		expect(new Set(turns).size).toBe(2);
	});

	test("an allowed token that the model does not have is named", async () => {
		const body = { model: "smol", prompt: "a", max_tokens: 1, allowed_token_ids: [4_000_000_000] };
		const answer = await http(`${server.url}/v1/completions`, { body });
		expect([answer.status, answer.json.message]).toEqual([400, expect.stringContaining("allowed_token_ids")]);
	});
});
