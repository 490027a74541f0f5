// SPDX-License-Identifier: Apache-2.0
// The thread runs the built package, so build before these tests.
import { blockHashes } from "@dynamo-ts/protocols/internal";
import { afterEach, describe, expect, it } from "vitest";
import type { Engine, EngineOutput, EngineRequest, StepReport } from "./engine.js";
import { createEngineThread, type EngineThreadOptions } from "./engine-thread.js";
import type { FakeModelOptions } from "./mock/fake-model-runner.js";

const runnerModule = new URL("../dist/mock/fake-model-runner.js", import.meta.url).href;
const engines: Engine[] = [];

afterEach(async () => {
	await Promise.all(engines.splice(0).map((engine) => engine.close()));
});

function makeEngine(
	fake: Partial<FakeModelOptions> & { loadError?: string } = {},
	options: Partial<EngineThreadOptions> = {},
): Engine {
	const engine = createEngineThread({
		model: JSON.stringify(fake),
		cacheDir: "",
		runnerModule,
		maxNumSeqs: 4,
		maxModelLen: 256,
		maxNumBatchedTokens: 12,
		...options,
	});
	engines.push(engine);
	return engine;
}

function request(requestId: string, more: Partial<EngineRequest> = {}): EngineRequest {
	return { requestId, tokenIds: [1, 2, 3], sampling: { temperature: 0 }, stop: { maxTokens: 5 }, ...more };
}

/** Collects the outputs of a request until each of its choices has ended. */
function collect(engine: Engine, one: EngineRequest, onEach?: (output: EngineOutput) => void): Promise<EngineOutput[]> {
	return new Promise((resolve) => {
		const outputs: EngineOutput[] = [];
		let open = one.sampling.n ?? 1;
		engine.submit(one, (output) => {
			outputs.push(output);
			onEach?.(output);
			if (output.finishReason !== undefined && --open === 0) resolve(outputs);
		});
	});
}

const tokensOf = (outputs: EngineOutput[], index = 0) =>
	outputs.filter((output) => output.index === index).flatMap((output) => output.tokenIds);

