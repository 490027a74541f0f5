// SPDX-License-Identifier: Apache-2.0
// Hashes of all blocks of a prompt in one call, for one size of blocks.
import { MAX_MODULE_BLOCK_BYTES, SECRET_OFFSET, XXH3_SECRET, type Xxh3Exports, xxh3Module } from "./xxh3-module.js";

const MASK_64 = 0xffff_ffff_ffff_ffffn;
const PAGE_BYTES = 65_536;
/** Behind the secret. */
const DATA_OFFSET = 256;

/** Not for use by several threads; what it gives out is overwritten by the next call. */
export class BlockHasher {
	readonly #blockSize: number;
	readonly #exports: Xxh3Exports;
	/** The seed whose secret lies in memory. */
	#secretSeed: bigint | undefined;

	private constructor(blockSize: number, chainSeed: bigint) {
		this.#blockSize = blockSize;
		this.#exports = xxh3Module(blockSize * 4, chainSeed);
	}

	/**
	 * A hasher for blocks of `blockSize` tokens; undefined where they are too large for it.
	 * @param chainSeed seed of the chain over a prompt's blocks.
	 */
	static of(blockSize: number, chainSeed: bigint): BlockHasher | undefined {
		return blockSize * 4 > MAX_MODULE_BLOCK_BYTES ? undefined : new BlockHasher(blockSize, chainSeed);
	}

	/** The own hashes of the full blocks of `tokens`, as a view of the hasher's memory. */
	own(tokens: ArrayLike<number>, seed: bigint): BigUint64Array {
		const count = Math.floor(tokens.length / this.#blockSize);
		const input = DATA_OFFSET + 8 * count;
		const buffer = this.#room(input + 4 * tokens.length);
		// Copying all of them at once is the fastest; those after the last full block are not looked at.
		new Uint32Array(buffer, input, tokens.length).set(tokens);
		this.#exports.own(input, count, this.#prepare(seed), DATA_OFFSET);
		return new BigUint64Array(buffer, DATA_OFFSET, count);
	}

	/** The hashes of blocks in their place, from their own ones, as a view of the hasher's memory. */
	chained(own: ArrayLike<bigint>): BigUint64Array {
		const count = own.length;
		const input = DATA_OFFSET + 8 * count;
		const buffer = this.#room(input + 8 * count);
		new BigUint64Array(buffer, input, count).set(own);
		this.#exports.chain(input, count, DATA_OFFSET);
		return new BigUint64Array(buffer, DATA_OFFSET, count);
	}

	/** The memory, with room up to an address. */
	#room(end: number): ArrayBuffer {
		const { memory } = this.#exports;
		const missing = end - memory.buffer.byteLength;
		if (missing > 0) memory.grow(Math.ceil(missing / PAGE_BYTES));
		return memory.buffer;
	}

	/** The seed as the module takes it. */
	#prepare(seed: bigint): bigint {
		const bytes = this.#blockSize * 4;
		if (bytes <= 8) {
			const low = Buffer.alloc(4);
			low.writeUInt32LE(Number(seed & 0xffff_ffffn));
			return seed ^ (BigInt(low.readUInt32BE()) << 32n);
		}
		if (bytes > 240 && this.#secretSeed !== seed) {
			this.#secretSeed = seed;
			const secret = new BigUint64Array(this.#exports.memory.buffer, SECRET_OFFSET, XXH3_SECRET.length / 8);
			for (let i = 0; i < secret.length; i++) {
				const plain = XXH3_SECRET.readBigUInt64LE(8 * i);
				secret[i] = (i % 2 === 0 ? plain + seed : plain - seed) & MASK_64;
			}
		}
		return seed;
	}
}
