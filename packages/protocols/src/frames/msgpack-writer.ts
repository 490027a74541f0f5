// SPDX-License-Identifier: Apache-2.0
// A writer of our own, because the bytes are prescribed: u64 exact whatever its size, members that are undefined left
// out, and floats in the width that Dynamo's types have (msgpackr writes integers from 2^32 on as floats, and undefined
// as an extension).
import { U64_MAX } from "../json.js";

const SLAB_BYTES = 64 * 1024;
/** A slab with less room than this is left to its readers, and a new one begun. */
const LEAST_ROOM_BYTES = 1024;
const MAX_DEPTH = 256;
const TWO_32 = 0x1_0000_0000;
const I64_MIN = -0x8000_0000_0000_0000n;

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Members of sampling_options that are f32 in Dynamo. */
const F32_MEMBERS: ReadonlySet<string> = new Set([
	"presence_penalty",
	"frequency_penalty",
	"repetition_penalty",
	"temperature",
	"top_p",
	"min_p",
	"length_penalty",
]);
/** Members of routing and router_config_override that are f64 in Dynamo. */
const F64_MEMBERS: ReadonlySet<string> = new Set([
	"priority_jump",
	"overlap_score_credit",
	"prefill_load_scale",
	"router_temperature",
	"shared_cache_multiplier",
]);

/**
 * Writes msgpack. Maps have named keys, in the order of the object. Integers take their shortest form; other numbers
 * are 32-bit floats where that loses nothing, else 64-bit ones. Results are views on slabs that are written once, so
 * a result costs no copy.
 */
export class MsgpackWriter {
	buffer: Buffer = Buffer.allocUnsafeSlow(SLAB_BYTES);
	position = 0;
	#start = 0;
	#depth = 0;

	/** Begins a result, whose first `headroom` bytes are zero. */
	begin(headroom: number): void {
		this.#depth = 0;
		if (this.buffer.length - this.position < LEAST_ROOM_BYTES) {
			this.buffer = Buffer.allocUnsafeSlow(SLAB_BYTES);
			this.position = 0;
		}
		this.#start = this.position;
		for (let i = 0; i < headroom; i++) this.buffer[this.position++] = 0;
	}

	/** Bytes of the result so far, headroom included. */
	get length(): number {
		return this.position - this.#start;
	}

