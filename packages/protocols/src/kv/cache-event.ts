// SPDX-License-Identifier: Apache-2.0
// What an engine tells about its prefix cache, before any wire format: one event per change, at the one place where
// the state of blocks changes. Replayed in order into a set, events give the content of the cache.

/** A block that can now be found by its hash. */
export interface StoredBlock {
	/** Names the block in its place: `sequenceHash` of `block-hash.ts`. */
	readonly blockHash: bigint;
	/** Names its tokens alone: `tokensHash` of `block-hash.ts`. */
	readonly tokensHash: bigint;
}

/** Blocks that follow each other became findable. */
export interface BlocksStored {
	readonly type: "stored";
	/** Block hash of the block before the first; undefined where that begins the prompt. */
	readonly parentHash: bigint | undefined;
	readonly blocks: readonly StoredBlock[];
	/** Token ids of all blocks, one after the other. */
	readonly tokenIds: readonly number[];
	/** Tokens per block. */
	readonly blockSize: number;
	readonly loraName?: string | undefined;
	readonly cacheSalt?: string | undefined;
}

/** Blocks can no longer be found: their memory is used for something else. */
export interface BlocksRemoved {
	readonly type: "removed";
	readonly blockHashes: readonly bigint[];
}

/** Nothing can be found any more. */
export interface BlocksCleared {
	readonly type: "cleared";
}

export type KvCacheEvent = BlocksStored | BlocksRemoved | BlocksCleared;
