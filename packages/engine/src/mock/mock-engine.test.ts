// SPDX-License-Identifier: Apache-2.0
import { blockHashes, blockSeed, type KvCacheEvent, sequenceHash, tokensHash } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import type { Engine, EngineOutput, EngineRequest, StepReport } from "../engine.js";
import { MockBlockPool } from "./mock-block-pool.js";
import { MockCore, type MockCoreOptions } from "./mock-core.js";
import { createMockEngine, type MockEngineOptions } from "./mock-engine.js";
import { decodeMilliseconds, prefillMilliseconds } from "./mock-timing.js";

const engines: Engine[] = [];

afterEach(async () => {
	await Promise.all(engines.splice(0).map((engine) => engine.close()));
});

async function startEngine(options: MockEngineOptions = {}): Promise<Engine> {
	const engine = createMockEngine({ speedupRatio: 0, ...options });
	engines.push(engine);
	await engine.start();
	return engine;
}

function request(requestId: string, more: Partial<EngineRequest> = {}): EngineRequest {
	return { requestId, tokenIds: [1, 2, 3], sampling: {}, stop: { maxTokens: 5 }, ...more };
}

function collect(engine: Engine, one: EngineRequest): Promise<EngineOutput[]> {
	return new Promise((resolve) => {
		const outputs: EngineOutput[] = [];
		let open = one.sampling.n ?? 1;
		engine.submit(one, (output) => {
			outputs.push(output);
			if (output.finishReason !== undefined && --open === 0) resolve(outputs);
		});
	});
}

const count = (length: number, first = 0) => Array.from({ length }, (_, i) => first + i);
const IDLE = { running: 0, waiting: 0, usedBlocks: 0 };

/** Steps a core until it is idle. @returns records of (handle, token, code) and the simulated milliseconds. */
function drain(core: MockCore): { records: number[]; milliseconds: number; steps: number } {
	const records: number[] = [];
	let milliseconds = 0;
	let steps = 0;
	for (let step = core.beginStep(); step !== undefined; step = core.beginStep()) {
		milliseconds += step;
		steps++;
		core.endStep();
		records.push(...(core.outputs.take()?.records ?? []));
	}
	return { records, milliseconds, steps };
}

