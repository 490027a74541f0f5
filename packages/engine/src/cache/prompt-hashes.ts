// SPDX-License-Identifier: Apache-2.0
// The names of a sequence's full blocks, computed once each when first asked for, as the sequence grows.

import { blockSeed, sequenceHash, tokensHash } from "@dynamo-ts/protocols/internal";

/** Where the tokens are: an array that may be replaced by a longer one with the same beginning. */
export interface TokenHolder {
	readonly tokens: Int32Array;
}

export class PromptHashes {
	readonly cacheSalt: string;
	private readonly holder: TokenHolder;
	private readonly blockSize: number;
	private readonly seed: bigint;
	private readonly own: bigint[] = [];
	private readonly chained: bigint[] = [];

	/** @param cacheSalt blocks are the same only under the same salt; "" for none. */
	constructor(holder: TokenHolder, blockSize: number, cacheSalt: string) {
		this.holder = holder;
		this.blockSize = blockSize;
		this.cacheSalt = cacheSalt;
		this.seed = blockSeed({ cacheSalt });
	}

	/** Hash of the tokens of block `index` alone. */
	tokensHash(index: number): bigint {
		this.extend(index);
		return this.own[index]!;
	}

	/** Hash of block `index` and all before it. The block's tokens must be there and final. */
	sequenceHash(index: number): bigint {
		this.extend(index);
		return this.chained[index]!;
	}

	/** Tokens of blocks `from` .. `to` - 1. */
	tokens(from: number, to: number): number[] {
		return Array.from(this.holder.tokens.subarray(from * this.blockSize, to * this.blockSize));
	}

	private extend(index: number): void {
		const { blockSize, own, chained } = this;
		for (let i = own.length; i <= index; i++) {
			const hash = tokensHash(this.holder.tokens, i * blockSize, (i + 1) * blockSize, this.seed);
			own.push(hash);
			chained.push(sequenceHash(chained[i - 1], hash));
		}
	}
}
