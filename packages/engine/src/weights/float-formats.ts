// SPDX-License-Identifier: Apache-2.0
// 16-bit floating-point formats to fp32. Every value of both is exact in fp32.

let halfTable: Float32Array | undefined;

/** fp32 value of each of the 65,536 IEEE half-precision patterns. */
export function halfToFloatTable(): Float32Array {
	if (halfTable) return halfTable;
	const table = new Float32Array(65536);
	for (let bits = 0; bits < 65536; bits++) {
		const exponent = (bits >> 10) & 31;
		const mantissa = bits & 1023;
		let value: number;
		if (exponent === 0) value = mantissa * 2 ** -24;
		else if (exponent === 31) value = mantissa === 0 ? Number.POSITIVE_INFINITY : Number.NaN;
		else value = (1 + mantissa / 1024) * 2 ** (exponent - 15);
		table[bits] = bits & 0x8000 ? -value : value;
	}
	halfTable = table;
	return table;
}

/** Sixteen-bit words over bytes that may lie at an odd address. */
function words(bytes: Uint8Array): Uint16Array {
	const aligned = bytes.byteOffset % 2 === 0 ? bytes : bytes.slice();
	return new Uint16Array(aligned.buffer, aligned.byteOffset, aligned.byteLength >> 1);
}

/** Decodes half-precision numbers. */
export function decodeF16(bytes: Uint8Array, out: Float32Array): void {
	const table = halfToFloatTable();
	const source = words(bytes);
	for (let i = 0; i < source.length; i++) out[i] = table[source[i]!]!;
}

/** Decodes bfloat16 numbers: the upper half of an fp32. */
export function decodeBF16(bytes: Uint8Array, out: Float32Array): void {
	const source = words(bytes);
	const bits = new Uint32Array(out.buffer, out.byteOffset, source.length);
	for (let i = 0; i < source.length; i++) bits[i] = source[i]! << 16;
}

/** Decodes little-endian fp32 numbers. */
export function decodeF32(bytes: Uint8Array, out: Float32Array): void {
	new Uint8Array(out.buffer, out.byteOffset, bytes.byteLength).set(bytes);
}
