// SPDX-License-Identifier: Apache-2.0
import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { EngineRequest, PromptLogprob, SamplingOptions } from "./engine.js";
import { EngineCore, type EngineCoreOptions } from "./engine-core.js";
import { type FakeModelOptions, FakeModelRunner } from "./mock/fake-model-runner.js";
import { Xoshiro128 } from "./prng.js";
import { FINISH_REASONS, RECORD_SIZE } from "./step-outputs.js";
import { maskOf, type TokenMask } from "./token-mask.js";

const CHUNK = 8;
const MAX_LEN = 96;

interface Result {
	tokens: number[];
	finish?: string;
	error?: string;
	cached?: number;
	logprobs: number[];
	prompt?: readonly (PromptLogprob | null)[];
}

/** Reads what the core says, by handle. */
class Collector {
	readonly results = new Map<number, Result>();

	of(handle: number): Result {
		let result = this.results.get(handle);
		if (result === undefined) {
			result = { tokens: [], logprobs: [] };
			this.results.set(handle, result);
		}
		return result;
	}

	take(core: EngineCore, mirror?: Mirror): void {
		const message = core.outputs.take();
		if (message === undefined) return;
		mirror?.take(message.kvEvents ?? []);
		for (const [handle, entries] of message.promptLogprobs ?? []) this.of(handle).prompt = entries;
		const { records, started = [], errors = [], logprobs = [] } = message;
		for (let i = 0; i < started.length; i += 2) this.of(started[i]!).cached = started[i + 1]!;
		for (const [handle, error] of errors) this.of(handle).error = error.code;
		for (const [handle, entry] of logprobs) this.of(handle).logprobs.push(entry.logprob);
		for (let i = 0; i < records.length; i += RECORD_SIZE) {
			const result = this.of(records[i]!);
			expect(result.finish, "nothing follows a finish").toBeUndefined();
			if (records[i + 1]! >= 0) result.tokens.push(records[i + 1]!);
			if (records[i + 2] !== 0) result.finish = FINISH_REASONS[records[i + 2]! - 1]!;
		}
	}
}

function request(tokenIds: number[], more: Partial<EngineRequest> = {}): EngineRequest {
	return { requestId: "r", tokenIds, sampling: { temperature: 0 }, stop: { maxTokens: 8 }, ...more };
}

function makeCore(
	maxNumSeqs = 4,
	fake: Partial<FakeModelOptions> = {},
	options: EngineCoreOptions = { maxNumBatchedTokens: CHUNK },
): EngineCore {
	return new EngineCore(new FakeModelRunner({ maxNumSeqs, maxModelLen: MAX_LEN, ...fake }), options);
}

/** Runs one request by itself. */
function alone(one: EngineRequest, fake: Partial<FakeModelOptions> = {}): Result[] {
	const core = makeCore(4, fake);
	const collector = new Collector();
	core.submit(0, one);
	while (core.hasWork) {
		core.step();
		collector.take(core);
	}
	collector.take(core);
	return Array.from({ length: Math.ceil(one.sampling.n ?? 1) }, (_, i) => collector.of(i));
}

