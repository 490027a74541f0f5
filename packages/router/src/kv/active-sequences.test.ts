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
	  }
	| { readonly do: "token" | "end"; readonly id: string };

const ID = fc.nat(7).map(String);
const STEP: fc.Arbitrary<Step> = fc.oneof(
	fc.record({ do: fc.constant("add" as const), id: ID, slot: fc.nat(2), hashes: HASHES, tokens: fc.nat(100) }),
	fc.record({ do: fc.constantFrom("token" as const, "end" as const), id: ID }),
);

describe("requests under way", () => {
	it("are counted as a list would, and leave nothing behind", () => {
		fc.assert(
			fc.property(fc.array(STEP, { maxLength: 60 }), HASHES, (steps, asked) => {
				const active = new ActiveSequences();
				const list = new Map<string, { slot: number; hashes: bigint[]; tokens: number }>();
				for (const step of steps) {
					if (step.do === "add") {
						active.add(step.id, step.slot, step.hashes, step.tokens, 0);
						list.set(step.id, { ...step });
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
						expect(active.blocksOf(slot)).toBe(blocks.size);
						expect(active.blocksWith(slot, asked)).toBe(new Set([...blocks, ...asked]).size);
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
