// SPDX-License-Identifier: Apache-2.0
// Protocol buffer wire format, writing only: varints, fixed 32-bit numbers, and length-delimited fields.

const VARINT = 0;
const LENGTH_DELIMITED = 2;
const FIXED_32 = 5;

/** Appends fields of one message to a growing buffer. */
export class ProtobufWriter {
	#buffer: Uint8Array = new Uint8Array(256);
	#length = 0;

	#reserve(count: number): void {
		const needed = this.#length + count;
		if (needed <= this.#buffer.length) return;
		const grown = new Uint8Array(Math.max(needed, this.#buffer.length * 2));
		grown.set(this.#buffer.subarray(0, this.#length));
		this.#buffer = grown;
	}

	/** A bare varint; negative numbers take ten bytes, as int64 does. */
	#varint(value: number | bigint): void {
		this.#reserve(10);
		if (typeof value === "number" && value >= 0 && value < 2 ** 31) {
			let rest = value;
			while (rest > 127) {
				this.#buffer[this.#length++] = (rest & 127) | 128;
				rest >>>= 7;
			}
			this.#buffer[this.#length++] = rest;
			return;
		}
		let rest = BigInt.asUintN(64, BigInt(value));
		while (rest > 127n) {
			this.#buffer[this.#length++] = Number(rest & 127n) | 128;
			rest >>= 7n;
		}
		this.#buffer[this.#length++] = Number(rest);
	}

	#tag(field: number, wireType: number): void {
		this.#varint(field * 8 + wireType);
	}

	/** An int32, int64, bool or enum field. */
	int(field: number, value: number | bigint): this {
		this.#tag(field, VARINT);
		this.#varint(value);
		return this;
	}

	/** A float field. */
	float(field: number, value: number): this {
		this.#tag(field, FIXED_32);
		this.#reserve(4);
		new DataView(this.#buffer.buffer, this.#length).setFloat32(0, value, true);
		this.#length += 4;
		return this;
	}

	/** A bytes field. */
	bytes(field: number, value: Uint8Array): this {
		this.#tag(field, LENGTH_DELIMITED);
		this.#varint(value.length);
		this.#reserve(value.length);
		this.#buffer.set(value, this.#length);
		this.#length += value.length;
		return this;
	}

	/** A string field. */
	string(field: number, value: string): this {
		return this.bytes(field, Buffer.from(value, "utf8"));
	}

	/** A nested message, written by `write`. */
	message(field: number, write: (writer: ProtobufWriter) => void): this {
		const inner = new ProtobufWriter();
		write(inner);
		return this.bytes(field, inner.finish());
	}

	/** What was written; a view that further writing may change. */
	finish(): Uint8Array {
		return this.#buffer.subarray(0, this.#length);
	}
}
