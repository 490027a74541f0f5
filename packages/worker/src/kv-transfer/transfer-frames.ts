// SPDX-License-Identifier: Apache-2.0
// The bytes of the side channel over which a decode worker fetches blocks; docs/disaggregation.md describes them. The
// dialling side sends PREAMBLE first; all else, both ways, is frames: u32be length of what follows, u8 type, payload.

import { crc32 } from "node:zlib";

/** "DKV" and the version. */
export const PREAMBLE = Buffer.from([0x44, 0x4b, 0x56, 2]);

export const FRAME = {
	/** To the prefill worker: handle [16], u32be first block, u32be blocks, u8 1 = shared memory may be used. */
	pull: 0x02,
	/** handle [16]: what it names is not needed; no answer. */
	release: 0x03,
	/** u32be: pieces of the segment that have been read. */
	credit: 0x04,
	/** u8 1: the segment is open; 0: it cannot be used. */
	shared: 0x05,
	/** From the prefill worker: the blocks follow; u32be bytes of a block. */
	accept: 0x81,
	/** u8 reason, see REFUSAL. */
	refuse: 0x82,
	/** nonce [16], u16be pieces of a block's size, name of a file in the folder of shared memory. */
	segment: 0x83,
	/** u32be index of the block in the prompt, u32be CRC-32 of its bytes, its bytes. */
	block: 0x84,
	/** u32be index of the block in the prompt, u16be piece that holds it. */
	piece: 0x85,
	/** All blocks were sent. */
	done: 0x86,
} as const;

/** Why a pull is refused. */
export const REFUSAL = { unknown: 1, range: 2 } as const;

/** Longest payload of all frames but `block`, bytes. */
const MAX_PAYLOAD = 1024;
/** Length, type, index and CRC-32 of a block. */
const BLOCK_HEAD = 13;

/** A peer that does not keep to the format. */
export class TransferFormatError extends Error {}

/** A block that is not what was sent. */
export class DamagedBlockError extends TransferFormatError {}

/** One frame. */
export function encodeFrame(type: number, ...payload: readonly Uint8Array[]): Buffer {
	const length = 1 + payload.reduce((sum, part) => sum + part.length, 0);
	const head = Buffer.allocUnsafe(5);
	head.writeUInt32BE(length);
	head[4] = type;
	return Buffer.concat([head, ...payload]);
}

/** The bytes before those of a block. */
export function encodeBlockHead(index: number, block: Uint8Array): Buffer {
	const head = Buffer.allocUnsafe(BLOCK_HEAD);
	head.writeUInt32BE(BLOCK_HEAD - 4 + block.byteLength);
	head[4] = FRAME.block;
	head.writeUInt32BE(index, 5);
	// TCP's own sum of 16 bits lets one damaged packet in some thousands pass, and nobody would notice wrong keys and values.
	head.writeUInt32BE(crc32(block), 9);
	return head;
}

export function u32(value: number): Buffer {
	const bytes = Buffer.allocUnsafe(4);
	bytes.writeUInt32BE(value);
	return bytes;
}

export function u16(value: number): Buffer {
	const bytes = Buffer.allocUnsafe(2);
	bytes.writeUInt16BE(value);
	return bytes;
}

export interface FrameSink {
	/** A whole frame; `payload` is valid during the call. */
	onFrame(type: number, payload: Buffer): void;
	/**
	 * A block begins. Absent: this side gets none.
	 * @returns where its bytes go, all of them. @throws TransferFormatError when it is not wanted.
	 */
	onBlock?(index: number, bytes: number): Uint8Array;
	/** The bytes of a block are there, and are those that were sent. */
	onBlockEnd?(index: number): void;
}

/** Takes bytes apart as they come; holds no more of them than the longest small frame. */
export class FrameReader {
	readonly #sink: FrameSink;
	#rest: Buffer = Buffer.alloc(0);
	#preamble: boolean;
	#block: { readonly index: number; readonly memory: Uint8Array; readonly crc: number; filled: number } | undefined;

	/** @param expectsPreamble of the side that was dialled. */
	constructor(sink: FrameSink, expectsPreamble: boolean) {
		this.#sink = sink;
		this.#preamble = expectsPreamble;
	}

	/** @throws TransferFormatError, and what the sink throws; the reader is of no use afterwards. */
	push(chunk: Buffer): void {
		let data = chunk;
		if (this.#block !== undefined) data = this.#fill(data);
		else if (this.#rest.length > 0) {
			data = Buffer.concat([this.#rest, chunk]);
			this.#rest = Buffer.alloc(0);
		}
		while (data.length > 0 && this.#block === undefined) {
			const left = this.#take(data);
			if (left === undefined) {
				this.#rest = Buffer.from(data);
				return;
			}
			data = this.#block === undefined ? left : this.#fill(left);
		}
	}

	/** @returns what is behind the next frame, or behind the head of a block; undefined when more bytes are needed. */
	#take(data: Buffer): Buffer | undefined {
		if (this.#preamble) {
			const length = Math.min(data.length, PREAMBLE.length);
			if (!data.subarray(0, length).equals(PREAMBLE.subarray(0, length))) {
				throw new TransferFormatError("this is no transfer of keys and values, or of another version");
			}
			if (length < PREAMBLE.length) return undefined;
			this.#preamble = false;
			return data.subarray(length);
		}
		if (data.length < 5) return undefined;
		const length = data.readUInt32BE();
		const type = data[4]!;
		if (type === FRAME.block && this.#sink.onBlock !== undefined) {
			if (length < BLOCK_HEAD - 4) throw new TransferFormatError("a block without a head");
			if (data.length < BLOCK_HEAD) return undefined;
			const index = data.readUInt32BE(5);
			const memory = this.#sink.onBlock(index, length - (BLOCK_HEAD - 4));
			this.#block = { index, memory, crc: data.readUInt32BE(9), filled: 0 };
			return data.subarray(BLOCK_HEAD);
		}
		if (length < 1 || length > MAX_PAYLOAD + 1) throw new TransferFormatError(`a frame of ${length} bytes`);
		if (data.length < 4 + length) return undefined;
		this.#sink.onFrame(type, data.subarray(5, 4 + length));
		return data.subarray(4 + length);
	}

	/** Copies into the block that has begun. @returns what is behind it. */
	#fill(data: Buffer): Buffer {
		const block = this.#block!;
		const count = Math.min(data.length, block.memory.length - block.filled);
		block.memory.set(data.subarray(0, count), block.filled);
		block.filled += count;
		if (block.filled < block.memory.length) return data.subarray(count);
		this.#block = undefined;
		if (crc32(block.memory) !== block.crc) throw new DamagedBlockError(`block ${block.index} was damaged on its way`);
		this.#sink.onBlockEnd?.(block.index);
		return data.subarray(count);
	}
}
