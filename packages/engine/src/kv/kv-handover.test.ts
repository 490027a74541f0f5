// SPDX-License-Identifier: Apache-2.0
// Two engines, one of which computes prompts for the other.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import type { EngineRequest, HeldKv } from "../engine.js";
import { EngineCore, type EngineCoreOptions } from "../engine-core.js";
import { FakeModelRunner } from "../mock/fake-model-runner.js";
import { loadModelRunner } from "../model/load-model-runner.js";
import type { ModelRunner } from "../model/model-runner.js";
import { writeGenaiFolder } from "../model/testing/genai-folder.js";
import { interpretedRunner } from "../model/testing/paged-runner.js";
import { makeTinyLlama, writeTinyFolder } from "../model/testing/tiny-llama.js";
import { FINISH_REASONS, RECORD_SIZE } from "../step-outputs.js";
import type { FetchNotice } from "../thread-messages.js";
import { createHeldStates, MAX_HELD, pin, unpin } from "./held-blocks.js";

const MAX_LEN = 64;

/** An engine and what it said. */
class Side {
	readonly core: EngineCore;
	readonly states = createHeldStates();
	readonly tokens = new Map<number, number[]>();
	readonly finished = new Map<number, string>();
	readonly cached = new Map<number, number>();
	readonly held = new Map<number, HeldKv>();
	readonly fetches: FetchNotice[] = [];
	readonly givenUp = new Set<number>();

	constructor(
		readonly runner: ModelRunner,
		options: EngineCoreOptions = {},
	) {
		this.core = new EngineCore(runner, { maxNumBatchedTokens: 16, heldStates: this.states, ...options });
	}

	/** @returns whether anything was done. */
	step(): boolean {
		const worked = this.core.hasWork && this.core.step();
		const message = this.core.outputs.take();
		if (message === undefined) return worked;
		for (let i = 0; i < message.records.length; i += RECORD_SIZE) {
			const [handle, token, code] = message.records.slice(i, i + RECORD_SIZE) as [number, number, number];
			if (token >= 0) this.tokens.set(handle, [...(this.tokens.get(handle) ?? []), token]);
			if (code > 0) this.finished.set(handle, FINISH_REASONS[code - 1]!);
		}
		for (let i = 0; i < (message.started?.length ?? 0); i += 2) {
			this.cached.set(message.started![i]!, message.started![i + 1]!);
		}
		for (const [handle, held] of message.held ?? []) this.held.set(handle, held);
		for (const id of message.givenUp ?? []) this.givenUp.add(id);
		this.fetches.push(...(message.fetches ?? []));
		return worked;
	}

	run(): void {
		while (this.step());
	}
}

function request(tokenIds: readonly number[], maxTokens: number, more: Partial<EngineRequest> = {}): EngineRequest {
	return { requestId: "r", tokenIds, sampling: { temperature: 0 }, stop: { maxTokens }, ...more };
}

/** Copies what `fetch` wants. @returns false when it is gone. */
function copy(from: Side, to: Side, held: HeldKv, fetch: FetchNotice): boolean {
	for (const [i] of fetch.blocks.entries()) {
		const index = fetch.firstBlock + i;
		const data = from.core.readHeld(held.id, [held.blocks[index]!]);
		if (data === undefined) return false;
		to.core.writeFetched(fetch.handle, index, new Uint8Array(data));
	}
	return true;
}

/** Computes the prompt on one engine and the answer on the other. */
function handOver(from: Side, to: Side, handle: number, prompt: readonly number[], maxTokens: number): void {
	from.core.submit(handle, request(prompt, 1, { holdKv: true }));
	from.run();
	to.core.submit(handle, request(prompt, maxTokens), true);
	to.run();
	const held = from.held.get(handle)!;
	expect(held.tokens).toBe(prompt.length);
	const fetch = to.fetches.pop();
	if (fetch !== undefined) {
		expect(fetch.tokens).toBe(prompt.length - 1);
		expect(copy(from, to, held, fetch)).toBe(true);
		to.core.fetched(handle, true);
	}
	from.core.releaseHeld(held.id);
	to.run();
}

