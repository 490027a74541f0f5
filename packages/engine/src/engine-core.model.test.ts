// SPDX-License-Identifier: Apache-2.0
// The whole engine on a real graph: whatever way a text is computed, it is the same text.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { EngineRequest } from "./engine.js";
import { EngineCore, type EngineCoreOptions } from "./engine-core.js";
import { loadModelRunner } from "./model/load-model-runner.js";
import type { ModelRunner } from "./model/model-runner.js";
import { makeTinyLlama, writeTinyFolder } from "./model/testing/tiny-llama.js";
import { RECORD_SIZE } from "./step-outputs.js";

const MAX_LEN = 96;
const ANSWER = 24;
/** Differences of logits below this may fall either way when sums are added up in another order. */
const TIE = 1e-3;

const root = mkdtempSync(join(tmpdir(), "engine-core-model-"));
const runners: ModelRunner[] = [];
let folder: string;

beforeAll(() => {
	folder = writeTinyFolder(join(root, "model"), makeTinyLlama({}, 11));
});

afterAll(() => {
	for (const runner of runners) runner.close();
	rmSync(root, { recursive: true });
});

async function load(options: { maxNumSeqs?: number; blockSize?: number } = {}): Promise<ModelRunner> {
	const runner = await loadModelRunner({
		model: folder,
		quantization: "none",
		cacheDir: join(root, "cache"),
		maxModelLen: MAX_LEN,
		...options,
	});
	runners.push(runner);
	return runner;
}

interface Answer {
	readonly tokens: number[];
	/** Tokens before the first one that was nearly another. */
	safe: number;
	cached: number;
}

/** The same runner, of whose blocks only the first few are used. */
function withFewerBlocks(runner: ModelRunner, numBlocks: number): ModelRunner {
	const { config, device, maxModelLen, maxNumSeqs, blockSize, kvBytesPerToken, kvCacheDtype } = runner;
	const { weightFormats, blockBytes, modelSum, blockOrder } = runner;
	return {
		...{ config, device, maxModelLen, maxNumSeqs, blockSize, kvBytesPerToken, kvCacheDtype, weightFormats, blockBytes },
		numBlocks,
		modelSum,
		blockOrder,
		execute: (rows) => runner.execute(rows),
		persist: (id, index, block) => runner.persist(id, index, block),
		release: (id) => runner.release(id),
		readBlock: (block, into) => runner.readBlock(block, into),
		writeBlock: (block, content) => runner.writeBlock(block, content),
		close: () => runner.close(),
	};
}

/** Runs requests that arrive at the given steps. */
function run(
	runner: ModelRunner,
	numBlocks: number,
	options: EngineCoreOptions,
	requests: readonly { readonly prompt: number[]; readonly arrival: number }[],
): { answers: Answer[]; core: EngineCore } {
	const core = new EngineCore(withFewerBlocks(runner, numBlocks), options);
	const answers = requests.map((): Answer => ({ tokens: [], safe: Number.POSITIVE_INFINITY, cached: 0 }));
	for (let step = 0; step <= 30 || core.hasWork; step++) {
		for (const [handle, { prompt, arrival }] of requests.entries()) {
			if (arrival !== step) continue;
			const request: EngineRequest = {
				requestId: String(handle),
				tokenIds: prompt,
				sampling: { temperature: 0 },
				stop: { maxTokens: Math.min(ANSWER, MAX_LEN - prompt.length) },
				logprobs: 2,
			};
			core.submit(handle, request);
		}
		core.step();
		const message = core.outputs.take();
		for (let i = 0; message !== undefined && i < message.records.length; i += RECORD_SIZE) {
			if (message.records[i + 1]! >= 0) answers[message.records[i]!]!.tokens.push(message.records[i + 1]!);
		}
		for (const [handle, { top }] of message?.logprobs ?? []) {
			const answer = answers[handle]!;
			const margin = top[0]!.logprob - top[1]!.logprob;
			const position = answer.tokens.length - 1;
			if (margin < TIE && position < answer.safe) answer.safe = position;
		}
		for (let i = 0; i < (message?.started?.length ?? 0); i += 2) {
			answers[message!.started![i]!]!.cached = message!.started![i + 1]!;
		}
	}
	return { answers, core };
}

describe("EngineCore on a graph in fp32", () => {
	it("gives the same greedy text alone and among 32 others, cached or not, chunked, preempted, guessed", async () => {
		const alone = await load({ maxNumSeqs: 1 });
		const shared = await load({ maxNumSeqs: 33, blockSize: 4 });
		const known = new Map<string, Answer>();
		const reference = (prompt: number[]): Answer => {
			const key = prompt.join();
			let answer = known.get(key);
			if (answer === undefined) {
				answer = run(alone, alone.numBlocks, { enablePrefixCaching: false, maxNumBatchedTokens: 200 }, [
					{ prompt, arrival: 0 },
				]).answers[0]!;
				known.set(key, answer);
			}
			return answer;
		};
		const word = fc.constantFrom([5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17], [18]);
		const prompt = fc.array(word, { minLength: 1, maxLength: 12 }).map((words) => words.flat().slice(0, 60));
		const requests = fc.array(fc.record({ prompt, arrival: fc.nat({ max: 20 }) }), { minLength: 1, maxLength: 33 });
		const seen = { preemptions: 0, hits: 0, guessed: 0, compared: 0 };
		fc.assert(
			fc.property(
				requests,
				fc.record({
					enablePrefixCaching: fc.boolean(),
					maxNumBatchedTokens: fc.constantFrom(5, 33, 128),
					speculative: fc.constantFrom(undefined, { method: "ngram" as const, maxBatch: 33 }),
				}),
				fc.constantFrom(MAX_LEN / 4, 60, 500),
				(list, options, numBlocks) => {
					const { answers, core } = run(shared, numBlocks, options, list);
					for (const [i, { prompt: text }] of list.entries()) {
						const expected = reference(text);
						const length = Math.min(expected.safe, expected.tokens.length);
						expect(answers[i]!.tokens.slice(0, length)).toEqual(expected.tokens.slice(0, length));
						seen.compared += length;
					}
					const { preemptions, cacheHitTokens, acceptedTokens, usedBlocks } = core.stats();
					expect(usedBlocks).toBe(0);
					seen.preemptions += preemptions;
					seen.hits += cacheHitTokens;
					seen.guessed += acceptedTokens;
				},
			),
			{ numRuns: 25 },
		);
		// It was all tried.
		for (const count of Object.values(seen)) expect(count).toBeGreaterThan(0);
	}, 180_000);
});
