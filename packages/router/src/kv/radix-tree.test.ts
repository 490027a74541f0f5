// SPDX-License-Identifier: Apache-2.0
import { type RouterEventData, STORAGE_TIERS, type StorageTier } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type PrefixMatches, RadixTree } from "./radix-tree.js";

interface Change {
	readonly slot: number;
	readonly tier: StorageTier;
	readonly data: RouterEventData;
}

/** The same by lists of paths, without a tree. */
class NaiveIndex {
	readonly #names = new Map<number, Map<bigint, string>>();
	readonly #tiers = new Map<number, Map<string, Set<StorageTier>>>();

	apply({ slot, tier, data }: Change): boolean {
		const names = this.#names.get(slot) ?? new Map<bigint, string>();
		const tiers = this.#tiers.get(slot) ?? new Map<string, Set<StorageTier>>();
		this.#names.set(slot, names);
		this.#tiers.set(slot, tiers);
		if (data.type === "cleared") {
			names.clear();
			tiers.clear();
		} else if (data.type === "removed") {
			for (const hash of data.blockHashes) {
				const path = names.get(hash);
				if (path === undefined) continue;
				tiers.get(path)?.delete(tier);
				if ((tiers.get(path)?.size ?? 0) > 0) continue;
				tiers.delete(path);
				names.delete(hash);
			}
		} else {
			let path = data.parentHash === undefined ? "" : names.get(data.parentHash);
			if (path === undefined) return false;
			for (const { blockHash, tokensHash } of data.blocks) {
				path = `${path}/${tokensHash}`;
				names.set(blockHash, path);
				tiers.set(path, (tiers.get(path) ?? new Set()).add(tier));
			}
		}
		return true;
	}

	/** Blocks by tier for a slot. */
	find(slot: number, hashes: readonly bigint[]): number[] {
		const counts = STORAGE_TIERS.map(() => 0);
		let stage = 0;
		let path = "";
		for (const hash of hashes) {
			path = `${path}/${hash}`;
			const held = this.#tiers.get(slot)?.get(path);
			if (held === undefined) break;
			while (stage < STORAGE_TIERS.length && !held.has(STORAGE_TIERS[stage] as StorageTier)) stage++;
			if (stage === STORAGE_TIERS.length) break;
			counts[stage]!++;
		}
		return counts;
	}
}

const scores = (found: PrefixMatches, slot: number): number[] =>
	[found.device, found.hostPinned, found.disk, found.external].map((counts) => counts[slot] ?? 0);

/** The name that the engine gives to a prefix. */
const nameOf = (path: readonly bigint[]): bigint => path.reduce((name, hash) => name * 5n + hash + 1n, 0n);

const PATH = fc.array(fc.bigInt(0n, 2n), { minLength: 1, maxLength: 6 });
const SLOT = fc.integer({ min: 0, max: 19 });
const TIER = fc.constantFrom(...STORAGE_TIERS);

function storedAlong(path: readonly bigint[], from: number): RouterEventData {
	return {
		type: "stored",
		parentHash: from === 0 ? undefined : nameOf(path.slice(0, from)),
		blocks: path.slice(from).map((tokensHash, i) => ({ blockHash: nameOf(path.slice(0, from + i + 1)), tokensHash })),
	};
}

const CHANGE: fc.Arbitrary<Change> = fc.record({
	slot: SLOT,
	tier: fc.oneof({ weight: 3, arbitrary: fc.constant<StorageTier>("device") }, { weight: 1, arbitrary: TIER }),
	data: fc.oneof(
		{
			weight: 6,
			arbitrary: fc
				.tuple(PATH, fc.nat(5))
				.map(([path, from]) => storedAlong(path, from < path.length && from > 2 ? from : 0)),
		},
		{
			weight: 4,
			arbitrary: fc
				.array(PATH, { maxLength: 3 })
				.map((paths): RouterEventData => ({ type: "removed", blockHashes: paths.map(nameOf) })),
		},
		{ weight: 1, arbitrary: fc.constant<RouterEventData>({ type: "cleared" }) },
	),
});