describe("createMockEngine", () => {
	it("streams as many random tokens as asked, usage on the first and last", async () => {
		const engine = await startEngine({ tokenIdRange: [100, 200] });
		const outputs = await collect(engine, request("a", { stop: { maxTokens: 50 } }));
		const tokens = outputs.flatMap((output) => output.tokenIds);
		expect(tokens).toHaveLength(50);
		expect(tokens.every((id) => id >= 100 && id < 200)).toBe(true);
		expect(new Set(tokens).size).toBeGreaterThan(10);
		expect(outputs[0]).toMatchObject({ promptTokens: 3, completionTokens: 1, cachedTokens: 0 });
		expect(outputs[0]!.prefillSeconds).toBeGreaterThanOrEqual(0);
		expect(outputs[1]!.completionTokens).toBeUndefined();
		expect(outputs.at(-1)).toMatchObject({ finishReason: "length", completionTokens: 50 });
		expect(engine.stats()).toMatchObject({ ...IDLE, decodeTokens: 50, prefillTokens: 3 });
		const again = await collect(engine, request("a", { stop: { maxTokens: 50 } }));
		expect(again.flatMap((output) => output.tokenIds)).toEqual(tokens);
	});

	it("gives n choices", async () => {
		const outputs = await collect(await startEngine(), request("a", { sampling: { n: 3 }, index: 2 }));
		for (const index of [2, 3, 4]) {
			const own = outputs.filter((output) => output.index === index);
			expect(own).toHaveLength(5);
			expect(own.at(-1)!.finishReason).toBe("length");
		}
	});

	it("refuses a request without max_tokens in the words of the original", async () => {
		const [output] = await collect(await startEngine(), request("a", { stop: {} }));
		expect(output).toMatchObject({
			finishReason: "error",
			error: {
				code: "invalid_argument",
				message: "`max_output_tokens` (or `max_tokens`) is required by the mocker worker",
			},
		});
	});

	it("answers bad requests with errors and keeps to the context", async () => {
		const engine = await startEngine({ maxModelLen: 20, vocabSize: 1000, maxPending: 2 });
		const code = async (one: EngineRequest) => (await collect(engine, one)).at(-1)!.error?.code;
		expect(await code(request("a", { tokenIds: [] }))).toBe("invalid_argument");
		expect(await code(request("a", { tokenIds: [1000] }))).toBe("invalid_argument");
		expect(await code(request("a", { tokenIds: count(20) }))).toBe("context_length_exceeded");
		expect(await collect(engine, request("a", { tokenIds: count(18), stop: { maxTokens: 9 } }))).toHaveLength(2);
		const pending = collect(engine, request("a", { sampling: { n: 2 } }));
		expect(await code(request("a"))).toBe("invalid_argument");
		const other = collect(engine, request("b"));
		await pending;
		expect((await other).at(-1)!.error?.code).toBe("overloaded");
	});

	it("reuses the blocks of earlier prompts and reports them", async () => {
		const engine = await startEngine({ blockSize: 16 });
		const cached = async (id: string, tokenIds: number[], more = {}) =>
			(await collect(engine, request(id, { tokenIds, ...more })))[0]!.cachedTokens;
		expect(await cached("a", count(64))).toBe(0);
		expect(await cached("b", count(64))).toBe(48);
		expect(await cached("c", count(65))).toBe(64);
		expect(await cached("d", [...count(40), ...count(40, 500)])).toBe(32);
		expect(await cached("e", count(64), { cacheSalt: "s" })).toBe(0);
		const off = await startEngine({ blockSize: 16, enablePrefixCaching: false });
		await collect(off, request("a", { tokenIds: count(64) }));
		expect((await collect(off, request("b", { tokenIds: count(64) })))[0]!.cachedTokens).toBe(0);
	});

	it("ends an aborted request with one output", async () => {
		const engine = await startEngine({ speedupRatio: 1 });
		for (const when of ["waiting", "running"]) {
			const outputs: EngineOutput[] = [];
			await new Promise<void>((resolve) => {
				engine.submit(request("a", { stop: { maxTokens: 100_000 } }), (output) => {
					outputs.push(output);
					if (output.finishReason === undefined) engine.abort("a");
					else resolve();
				});
				if (when === "waiting") engine.abort("a");
			});
			expect(outputs.at(-1)!.finishReason).toBe("cancelled");
			expect(outputs).toHaveLength(when === "waiting" ? 1 : 2);
			expect(engine.stats()).toMatchObject(IDLE);
		}
	});

	it("serves two thousand requests at once", async () => {
		const engine = await startEngine();
		const outputs = await Promise.all(
			count(2000).map((i) => collect(engine, request(`r${i}`, { stop: { maxTokens: 8 } }))),
		);
		expect(outputs.every((list) => list.length === 8)).toBe(true);
		expect(engine.stats()).toMatchObject({ ...IDLE, decodeTokens: 16_000 });
	});

	it("cancels what is pending on close, and a start", async () => {
		const engine = await startEngine({ speedupRatio: 1 });
		const pending = collect(engine, request("a", { stop: { maxTokens: 100_000 } }));
		await engine.close();
		expect((await pending).at(-1)!.finishReason).toBe("cancelled");
		expect(engine.stats()).toMatchObject(IDLE);
		expect(() => engine.submit(request("b"), () => {})).toThrow(/closed/);
		const slow = createMockEngine({ startupTime: 1000 });
		const started = expect(slow.start()).rejects.toThrow(/closed/);
		await slow.close();
		await started;
	});

	it.each([
		{ blockSize: 0 },
		{ numGpuBlocks: 1.5 },
		{ maxNumSeqs: -1 },
		{ speedupRatio: -1 },
		{ tokenIdRange: [5, 5] },
	])("refuses the option %j", (bad) => {
		expect(() => createMockEngine(bad as MockEngineOptions)).toThrow(RangeError);
	});
});

