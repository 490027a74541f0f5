// SPDX-License-Identifier: Apache-2.0
// The engine thread with a real model. The reference is an independent float implementation of the same weights.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Engine, EngineOutput, EngineRequest } from "./engine.js";
import { createEngineThread } from "./engine-thread.js";

// The reference rounded the weights to half precision, as the folder holds them; the file's own are a little off.
const models = [
	{ name: "DYNAMO_TEST_MODEL_GGUF", path: process.env.DYNAMO_TEST_MODEL_GGUF, tolerance: 0.02 },
	{ name: "DYNAMO_TEST_MODEL_HF", path: process.env.DYNAMO_TEST_MODEL_HF, tolerance: 1e-4 },
];

interface Reference {
	readonly name: string;
	readonly prompt_ids: number[];
	readonly greedy_ids: number[];
	readonly top5_logprobs: [number, number][][];
}

const { fixtures } = JSON.parse(readFileSync(new URL("../fixtures/greedy.json", import.meta.url), "utf8")) as {
	fixtures: Reference[];
};

describe.each(models)("engine thread with the model of $name", ({ path, tolerance }) => {
	let engine: Engine;
	let cacheDir: string;

	beforeAll(async () => {
		if (!path) return;
		cacheDir = mkdtempSync(join(tmpdir(), "engine-thread-"));
		engine = createEngineThread({ model: path, cacheDir, quantization: "none", maxModelLen: 2048 });
		await engine.start();
	}, 120_000);

	afterAll(async () => {
		await engine?.close();
		if (cacheDir) rmSync(cacheDir, { recursive: true, force: true });
	});

	function generate(request: EngineRequest): Promise<EngineOutput[]> {
		return new Promise((resolve) => {
			const outputs: EngineOutput[] = [];
			engine.submit(request, (output) => {
				outputs.push(output);
				if (output.finishReason !== undefined) resolve(outputs);
			});
		});
	}

	const greedy = (reference: Reference, more: Partial<EngineRequest> = {}): EngineRequest => ({
		requestId: reference.name,
		tokenIds: reference.prompt_ids,
		sampling: { temperature: 0 },
		stop: { maxTokens: reference.greedy_ids.length, ignoreEos: true },
		...more,
	});
	const tokens = (outputs: EngineOutput[]) => outputs.flatMap((output) => output.tokenIds);

	it.skipIf(!path)(
		"equals the reference when all prompts run at once",
		async () => {
			const results = await Promise.all(fixtures.map((reference) => generate(greedy(reference, { logprobs: 5 }))));
			for (const [i, { greedy_ids, top5_logprobs }] of fixtures.entries()) {
				expect(tokens(results[i]!)).toEqual(greedy_ids);
				for (const [step, expected] of top5_logprobs.entries()) {
					const { logProbs, topLogprobs } = results[i]![step]!;
					expect(topLogprobs![0]!.map((top) => top.tokenId)).toEqual(expected.map(([id]) => id));
					for (const [rank, [, logprob]] of expected.entries()) {
						expect(Math.abs(topLogprobs![0]![rank]!.logprob - logprob)).toBeLessThan(tolerance);
					}
					// Greedy: the chosen token is the likeliest.
					expect(logProbs).toEqual([topLogprobs![0]![0]!.logprob]);
				}
			}
		},
		120_000,
	);

	it.skipIf(!path)(
		"equals the reference for each prompt alone",
		async () => {
			for (const reference of fixtures) expect(tokens(await generate(greedy(reference)))).toEqual(reference.greedy_ids);
		},
		120_000,
	);

	it.skipIf(!path)(
		"gives a seeded request the same text alone and in company",
		async () => {
			const sampled = (i: number): EngineRequest => ({
				requestId: `seeded-${i}`,
				tokenIds: fixtures[i % fixtures.length]!.prompt_ids,
				sampling: { temperature: 0.8, topP: 0.95, seed: i },
				stop: { maxTokens: 24, ignoreEos: true },
			});
			const together = await Promise.all([0, 1, 2, 3, 4, 5].map((i) => generate(sampled(i))));
			for (const i of [0, 3]) expect(tokens(await generate(sampled(i)))).toEqual(tokens(together[i]!));
		},
		120_000,
	);
});
