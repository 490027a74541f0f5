// SPDX-License-Identifier: Apache-2.0
import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";
import { blockHashes } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BlockManager, type BlockOwner } from "./block-manager.js";
import { PromptHashes } from "./prompt-hashes.js";

const SIZE = 4;

interface Owner extends BlockOwner {
	readonly hashes: PromptHashes;
	readonly tokens: Int32Array;
}

function owner(tokens: readonly number[], cacheSalt = ""): Owner {
	const ids = Int32Array.from(tokens);
	const hashes = new PromptHashes({ tokens: ids }, SIZE, cacheSalt);
	return { tokens: ids, hashes, blocks: new Int32Array(0), numBlocks: 0, numNamed: 0 };
}

const range = (length: number, from = 0) => Array.from({ length }, (_, i) => from + i);
const nothing = () => {};

/** What events leave findable. */
class Mirror {
	readonly names = new Set<bigint>();

	readonly tell = (event: KvCacheEvent): void => {
		if (event.type === "cleared") this.names.clear();
		else if (event.type === "stored") {
			expect(event.tokenIds.length).toBe(event.blocks.length * event.blockSize);
			const { parentHash } = event;
			expect(parentHash === undefined || this.names.has(parentHash), "behind an unknown parent").toBe(true);
			for (const { blockHash } of event.blocks) {
				expect(this.names.has(blockHash), "stored twice").toBe(false);
				this.names.add(blockHash);
			}
		} else {
			for (const name of event.blockHashes) expect(this.names.delete(name), "removed what was not there").toBe(true);
		}
	};
}

/** Takes blocks for a prompt as the scheduler does. */
function admit(manager: BlockManager, one: Owner): number {
	const cached = manager.countCached(one.hashes, Math.floor((one.tokens.length - 1) / SIZE));
	const total = manager.blocksFor(one.tokens.length);
	if (!manager.canAdmit(one.hashes, cached, total)) return -1;
	manager.admit(one, one.hashes, cached, total);
	return cached;
}

