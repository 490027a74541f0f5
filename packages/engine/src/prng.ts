// SPDX-License-Identifier: Apache-2.0
// Random numbers that a 64-bit seed fixes: splitmix64 (Steele, Lea, Flood 2014) fills the state of
// xoshiro128** (Blackman, Vigna 2018), which needs 32-bit operations only and is fast in JavaScript.

const MASK_64 = 0xffffffffffffffffn;

/** A generator of its own per sequence, so that batch mates cannot change what it draws. */
export class Xoshiro128 {
	private a: number;
	private b: number;
	private c: number;
	private d: number;

	/** @param seed any integer, taken modulo 2^64. */
	constructor(seed: bigint) {
		let state = seed & MASK_64;
		const next = (): bigint => {
			state = (state + 0x9e3779b97f4a7c15n) & MASK_64;
			let z = state;
			z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK_64;
			z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK_64;
			return z ^ (z >> 31n);
		};
		const low = next();
		const high = next();
		this.a = Number(low & 0xffffffffn) | 0;
		this.b = Number(low >> 32n) | 0;
		this.c = Number(high & 0xffffffffn) | 0;
		this.d = Number(high >> 32n) | 0;
		// The all-zero state is the one that never moves.
		if ((this.a | this.b | this.c | this.d) === 0) this.a = 1;
	}

	/** Uniform in 0 .. 2^32 - 1. */
	nextUint32(): number {
		const x = Math.imul(this.b, 5);
		const result = Math.imul((x << 7) | (x >>> 25), 9) >>> 0;
		const t = this.b << 9;
		this.c ^= this.a;
		this.d ^= this.b;
		this.b ^= this.c;
		this.a ^= this.d;
		this.c ^= t;
		this.d = (this.d << 11) | (this.d >>> 21);
		return result;
	}

	/** What the next `nextFloat` will return. */
	peekFloat(): number {
		const { a, b, c, d } = this;
		const value = this.nextFloat();
		this.a = a;
		this.b = b;
		this.c = c;
		this.d = d;
		return value;
	}

	/** Uniform in [0, 1) with 53 random bits. */
	nextFloat(): number {
		const high = this.nextUint32() >>> 5;
		const low = this.nextUint32() >>> 6;
		return (high * 67108864 + low) / 9007199254740992;
	}
}

/** A seed for a request that brings none. */
export function randomSeed(): bigint {
	const words = crypto.getRandomValues(new BigUint64Array(1));
	return words[0] ?? 0n;
}