	/** Writes a u32 into the result, `at` bytes from its start. */
	setUInt32(value: number, at: number): void {
		this.buffer.writeUInt32BE(value, this.#start + at);
	}

	/** The result. */
	finish(): Buffer {
		return this.buffer.subarray(this.#start, this.position);
	}

	#room(bytes: number): void {
		if (this.position + bytes <= this.buffer.length) return;
		const length = this.position - this.#start;
		const grown = Buffer.allocUnsafeSlow(Math.max(SLAB_BYTES, 2 * length + bytes));
		this.buffer.copy(grown, 0, this.#start, this.position);
		this.buffer = grown;
		this.#start = 0;
		this.position = length;
	}

	/** @throws TypeError for a value that msgpack has no form for (a function, a symbol), RangeError for nesting beyond 256. */
	value(value: unknown): void {
		switch (typeof value) {
			case "string":
				this.string(value);
				return;
			case "number":
				if (Number.isInteger(value)) this.integer(value);
				else this.#float(value);
				return;
			case "boolean":
				this.#byte(value ? 0xc3 : 0xc2);
				return;
			case "bigint":
				this.#bigint(value);
				return;
			case "undefined":
				this.#byte(0xc0);
				return;
			case "object":
				if (value === null) this.#byte(0xc0);
				else if (Array.isArray(value)) this.#array(value);
				else if (value instanceof Uint8Array) this.bin(value);
				else if (ArrayBuffer.isView(value)) this.#array(value as unknown as ArrayLike<unknown>);
				else this.map(value as Record<string, unknown>);
				return;
			default:
				throw new TypeError(`a ${typeof value} cannot be written as msgpack`);
		}
	}

	#byte(byte: number): void {
		this.#room(1);
		this.buffer[this.position++] = byte;
	}

	/** An integral number, in its shortest form. */
	integer(value: number): void {
		this.#room(9);
		const { buffer } = this;
		let at = this.position;
		if (value >= 0) {
			if (value < 0x80) buffer[at++] = value;
			else if (value < 0x100) {
				buffer[at++] = 0xcc;
				buffer[at++] = value;
			} else if (value < 0x1_0000) {
				buffer[at++] = 0xcd;
				buffer[at++] = value >>> 8;
				buffer[at++] = value;
			} else if (value < TWO_32) {
				buffer[at++] = 0xce;
				at = buffer.writeUInt32BE(value, at);
			} else if (value < 0x1_0000_0000_0000_0000) {
				buffer[at++] = 0xcf;
				at = buffer.writeUInt32BE(Math.floor(value / TWO_32), at);
				at = buffer.writeUInt32BE(value % TWO_32, at);
			} else {
				buffer[at++] = 0xcb;
				at = buffer.writeDoubleBE(value, at);
			}
		} else if (value >= -0x20) buffer[at++] = value + 0x100;
		else if (value >= -0x80) {
			buffer[at++] = 0xd0;
			buffer[at++] = value + 0x100;
		} else if (value >= -0x8000) {
			buffer[at++] = 0xd1;
			at = buffer.writeInt16BE(value, at);
		} else if (value >= -0x8000_0000) {
			buffer[at++] = 0xd2;
			at = buffer.writeInt32BE(value, at);
		} else if (value >= -0x8000_0000_0000_0000) {
			buffer[at++] = 0xd3;
			at = buffer.writeBigInt64BE(BigInt(value), at);
		} else {
			buffer[at++] = 0xcb;
			at = buffer.writeDoubleBE(value, at);
		}
		this.position = at;
	}

	#bigint(value: bigint): void {
		if (value <= 0xffff_ffffn && value >= -0x8000_0000n) {
			this.integer(Number(value));
			return;
		}
		if (value > U64_MAX || value < I64_MIN) throw new RangeError(`integer ${value} does not fit 64 bits`);
		this.#room(9);
		const unsigned = value >= 0n;
		this.buffer[this.position] = unsigned ? 0xcf : 0xd3;
		if (unsigned) this.buffer.writeBigUInt64BE(value, this.position + 1);
		else this.buffer.writeBigInt64BE(value, this.position + 1);
		this.position += 9;
	}

