// SPDX-License-Identifier: Apache-2.0
// Makes a WebAssembly module that hashes all blocks of a prompt in one call: XXH3-64, as its specification has it
// (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), with the path for the length of a block chosen when it is made.

/** As much of it as is used here; Node's types leave it out. */
declare const WebAssembly: {
	readonly Module: new (bytes: Uint8Array) => object;
	readonly Instance: new (module: object) => { readonly exports: unknown };
};

/** What the module exports. */
export interface Xxh3Exports {
	readonly memory: { readonly buffer: ArrayBuffer; grow(pages: number): number };
	/** Hashes of `count` blocks at the address `tokens` go to `out`. */
	own(tokens: number, count: number, seed: bigint, out: number): void;
	/** Hashes of `count` blocks in their place, from their own ones. */
	chain(own: number, count: number, out: number): void;
}

/** Bytes of instructions that leave one value on the stack. */
type Expression = readonly number[];

const PRIME32 = [0x9e3779b1n, 0x85ebca77n, 0xc2b2ae3dn] as const;
const PRIME64 = [
	0x9e3779b185ebca87n,
	0xc2b2ae3d27d4eb4fn,
	0x165667b19e3779f9n,
	0x85ebca77c2b2ae63n,
	0x27d4eb2f165667c5n,
] as const;
const MIX = [0x165667919e3779f9n, 0x9fb21c651e98df25n] as const;

/** XXH3's default secret. */
export const XXH3_SECRET: Buffer = Buffer.from(
	"b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221" +
		"b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8" +
		"fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb17" +
		"0ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e",
	"hex",
);

/** Longer blocks would make the module large; they are hashed one by one elsewhere. */
export const MAX_MODULE_BLOCK_BYTES = 2048;
/** Where a secret that a seed was mixed into lies in the module's memory; blocks of more than 240 bytes need it. */
export const SECRET_OFFSET = 0;

function unsigned(value: number): number[] {
	const bytes: number[] = [];
	do {
		const rest = value >>> 7;
		bytes.push((value & 0x7f) | (rest === 0 ? 0 : 0x80));
		value = rest;
	} while (value !== 0);
	return bytes;
}

function signed(value: bigint): number[] {
	const bytes: number[] = [];
	for (;;) {
		const low = Number(value & 0x7fn);
		value >>= 7n;
		const done = (value === 0n && (low & 0x40) === 0) || (value === -1n && (low & 0x40) !== 0);
		bytes.push(done ? low : low | 0x80);
		if (done) return bytes;
	}
}

const u64 = (value: bigint): Expression => [0x42, ...signed(BigInt.asIntN(64, value))];
const i32 = (value: number): Expression => [0x41, ...signed(BigInt(value))];
const local = (index: number): Expression => [0x20, index];
const tee = (index: number, value: Expression): Expression => [...value, 0x22, index];
const set = (index: number, value: Expression): Expression => [...value, 0x21, index];
const call = (index: number, ...values: Expression[]): Expression => [...values.flat(), 0x10, index];
const binary =
	(code: number) =>
	(a: Expression, b: Expression): Expression => [...a, ...b, code];
const add = binary(0x7c);
const sub = binary(0x7d);
const mul = binary(0x7e);
const and = binary(0x83);
const or = binary(0x84);
const xor = binary(0x85);
const shl = binary(0x86);
const shr = binary(0x88);
const rotl = binary(0x89);
const load64 = (base: Expression, offset: number): Expression => [...base, 0x29, 0, ...unsigned(offset)];
const load32 = (base: Expression, offset: number): Expression => [...base, 0x35, 0, ...unsigned(offset)];
const store64 = (base: Expression, value: Expression): Expression => [...base, ...value, 0x37, 0, 0];
const sum = (values: readonly Expression[]): Expression => values.reduce((a, b) => add(a, b));
const secret64 = (offset: number): bigint => XXH3_SECRET.readBigUInt64LE(offset);

/** Indices of the module's functions. */
const FOLD = 0;
const SWAP = 1;
const AVALANCHE = 2;
const BLOCK = 3;
const CHAIN = 4;