const text = (length: number, seed: number) => Array.from({ length }, (_, i) => (i * 37 + seed * 11) % 97);

describe("a prompt that another engine computed", () => {
	const pair = () => {
		const fake = () => new FakeModelRunner({ maxNumSeqs: 4, maxModelLen: MAX_LEN });
		return { from: new Side(fake()), to: new Side(fake()), plain: new Side(fake()) };
	};

	it.each([2, 4, 5, 8, 9, 31, 63])("of %i tokens is not computed again, but for its last token", (length) => {
		const { from, to, plain } = pair();
		const prompt = text(length, 1);
		const maxTokens = Math.min(12, MAX_LEN - length);
		handOver(from, to, 1, prompt, maxTokens);
		plain.core.submit(1, request(prompt, maxTokens));
		plain.run();
		expect(to.tokens.get(1)).toEqual(plain.tokens.get(1));
		expect(to.core.stats().prefillTokens).toBe(1);
		for (const side of [from, to])
			expect(side.core.stats()).toMatchObject({ usedBlocks: 0, heldBlocks: 0, running: 0 });
	});

	it("is found there by the next prompt, and blocks that are there are not asked for", () => {
		const { from, to } = pair();
		handOver(from, to, 1, text(18, 1), 4);
		expect(to.core.stats().cachedBlocks).toBe(5);
		const second = [...text(18, 1).slice(0, 13), 90, 91, 92, 93, 94];
		to.core.submit(2, request(second, 3), true);
		to.step();
		expect(to.fetches).toMatchObject([{ handle: 2, tokens: 17, firstBlock: 3, blocks: { length: 2 } }]);
		to.core.fetched(2, false);
		to.run();
		expect(to.cached.get(2)).toBe(12);
		// All that matters is there: nothing is asked for.
		to.fetches.length = 0;
		to.core.submit(3, request(text(17, 1), 3), true);
		to.run();
		expect(to.fetches).toEqual([]);
		expect(to.finished.get(3)).toBe("length");
	});

	it("does not hold up others while it comes, and other choices wait for it", () => {
		const { from, to } = pair();
		const prompt = text(20, 2);
		from.core.submit(1, request(prompt, 1, { holdKv: true }));
		from.run();
		to.core.submit(1, request(prompt, 4, { sampling: { temperature: 0, n: 3 } }), true);
		to.core.submit(9, request(text(10, 5), 6));
		to.run();
		expect(to.finished).toEqual(new Map([[9, "length"]]));
		expect(to.core.stats()).toMatchObject({ waiting: 3, running: 0, usedBlocks: 5 });
		copy(from, to, from.held.get(1)!, to.fetches[0]!);
		to.core.fetched(1, true);
		to.run();
		expect([1, 2, 3].map((handle) => to.tokens.get(handle))).toEqual(Array(3).fill(to.tokens.get(1)));
		expect(to.tokens.get(1)).toHaveLength(4);
		// The last block is each choice's own.
		expect(to.core.stats().prefillTokens).toBeLessThanOrEqual(10 + 1 + 2 * 4);
	});

	it("is computed when it does not come; log-probabilities of a prompt are always computed", () => {
		const { to, plain } = pair();
		const prompt = text(21, 3);
		to.core.submit(1, request(prompt, 5), true);
		to.run();
		to.core.fetched(1, false);
		to.run();
		plain.core.submit(1, request(prompt, 5));
		plain.run();
		expect(to.tokens.get(1)).toEqual(plain.tokens.get(1));
		to.fetches.length = 0;
		to.core.submit(2, request(prompt, 2, { promptLogprobs: 0 }), true);
		to.run();
		expect(to.fetches).toEqual([]);
		expect(to.finished.get(2)).toBe("length");
	});

	it("keeps its blocks until whoever fills them has ended, also when nobody waits for it any more", () => {
		const { to } = pair();
		to.core.submit(1, request(text(20, 1), 5), true);
		to.run();
		to.core.abort(1);
		to.step();
		expect(to.finished.get(1)).toBe("cancelled");
		expect(to.core.stats()).toMatchObject({ usedBlocks: 5, waiting: 1 });
		to.core.fetched(1, true);
		expect(to.core.stats()).toMatchObject({ usedBlocks: 0, waiting: 0 });
		expect(to.step()).toBe(false);
	});
});

