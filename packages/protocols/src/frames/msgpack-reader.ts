// SPDX-License-Identifier: Apache-2.0
// A reader of our own, because peers are not trusted with our memory: a length never reserves more than the bytes that
// are there can fill, nesting is bounded, and extension types (with which msgpackr builds records, dates, errors and
// regular expressions) are refused. Dynamo writes none.

const MAX_DEPTH = 256;
const TWO_32 = 0x1_0000_0000;

/** Keys repeat in every message; finding one by its bytes is cheaper than decoding it. */
const KEY_SLOTS = 1024;
const MAX_CACHED_KEY_BYTES = 32;
const keyCache: ({ bytes: Uint8Array; text: string } | undefined)[] = new Array(KEY_SLOTS).fill(undefined);

class MsgpackReader {
	readonly #buffer: Buffer;
	/** On the same bytes: its numbers of eight bytes are made by the engine, those of a Buffer in JavaScript. */
	readonly #view: DataView;
	readonly #end: number;
	#at = 0;
	#depth = 0;

	constructor(buffer: Buffer) {
		this.#buffer = buffer;
		this.#view = new DataView(buffer.buffer, buffer.byteOffset, buffer.length);
		this.#end = buffer.length;
	}

	document(): unknown {
		const value = this.#value();
		if (this.#at !== this.#end) throw new Error(`msgpack: ${this.#end - this.#at} bytes behind the value`);
		return value;
	}

	/** Makes sure that `bytes` bytes are there, and steps over them. */
	#take(bytes: number): number {
		const start = this.#at;
		if (bytes > this.#end - start) throw new Error(`msgpack: ends after ${this.#end} bytes, in the middle of a value`);
		this.#at = start + bytes;
		return start;
	}

	#value(): unknown {
		const tag = this.#buffer[this.#take(1)] as number;
		if (tag < 0x80) return tag;
		if (tag < 0x90) return this.#map(tag & 0x0f);
		if (tag < 0xa0) return this.#array(tag & 0x0f);
		if (tag < 0xc0) return this.#string(tag & 0x1f);
		if (tag >= 0xe0) return tag - 0x100;
		switch (tag) {
			case 0xc0:
				return null;
			case 0xc2:
				return false;
			case 0xc3:
				return true;
			case 0xc4:
				return this.#bin(this.#u8());
			case 0xc5:
				return this.#bin(this.#u16());
			case 0xc6:
				return this.#bin(this.#u32());
			case 0xca:
				return this.#view.getFloat32(this.#take(4));
			case 0xcb:
				return this.#view.getFloat64(this.#take(8));
			case 0xcc:
				return this.#u8();
			case 0xcd:
				return this.#u16();
			case 0xce:
				return this.#u32();
			case 0xcf:
				return this.#u64();
			case 0xd0:
				return this.#buffer.readInt8(this.#take(1));
			case 0xd1:
				return this.#buffer.readInt16BE(this.#take(2));
			case 0xd2:
				return this.#buffer.readInt32BE(this.#take(4));
			case 0xd3:
				return this.#i64();
			case 0xd9:
				return this.#string(this.#u8());
			case 0xda:
				return this.#string(this.#u16());
			case 0xdb:
				return this.#string(this.#u32());
			case 0xdc:
				return this.#array(this.#u16());
			case 0xdd:
				return this.#array(this.#u32());
			case 0xde:
				return this.#map(this.#u16());
			case 0xdf:
				return this.#map(this.#u32());
			default:
				throw new Error(`msgpack: type 0x${tag.toString(16)} is not known here`);
		}
	}