/** fold(x, y): both halves of the product of 128 bits, xored. Locals 2 to 5. */
function foldBody(): Expression {
	const low = u64(0xffff_ffffn);
	const [x, y, lowHigh, highLow, mid] = [local(0), local(1), 2, 3, 4] as const;
	return [
		...set(lowHigh, mul(and(x, low), shr(y, u64(32n)))),
		...set(highLow, mul(shr(x, u64(32n)), and(y, low))),
		...set(mid, sum([shr(mul(and(x, low), and(y, low)), u64(32n)), and(local(lowHigh), low), local(highLow)])),
		...xor(
			mul(x, y),
			sum([mul(shr(x, u64(32n)), shr(y, u64(32n))), shr(local(lowHigh), u64(32n)), shr(local(mid), u64(32n))]),
		),
	];
}

/** The eight bytes turned around. */
function swapBody(): Expression {
	const step = (value: Expression, mask: bigint, bits: bigint): Expression =>
		or(shl(and(value, u64(mask)), u64(bits)), and(shr(value, u64(bits)), u64(mask)));
	const pairs = step(local(0), 0x00ff_00ff_00ff_00ffn, 8n);
	const halves = rotl(step(local(0), 0x0000_ffff_0000_ffffn, 16n), u64(32n));
	return [...set(0, pairs), ...halves];
}

function avalancheBody(): Expression {
	const mixed = mul(xor(local(0), shr(local(0), u64(37n))), u64(MIX[0]));
	return [...set(0, mixed), ...xor(local(0), shr(local(0), u64(32n)))];
}

/** Hash of the `length` bytes at local 0 with the seed in local 1; local 2 is free, 3 to 10 are accumulators. */
function blockBody(length: number): Expression {
	const [at, seed] = [local(0), local(1)];
	const read = (offset: number): Expression => load64(at, offset);
	const mix16 = (offset: number, secret: number): Expression =>
		call(
			FOLD,
			xor(read(offset), add(u64(secret64(secret)), seed)),
			xor(read(offset + 8), sub(u64(secret64(secret + 8)), seed)),
		);
	const start = u64(BigInt(length) * PRIME64[0]);
	if (length <= 8) {
		const flip = sub(u64(secret64(8) ^ secret64(16)), seed);
		const input = add(load32(at, length - 4), shl(load32(at, 0), u64(32n)));
		return [
			...set(2, xor(input, flip)),
			...set(2, mul(xor(local(2), xor(rotl(local(2), u64(49n)), rotl(local(2), u64(24n)))), u64(MIX[1]))),
			...set(2, mul(xor(local(2), add(shr(local(2), u64(35n)), u64(BigInt(length)))), u64(MIX[1]))),
			...xor(local(2), shr(local(2), u64(28n))),
		];
	}
	if (length <= 16) return hash16(length, read(0), read(length - 8), seed);
	if (length <= 128) {
		const parts: Expression[] = [start];
		for (let i = Math.ceil(length / 32) - 1; i >= 0; i--) {
			parts.push(mix16(16 * i, 32 * i), mix16(length - 16 * (i + 1), 32 * i + 16));
		}
		return call(AVALANCHE, sum(parts));
	}
	if (length <= 240) {
		const rounds = Math.floor(length / 16);
		const first = Array.from({ length: 8 }, (_, i) => mix16(16 * i, 16 * i));
		const rest = Array.from({ length: rounds - 8 }, (_, i) => mix16(16 * (i + 8), 16 * i + 3));
		const middle = call(AVALANCHE, sum([start, ...first]));
		return call(AVALANCHE, sum([middle, ...rest, mix16(length - 16, 136 - 17)]));
	}
	return longBody(length);
}

function hash16(length: number, low: Expression, high: Expression, seed: Expression): Expression {
	const [lowFlip, highFlip] = [u64(secret64(24) ^ secret64(32)), u64(secret64(40) ^ secret64(48))];
	return [
		...set(2, xor(low, add(lowFlip, seed))),
		...set(3, xor(high, sub(highFlip, seed))),
		...call(AVALANCHE, sum([u64(BigInt(length)), call(SWAP, local(2)), local(3), call(FOLD, local(2), local(3))])),
	];
}

