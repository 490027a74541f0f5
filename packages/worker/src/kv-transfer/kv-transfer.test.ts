// SPDX-License-Identifier: Apache-2.0
// A prefill and a decode worker with real engines, and a frontend that a test writes by hand between them.
import type { Socket } from "node:net";
import { until } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";
import {
	type Answer,
	aggregatedWorker,
	ask,
	closeAll,
	listen,
	newStore,
	open,
	payload,
	prefill,
	prompt,
	start,
	untilIdle,
	withParams,
} from "../test-support/handover.js";

afterEach(closeAll);

describe("an answer from a decode worker is the aggregated one", () => {
	const aggregated = aggregatedWorker();

	test.each([
		["shm", { sharedMemory: true }],
		["tcp", { sharedMemory: false }],
	] as const)("token by token, over %s", async (transport, config) => {
		const [from, to] = [await start("prefill", config), await start("decode", config)];
		const lengths = [2, 8, 9, 33, 65, 120];
		await Promise.all(
			lengths.map(async (length, i) => {
				const request = payload(prompt(length, i + 1), Math.min(24, 128 - length));
				const expected = await aggregated(request);
				const answer = await ask(to, { ...request, prefill_result: await prefill(from, request) }).answer;
				expect(answer.error).toBeUndefined();
				expect(answer.tokens).toEqual(expected.tokens);
			}),
		);
		expect(await to.metric("kv_transfer_failures_total")).toBe(0);
		expect(await to.metric("kv_transfer_pulls_total", 'result="ok"')).toBe(lengths.length);
		expect(await to.metric("kv_transfer_seconds_count")).toBe(lengths.length);
		expect(to.engine.stats().prefillTokens).toBe(lengths.length);
		const sent = await from.metric("kv_transfer_bytes_total", `transport="${transport}"`);
		expect(sent).toBeGreaterThan(0);
		expect(await to.metric("kv_transfer_bytes_total", `transport="${transport}"`)).toBe(sent);
		// The prefill worker knows a little later than the decode worker that all has arrived.
		await untilIdle(from, to);
		expect(await from.metric("kv_transfer_holds_total", 'outcome="pulled"')).toBe(lengths.length);
		expect(await from.metric("kv_transfer_held_blocks")).toBe(0);
	});

	test("whatever is asked of it: choices, log-probabilities, seeds, guesses", async () => {
		const from = await start("prefill");
		const to = await start("decode", {}, { speculative: { method: "ngram" } });
		const base = payload(prompt(45, 4), 12);
		const sampled = { temperature: 0.9, top_p: 0.9, seed: 7 };
		const requests = [
			{ ...base, output_options: { logprobs: 2 } },
			{ ...base, token_ids: prompt(45, 5), sampling_options: sampled },
			{ ...base, token_ids: prompt(45, 6), sampling_options: { ...sampled, n: 3 } },
			{ ...base, token_ids: prompt(45, 7), output_options: { prompt_logprobs: 1 } },
			{ ...base, token_ids: Array.from({ length: 60 }, (_, i) => [3, 9, 4, 7][i % 4]!) },
			{ ...base, token_ids: prompt(45, 8), routing: { cache_salt: "tenant" } },
		];
		for (const request of requests) {
			const expected = await aggregated(request);
			const result = await prefill(from, { ...request, routing: undefined });
			const salted = "routing" in request;
			const answer = await ask(to, { ...request, prefill_result: result }).answer;
			expect(answer.error).toBeUndefined();
			const byChoice = ({ items }: Answer) => {
				const texts = new Map<number, number[]>();
				for (const { index, token_ids } of items) {
					texts.set(index ?? 0, [...(texts.get(index ?? 0) ?? []), ...token_ids]);
				}
				return texts;
			};
			expect(byChoice(answer)).toEqual(byChoice(expected));
			const logprobs = ({ items }: Answer) => items.flatMap((item) => item.log_probs ?? []);
			// Guesses are checked in a row, which changes last bits.
			const close = logprobs(expected).map((value) => expect.closeTo(value, 4));
			expect(logprobs(answer)).toEqual(close);
			// The legs of this one do not agree on the salt: the prompt is computed.
			if (salted) expect(await to.metric("kv_transfer_failures_total", 'reason="prompt"')).toBe(1);
		}
		expect(await to.metric("kv_transfer_pulls_total", 'result="ok"')).toBe(4);
		await untilIdle(to);
	});

	test("with what is there already left where it is", async () => {
		const [from, to] = [await start("prefill"), await start("decode")];
		const first = payload(prompt(50), 4);
		await ask(to, { ...first, prefill_result: await prefill(from, first) }).answer;
		const before = await to.metric("kv_transfer_bytes_total");
		// Six blocks of the second prompt are there, the seventh and the rest of it are not.
		const second = payload([...prompt(48), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 6);
		const result = await prefill(from, second);
		expect((result.prompt_tokens_details as { cached_tokens: number }).cached_tokens).toBe(48);
		const answer = await ask(to, { ...second, prefill_result: result }).answer;
		expect(answer.tokens).toEqual((await aggregated(second)).tokens);
		const { layout } = to.engine.kv!;
		expect((await to.metric("kv_transfer_bytes_total")) - before).toBe(2 * layout.blockBytes);
		expect(answer.items.at(-1)?.completion_usage?.prompt_tokens_details?.cached_tokens).toBe(48);
		// All of it is there: nothing is fetched, and the prefill worker is told.
		const third = payload(prompt(49), 3);
		await ask(to, { ...third, prefill_result: await prefill(from, third) }).answer;
		expect(await to.metric("kv_transfer_pulls_total", 'result="cached"')).toBe(1);
		await untilIdle(from, to);
		expect(await from.metric("kv_transfer_holds_total", 'outcome="released"')).toBe(1);
	});

	test("when the transfer is broken, in whatever way", async () => {
		const from = await start("prefill");
		const patient = await start("decode");
		const hasty = await start("decode", { timeoutMs: 300 }, {}, "hasty");
		const silent = await listen(() => {});
		const rude = await listen((socket) => socket.on("data", () => socket.write(Buffer.alloc(4096, 0xff))));
		const leaver = await listen((socket) => socket.once("data", () => socket.destroy()));
		const closed = await listen(() => {});
		await open.pop()!.close();
		const broken: [string, (result: Record<string, unknown>) => unknown][] = [
			["refused", (result) => withParams(result, { handle: "0".repeat(32) })],
			["timeout", (result) => withParams(result, { port: silent })],
			["protocol", (result) => withParams(result, { port: rude })],
			["lost", (result) => withParams(result, { port: leaver })],
			["unreachable", (result) => withParams(result, { port: closed })],
			["mismatch", (result) => withParams(result, { fingerprint: "0".repeat(32) })],
			["prompt", (result) => withParams(result, { tail_hash: "0" })],
			["not_ours", () => ({ disaggregated_params: "dummy" })],
			["not_ours", (result) => withParams(result, { port: 1e9 })],
			["not_held", () => ({ disaggregated_params: { kv_transfer_params: null } })],
		];
		for (const [i, [reason, breakIt]] of broken.entries()) {
			const to = reason === "timeout" ? hasty : patient;
			const request = payload(prompt(40, 20 + i), 8);
			const before = await to.metric("kv_transfer_failures_total", `reason="${reason}"`);
			const answer = await ask(to, { ...request, prefill_result: breakIt(await prefill(from, request)) }).answer;
			expect(answer.error, reason).toBeUndefined();
			expect(answer.tokens, reason).toEqual((await aggregated(request)).tokens);
			expect(await to.metric("kv_transfer_failures_total", `reason="${reason}"`), reason).toBe(before + 1);
		}
		await untilIdle(patient, hasty);
	});

	test("when the prefill worker is gone, has given up what it kept, or keeps nothing", async () => {
		const from = await start("prefill", { holdMs: 1 });
		const to = await start("decode");
		const request = payload(prompt(40, 40), 8);
		const expected = (await aggregated(request)).tokens;
		const late = await prefill(from, request);
		await until("nothing is kept", () => from.engine.stats().heldBlocks === 0);
		expect((await ask(to, { ...request, prefill_result: late }).answer).tokens).toEqual(expected);
		expect(await to.metric("kv_transfer_failures_total", 'reason="refused"')).toBe(1);
		const other = payload(prompt(40, 41), 8);
		const orphan = await prefill(from, other);
		await from.worker.close();
		const answer = await ask(to, { ...other, prefill_result: orphan }).answer;
		expect(answer.tokens).toEqual((await aggregated(other)).tokens);
		await untilIdle(to);
	});

	test("without a prefill worker's answer at a decode worker, and at a prefill worker that is asked for all of it", async () => {
		const [from, to] = [await start("prefill"), await start("decode")];
		const request = payload(prompt(30, 50), 6);
		const expected = (await aggregated(request)).tokens;
		expect((await ask(to, request).answer).tokens).toEqual(expected);
		expect((await ask(from, request).answer).tokens).toEqual(expected);
		await untilIdle(from, to);
	});
});

describe("who leaves", () => {
	test("while the prompt is being fetched frees both sides", async () => {
		newStore();
		const [from, to] = [await start("prefill"), await start("decode")];
		const request = payload(prompt(60), 8);
		const connected: Socket[] = [];
		const stuck = await listen((socket) => connected.push(socket));
		const result = await prefill(from, request);
		const asked = ask(to, { ...request, prefill_result: withParams(result, { port: stuck }) });
		await until("the decode worker has dialled", () => connected.length === 1);
		expect(to.engine.stats()).toMatchObject({ running: 0, waiting: 1, usedBlocks: 8 });
		// The engine goes on with others meanwhile.
		expect((await ask(to, payload(prompt(20, 3), 5)).answer).tokens).toHaveLength(5);
		const gone = new Promise((resolve) => connected[0]!.once("close", resolve));
		connected[0]!.resume();
		asked.kill();
		await gone;
		await untilIdle(to);
		expect(await to.metric("kv_transfer_pulls_total", 'result="cancelled"')).toBe(1);
	});

	test("before the prompt is computed leaves nothing behind", async () => {
		newStore();
		// What was told of and not fetched is forgotten after this; what nobody was told of must not wait for it.
		const from = await start("prefill", { holdMs: 500 });
		for (let i = 0; i < 40; i++) {
			const asked = ask(from, payload(prompt(100, i), 1, { routing: { prefill_worker_id: 1n } }));
			await new Promise((resolve) => setTimeout(resolve, i / 4));
			asked.kill();
		}
		await untilIdle(from);
	});
});