describe("createEngineThread", () => {
	it("loads, streams, counts and closes", async () => {
		const stages: string[] = [];
		const engine = makeEngine({}, { onProgress: (stage) => stages.push(stage) });
		const info = await engine.start();
		expect(info).toMatchObject({ maxModelLen: 256, maxNumSeqs: 4, vocabSize: 97, device: "cpu", totalBlocks: 128 });
		expect(stages).toEqual(["load"]);
		const outputs = await collect(engine, request("a"));
		expect(outputs.map((output) => output.finishReason)).toEqual([...Array(4).fill(undefined), "length"]);
		expect(outputs[0]).toMatchObject({ promptTokens: 3, completionTokens: 1, cachedTokens: 0, index: 0 });
		expect(outputs[0]!.prefillSeconds).toBeGreaterThanOrEqual(0);
		expect(outputs[1]!.promptTokens).toBeUndefined();
		expect(outputs[4]).toMatchObject({ promptTokens: 3, completionTokens: 5, cachedTokens: 0 });
		expect(outputs[4]!.prefillSeconds).toBeUndefined();
		expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, usedBlocks: 0, decodeTokens: 5, prefillTokens: 3 });
		await engine.close();
		await engine.close();
		expect(() => engine.submit(request("b"), () => {})).toThrow(/closed/);
	});

	it("tells what its cache holds and what each step held, before the answers", async () => {
		const engine = makeEngine({}, { blockSize: 4 });
		const told: string[] = [];
		const reports: StepReport[] = [];
		const blocks: bigint[] = [];
		engine.onKvEvents((events) => {
			for (const event of events) {
				if (event.type === "stored") blocks.push(...event.blocks.map((block) => block.blockHash));
				told.push(event.type);
			}
		});
		await engine.start();
		engine.onStep?.((report) => reports.push(report));
		const tokenIds = Array.from({ length: 9 }, (_, i) => i + 1);
		const outputs = await collect(engine, request("a", { tokenIds, stop: { maxTokens: 4 } }), () =>
			told.push("output"),
		);
		expect(told.indexOf("stored")).toBeLessThan(told.indexOf("output"));
		const text = [...tokenIds, ...tokensOf(outputs)];
		expect(blocks).toEqual(blockHashes(text, 4).sequenceHashes.slice(0, blocks.length));
		expect(blocks.length).toBeGreaterThanOrEqual(2);
		expect(reports[0]).toMatchObject({
			prefill: { requests: 1, tokens: 9, variance: 0, cachedTokens: 0 },
			decode: { requests: 0 },
			waitingPrefill: { requests: 0 },
			waitingDecode: { requests: 0 },
		});
		expect(reports.at(-1)).toMatchObject({ prefill: { requests: 0 }, decode: { requests: 1, tokens: 12 } });
		expect(reports).toHaveLength(engine.stats().steps);
		expect(() => engine.onKvEvents(() => {})).toThrow("before the engine starts");
	});

	it("gives many requests at once what each gets alone", async () => {
		const engine = makeEngine();
		await engine.start();
		const requests = Array.from({ length: 30 }, (_, i) =>
			request(`r${i}`, {
				tokenIds: Uint32Array.from({ length: 1 + (i % 20) }, (_, j) => (i * j) % 90),
				sampling: { seed: i, n: 1 + (i % 3) },
				logprobs: 2,
			}),
		);
		const together = await Promise.all(requests.map((one) => collect(engine, one)));
		for (const [i, one] of requests.entries()) {
			const alone = await collect(engine, one);
			for (let index = 0; index < one.sampling.n!; index++) {
				expect(tokensOf(together[i]!, index)).toEqual(tokensOf(alone, index));
			}
			for (const output of alone) {
				expect(output.logProbs).toHaveLength(1);
				expect(output.topLogprobs![0]!.map((top) => top.rank)).toEqual([1, 2]);
				expect(output.topLogprobs![0]![0]!.logprob).toBeGreaterThanOrEqual(output.logProbs![0]!);
			}
		}
	});

	it("calls back for all sequences of a step in one turn", async () => {
		const engine = makeEngine({ decodeMs: 2 });
		await engine.start();
		let turn = 0;
		let counting = true;
		const tick = () => {
			turn++;
			if (counting) setImmediate(tick);
		};
		tick();
		const turns = new Map<string, number[]>();
		const long = { stop: { maxTokens: 30 } };
		await Promise.all(
			["a", "b", "c"].map((id) =>
				collect(engine, request(id, long), () => {
					turns.set(id, [...(turns.get(id) ?? []), turn]);
				}),
			),
		);
		counting = false;
		// Once all three run, c's tokens come in the turns of a's.
		const later = turns.get("c")!.slice(1, 20);
		expect(turns.get("a")).toEqual(expect.arrayContaining(later));
		expect(turns.get("b")).toEqual(expect.arrayContaining(later));
	});

	it("ends an aborted request with one output and frees its slot", async () => {
		const engine = makeEngine({ decodeMs: 1 });
		await engine.start();
		const after: EngineOutput[] = [];
		let aborted = false;
		const outputs = await collect(engine, request("a", { stop: { maxTokens: 200 }, sampling: { n: 2 } }), (output) => {
			if (aborted) after.push(output);
			else if (output.completionTokens === undefined) {
				aborted = true;
				engine.abort("a");
				engine.abort("a");
			}
		});
		expect(after).toMatchObject([
			{ finishReason: "cancelled", tokenIds: [] },
			{ finishReason: "cancelled", tokenIds: [] },
		]);
		expect(outputs.length).toBeLessThan(200);
		expect(engine.stats()).toMatchObject({ running: 0, waiting: 0 });
		engine.abort("a");
		engine.abort("unknown");
		expect(tokensOf(await collect(engine, request("a")))).toHaveLength(5);
	});

	it("answers bad requests with errors", async () => {
		const engine = makeEngine({}, { maxPending: 2 });
		await engine.start();
		const code = async (one: EngineRequest) => (await collect(engine, one)).at(-1)!.error?.code;
		expect(await code(request("a", { tokenIds: [] }))).toBe("invalid_argument");
		expect(await code(request("a", { tokenIds: Array(256).fill(1) }))).toBe("context_length_exceeded");
		expect(await code(request("a", { tokenIds: [1e9] }))).toBe("invalid_argument");
		const uncloneable = (() => 1) as unknown as number;
		expect(await code(request("a", { priority: uncloneable }))).toBe("invalid_argument");
		const first = collect(engine, request("a", { sampling: { n: 2 }, stop: { maxTokens: 100 } }));
		expect(await code(request("a"))).toBe("invalid_argument");
		expect(await code(request("b"))).toBe("overloaded");
		expect((await first).at(-1)!.finishReason).toBe("length");
	});

	it("aborts a request whose callback throws, and serves the others", async () => {
		const engine = makeEngine();
		await engine.start();
		const warned = new Promise<void>((resolve) => {
			const listen = (warning: Error): void => {
				if (warning.message !== "thrown by a test") return;
				process.off("warning", listen);
				resolve();
			};
			process.on("warning", listen);
		});
		let calls = 0;
		engine.submit(request("bad", { stop: { maxTokens: 100 } }), () => {
			calls++;
			throw new Error("thrown by a test");
		});
		const outputs = await collect(engine, request("good"));
		expect(tokensOf(outputs)).toHaveLength(5);
		await warned;
		expect(calls).toBeLessThanOrEqual(2);
	});

	it("fails a step's sequences without ending", async () => {
		const engine = makeEngine({ failOnToken: 96 });
		await engine.start();
		const [failed] = await collect(engine, request("a", { tokenIds: [96] }));
		expect(failed).toMatchObject({ finishReason: "error", error: { code: "internal" } });
		expect(tokensOf(await collect(engine, request("b")))).toHaveLength(5);
	});

	it("rejects start when the model cannot be loaded", async () => {
		const engine = makeEngine({ loadError: "no such model" });
		await expect(engine.start()).rejects.toThrow("no such model");
		const [refused] = await collect(engine, request("a"));
		expect(refused!.error!.code).toBe("engine_failed");
	});

	it("rejects start when the engine is closed meanwhile, and a second start", async () => {
		const engine = makeEngine();
		const started = engine.start();
		await expect(engine.start()).rejects.toThrow(/loading/);
		const rejected = expect(started).rejects.toThrow(/closed/);
		await engine.close();
		await rejected;
	});

	it("gives every pending request an error when the thread dies, then says so once", async () => {
		const engine = makeEngine({ dieOnToken: 96, decodeMs: 1 });
		await engine.start();
		const failures: Error[] = [];
		const failed = new Promise<void>((resolve) =>
			engine.onFailure((error) => {
				failures.push(error);
				resolve();
			}),
		);
		const running = collect(engine, request("a", { stop: { maxTokens: 250 } }));
		const deadly = collect(engine, request("b", { tokenIds: [96] }));
		expect((await running).at(-1)!.error!.code).toBe("engine_failed");
		expect((await deadly).at(-1)!.error!.code).toBe("engine_failed");
		await failed;
		expect(failures).toHaveLength(1);
		expect(failures[0]!.message).toContain("code 7");
		expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, usedBlocks: 0 });
	});

	it("cancels pending requests on close", async () => {
		const engine = makeEngine({ decodeMs: 1 });
		await engine.start();
		const pending = collect(engine, request("a", { stop: { maxTokens: 250 } }));
		await engine.close();
		expect((await pending).at(-1)).toMatchObject({ finishReason: "cancelled" });
	});
});