	#float(value: number): void {
		if (Math.fround(value) === value || Number.isNaN(value)) this.float32(value);
		else this.float64(value);
	}

	float32(value: number): void {
		this.#room(5);
		this.buffer[this.position] = 0xca;
		this.buffer.writeFloatBE(value, this.position + 1);
		this.position += 5;
	}

	float64(value: number): void {
		this.#room(9);
		this.buffer[this.position] = 0xcb;
		this.buffer.writeDoubleBE(value, this.position + 1);
		this.position += 9;
	}

	string(text: string): void {
		const { length } = text;
		if (length < 32) {
			this.#room(2 + 3 * length);
			const { buffer } = this;
			let at = this.position + 1;
			for (let i = 0; i < length; i++) {
				const code = text.charCodeAt(i);
				if (code >= 0x80) {
					this.#longString(text);
					return;
				}
				buffer[at++] = code;
			}
			buffer[this.position] = 0xa0 | length;
			this.position = at;
			return;
		}
		this.#longString(text);
	}

	#longString(text: string): void {
		const bytes = Buffer.byteLength(text);
		this.#room(5 + bytes);
		const { buffer } = this;
		let at = this.position;
		if (bytes < 0x20) buffer[at++] = 0xa0 | bytes;
		else if (bytes < 0x100) {
			buffer[at++] = 0xd9;
			buffer[at++] = bytes;
		} else if (bytes < 0x1_0000) {
			buffer[at++] = 0xda;
			at = buffer.writeUInt16BE(bytes, at);
		} else {
			buffer[at++] = 0xdb;
			at = buffer.writeUInt32BE(bytes, at);
		}
		this.position = at + buffer.write(text, at, "utf8");
	}

	bin(bytes: Uint8Array): void {
		this.#room(5 + bytes.length);
		const { buffer } = this;
		let at = this.position;
		if (bytes.length < 0x100) {
			buffer[at++] = 0xc4;
			buffer[at++] = bytes.length;
		} else if (bytes.length < 0x1_0000) {
			buffer[at++] = 0xc5;
			at = buffer.writeUInt16BE(bytes.length, at);
		} else {
			buffer[at++] = 0xc6;
			at = buffer.writeUInt32BE(bytes.length, at);
		}
		buffer.set(bytes, at);
		this.position = at + bytes.length;
	}

	#array(items: ArrayLike<unknown>): void {
		const { length } = items;
		this.#enter();
		this.arrayHeader(length);
		for (let i = 0; i < length; i++) {
			const item = items[i];
			if (typeof item === "number" && Number.isInteger(item)) this.integer(item);
			else this.value(item);
		}
		this.#depth--;
	}

	#counted(tag16: number, count: number): void {
		this.#room(5);
		const { buffer } = this;
		if (count < 0x1_0000) {
			buffer[this.position] = tag16;
			buffer.writeUInt16BE(count, this.position + 1);
			this.position += 3;
		} else {
			buffer[this.position] = tag16 + 1;
			buffer.writeUInt32BE(count, this.position + 1);
			this.position += 5;
		}
	}

	#enter(): void {
		if (++this.#depth > MAX_DEPTH)
			throw new RangeError(`a value nested deeper than ${MAX_DEPTH} levels (or in itself) cannot be written`);
	}

	/** The count of a map; its members must follow. */
	mapHeader(count: number): void {
		if (count < 0x10) this.#byte(0x80 | count);
		else this.#counted(0xde, count);
	}

	/** The count of an array; its items must follow. */
	arrayHeader(count: number): void {
		if (count < 0x10) this.#byte(0x90 | count);
		else this.#counted(0xdc, count);
	}

	/** An object's own members that are not undefined. `member` may write some of them its own way and say so. */
	map(object: Record<string, unknown>, member?: (key: string, value: unknown) => boolean): void {
		this.#enter();
		const keys = Object.keys(object);
		let count = 0;
		for (let i = 0; i < keys.length; i++) if (object[keys[i] as string] !== undefined) count++;
		this.mapHeader(count);
		for (let i = 0; i < keys.length; i++) {
			const key = keys[i] as string;
			const value = object[key];
			if (value === undefined) continue;
			this.string(key);
			if (member === undefined || !member(key, value)) this.value(value);
		}
		this.#depth--;
	}

	/** A request or response body: as `map`, with the members that Dynamo types in a way their value does not show. */
	body(object: Record<string, unknown>): void {
		this.map(object, this.#typedMember);
	}

	readonly #typedMember = (key: string, value: unknown): boolean => {
		if (typeof value !== "object" || value === null || Array.isArray(value)) return false;
		if (key === "sampling_options") this.map(value as Record<string, unknown>, this.#samplingMember);
		else if (key === "router_config_override" || key === "routing")
			this.map(value as Record<string, unknown>, this.#routerMember);
		else if (key === "bootstrap_info") this.map(value as Record<string, unknown>, this.#bootstrapMember);
		else return false;
		return true;
	};

	readonly #samplingMember = (key: string, value: unknown): boolean => {
		if (typeof value !== "number" || !F32_MEMBERS.has(key)) return false;
		this.float32(value);
		return true;
	};

	readonly #routerMember = (key: string, value: unknown): boolean => {
		if (typeof value !== "number" || !F64_MEMBERS.has(key)) return false;
		this.float64(value);
		return true;
	};

	readonly #bootstrapMember = (key: string, value: unknown): boolean => {
		if (key !== "handoff_id" || typeof value !== "string") return false;
		if (!UUID.test(value)) throw new TypeError(`bootstrap_info.handoff_id ${JSON.stringify(value)} is not a UUID`);
		this.bin(Buffer.from(value.replaceAll("-", ""), "hex"));
		return true;
	};
}