describe("MockCore", () => {
	it("never uses more blocks than it has, completes everything, and ends with none in use", () => {
		const arbitrary = fc.record({
			numGpuBlocks: fc.integer({ min: 3, max: 12 }),
			enablePrefixCaching: fc.boolean(),
			enableChunkedPrefill: fc.boolean(),
			preemptionMode: fc.constantFrom<"lifo" | "fifo">("lifo", "fifo"),
			maxNumBatchedTokens: fc.integer({ min: 1, max: 20 }),
			maxNumSeqs: fc.integer({ min: 1, max: 5 }),
			requests: fc.array(
				fc.record({
					prompt: fc.array(fc.nat({ max: 1 }), { minLength: 1, maxLength: 11 }),
					maxTokens: fc.integer({ min: 1, max: 20 }),
					n: fc.constantFrom(1, 1, 2),
					arrival: fc.nat({ max: 30 }),
					abortAfter: fc.option(fc.nat({ max: 20 }), { freq: 4, nil: undefined }),
				}),
				{ minLength: 1, maxLength: 12 },
			),
		});
		fc.assert(
			fc.property(arbitrary, ({ requests, ...options }) => {
				const core = new MockCore({ blockSize: 4, ...options });
				const tokens = new Map<number, number>();
				const ends = new Map<number, number>();
				for (let step = 0; step < 2000; step++) {
					for (const [i, one] of requests.entries()) {
						const id = `${i}`;
						if (one.arrival === step) {
							const sampling = { n: one.n };
							core.submit(i * 10, request(id, { tokenIds: one.prompt, sampling, stop: { maxTokens: one.maxTokens } }));
						}
						if (one.abortAfter !== undefined && one.arrival + one.abortAfter === step) {
							for (let choice = 0; choice < one.n; choice++) core.abort(i * 10 + choice);
						}
					}
					if (core.beginStep() !== undefined) core.endStep();
					else if (step > 60) break;
					const { usedBlocks, running } = core.stats();
					expect(usedBlocks).toBeLessThanOrEqual(options.numGpuBlocks);
					expect(running).toBeLessThanOrEqual(options.maxNumSeqs);
					const records = core.outputs.take()?.records ?? [];
					for (let i = 0; i < records.length; i += 3) {
						const handle = records[i]!;
						expect(ends.has(handle)).toBe(false);
						if (records[i + 1]! >= 0) tokens.set(handle, (tokens.get(handle) ?? 0) + 1);
						if (records[i + 2] !== 0) ends.set(handle, records[i + 2]!);
					}
				}
				for (const [i, one] of requests.entries()) {
					for (let choice = 0; choice < one.n; choice++) {
						const end = ends.get(i * 10 + choice);
						const limit = options.numGpuBlocks * 4;
						// 3 = length, 4 = cancelled, 5 = error (longer than the whole cache).
						if (one.prompt.length >= limit) expect(end).toBe(5);
						else if (end === 3) {
							expect(tokens.get(i * 10 + choice)).toBe(Math.min(one.maxTokens, limit - one.prompt.length));
						} else {
							expect(end).toBe(4);
							expect(one.abortAfter).toBeDefined();
						}
					}
				}
				expect(core.stats()).toMatchObject(IDLE);
			}),
			{ numRuns: 300 },
		);
	});

	it.each(["lifo", "fifo"] as const)("preempts (%s) when blocks run out, and loses no token", (preemptionMode) => {
		const core = new MockCore({ blockSize: 4, numGpuBlocks: 5, preemptionMode, enablePrefixCaching: false });
		for (const handle of [1, 2]) core.submit(handle, request(`${handle}`, { stop: { maxTokens: 15 } }));
		const { records } = drain(core);
		expect(core.stats().preemptions).toBeGreaterThan(0);
		for (const handle of [1, 2]) {
			expect(records.filter((value, i) => i % 3 === 0 && value === handle)).toHaveLength(15);
		}
		const ends = records.flatMap((value, i) => (i % 3 === 2 && value !== 0 ? [records[i - 2]!] : []));
		expect(ends).toEqual(preemptionMode === "lifo" ? [1, 2] : [2, 1]);
	});

	it("spreads a long prompt over steps, or not", () => {
		const run = (options: MockCoreOptions) => {
			const core = new MockCore({ maxNumBatchedTokens: 100, ...options });
			core.submit(1, request("a", { tokenIds: count(450), stop: { maxTokens: 1 } }));
			return drain(core).steps;
		};
		expect(run({})).toBe(5);
		expect(run({ enableChunkedPrefill: false })).toBe(1);
	});

	it("takes the time of the model, divided by the speed-ups", () => {
		const time = (options: MockCoreOptions) => {
			const core = new MockCore(options);
			core.submit(1, request("a", { tokenIds: count(1000), stop: { maxTokens: 3 } }));
			return drain(core).milliseconds;
		};
		const prefill = prefillMilliseconds(1000, 500_000);
		const decode = decodeMilliseconds(1, 1001) + decodeMilliseconds(1, 1002);
		expect(time({})).toBeCloseTo(prefill + decode, 9);
		expect(time({ speedupRatio: 10 })).toBeCloseTo((prefill + decode) / 10, 9);
		expect(time({ decodeSpeedupRatio: 2 })).toBeCloseTo(prefill + decode / 2, 9);
		expect(time({ speedupRatio: 0 })).toBe(0);
		expect(prefillMilliseconds(4000, 8e6)).toBeGreaterThan(4 * prefillMilliseconds(1000, 5e5) - 40);
		expect(decodeMilliseconds(1, 5000)).toBeGreaterThan(decodeMilliseconds(1, 100));
	});
});