describe("blocks that are kept", () => {
	const side = (numBlocks: number) => new Side(new FakeModelRunner({ maxNumSeqs: 4, maxModelLen: MAX_LEN, numBlocks }));
	const keep = (one: Side, handle: number, length: number) => {
		one.core.submit(handle, request(text(length, handle), 1, { holdKv: true }));
		one.run();
		return one.held.get(handle)!;
	};

	it("count as used, and are given up, the oldest first, before a sequence that runs loses its own", () => {
		const one = side(16);
		const held = [1, 2].map((handle) => keep(one, handle, 16));
		expect(one.core.stats()).toMatchObject({ usedBlocks: 8, heldBlocks: 8 });
		one.core.submit(3, request(text(30, 3), 20));
		one.run();
		expect(one.tokens.get(3)).toHaveLength(20);
		expect(one.core.stats().preemptions).toBe(0);
		expect([...one.givenUp]).toEqual([held[0]!.id, held[1]!.id].slice(0, one.givenUp.size));
		expect(one.givenUp.size).toBeGreaterThan(0);
		expect(one.core.readHeld(held[0]!.id, [held[0]!.blocks[0]!])).toBeUndefined();
	});

	it("stay while somebody reads them", () => {
		const one = side(16);
		const held = keep(one, 1, 30);
		expect(pin(one.states, held.id)).toBe(true);
		one.core.submit(2, request(text(40, 2), 3));
		one.run();
		expect(one.givenUp.size).toBe(0);
		expect(one.finished.has(2)).toBe(false);
		unpin(one.states, held.id);
		one.run();
		expect(one.finished.get(2)).toBe("length");
		expect(pin(one.states, held.id)).toBe(false);
	});

	it("take half of the cache at most, and an id names one use of its place only", () => {
		const one = side(32);
		const ids = Array.from({ length: 12 }, (_, i) => keep(one, i + 1, 16).id);
		expect(one.core.stats().heldBlocks).toBe(16);
		expect([...one.givenUp]).toEqual(ids.slice(0, 8));
		for (const id of ids) one.core.releaseHeld(id);
		expect(one.core.stats()).toMatchObject({ usedBlocks: 0, heldBlocks: 0 });
		for (let i = 0; i < MAX_HELD; i++) one.core.releaseHeld(keep(one, 100, 4).id);
		// Every place has been used again since.
		for (const id of ids) expect(pin(one.states, id)).toBe(false);
	});
});

it("no block is lost and no text changes, whatever comes between", () => {
	const action = fc.record({
		kind: fc.constantFrom("prefill", "decode", "decode", "arrive", "fail", "abort", "release", "step", "step"),
		which: fc.nat({ max: 4 }),
		length: fc.integer({ min: 1, max: 40 }),
	});
	fc.assert(
		fc.property(fc.array(action, { maxLength: 40 }), fc.boolean(), (actions, enablePrefixCaching) => {
			const fake = () => new FakeModelRunner({ maxNumSeqs: 3, maxModelLen: MAX_LEN, numBlocks: 22 });
			const options = { enablePrefixCaching };
			const [from, to, plain] = [new Side(fake(), options), new Side(fake(), options), new Side(fake())];
			const prompts = new Map<number, number[]>();
			const open = new Map<number, FetchNotice>();
			const aborted = new Set<number>();
			let handles = 0;
			const both = () => {
				from.step();
				to.step();
				for (const fetch of to.fetches.splice(0)) open.set(fetch.handle, fetch);
			};
			for (const { kind, which, length } of actions) {
				const known = [...prompts.keys()];
				const handle = known[which % Math.max(1, known.length)] ?? 0;
				const fetch = open.get(handle);
				const held = from.held.get(handle);
				if (kind === "prefill") {
					prompts.set(++handles, text(length, which));
					from.core.submit(handles, request(prompts.get(handles)!, 1, { holdKv: true }));
				} else if (kind === "decode") {
					prompts.set(++handles, prompts.get(handle) ?? text(length, which));
					const from0 = from.held.get(handle);
					if (from0 !== undefined) from.held.set(handles, from0);
					to.core.submit(handles, request(prompts.get(handles)!, 6), true);
				} else if ((kind === "arrive" || kind === "fail") && fetch !== undefined) {
					open.delete(handle);
					const there = kind === "arrive" && held !== undefined && copy(from, to, held, fetch);
					to.core.fetched(handle, there);
				} else if (kind === "abort") {
					aborted.add(handle);
					from.core.abort(handle);
					to.core.abort(handle);
				} else if (kind === "release" && held !== undefined) from.core.releaseHeld(held.id);
				else both();
			}
			for (let worked = true; worked; ) {
				worked = from.step();
				worked = to.step() || worked;
				for (const fetch of to.fetches.splice(0)) open.set(fetch.handle, fetch);
				for (const [handle] of open) {
					to.core.fetched(handle, false);
					worked = true;
				}
				open.clear();
			}
			for (const { id } of from.held.values()) from.core.releaseHeld(id);
			for (const one of [from, to]) {
				expect(one.core.stats()).toMatchObject({ running: 0, waiting: 0, usedBlocks: 0, heldBlocks: 0 });
				expect((one.runner as FakeModelRunner).live.size).toBe(0);
			}
			for (const [handle, tokens] of to.tokens) {
				if (to.finished.get(handle) !== "length") continue;
				plain.core.submit(handle, request(prompts.get(handle)!, 6));
				plain.run();
				expect(tokens).toEqual(plain.tokens.get(handle));
			}
		}),
		{ numRuns: 150 },
	);
});

