// SPDX-License-Identifier: Apache-2.0
// Instance ids on Kubernetes: a hash of the custom resource's name, so that a pod keeps its id when it restarts.

const MASK = 0xffff_ffff_ffff_ffffn;
/** Ids stay below 2^53: API servers and JSON readers may turn larger integers into floats. */
const ID_MASK = (1n << 53n) - 1n;

const rotate = (x: bigint, bits: bigint): bigint => ((x << bits) | (x >> (64n - bits))) & MASK;

/**
 * SipHash-1-3 with zero keys over the name's UTF-8 bytes and one byte 0xff (how Rust's default hasher takes a string),
 * cut to 53 bits.
 */
export function kubernetesInstanceId(resourceName: string): bigint {
	const bytes = Buffer.concat([Buffer.from(resourceName, "utf8"), Buffer.from([0xff])]);
	let [v0, v1, v2, v3] = [0x736f6d6570736575n, 0x646f72616e646f6dn, 0x6c7967656e657261n, 0x7465646279746573n];
	const round = (): void => {
		v0 = (v0 + v1) & MASK;
		v1 = rotate(v1, 13n) ^ v0;
		v0 = rotate(v0, 32n);
		v2 = (v2 + v3) & MASK;
		v3 = rotate(v3, 16n) ^ v2;
		v0 = (v0 + v3) & MASK;
		v3 = rotate(v3, 21n) ^ v0;
		v2 = (v2 + v1) & MASK;
		v1 = rotate(v1, 17n) ^ v2;
		v2 = rotate(v2, 32n);
	};
	const whole = bytes.length - (bytes.length % 8);
	for (let at = 0; at < whole; at += 8) {
		const word = bytes.readBigUInt64LE(at);
		v3 ^= word;
		round();
		v0 ^= word;
	}
	let last = BigInt(bytes.length & 0xff) << 56n;
	for (let at = whole; at < bytes.length; at++) last |= BigInt(bytes[at] as number) << BigInt(8 * (at - whole));
	v3 ^= last;
	round();
	v0 ^= last;
	v2 ^= 0xffn;
	for (let i = 0; i < 3; i++) round();
	return (v0 ^ v1 ^ v2 ^ v3) & ID_MASK;
}
