// SPDX-License-Identifier: Apache-2.0
// Chains of blocks that workers hold, and prompts that begin like them: the same in every process of a benchmark.
import { blockHashes, type KvCacheEvent } from "@dynamo-ts/protocols/internal";

export const BLOCK_SIZE = 16;
/** Tokens of each chain of blocks, and how many of them all chains have in common. */
export const CHAIN = 1024;
const COMMON = 64;

/** Chains that have about so many blocks together. */
export const chainsOf = (blocks: number): number => Math.floor((blocks * BLOCK_SIZE) / CHAIN);

/** Tokens of chain number `n`. */
export function chainOf(n: number): number[] {
	let state = n + 1;
	const token = (): number => {
		state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
		return 100 + ((state >>> 8) % 30_000);
	};
	return Array.from({ length: CHAIN }, (_, i) => (i < COMMON ? 100 + i : token()));
}

/** Prompts of 512 to 1,211 tokens: the beginning of one of the chains, then something else. */
export function promptsOf(count: number, chains: number): number[][] {
	return Array.from({ length: count }, (_, i) => [
		...chainOf((i * 7919) % chains).slice(0, 256 + ((i * 37) % 700)),
		...chainOf(chains + i).slice(COMMON, COMMON + 256),
	]);
}

/** A worker has stored chain number `n`. */
export function storedOf(n: number): KvCacheEvent & { type: "stored" } {
	const tokenIds = chainOf(n);
	const { tokensHashes, sequenceHashes } = blockHashes(tokenIds, BLOCK_SIZE);
	const blocks = sequenceHashes.map((blockHash, i) => ({ blockHash, tokensHash: tokensHashes[i] as bigint }));
	return { type: "stored", parentHash: undefined, blocks, tokenIds, blockSize: BLOCK_SIZE };
}
