// SPDX-License-Identifier: Apache-2.0
import { blockHashes } from "@dynamo-ts/protocols/internal";
import { describe, expect, it } from "vitest";
import { KvPolicy } from "../kv-policy.js";
import { ApproximateIndex } from "./approximate-index.js";
import { RadixTree } from "./radix-tree.js";

const hashed = (...tokens: number[]) => ({ promptTokens: tokens.length, ...blockHashes(tokens, 1) });
const held = (tree: RadixTree, ...tokens: number[]): number =>
	tree.find(hashed(...tokens).tokensHashes).device[0] as number;

describe("what a worker is believed to hold", () => {
	it("runs out, unless a later prompt brought it again", () => {
		const tree = new RadixTree();
		const index = new ApproximateIndex(tree, 100);
		index.assume(0, hashed(1, 2, 3), 0);
		index.assume(0, hashed(1, 2), 50);
		index.expire(100);
		expect(held(tree, 1, 2, 3)).toBe(2);
		index.expire(150);
		expect(held(tree, 1, 2, 3)).toBe(0);
		expect(tree.size).toBe(0);
	});

	it("gives way to what is newer when there is no room, a prompt's end before its beginning", () => {
		const tree = new RadixTree();
		const index = new ApproximateIndex(tree, Number.POSITIVE_INFINITY, 4);
		index.assume(0, hashed(1, 2, 3), 0);
		index.assume(0, hashed(7, 8), 1);
		expect([held(tree, 1, 2, 3), held(tree, 7, 8)]).toEqual([2, 2]);
		// Use makes it young again.
		index.assume(0, hashed(1, 2), 2);
		index.assume(0, hashed(9), 3);
		expect([held(tree, 1, 2), held(tree, 7, 8), held(tree, 9)]).toEqual([2, 1, 1]);
		index.assume(0, hashed(11, 12, 13, 14, 15, 16), 4);
		expect(held(tree, 11, 12, 13, 14, 15, 16)).toBe(4);
		expect(tree.blocksOf(0)).toBe(4);
		index.forget(0);
		expect(tree.size).toBe(0);
	});
});

it("beside events: a prompt counts as cached before the worker tells, for the time that was set", () => {
	const workers = { blockSize: 1, firstRank: 0, rankCount: 1, publishEvents: true };
	const request = { tokenIds: [1, 2, 3, 4] };
	const plain = new KvPolicy(workers);
	plain.onStart(5n, "a", request);
	expect(plain.explain(5n, request).overlapBlocks).toBe(0);
	const predicting = new KvPolicy(workers, { predictedTtlMs: 60_000 });
	predicting.onStart(5n, "a", request);
	expect(predicting.explain(5n, request).overlapBlocks).toBe(4);
	// What the worker tells is an index of its own: the larger of both counts.
	const { slots, tree } = predicting.scheduler;
	const { tokensHashes, sequenceHashes } = blockHashes([1, 2, 3, 4, 5], 1);
	const blocks = tokensHashes.map((tokensHash, i) => ({ tokensHash, blockHash: sequenceHashes[i] as bigint }));
	tree.apply(slots.obtain(5n, 0), "device", { type: "stored", parentHash: undefined, blocks });
	expect(predicting.explain(5n, { tokenIds: [1, 2, 3, 4, 5] }).overlapBlocks).toBe(5);
	tree.clear(slots.obtain(5n, 0));
	expect(predicting.explain(5n, { tokenIds: [1, 2, 3, 4, 5] }).overlapBlocks).toBe(4);
});
