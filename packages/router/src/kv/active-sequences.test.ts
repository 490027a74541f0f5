// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ActiveSequences } from "./active-sequences.js";

/** Prompts share beginnings; a hash names its whole prefix. */
const HASHES = fc
	.array(fc.bigInt(0n, 1n), { maxLength: 5 })
	.map((path) => path.map((_, i) => path.slice(0, i + 1).reduce((name, bit) => name * 2n + bit, 1n)));

type Step =
	| {
			readonly do: "add";
			readonly id: string;
			readonly slot: number;
			readonly hashes: bigint[];
			readonly tokens: number;
			readonly expectedTokens: number | undefined;
	  }
	| { readonly do: "token" | "end"; readonly id: string }
	| { readonly do: "grow"; readonly id: string; readonly by: number };

const ID = fc.nat(7).map(String);
const STEP: fc.Arbitrary<Step> = fc.oneof(
	fc.record({
		do: fc.constant("add" as const),
		id: ID,
		slot: fc.nat(2),
		hashes: HASHES,
		tokens: fc.nat(100),
		expectedTokens: fc.constant(undefined),
	}),
	fc.record({ do: fc.constantFrom("token" as const, "end" as const), id: ID }),
	fc.record({ do: fc.constant("grow" as const), id: ID, by: fc.nat(20) }),
);

describe("requests under way", () => {
	it("are counted as a list would, and leave nothing behind", () => {
		fc.assert(
			fc.property(fc.array(STEP, { maxLength: 60 }), HASHES, (steps, asked) => {
				const active = new ActiveSequences();
				const list = new Map<
					string,
					{ slot: number; hashes: bigint[]; tokens: number; prompt: number; output: number }
				>();
				const grown = ({ prompt, output }: { prompt: number; output: number }): number =>
					Math.ceil((prompt + output) / 4) - Math.ceil(prompt / 4);
				for (const step of steps) {
					if (step.do === "add") {
						const promptTokens = step.hashes.length * 4 + (step.tokens % 4);
						active.add(step.id, step.slot, step.hashes, step.tokens, 0, {
							blockSize: 4,
							promptTokens,
							expectedTokens: undefined,
						});
						list.set(step.id, { ...step, prompt: promptTokens, output: 0 });
					} else if (step.do === "grow") {
						active.grow(step.id, step.by);
						const one = list.get(step.id);
						if (one !== undefined) one.output += step.by;
					} else if (step.do === "end") {
						active.free(step.id);
						list.delete(step.id);
					} else {
						active.prefillDone(step.id);
						const one = list.get(step.id);
						if (one !== undefined) one.tokens = 0;
					}
					for (let slot = 0; slot < 3; slot++) {
						const here = [...list.values()].filter((one) => one.slot === slot);
						expect(active.requestsOf(slot)).toBe(here.length);
						expect(active.prefillTokensOf(slot)).toBe(here.reduce((sum, { tokens }) => sum + tokens, 0));
						const blocks = new Set(here.flatMap(({ hashes }) => hashes));
						const generated = here.reduce((sum, one) => sum + grown(one), 0);
						expect(active.blocksOf(slot)).toBe(blocks.size + generated);
						expect(active.blocksWith(slot, asked)).toBe(new Set([...blocks, ...asked]).size + generated);
					}
				}
				expect(active.size).toBe(list.size);
				for (const id of list.keys()) active.free(id);
				expect(active.size).toBe(0);
				for (let slot = 0; slot < 3; slot++) {
					expect([active.requestsOf(slot), active.prefillTokensOf(slot), active.blocksOf(slot)]).toEqual([0, 0, 0]);
				}
			}),
			{ numRuns: 200 },
		);
	});

	it("fade towards their expected end, in what they share with nobody", () => {
		const active = new ActiveSequences();
		const output = { blockSize: 4, promptTokens: 12, expectedTokens: 16 };
		active.add("a", 0, [1n, 2n, 3n], 0, 0, output);
		active.add("b", 0, [1n, 9n], 0, 0);
		active.grow("a", 1);
		// Three own blocks (two of the prompt, one generated) at 15/16; one shared and one of the other at 1.
		expect(active.blocksOf(0)).toBeCloseTo(2 + 3 * (15 / 16));
		active.grow("a", 3);
		expect(active.blocksOf(0)).toBeCloseTo(2 + 3 * (15 / 16));
		active.grow("a", 5);
		expect(active.blocksOf(0)).toBeCloseTo(2 + 5 * (7 / 16));
		// Who joins makes them whole again.
		active.add("c", 0, [1n, 2n, 3n], 0, 0);
		expect(active.blocksOf(0)).toBeCloseTo(4 + 3 * (7 / 16));
		active.grow("a", 100);
		expect(active.blocksOf(0)).toBeCloseTo(4);
		active.free("c");
		active.free("b");
		expect(active.blocksOf(0)).toBeCloseTo(3);
		active.free("a");
		expect(active.blocksOf(0)).toBe(0);
	});

	it("leave nothing behind, however they faded", () => {
		const step = fc.oneof(
			fc.record({ do: fc.constant("add" as const), id: ID, hashes: HASHES, expectedTokens: fc.option(fc.nat(30)) }),
			fc.record({ do: fc.constant("grow" as const), id: ID, by: fc.nat(9) }),
			fc.record({ do: fc.constant("end" as const), id: ID }),
		);
		fc.assert(
			fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
				const active = new ActiveSequences();
				for (const one of steps) {
					if (one.do === "grow") active.grow(one.id, one.by);
					else if (one.do === "end") active.free(one.id);
					else {
						const promptTokens = one.hashes.length * 4;
						const expectedTokens = one.expectedTokens ?? undefined;
						active.add(one.id, 0, one.hashes, 0, 0, { blockSize: 4, promptTokens, expectedTokens });
					}
					expect(active.blocksOf(0)).toBeGreaterThan(-1e-9);
				}
				for (let id = 0; id < 8; id++) active.free(String(id));
				expect([active.size, active.blocksOf(0)]).toEqual([0, 0]);
			}),
		);
	});

	it("expire, the oldest first, when their end never comes", () => {
		const active = new ActiveSequences(1000);
		active.add("a", 0, [1n], 10, 0);
		active.add("b", 0, [1n, 2n], 20, 600);
		expect(active.expire(1000)).toBe(0);
		expect(active.expire(1001)).toBe(1);
		expect([active.requestsOf(0), active.prefillTokensOf(0), active.blocksOf(0)]).toEqual([1, 20, 2]);
		active.free("a");
		active.add("c", 1, [], 0, 1601);
		expect([active.requestsOf(0), active.blocksOf(0), active.size]).toEqual([0, 0, 1]);
	});
});
