// SPDX-License-Identifier: Apache-2.0
// How Dynamo names blocks of tokens, so that engines and routers of any make agree on what is cached where:
// XXH3-64 over the tokens of a block, and a chain of those over the blocks of a prompt.

import { xxh3 } from "@node-rs/xxhash";
import { BlockHasher } from "./block-hasher.js";

/** Seed of plain blocks, and of every chain. */
const BASE_SEED = 1337n;
const MASK_64 = 0xffff_ffff_ffff_ffffn;

/** What else than its tokens makes a block differ. */
export interface BlockHashOptions {
	/** Name of the LoRA adapter; absent or empty: none. */
	readonly loraName?: string | undefined;
	/** Keeps tenants apart; absent or empty: none. */
	readonly cacheSalt?: string | undefined;
	/** Hashes of images and the like, by block; undefined for a block without, absent: no block has any. */
	readonly mmHashes?: readonly (readonly bigint[] | undefined)[] | undefined;
	/** Engines that look one token ahead (EAGLE): a block is named by its tokens and the one after them. */
	readonly eagle?: boolean | undefined;
}

/** The seed of a block's own hash under the given adapter and salt. */
export function blockSeed(options: BlockHashOptions = {}): bigint {
	let seed = BASE_SEED;
	if (options.loraName) seed += xxh3.xxh64(Buffer.from(options.loraName, "utf8"), 0n);
	if (options.cacheSalt) seed += xxh3.xxh64(Buffer.from(options.cacheSalt, "utf8"), 1n);
	return seed & MASK_64;
}

/**
 * Hash of one block by itself ("tokens_hash", "local hash"): XXH3-64 over the tokens as u32 little-endian, then the
 * multimodal hashes in it as u64, smallest first.
 * @param tokens the ids of the block, `start` .. `end` - 1 of the array.
 * @param seed from `blockSeed`.
 */
export function tokensHash(
	tokens: ArrayLike<number>,
	start: number,
	end: number,
	seed: bigint,
	mmHashes: readonly bigint[] = [],
): bigint {
	const bytes = Buffer.allocUnsafe((end - start) * 4 + mmHashes.length * 8);
	for (let i = start; i < end; i++) bytes.writeUInt32LE(tokens[i]! >>> 0, (i - start) * 4);
	const sorted = mmHashes.length > 1 ? [...mmHashes].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0)) : mmHashes;
	for (let i = 0; i < sorted.length; i++) bytes.writeBigUInt64LE(sorted[i]!, (end - start) * 4 + i * 8);
	return xxh3.xxh64(bytes, seed);
}

/**
 * Hash of a block in its place ("sequence hash"): names the block and everything before it.
 * @param parent sequence hash of the block before; undefined for the first block, whose name is its own hash.
 */
export function sequenceHash(parent: bigint | undefined, tokens: bigint): bigint {
	if (parent === undefined) return tokens;
	const bytes = Buffer.allocUnsafe(16);
	bytes.writeBigUInt64LE(parent, 0);
	bytes.writeBigUInt64LE(tokens, 8);
	return xxh3.xxh64(bytes, BASE_SEED);
}

/** The hashes of a prompt's full blocks, in order; a last block with fewer tokens has none. */
export interface BlockHashes {
	readonly tokensHashes: bigint[];
	readonly sequenceHashes: bigint[];
}

/** Hashers by block size; a process has to do with a few. */
const hashers = new Map<number, BlockHasher | undefined>();
const MOST_HASHERS = 16;
/** Hashes chains, whatever the size of blocks. */
let chains: BlockHasher | undefined;

function hasherOf(blockSize: number): BlockHasher | undefined {
	if (hashers.has(blockSize)) return hashers.get(blockSize);
	const hasher = hashers.size < MOST_HASHERS ? BlockHasher.of(blockSize, BASE_SEED) : undefined;
	if (hashers.size < MOST_HASHERS) hashers.set(blockSize, hasher);
	return hasher;
}

/** The own hash of each full block of `blockSize` tokens; with `eagle` of each that the token behind it is known of. */
export function blockTokensHashes(
	tokens: ArrayLike<number>,
	blockSize: number,
	options: BlockHashOptions = {},
): bigint[] {
	if (!(blockSize >= 1)) return [];
	const seed = blockSeed(options);
	const hasher = options.mmHashes === undefined && options.eagle !== true ? hasherOf(blockSize) : undefined;
	if (hasher !== undefined) return Array.from(hasher.own(tokens, seed));
	const hashes: bigint[] = [];
	const ahead = options.eagle === true ? 1 : 0;
	for (let end = blockSize; end + ahead <= tokens.length; end += blockSize) {
		hashes.push(tokensHash(tokens, end - blockSize, end + ahead, seed, options.mmHashes?.[hashes.length]));
	}
	return hashes;
}

/** The hash of each block in its place, from the blocks' own hashes. */
export function sequenceHashes(tokensHashes: readonly bigint[]): bigint[] {
	chains ??= BlockHasher.of(1, BASE_SEED);
	return Array.from((chains as BlockHasher).chained(tokensHashes));
}

/** Both hashes of each full block of `blockSize` tokens. */
export function blockHashes(tokens: ArrayLike<number>, blockSize: number, options: BlockHashOptions = {}): BlockHashes {
	const tokensHashes = blockTokensHashes(tokens, blockSize, options);
	return { tokensHashes, sequenceHashes: sequenceHashes(tokensHashes) };
}