describe("on real graphs", () => {
	const root = mkdtempSync(join(tmpdir(), "kv-handover-"));
	const model = makeTinyLlama({}, 11);
	const folder = writeTinyFolder(join(root, "model"), model);
	const genai = join(root, "genai");
	mkdirSync(genai);
	writeGenaiFolder(genai, model, {});
	const cacheDir = join(root, "cache");
	afterAll(() => rmSync(root, { recursive: true }));

	const cpu = (kvCacheDtype: "fp32" | "fp16" | "int8", path = folder) =>
		loadModelRunner({
			model: path,
			quantization: "none",
			cacheDir,
			// No whole number of blocks.
			maxModelLen: 60,
			maxNumSeqs: 4,
			blockSize: 8,
			...(path === folder && { kvCacheDtype }),
		});

	it.each([
		["fp32", () => cpu("fp32")],
		["fp16", () => cpu("fp16")],
		["int8", () => cpu("int8")],
		["a graph made elsewhere", () => cpu("fp32", genai)],
		["pages on a device", async () => interpretedRunner(folder, { cacheDir }).runner],
	] as const)(
		"the answer is the same: %s",
		async (_name, load) => {
			const runners: ModelRunner[] = [];
			const side = async (): Promise<Side> => {
				const runner = await load();
				runners.push(runner);
				return new Side(runner);
			};
			const [from, to, plain] = [await side(), await side(), await side()];
			try {
				expect(from.runner.modelSum).toBe(to.runner.modelSum);
				for (const [handle, length] of [2, 17, 24, 41, 57].entries()) {
					const prompt = text(length, handle + 1);
					const maxTokens = Math.min(8, 60 - length);
					handOver(from, to, handle, prompt, maxTokens);
					plain.core.submit(handle, request(prompt, maxTokens));
					plain.run();
					expect(to.tokens.get(handle), `${length} tokens`).toEqual(plain.tokens.get(handle));
				}
				expect(to.core.stats()).toMatchObject({ prefillTokens: 5, usedBlocks: 0 });
			} finally {
				for (const runner of runners) runner.close();
			}
		},
		60_000,
	);

	it("another model, or another way to hold it, has another sum", async () => {
		const other = writeTinyFolder(join(root, "other"), makeTinyLlama({}, 12));
		const runners = [await cpu("fp32"), await cpu("int8"), await cpu("fp32", other), await cpu("fp32", genai)];
		try {
			expect(new Set(runners.map(({ modelSum }) => modelSum)).size).toBe(4);
		} finally {
			for (const runner of runners) runner.close();
		}
	});
});
