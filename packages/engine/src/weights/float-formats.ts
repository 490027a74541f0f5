// SPDX-License-Identifier: Apache-2.0
// 16-bit floating-point formats to fp32, where every value of both is exact, and fp32 to half precision.

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

/**
 * Rounds to half precision, ties to even. Numbers beyond its range become infinite.
 * @param out as long as `values`, or absent for a new array.
 */
export function encodeF16(values: Float32Array, out: Uint16Array = new Uint16Array(values.length)): Uint16Array {
	const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
	for (let i = 0; i < bits.length; i++) {
		const word = bits[i]!;
		const sign = (word >>> 16) & 0x8000;
		const magnitude = word & 0x7fffffff;
		if (magnitude >= 0x38800000) {
			// 2^-14 and more: a shorter mantissa and exponent; the carry of rounding may raise the exponent.
			const rounded = (magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13;
			if (magnitude > 0x7f800000) out[i] = sign | 0x7e00;
			else out[i] = sign | Math.min(rounded, 0x7c00);
		} else {
			// Below it, steps of 2^-24: the float adder rounds as wanted when 0.5's step is 2^-24.
			scratchFloat[0] = Math.abs(values[i]!) + 0.5;
			out[i] = sign | (scratchBits[0]! - 0x3f000000);
		}
	}
	return out;
}

const scratchFloat = new Float32Array(1);
const scratchBits = new Uint32Array(scratchFloat.buffer);
