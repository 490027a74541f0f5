// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
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
