// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { blockHashes, blockSeed, sequenceHash, tokensHash } from "./block-hash.js";

interface Vector {
	name: string;
	tokens: number[];
	block_size: number;
	lora?: string;
	salt?: string;
	eagle?: boolean;
	mm?: (number[] | null)[];
	tokens_hash: string[];
	sequence_hash: string[];
}

const vectors = JSON.parse(
	readFileSync(new URL("../../fixtures/kv/hash_vectors.json", import.meta.url), "utf8"),
) as Vector[];

describe("recorded vectors", () => {
	test("there are plenty", () => expect(vectors.length).toBeGreaterThanOrEqual(13));
	test.each(vectors)("$name", (vector) => {
		const hashes = blockHashes(vector.tokens, vector.block_size, {
			loraName: vector.lora,
			cacheSalt: vector.salt,
			eagle: vector.eagle,
			mmHashes: vector.mm?.map((hashes) => hashes?.map(BigInt)),
		});
		expect(hashes.tokensHashes.map(String)).toEqual(vector.tokens_hash);
		expect(hashes.sequenceHashes.map(String)).toEqual(vector.sequence_hash);
	});
	test("multimodal hashes count in ascending order", () => {
		const tokens = Array.from({ length: 16 }, (_, i) => i + 1);
		const expected = 14838381081241750522n;
		expect(tokensHash(tokens, 0, 16, blockSeed(), [7n, 3n])).toBe(expected);
		expect(tokensHash(tokens, 0, 16, blockSeed(), [3n, 7n])).toBe(expected);
	});
});

test("the first block's place is its own name", () => {
	expect(sequenceHash(undefined, 5n)).toBe(5n);
	expect(sequenceHash(5n, 6n)).not.toBe(6n);
});

test("hashing a prompt at once is the same as block by block, whatever the size of blocks", () => {
	// Sizes around each border between the hash function's ways to treat lengths, in tokens of four bytes.
	const borders = [1, 2, 3, 4, 5, 8, 16, 17, 24, 25, 31, 32, 33, 48, 59, 60, 61, 64, 128, 256, 257, 272, 511, 512, 513];
	const sizes = fc.oneof(fc.constantFrom(...borders), fc.integer({ min: 1, max: 520 }));
	fc.assert(
		fc.property(sizes, fc.nat(4), fc.nat(), fc.option(fc.string()), (blockSize, blocks, start, salt) => {
			const options = { cacheSalt: salt ?? undefined };
			const seed = blockSeed(options);
			const count = blockSize * blocks + Math.min(blocks, blockSize - 1);
			const tokens = Array.from({ length: count }, (_, i) => Math.imul(start + i, 2_654_435_761) >>> 0);
			const own = Array.from({ length: blocks }, (_, i) =>
				tokensHash(tokens, i * blockSize, (i + 1) * blockSize, seed),
			);
			const chained: bigint[] = [];
			for (const hash of own) chained.push(sequenceHash(chained.at(-1), hash));
			expect(blockHashes(tokens, blockSize, options)).toEqual({ tokensHashes: own, sequenceHashes: chained });
		}),
		{ numRuns: 300 },
	);
});

test("images in a block change that block's own hash, and the chain from there on", () => {
	const tokens = Array.from({ length: 12 }, (_, i) => i);
	const plain = blockHashes(tokens, 4);
	const pictured = blockHashes(tokens, 4, { mmHashes: [undefined, [7n, 3n]] });
	expect(pictured.tokensHashes[1]).toBe(tokensHash(tokens, 4, 8, blockSeed(), [3n, 7n]));
	expect(pictured.tokensHashes.map((hash, i) => hash === plain.tokensHashes[i])).toEqual([true, false, true]);
	expect(pictured.sequenceHashes.map((hash, i) => hash === plain.sequenceHashes[i])).toEqual([true, false, false]);
});