	#u8(): number {
		return this.#buffer[this.#take(1)] as number;
	}

	#u16(): number {
		const at = this.#take(2);
		return ((this.#buffer[at] as number) << 8) | (this.#buffer[at + 1] as number);
	}

	#u32(): number {
		return this.#view.getUint32(this.#take(4));
	}

	#u64(): number | bigint {
		const at = this.#take(8);
		const high = this.#view.getUint32(at);
		return high < 0x20_0000 ? high * TWO_32 + this.#view.getUint32(at + 4) : this.#view.getBigUint64(at);
	}

	#i64(): number | bigint {
		const value = this.#view.getBigInt64(this.#take(8));
		const number = Number(value);
		return Number.isSafeInteger(number) ? number : value;
	}

	#bin(bytes: number): Buffer {
		const at = this.#take(bytes);
		return this.#buffer.subarray(at, at + bytes);
	}

	#string(bytes: number): string {
		const at = this.#take(bytes);
		if (bytes > 16) return this.#buffer.toString("utf8", at, at + bytes);
		let text = "";
		for (let i = at; i < at + bytes; i++) {
			const byte = this.#buffer[i] as number;
			if (byte >= 0x80) return this.#buffer.toString("utf8", at, at + bytes);
			text += String.fromCharCode(byte);
		}
		return text;
	}

	#key(): string {
		const tag = this.#buffer[this.#take(1)] as number;
		if (tag >= 0xa0 && tag < 0xc0) return this.#cachedString(tag & 0x1f);
		if (tag === 0xd9) return this.#cachedString(this.#u8());
		if (tag === 0xda) return this.#string(this.#u16());
		if (tag === 0xdb) return this.#string(this.#u32());
		throw new Error(`msgpack: the key of a map must be a string, not of type 0x${tag.toString(16)}`);
	}

	#cachedString(bytes: number): string {
		if (bytes === 0 || bytes > MAX_CACHED_KEY_BYTES) return this.#string(bytes);
		const buffer = this.#buffer;
		const at = this.#take(bytes);
		const first = buffer[at] as number;
		const middle = buffer[at + (bytes >> 1)] as number;
		const last = buffer[at + bytes - 1] as number;
		const slot = (first * 31 + middle * 17 + last * 5 + bytes * 67) & (KEY_SLOTS - 1);
		const cached = keyCache[slot];
		if (cached !== undefined && cached.bytes.length === bytes) {
			let i = 0;
			while (i < bytes && cached.bytes[i] === buffer[at + i]) i++;
			if (i === bytes) return cached.text;
		}
		const text = buffer.toString("utf8", at, at + bytes);
		keyCache[slot] = { bytes: Uint8Array.prototype.slice.call(buffer, at, at + bytes), text };
		return text;
	}

	#enter(length: number, bytesEach: number): void {
		if (length * bytesEach > this.#end - this.#at) {
			throw new Error(`msgpack: ${length} members are announced, ${this.#end - this.#at} bytes are there`);
		}
		if (++this.#depth > MAX_DEPTH) throw new Error(`msgpack: nested deeper than ${MAX_DEPTH} levels`);
	}

	#array(length: number): unknown[] {
		this.#enter(length, 1);
		const items: unknown[] = new Array(length);
		for (let i = 0; i < length; i++) items[i] = this.#value();
		this.#depth--;
		return items;
	}

	#map(length: number): Record<string, unknown> {
		this.#enter(length, 2);
		const object: Record<string, unknown> = {};
		for (let i = 0; i < length; i++) {
			const key = this.#key();
			const value = this.#value();
			if (key === "__proto__") {
				Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true });
			} else object[key] = value;
		}
		this.#depth--;
		return object;
	}
}

/**
 * Reads one msgpack value. Integers beyond 2^53 become bigint; a bin is a view on `bytes`; keys must be strings.
 *
 * @throws Error when the bytes are not exactly one value, nest too deep, or hold an extension type.
 */
export function unpackMsgpack(bytes: Buffer): unknown {
	return new MsgpackReader(bytes).document();
}

/** UUID text of 16 raw bytes. */
export function uuidOfBytes(bytes: Uint8Array): string {
	const hex = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
	return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