describe("BlockManager", () => {
	it("finds what another sequence computed, while that lives and after", () => {
		const manager = new BlockManager({ numBlocks: 8, blockSize: SIZE });
		const first = owner(range(10));
		expect(admit(manager, first)).toBe(0);
		const persisted: number[][] = [];
		manager.nameFull(first, first.hashes, 10, (index, block) => persisted.push([index, block]));
		expect(persisted).toEqual([
			[0, first.blocks[0]],
			[1, first.blocks[1]],
		]);
		const second = owner([...range(8), 90, 91, 92]);
		expect(admit(manager, second)).toBe(2);
		expect([...second.blocks.subarray(0, 2)]).toEqual([...first.blocks.subarray(0, 2)]);
		expect(manager.numUsed).toBe(4);
		manager.release(first);
		manager.release(second);
		expect({ used: manager.numUsed, free: manager.numFree, cached: manager.numCached }).toEqual({
			used: 0,
			free: 8,
			cached: 2,
		});
		expect(admit(manager, owner(range(10)))).toBe(2);
	});

	it("never gives the whole prompt: the last token must be computed", () => {
		const manager = new BlockManager({ numBlocks: 8, blockSize: SIZE });
		const first = owner(range(8));
		admit(manager, first);
		manager.nameFull(first, first.hashes, 8, nothing);
		expect(admit(manager, owner(range(8)))).toBe(1);
	});

	it("keeps tenants apart, and shares nothing when told not to", () => {
		const manager = new BlockManager({ numBlocks: 8, blockSize: SIZE });
		const first = owner(range(8), "a");
		admit(manager, first);
		manager.nameFull(first, first.hashes, 8, nothing);
		expect(manager.countCached(owner(range(8), "b").hashes, 1)).toBe(0);
		expect(manager.countCached(owner(range(8)).hashes, 1)).toBe(0);
		expect(manager.countCached(owner(range(8), "a").hashes, 1)).toBe(1);
		const off = new BlockManager({ numBlocks: 8, blockSize: SIZE, enablePrefixCaching: false });
		const alone = owner(range(8));
		admit(off, alone);
		off.nameFull(alone, alone.hashes, 8, nothing);
		expect(off.numCached).toBe(0);
	});

	it("names blocks as Dynamo does and tells parents, tokens and salt", () => {
		const events: KvCacheEvent[] = [];
		const manager = new BlockManager({ numBlocks: 8, blockSize: SIZE, onEvent: (event) => events.push(event) });
		const one = owner(range(14, 1), "t");
		admit(manager, one);
		manager.nameFull(one, one.hashes, 5, nothing);
		manager.nameFull(one, one.hashes, 13, nothing);
		const { tokensHashes, sequenceHashes } = blockHashes(range(14, 1), SIZE, { cacheSalt: "t" });
		const block = (i: number) => ({ blockHash: sequenceHashes[i], tokensHash: tokensHashes[i] });
		const common = { type: "stored", blockSize: SIZE, cacheSalt: "t" };
		expect(events).toEqual([
			{ ...common, parentHash: undefined, blocks: [block(0)], tokenIds: range(4, 1) },
			{ ...common, parentHash: sequenceHashes[0], blocks: [block(1), block(2)], tokenIds: range(8, 5) },
		]);
		manager.clear();
		expect(events.at(-1)).toEqual({ type: "cleared" });
		expect(manager.cachedNames()).toEqual([]);
	});

	it("evicts what was used longest ago, the end of a prompt before its beginning", () => {
		const mirror = new Mirror();
		const manager = new BlockManager({ numBlocks: 6, blockSize: SIZE, onEvent: mirror.tell });
		const old = owner(range(12));
		const recent = owner(range(12, 50));
		for (const one of [old, recent]) {
			admit(manager, one);
			manager.nameFull(one, one.hashes, 12, nothing);
		}
		manager.release(old);
		manager.release(recent);
		const other = owner(range(8, 100));
		admit(manager, other);
		expect(manager.countCached(old.hashes, 3)).toBe(1);
		expect(manager.countCached(recent.hashes, 3)).toBe(3);
		expect(new Set(manager.cachedNames())).toEqual(mirror.names);
	});

	it("names its own copy when the one that was named first is gone", () => {
		const mirror = new Mirror();
		const manager = new BlockManager({ numBlocks: 8, blockSize: SIZE, onEvent: mirror.tell });
		const [first, twin] = [owner(range(8)), owner(range(12))];
		// Both compute the same at the same time.
		for (const one of [first, twin]) admit(manager, one);
		manager.nameFull(first, first.hashes, 8, nothing);
		manager.nameFull(twin, twin.hashes, 8, nothing);
		manager.release(first);
		// Takes everything that nobody owns, the named copies among it.
		admit(manager, owner(range(20, 50)));
		expect(manager.numCached).toBe(0);
		const persisted: number[] = [];
		manager.nameFull(twin, twin.hashes, 12, (index) => persisted.push(index));
		expect(persisted).toEqual([0, 1, 2]);
		expect(manager.countCached(owner(range(13)).hashes, 3)).toBe(3);
		expect(new Set(manager.cachedNames())).toEqual(mirror.names);
	});

	it("gives nothing when there is too little, and says so", () => {
		const manager = new BlockManager({ numBlocks: 3, blockSize: SIZE });
		const one = owner(range(9));
		admit(manager, one);
		expect(manager.grow(one, 4)).toBe(false);
		expect(one.numBlocks).toBe(3);
		expect(admit(manager, owner([1]))).toBe(-1);
		expect(() => manager.admit(owner([1]), one.hashes, 0, 1)).toThrow();
		manager.release(one);
		expect(manager.numFree).toBe(3);
	});

	it("leaks nothing and agrees with its events, whatever is asked of it", () => {
		const action = fc.record({
			kind: fc.constantFrom("admit", "admit", "name", "grow", "release", "clear"),
			which: fc.nat({ max: 5 }),
			tokens: fc.array(fc.nat({ max: 1 }), { minLength: 1, maxLength: 20 }),
			salt: fc.constantFrom("", "", "x"),
		});
		fc.assert(
			fc.property(fc.array(action, { maxLength: 60 }), (actions) => {
				const mirror = new Mirror();
				const manager = new BlockManager({ numBlocks: 9, blockSize: 2, onEvent: mirror.tell });
				const live: (Owner | undefined)[] = [];
				for (const { kind, which, tokens, salt } of actions) {
					const one = live[which];
					if (kind === "clear") {
						if (tokens.length > 18) manager.clear();
					} else if (kind === "admit" && one === undefined) {
						const ids = Int32Array.from(tokens);
						const hashes = new PromptHashes({ tokens: ids }, 2, salt);
						const fresh = { tokens: ids, hashes, blocks: new Int32Array(0), numBlocks: 0, numNamed: 0 };
						const cached = manager.countCached(hashes, Math.floor((ids.length - 1) / 2));
						const total = manager.blocksFor(ids.length);
						if (manager.canAdmit(hashes, cached, total)) {
							manager.admit(fresh, hashes, cached, total);
							live[which] = fresh;
						}
					} else if (one !== undefined && kind === "name")
						manager.nameFull(one, one.hashes, one.tokens.length, nothing);
					else if (one !== undefined && kind === "grow") manager.grow(one, one.numBlocks + 1);
					else if (one !== undefined && kind === "release") {
						manager.release(one);
						live[which] = undefined;
					}
					expect(new Set(manager.cachedNames())).toEqual(mirror.names);
					const held = new Set(live.flatMap((each) => (each ? [...each.blocks.subarray(0, each.numBlocks)] : [])));
					expect(manager.numUsed).toBe(held.size);
				}
				for (const one of live) if (one) manager.release(one);
				expect(manager.numFree).toBe(9);
			}),
			{ numRuns: 300 },
		);
	});
});