describe("MockBlockPool", () => {
	it("evicts the longest idle first, and tails before their prefixes", () => {
		const pool = new MockBlockPool(4);
		for (const hashes of [
			[1n, 2n],
			[3n, 4n],
		]) {
			expect(pool.allocate(2)).toBe(true);
			for (const hash of hashes) pool.name(hash);
			pool.release(hashes, 0);
		}
		expect(pool.findPrefix([1n, 2n])).toEqual({ found: 2, idle: 2 });
		expect(pool.allocate(1)).toBe(true);
		expect(pool.findPrefix([1n, 2n]).found).toBe(1);
		expect(pool.allocate(1)).toBe(true);
		expect([pool.findPrefix([1n]).found, pool.findPrefix([3n, 4n]).found]).toEqual([0, 2]);
		pool.share(3n);
		expect(pool.allocate(2)).toBe(false);
		expect(pool.used).toBe(3);
	});
});

describe("cache events", () => {
	const done = (
		engine: Engine,
		request: Partial<EngineRequest> & { requestId: string; tokenIds: number[] },
	): Promise<void> =>
		new Promise((resolve) => {
			engine.submit({ sampling: {}, stop: { maxTokens: 1, ignoreEos: true }, ...request }, (output) => {
				if (output.finishReason !== undefined) resolve();
			});
		});
	/** Applies events to a set, as a router would, and checks that each one makes sense where it stands. */
	function apply(cache: Set<bigint>, events: readonly KvCacheEvent[]): void {
		for (const event of events) {
			if (event.type === "cleared") cache.clear();
			else if (event.type === "removed") for (const hash of event.blockHashes) expect(cache.delete(hash)).toBe(true);
			else {
				if (event.parentHash !== undefined) expect(cache.has(event.parentHash)).toBe(true);
				expect(event.tokenIds).toHaveLength(event.blocks.length * event.blockSize);
				let parent = event.parentHash;
				for (const [i, block] of event.blocks.entries()) {
					const own = tokensHash(event.tokenIds, i * event.blockSize, (i + 1) * event.blockSize, blockSeed(event));
					expect(block).toEqual({ blockHash: sequenceHash(parent, own), tokensHash: own });
					expect(cache.has(block.blockHash)).toBe(false);
					cache.add(block.blockHash);
					parent = block.blockHash;
				}
			}
		}
	}

	it("a prompt's new full blocks come as one event behind the last one that was there", async () => {
		const engine = createMockEngine({ blockSize: 4, numGpuBlocks: 64, speedupRatio: 0 });
		const batches: KvCacheEvent[][] = [];
		engine.onKvEvents((events) => batches.push([...events]));
		await engine.start();
		const prompt = Array.from({ length: 13 }, (_, i) => i + 1);
		await done(engine, { requestId: "a", tokenIds: prompt });
		await done(engine, { requestId: "b", tokenIds: [...prompt.slice(0, 8), 90, 91, 92, 93, 94] });
		await done(engine, { requestId: "c", tokenIds: prompt, cacheSalt: "tenant-a" });
		const hashes = blockHashes(prompt, 4);
		expect(batches.flat()).toMatchObject([
			{
				type: "stored",
				parentHash: undefined,
				blocks: hashes.sequenceHashes.map((blockHash, i) => ({ blockHash, tokensHash: hashes.tokensHashes[i] })),
				tokenIds: prompt.slice(0, 12),
				blockSize: 4,
			},
			{ type: "stored", parentHash: hashes.sequenceHashes[1], tokenIds: [90, 91, 92, 93] },
			{
				type: "stored",
				cacheSalt: "tenant-a",
				blocks: [{ blockHash: blockHashes(prompt, 4, { cacheSalt: "tenant-a" }).sequenceHashes[0] }, {}, {}],
			},
		]);
		await engine.close();
	});

	it("generated blocks are told one by one, and what generated them can be asked again", async () => {
		const engine = createMockEngine({ blockSize: 4, numGpuBlocks: 64, speedupRatio: 0 });
		const cache = new Set<bigint>();
		engine.onKvEvents((events) => apply(cache, events));
		await engine.start();
		const text: number[] = [];
		await new Promise<void>((resolve) => {
			engine.submit({ requestId: "a", tokenIds: [1, 2, 3, 4, 5], sampling: {}, stop: { maxTokens: 12 } }, (output) => {
				text.push(...output.tokenIds);
				if (output.finishReason !== undefined) resolve();
			});
		});
		const { sequenceHashes } = blockHashes([1, 2, 3, 4, 5, ...text], 4);
		expect([...cache]).toEqual(sequenceHashes.slice(0, 4));
		await engine.close();
	});

	it("a removal stands before what took the place, and tails go first", async () => {
		const engine = createMockEngine({ blockSize: 4, numGpuBlocks: 4, speedupRatio: 0 });
		const events: KvCacheEvent[] = [];
		engine.onKvEvents((batch) => events.push(...batch));
		await engine.start();
		const first = Array.from({ length: 9 }, (_, i) => i);
		await done(engine, { requestId: "a", tokenIds: first });
		await done(engine, { requestId: "b", tokenIds: Array.from({ length: 9 }, (_, i) => 50 + i) });
		const { sequenceHashes } = blockHashes(first, 4);
		expect(events.map((event) => event.type)).toEqual(["stored", "removed", "stored"]);
		expect(events[1]).toEqual({ type: "removed", blockHashes: [sequenceHashes[1]] });
		await engine.close();
	});

	it("events replayed give the cache, whatever is asked, aborted and evicted", async () => {
		await fc.assert(
			fc.asyncProperty(
				fc.array(
					fc.record({
						prefix: fc.nat({ max: 3 }),
						length: fc.integer({ min: 1, max: 30 }),
						maxTokens: fc.integer({ min: 1, max: 12 }),
						abort: fc.boolean(),
					}),
					{ maxLength: 25 },
				),
				async (requests) => {
					const engine = createMockEngine({
						blockSize: 4,
						numGpuBlocks: 24,
						maxNumSeqs: 3,
						maxNumBatchedTokens: 16,
						speedupRatio: 0,
					});
					const cache = new Set<bigint>();
					engine.onKvEvents((events) => apply(cache, events));
					await engine.start();
					const ended = requests.map((request, i) => {
						const tokenIds = Array.from({ length: request.length }, (_, at) => request.prefix * 1000 + at);
						const end = done(engine, {
							requestId: `${i}`,
							tokenIds,
							stop: { maxTokens: request.maxTokens, ignoreEos: true },
						});
						if (request.abort) setImmediate(() => engine.abort(`${i}`));
						return end;
					});
					await Promise.all(ended);
					expect(cache.size).toBeLessThanOrEqual(24);
					// What the events say is there is found by a prompt that asks for it.
					for (let prefix = 0; prefix < 4; prefix++) {
						const tokenIds = Array.from({ length: 31 }, (_, at) => prefix * 1000 + at);
						const { sequenceHashes } = blockHashes(tokenIds, 4);
						const missing = sequenceHashes.findIndex((hash) => !cache.has(hash));
						const expected = (missing < 0 ? sequenceHashes.length : missing) * 4;
						const before = engine.stats().cacheHitTokens;
						await done(engine, { requestId: `probe-${prefix}`, tokenIds });
						expect(engine.stats().cacheHitTokens - before).toBe(expected);
					}
					await engine.close();
				},
			),
			{ numRuns: 30 },
		);
	});

	it("without prefix caching nothing is told", async () => {
		const engine = createMockEngine({ blockSize: 4, enablePrefixCaching: false, speedupRatio: 0 });
		let told = 0;
		engine.onKvEvents(() => told++);
		await engine.start();
		await done(engine, { requestId: "a", tokenIds: Array.from({ length: 20 }, (_, i) => i) });
		expect(told).toBe(0);
		await engine.close();
	});
});