describe("the index of prefixes", () => {
	it("says the same as a list of paths after any stream of events", () => {
		fc.assert(
			fc.property(
				fc.array(CHANGE, { maxLength: 60 }),
				fc.array(PATH, { minLength: 1, maxLength: 8 }),
				(stream, asked) => {
					const tree = new RadixTree();
					const naive = new NaiveIndex();
					for (const change of stream) {
						expect(tree.apply(change.slot, change.tier, change.data)).toBe(naive.apply(change));
					}
					for (const path of asked) {
						const found = tree.find(path);
						const matched = new Set(found.slots.slice(0, found.count));
						for (let slot = 0; slot < 20; slot++) {
							const expected = naive.find(slot, path);
							expect(scores(found, slot)).toEqual(expected);
							expect(matched.has(slot)).toBe(expected.some((count) => count > 0));
						}
					}
					for (let slot = 0; slot < 20; slot++) tree.clear(slot);
					expect(tree.size).toBe(0);
				},
			),
			{ numRuns: 300 },
		);
	});

	it("keeps nothing after a clear even of events that make no sense", () => {
		const nonsense = fc.record({
			slot: fc.nat(3),
			tier: TIER,
			data: fc.oneof(
				fc.record({
					type: fc.constant("stored" as const),
					parentHash: fc.option(fc.bigInt(0n, 4n), { nil: undefined }),
					blocks: fc.array(fc.record({ blockHash: fc.bigInt(0n, 4n), tokensHash: fc.bigInt(0n, 2n) }), {
						maxLength: 5,
					}),
				}),
				fc.record({
					type: fc.constant("removed" as const),
					blockHashes: fc.array(fc.bigInt(0n, 4n), { maxLength: 3 }),
				}),
			),
		});
		fc.assert(
			fc.property(fc.array(nonsense, { maxLength: 60 }), (stream) => {
				const tree = new RadixTree();
				for (const { slot, tier, data } of stream) tree.apply(slot, tier, data);
				for (let slot = 0; slot < 4; slot++) tree.clear(slot);
				expect(tree.size).toBe(0);
				expect(tree.find([0n, 1n]).count).toBe(0);
			}),
			{ numRuns: 300 },
		);
	});

	it("refuses blocks behind a parent that the worker does not hold", () => {
		const tree = new RadixTree();
		tree.apply(0, "device", storedAlong([1n, 2n], 0));
		expect(tree.apply(1, "device", storedAlong([1n, 2n, 0n], 2))).toBe(false);
		expect(tree.apply(0, "device", storedAlong([1n, 2n, 0n], 2))).toBe(true);
		expect(scores(tree.find([1n, 2n, 0n]), 0)).toEqual([3, 0, 0, 0]);
		expect(scores(tree.find([1n, 2n, 0n]), 1)).toEqual([0, 0, 0, 0]);
	});

	it("counts lower tiers only where the higher one ends", () => {
		const tree = new RadixTree();
		const path = [0n, 1n, 2n, 0n, 1n];
		tree.apply(0, "host_pinned", storedAlong(path.slice(0, 3), 0));
		tree.apply(0, "device", storedAlong(path.slice(0, 2), 0));
		tree.apply(0, "disk", storedAlong(path, 3));
		expect(scores(tree.find(path), 0)).toEqual([2, 1, 2, 0]);
		tree.apply(0, "device", { type: "removed", blockHashes: [nameOf(path.slice(0, 2))] });
		expect(scores(tree.find(path), 0)).toEqual([1, 2, 2, 0]);
	});

	it("a name that goes to another block leaves the first one", () => {
		const tree = new RadixTree();
		tree.apply(0, "device", { type: "stored", parentHash: undefined, blocks: [{ blockHash: 9n, tokensHash: 1n }] });
		tree.apply(0, "device", { type: "stored", parentHash: undefined, blocks: [{ blockHash: 9n, tokensHash: 2n }] });
		expect(tree.find([1n]).count).toBe(0);
		expect(scores(tree.find([2n]), 0)).toEqual([1, 0, 0, 0]);
		expect(tree.size).toBe(1);
	});
});