/** More than 240 bytes: stripes of 64 go into eight accumulators, which are stirred every 1,024 bytes. */
function longBody(length: number): Expression {
	const lane = (i: number): number => 3 + i;
	const secret = (offset: number): Expression => load64(i32(SECRET_OFFSET), offset);
	const initial = [PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0]];
	const code: number[] = initial.flatMap((value, i) => set(lane(i), u64(value)));
	const accumulate = (offset: number, secretOffset: number): void => {
		for (let i = 0; i < 8; i++) {
			const data = load64(local(0), offset + 8 * i);
			const other = lane(i ^ 1);
			code.push(...set(other, add(local(other), data)), ...set(2, xor(data, secret(secretOffset + 8 * i))));
			const product = mul(and(local(2), u64(0xffff_ffffn)), shr(local(2), u64(32n)));
			code.push(...set(lane(i), add(local(lane(i)), product)));
		}
	};
	const stripes = Math.floor((length - 1) / 64);
	for (let stripe = 0; stripe < stripes; stripe++) {
		accumulate(64 * stripe, 8 * (stripe % 16));
		if (stripe % 16 !== 15) continue;
		for (let i = 0; i < 8; i++) {
			const stirred = xor(xor(local(lane(i)), shr(local(lane(i)), u64(47n))), secret(128 + 8 * i));
			code.push(...set(lane(i), mul(stirred, u64(PRIME32[0]))));
		}
	}
	accumulate(length - 64, 121);
	const merged = [0, 1, 2, 3].map((i) =>
		call(FOLD, xor(local(lane(2 * i)), secret(11 + 16 * i)), xor(local(lane(2 * i + 1)), secret(11 + 16 * i + 8))),
	);
	return [...code, ...call(AVALANCHE, sum([u64(BigInt(length) * PRIME64[0]), ...merged]))];
}

/** Instructions that repeat until the count in a local is zero. */
const loop = (count: number, body: Expression): Expression => [
	...[0x02, 0x40, 0x03, 0x40],
	...[...local(count), 0x45, 0x0d, 1],
	...body,
	...advance(count, -1),
	...[0x0c, 0, 0x0b, 0x0b],
];

const advance = (index: number, by: number): Expression => set(index, [...local(index), ...i32(by), 0x6a]);

/** own(tokens, count, seed, out). */
const ownBody = (length: number): Expression =>
	loop(1, [...store64(local(3), call(BLOCK, local(0), local(2))), ...advance(0, length), ...advance(3, 8)]);

/** chain(own, count, out): local 3 is the parent's hash, local 4 is zero for the first block, whose name is its own hash. */
const chainBody = (): Expression => {
	const own = load64(local(0), 0);
	const named = [...local(4), ...[0x04, 0x7e], ...call(CHAIN, local(3), own), 0x05, ...own, 0x0b];
	return loop(1, [...store64(local(2), tee(3, named)), ...set(4, i32(1)), ...advance(0, 8), ...advance(2, 8)]);
};

const I32 = 0x7f;
const I64 = 0x7e;

/**
 * A module for blocks of `length` bytes.
 * @param chainSeed seed of the chain over a prompt's blocks.
 */
export function xxh3Module(length: number, chainSeed: bigint): Xxh3Exports {
	const vector = (items: readonly (readonly number[])[]): number[] => [...unsigned(items.length), ...items.flat()];
	const section = (id: number, body: readonly number[]): number[] => [id, ...unsigned(body.length), ...body];
	const type = (params: number[], results: number[]): number[] => [
		0x60,
		...unsigned(params.length),
		...params,
		...unsigned(results.length),
		...results,
	];
	const name = (text: string): number[] => [...unsigned(text.length), ...Buffer.from(text)];
	const code = (locals: readonly (readonly [count: number, type: number])[], body: Expression): number[] => {
		const bytes = [...vector(locals.map(([count, kind]) => [...unsigned(count), kind])), ...body, 0x0b];
		return [...unsigned(bytes.length), ...bytes];
	};
	const types = [
		type([I64, I64], [I64]),
		type([I64], [I64]),
		type([I32, I64], [I64]),
		type([I32, I32, I64, I32], []),
		type([I32, I32, I32], []),
	];
	const chain = hash16(16, local(0), local(1), u64(chainSeed));
	const bytes = [
		...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
		...section(1, vector(types)),
		...section(3, vector([[0], [1], [1], [2], [0], [3], [4]])),
		...section(5, [1, 0, 2]),
		...section(
			7,
			vector([
				[...name("memory"), 2, 0],
				[...name("own"), 0, 5],
				[...name("chain"), 0, 6],
			]),
		),
		...section(
			10,
			vector([
				code([[3, I64]], foldBody()),
				code([], swapBody()),
				code([], avalancheBody()),
				code([[9, I64]], blockBody(length)),
				code([[2, I64]], chain),
				code([], ownBody(length)),
				code(
					[
						[1, I64],
						[1, I32],
					],
					chainBody(),
				),
			]),
		),
	];
	const { exports } = new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.from(bytes)));
	return exports as Xxh3Exports;
}