describe("reports of steps", () => {
	it("tell what was computed and what waits", async () => {
		const engine = createMockEngine({ blockSize: 4, maxNumSeqs: 2, speedupRatio: 0 });
		const reports: StepReport[] = [];
		engine.onStep?.((report) => reports.push(report));
		await engine.start();
		await Promise.all(
			[10, 20, 30].map(
				(length, i) =>
					new Promise<void>((resolve) => {
						engine.submit(
							{
								requestId: `${i}`,
								tokenIds: Array.from({ length }, (_, at) => i * 100 + at),
								sampling: {},
								stop: { maxTokens: 2, ignoreEos: true },
							},
							(output) => {
								if (output.finishReason !== undefined) resolve();
							},
						);
					}),
			),
		);
		expect(reports[0]).toEqual({
			seconds: 0,
			prefill: { requests: 2, tokens: 30, variance: 25, cachedTokens: 0 },
			decode: { requests: 0, tokens: 0, variance: 0 },
			waitingPrefill: { requests: 1, tokens: 30, variance: 0 },
			waitingDecode: { requests: 0, tokens: 0, variance: 0 },
		});
		expect(reports[1]).toMatchObject({
			prefill: { requests: 0 },
			decode: { requests: 2, tokens: 32, variance: 25 },
			waitingPrefill: { requests: 1 },
		});
		expect(reports.at(-1)).toMatchObject({
			decode: { requests: 1, tokens: 31 },
			waitingPrefill: { requests: 0, tokens: 0 },
		});
		await engine.close();
	});
});