const prompts = fc.array(fc.array(fc.nat({ max: 3 }), { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 8 });
const requests = fc.record({
	// Prompts of few words share many prefixes.
	prompt: prompts.map((words) => words.flatMap((word) => word.concat(word, [7, 7]))),
	maxTokens: fc.integer({ min: 1, max: 20 }),
	temperature: fc.constantFrom(0, 0.7, 1),
	topK: fc.constantFrom(0, 5),
	topP: fc.constantFrom(1, 0.8),
	seed: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
	n: fc.constantFrom(1, 1, 1, 2, 5),
	presencePenalty: fc.constantFrom(0, 0.5),
	repetitionPenalty: fc.constantFrom(1, 1.3),
	eos: fc.constantFrom<number[]>([], [3, 50, 60]),
	priority: fc.constantFrom(0, 0, 5),
	cacheSalt: fc.constantFrom("", "a"),
	promptLogprobs: fc.constantFrom(undefined, undefined, undefined, 1),
	/** Steps before the request arrives and, for some, before it is aborted. */
	arrival: fc.nat({ max: 60 }),
	abortAfter: fc.option(fc.nat({ max: 30 }), { freq: 4, nil: undefined }),
});

/** Everything that may change how a text is computed, and must not change the text. */
const conditions = fc.record({
	maxNumSeqs: fc.constantFrom(1, 4, 33),
	maxNumBatchedTokens: fc.constantFrom(3, 8, 64),
	blockSize: fc.constantFrom(1, 4, 16),
	/** Enough for one sequence, or for all. */
	spareBlocks: fc.constantFrom(0, 3, 1000),
	enablePrefixCaching: fc.boolean(),
	speculative: fc.constantFrom<EngineCoreOptions["speculative"]>(
		undefined,
		{ method: "ngram", maxBatch: 33 },
		{ method: "ngram", numTokens: 3 },
	),
	repetitive: fc.boolean(),
});

/** What events leave findable, and what they may not say. */
class Mirror {
	readonly names = new Set<bigint>();

	take(events: readonly KvCacheEvent[]): void {
		for (const event of events) {
			if (event.type === "cleared") this.names.clear();
			else if (event.type === "removed")
				for (const name of event.blockHashes) expect(this.names.delete(name)).toBe(true);
			else {
				expect(event.parentHash === undefined || this.names.has(event.parentHash)).toBe(true);
				for (const { blockHash } of event.blocks) {
					expect(this.names.has(blockHash)).toBe(false);
					this.names.add(blockHash);
				}
			}
		}
	}
}

describe("EngineCore", () => {
	it("goes on with what another engine began, at temperature 0 with the same tokens, penalties included", () => {
		fc.assert(
			fc.property(requests, fc.nat({ max: 20 }), fc.constantFrom(0, 0.8), (item, cut, frequencyPenalty) => {
				const { presencePenalty, repetitionPenalty } = item;
				const sampling = { temperature: 0, presencePenalty, repetitionPenalty, frequencyPenalty };
				const stop = { maxTokens: item.maxTokens, eosTokenIds: item.eos };
				const whole = alone(request(item.prompt, { sampling, stop }))[0]!;
				const begun = whole.tokens.slice(0, cut);
				if (begun.length === whole.tokens.length) return;
				const rest = request([...item.prompt, ...begun], {
					sampling,
					stop: { ...stop, maxTokens: item.maxTokens - begun.length },
					generatedTokens: begun.length,
				});
				const moved = alone(rest)[0]!;
				expect([...begun, ...moved.tokens]).toEqual(whole.tokens);
				expect(moved.finish).toBe(whole.finish);
			}),
			{ numRuns: 200 },
		);
	});

	it("gives every request the text that it gets alone, whatever arrives, ends or is aborted beside it", () => {
		fc.assert(
			fc.property(fc.array(requests, { minLength: 1, maxLength: 14 }), conditions, (list, how) => {
				const { blockSize, repetitive, maxNumSeqs, spareBlocks, ...options } = how;
				const numBlocks = Math.ceil(MAX_LEN / blockSize) + spareBlocks;
				const runner = new FakeModelRunner({ maxNumSeqs, maxModelLen: MAX_LEN, blockSize, numBlocks, repetitive });
				const core = new EngineCore(runner, { ...options, kvEvents: true });
				const mirror = new Mirror();
				const collector = new Collector();
				const items = list.map((item, i) => ({
					...item,
					handle: i * 10,
					request: request(item.prompt, {
						sampling: {
							temperature: item.temperature,
							topK: item.topK,
							topP: item.topP,
							seed: item.seed,
							n: item.n,
							presencePenalty: item.presencePenalty,
							repetitionPenalty: item.repetitionPenalty,
						},
						stop: { maxTokens: item.maxTokens, eosTokenIds: item.eos },
						priority: item.priority,
						cacheSalt: item.cacheSalt,
						promptLogprobs: item.promptLogprobs,
						logprobs: 0,
					}),
				}));
				for (let step = 0; step <= 100 || core.hasWork; step++) {
					for (const item of items) {
						if (item.arrival === step) core.submit(item.handle, item.request);
						if (item.abortAfter !== undefined && item.arrival + item.abortAfter === step) {
							for (let i = 0; i < item.n; i++) core.abort(item.handle + i);
						}
					}
					core.step();
					collector.take(core, mirror);
					expect(core.stats().running).toBeLessThanOrEqual(maxNumSeqs);
					expect(new Set(core.blocks.cachedNames())).toEqual(mirror.names);
					if (step > 20_000) throw new Error("it does not come to an end");
				}
				for (const item of items) {
					const reference = alone(item.request, { repetitive });
					for (let i = 0; i < item.n; i++) {
						const result = collector.of(item.handle + i);
						const expected = reference[i]!;
						expect(result.finish).toBeDefined();
						if (result.tokens.length > 0) expect(result.prompt).toEqual(expected.prompt);
						expect(result.logprobs.length).toBe(result.tokens.length);
						if (result.finish === "cancelled") {
							expect(expected.tokens.slice(0, result.tokens.length)).toEqual(result.tokens);
						} else {
							expect(result.tokens).toEqual(expected.tokens);
							expect(result.finish).toBe(expected.finish);
							expect(result.logprobs).toEqual(expected.logprobs);
						}
					}
				}
				const { running, waiting, usedBlocks } = core.stats();
				expect({ running, waiting, usedBlocks }).toEqual({ running: 0, waiting: 0, usedBlocks: 0 });
				expect([core.blocks.numFree, runner.live.size]).toEqual([numBlocks, 0]);
			}),
			{ numRuns: 100 },
		);
	});

	it("leaks no block over 1,000 requests with aborts in every phase on a small pool", () => {
		const numBlocks = 40;
		const runner = new FakeModelRunner({ maxNumSeqs: 6, maxModelLen: MAX_LEN, numBlocks });
		const core = new EngineCore(runner, { maxNumBatchedTokens: 12, kvEvents: true, speculative: { method: "ngram" } });
		const collector = new Collector();
		const mirror = new Mirror();
		const random = new Xoshiro128(2024n);
		const dice = (sides: number) => random.nextUint32() % sides;
		const open = new Set<number>();
		const ended = { cancelled: 0, length: 0 };
		let submitted = 0;
		while (submitted < 1000 || core.hasWork) {
			for (let i = dice(4); i > 0 && submitted < 1000 && open.size < 30; i--) {
				const words = Array.from({ length: 1 + dice(8) }, () => dice(3));
				core.submit(
					submitted,
					request(
						words.flatMap((word) => [word, word, 7, word, 9, 11]),
						{ stop: { maxTokens: 1 + dice(30) }, priority: dice(3), cacheSalt: dice(8) === 0 ? "x" : "" },
					),
				);
				open.add(submitted++);
			}
			for (const handle of open) {
				if (dice(40) === 0) core.abort(handle);
			}
			core.step();
			collector.take(core, mirror);
			for (const handle of open) {
				const { finish } = collector.of(handle);
				if (finish === undefined) continue;
				open.delete(handle);
				ended[finish as keyof typeof ended]++;
			}
			expect(new Set(core.blocks.cachedNames())).toEqual(mirror.names);
		}
		expect(ended.cancelled + ended.length).toBe(1000);
		expect(Math.min(ended.cancelled, ended.length)).toBeGreaterThan(100);
		expect(core.stats()).toMatchObject({ usedBlocks: 0, running: 0, waiting: 0 });
		expect(core.stats().preemptions).toBeGreaterThan(10);
		expect([core.blocks.numFree, runner.live.size]).toEqual([numBlocks, 0]);
	});

	it("shares whole blocks of a prompt with what the cache holds, but not across salts", () => {
		const core = makeCore();
		const collector = new Collector();
		const prompt = Array.from({ length: 30 }, (_, i) => i);
		const run = (handle: number, more: Partial<EngineRequest>) => {
			core.submit(handle, request(prompt, more));
			while (core.hasWork) core.step();
			collector.take(core);
		};
		run(0, {});
		run(1, {});
		run(2, { cacheSalt: "other" });
		expect([0, 1, 2].map((handle) => collector.of(handle).cached)).toEqual([0, 28, 0]);
		expect(collector.of(1).tokens).toEqual(collector.of(0).tokens);
		expect(core.stats()).toMatchObject({ cacheQueryTokens: 90, cacheHitTokens: 28, prefillTokens: 30 + 2 + 30 });
		core.clearCache();
		run(3, {});
		expect(collector.of(3).cached).toBe(0);
	});

	it("finds the answer, too, when the talk goes on", () => {
		const core = makeCore(4, { blockSize: 4 });
		const collector = new Collector();
		core.submit(0, request([1, 2, 3, 4, 5, 6], { stop: { maxTokens: 11 } }));
		while (core.hasWork) core.step();
		collector.take(core);
		core.submit(1, request([1, 2, 3, 4, 5, 6, ...collector.of(0).tokens, 7, 8, 9]));
		while (core.hasWork) core.step();
		collector.take(core);
		expect(collector.of(1).cached).toBe(16);
	});

	it("computes the prompt of several choices once", () => {
		const runner = new FakeModelRunner({ maxNumSeqs: 4, maxModelLen: MAX_LEN });
		const core = new EngineCore(runner, { maxNumBatchedTokens: 16 });
		core.submit(0, request([1, 2, 3, 4, 5, 6, 7, 8, 9], { sampling: { n: 4, seed: 5 } }));
		const collector = new Collector();
		while (core.hasWork) core.step();
		collector.take(core);
		expect(core.stats().prefillTokens).toBe(9 + 3);
		for (let i = 0; i < 4; i++) {
			const single = alone(request([1, 2, 3, 4, 5, 6, 7, 8, 9], { sampling: { seed: 5 + i } }))[0]!;
			expect(collector.of(i).tokens).toEqual(single.tokens);
		}
		expect(new Set([0, 1, 2, 3].map((i) => collector.of(i).tokens.join())).size).toBe(4);
	});

	it("guesses what is repeated, several tokens in a step, with the same text", () => {
		const one = request([1, 2, 3, 1, 2, 3, 1, 2], { stop: { maxTokens: 60 } });
		const core = makeCore(4, { repetitive: true }, { speculative: { method: "ngram" } });
		const collector = new Collector();
		core.submit(0, one);
		while (core.hasWork) core.step();
		collector.take(core);
		expect(collector.of(0).tokens).toEqual(alone(one, { repetitive: true })[0]!.tokens);
		const { draftTokens, acceptedTokens, steps } = core.stats();
		expect(acceptedTokens).toBeGreaterThan(10);
		expect(draftTokens).toBeGreaterThanOrEqual(acceptedTokens);
		expect(steps).toBeLessThanOrEqual(60 - acceptedTokens + 1);
	});

	it("gives a token to those that generate in each step of a long prompt", () => {
		const runner = new FakeModelRunner({ maxNumSeqs: 4, maxModelLen: MAX_LEN });
		const core = new EngineCore(runner, { maxNumBatchedTokens: CHUNK });
		core.submit(0, request([1], { stop: { maxTokens: 50 } }));
		core.step();
		core.submit(1, request(Array.from({ length: 64 }, (_, i) => i)));
		for (let i = 0; i < 9; i++) core.step();
		expect(runner.calls).toMatchObject({ prefill: 10, decode: 9 });
	});

	it("keeps to a mask: digits first, then one word", () => {
		const digits = maskOf([10, 11, 12]);
		let left = 4;
		const word = [50, 51, 52];
		const grammar: TokenMask = {
			mask: () => (left > 0 ? digits : maskOf([word[0] ?? 60])),
			accept: () => {
				if (left-- <= 0) word.shift();
			},
		};
		for (const temperature of [0, 1]) {
			left = 4;
			word.splice(0, 3, 50, 51, 52);
			const core = makeCore(4, {}, { tokenMask: () => grammar });
			const collector = new Collector();
			core.submit(0, request([5], { sampling: { temperature }, stop: { maxTokens: 9, eosTokenIds: [60] } }));
			while (core.hasWork) core.step();
			collector.take(core);
			const { tokens, finish } = collector.of(0);
			for (const token of tokens.slice(0, 4)) expect([10, 11, 12]).toContain(token);
			expect(tokens.slice(4)).toEqual([50, 51, 52, 60]);
			expect(finish).toBe("eos");
		}
	});

	it("prefers priority, then the first come", () => {
		const core = makeCore(1);
		const order: number[] = [];
		for (const [handle, priority] of [
			[0, 0],
			[1, 0],
			[2, 3],
			[3, 3],
		] as const) {
			core.submit(handle, request([1], { priority, stop: { maxTokens: 1 } }));
		}
		while (core.hasWork) {
			core.step();
			order.push(core.outputs.take()!.records[0]!);
		}
		expect(order).toEqual([2, 3, 0, 1]);
	});

	it.each([
		["an empty prompt", request([]), "invalid_argument"],
		["a token outside the vocabulary", request([1, 97]), "invalid_argument"],
		["a token that is no number", request([Number.NaN]), "invalid_argument"],
		["a negative token", request([-1]), "invalid_argument"],
		["a prompt as long as the context", request(Array(MAX_LEN).fill(1)), "context_length_exceeded"],
		["a bad temperature", request([1], { sampling: { temperature: -1 } }), "invalid_argument"],
		["a bad top_p", request([1], { sampling: { topP: 0 } }), "invalid_argument"],
		["a bad n", request([1], { sampling: { n: 0.5 } }), "invalid_argument"],
		["a bad seed", request([1], { sampling: { seed: 0.5 } }), "invalid_argument"],
		["a bias for no token", request([1], { sampling: { logitBias: [[97, 1]] } }), "invalid_argument"],
		["a bias that is no list", request([1], { sampling: { logitBias: {} as [] } }), "invalid_argument"],
		["a stop id that is no number", request([1], { stop: { stopTokenIds: [Number.NaN] } }), "invalid_argument"],
		["a bad max_tokens", request([1], { stop: { maxTokens: -1 } }), "invalid_argument"],
	])("answers %s with an error", (_, bad, code) => {
		const result = alone(bad)[0]!;
		expect(result).toMatchObject({ finish: "error", error: code, tokens: [] });
	});

	it("stops at the context limit, and without maxTokens only there", () => {
		const prompt = Array(MAX_LEN - 3).fill(1);
		expect(alone(request(prompt, { stop: {} }))[0]).toMatchObject({ finish: "length", tokens: { length: 3 } });
		expect(alone(request(prompt, { stop: { maxTokens: 50 } }))[0]!.tokens.length).toBe(3);
		expect(alone(request(Array(MAX_LEN - 1).fill(1), { stop: {} }))[0]!.tokens.length).toBe(1);
		expect(alone(request([1], { stop: { maxTokens: 0 } }))[0]).toMatchObject({ finish: "length", tokens: [] });
	});

	it("ends by EOS, by a stop id, not before minTokens, and not by an ignored EOS", () => {
		const free = alone(request([5], { stop: { maxTokens: 40 } }))[0]!.tokens;
		const end = free[3]!;
		const first = free.indexOf(end);
		const eos = alone(request([5], { stop: { maxTokens: 40, eosTokenIds: [end] } }))[0]!;
		expect(eos).toMatchObject({ finish: "eos", tokens: free.slice(0, first + 1) });
		const stop = alone(request([5], { stop: { maxTokens: 40, stopTokenIds: [end] } }))[0]!;
		expect(stop).toMatchObject({ finish: "stop", tokens: free.slice(0, first + 1) });
		const ignored = alone(request([5], { stop: { maxTokens: 40, eosTokenIds: [end], ignoreEos: true } }))[0]!;
		expect(ignored).toMatchObject({ finish: "length", tokens: free });
		const late = alone(request([5], { stop: { maxTokens: 40, eosTokenIds: [end], minTokens: 10 } }))[0]!;
		expect(late.tokens.slice(0, 10)).not.toContain(end);
	});

	it("takes a prompt of the context less one, and refuses a longer one", () => {
		const prompt = (length: number) => request(Array(length).fill(1), { stop: {} });
		expect(alone(prompt(MAX_LEN - 1))[0]).toMatchObject({ finish: "length", tokens: { length: 1 } });
		for (const length of [MAX_LEN, MAX_LEN + 1]) {
			expect(alone(prompt(length))[0]).toMatchObject({ finish: "error", error: "context_length_exceeded", tokens: [] });
		}
		expect(alone(request([1], { stop: { maxTokens: 1 } }))[0]).toMatchObject({
			finish: "length",
			tokens: { length: 1 },
		});
		// The only token may be an end, too.
		const [only] = alone(request([1], { stop: { maxTokens: 1 } }))[0]!.tokens;
		expect(alone(request([1], { stop: { maxTokens: 1, eosTokenIds: [only!] } }))[0]!.finish).toBe("eos");
	});

	it("samples the same with a filter that is off as without it", () => {
		const sampled = (more: SamplingOptions) =>
			alone(request([5, 9], { sampling: { seed: 11, ...more }, stop: { maxTokens: 24 } }))[0]!.tokens;
		const plain = sampled({});
		for (const off of [
			{ topK: 0 },
			{ topK: -1 },
			{ topP: 1 },
			{ minP: 0 },
			{ temperature: 1 },
			{ repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0 },
			{ logitBias: new Map<number, number>() },
		]) {
			expect(sampled(off)).toEqual(plain);
		}
		expect(sampled({ seed: 12 })).not.toEqual(plain);
	});

	it("forces and bans tokens by a bias of 100 and -100", () => {
		const biased = (temperature: number, logitBias: [number, number][]) =>
			alone(request([5], { sampling: { temperature, seed: 1, logitBias }, stop: { maxTokens: 12 } }))[0]!.tokens;
		for (const temperature of [0, 1]) {
			expect(biased(temperature, [[42, 100]])).toEqual(Array(12).fill(42));
			const allowed = [3, 4, 5];
			const banned = Array.from({ length: 97 }, (_, id): [number, number] => [id, allowed.includes(id) ? 0 : -100]);
			for (const token of biased(temperature, banned)) expect(allowed).toContain(token);
		}
	});

	it("keeps ends away for minTokens even against a bias, and stop ids like EOS", () => {
		const ends = { minTokens: 6, eosTokenIds: [42], stopTokenIds: [43] };
		const logitBias: [number, number][] = [
			[42, 100],
			[43, 99],
		];
		const { tokens, finish } = alone(
			request([5], { sampling: { temperature: 0, logitBias }, stop: { maxTokens: 20, ...ends } }),
		)[0]!;
		expect(tokens.length).toBe(7);
		expect(tokens.slice(0, 6)).not.toContain(42);
		expect(tokens.slice(0, 6)).not.toContain(43);
		expect({ last: tokens[6], finish }).toEqual({ last: 42, finish: "eos" });
		// ignoreEos leaves the stop ids alone.
		const stopped = alone(
			request([5], { sampling: { temperature: 0, logitBias: [[43, 100]] }, stop: { ...ends, ignoreEos: true } }),
		)[0]!;
		expect(stopped).toMatchObject({ finish: "stop", tokens: { length: 7 } });
	});

	it("gives log-probabilities of the model's own logits, sampled or greedy, biased or not", () => {
		const logprobs = (sampling: SamplingOptions) =>
			alone(request([5], { sampling: { seed: 3, ...sampling }, logprobs: 2, stop: { maxTokens: 1 } }))[0]!;
		const greedy = logprobs({ temperature: 0 });
		const forced = logprobs({ temperature: 0.1, logitBias: [[greedy.tokens[0]!, 100]] });
		expect(forced).toMatchObject({ tokens: greedy.tokens, logprobs: greedy.logprobs });
		expect(greedy.logprobs[0]).toBeLessThan(0);
	});

	it("gives choice i of n what a request with seed + i gets", () => {
		const sampling = { temperature: 1, seed: 100 };
		const together = alone(request([5, 6], { sampling: { ...sampling, n: 6 } }));
		for (const [i, choice] of together.entries()) {
			const single = alone(request([5, 6], { sampling: { ...sampling, seed: 100 + i } }))[0]!;
			expect(choice.tokens).toEqual(single.tokens);
		}
		expect(new Set(together.map((choice) => choice.tokens.join())).size).toBeGreaterThan(1);
	});

	it("fails the sequences of a failing step and goes on", () => {
		const core = makeCore(4, { failOnToken: 96 });
		const collector = new Collector();
		core.submit(0, request([1, 2, 3], { stop: { maxTokens: 20 } }));
		core.step();
		core.submit(1, request([96]));
		core.submit(2, request([4, 5]));
		while (core.hasWork) {
			core.step();
			collector.take(core);
		}
		expect(collector.of(1)).toMatchObject({ finish: "error", error: "internal" });
		expect(collector.of(0).tokens).toEqual(alone(request([1, 2, 3], { stop: { maxTokens: 20 } }))[0]!.tokens);
		expect(collector.of(2).tokens).toEqual(alone(request([4, 5]))[0]!.tokens);
	});

	it("fails all rows when a decode step fails, and serves the next request", () => {
		const core = makeCore(4, { failOnToken: 96 });
		const collector = new Collector();
		const bias: [number, number][] = [[96, 100]];
		core.submit(0, request([1], { sampling: { temperature: 0, logitBias: bias } }));
		core.submit(1, request([2]));
		while (core.hasWork) core.step();
		core.submit(2, request([2]));
		while (core.hasWork) core.step();
		collector.take(core);
		expect(collector.of(0)).toMatchObject({ finish: "error", error: "internal", tokens: [96] });
		expect(collector.of(2).tokens).toEqual(alone(request([2]))[0]!.tokens);
		expect(core.stats()).toMatchObject({ running: 0, waiting: 0 });
	});

	it("answers logits without a finite number with an error", () => {
		const runner = new FakeModelRunner({ maxNumSeqs: 1, maxModelLen: MAX_LEN });
		runner.execute = () => ({ row: () => new Float32Array(97).fill(Number.NaN) });
		const core = new EngineCore(runner);
		for (const temperature of [0, 1]) core.submit(temperature, request([1], { sampling: { temperature } }));
		const collector = new Collector();
		while (core.hasWork) core.step();
		collector.take(core);
		expect([0, 1].map((handle) => collector.of(handle).error)).toEqual(["internal", "internal"]);
	});
});
