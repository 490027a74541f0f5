// SPDX-License-Identifier: Apache-2.0
import { FrameReader } from "./frame-reader.js";
import { FrameTooLargeError, MAX_FRAME_BYTES, TWO_PART_PREFIX_BYTES } from "./wire-constants.js";

const EMPTY = Buffer.alloc(0);
const TWO_32 = 0x1_0000_0000;

/**
 * `u64be header_len | u64be body_len | u64be checksum (0: none) | header | body`: the payload of a request frame, and
 * every message on a response connection. Either part may be empty.
 */
export function encodeTwoPart(header: Buffer | string | undefined, body: Buffer | undefined): Buffer {
	const headerBytes = header === undefined ? 0 : typeof header === "string" ? Buffer.byteLength(header) : header.length;
	const bodyBytes = body?.length ?? 0;
	const frame = Buffer.allocUnsafe(TWO_PART_PREFIX_BYTES + headerBytes + bodyBytes);
	frame.fill(0, 0, TWO_PART_PREFIX_BYTES);
	frame.writeUInt32BE(headerBytes, 4);
	frame.writeUInt32BE(bodyBytes, 12);
	if (typeof header === "string") frame.write(header, TWO_PART_PREFIX_BYTES, "utf8");
	else header?.copy(frame, TWO_PART_PREFIX_BYTES);
	body?.copy(frame, TWO_PART_PREFIX_BYTES + headerBytes);
	return frame;
}

function lengthAt(buffer: Buffer, offset: number): number {
	return buffer.readUInt32BE(offset) * TWO_32 + buffer.readUInt32BE(offset + 4);
}

/**
 * Splits a buffer that holds exactly one two-part message; the parts are views.
 *
 * @throws RangeError when the lengths do not fit the buffer.
 */
export function splitTwoPart(message: Buffer): { header: Buffer; body: Buffer } {
	if (message.length < TWO_PART_PREFIX_BYTES) {
		throw new RangeError(
			`two-part message of ${message.length} bytes is shorter than its ${TWO_PART_PREFIX_BYTES}-byte prefix`,
		);
	}
	const headerBytes = lengthAt(message, 0);
	const bodyBytes = lengthAt(message, 8);
	if (TWO_PART_PREFIX_BYTES + headerBytes + bodyBytes !== message.length) {
		throw new RangeError(
			`two-part message of ${message.length} bytes announces a header of ${headerBytes} and a body of ${bodyBytes} bytes`,
		);
	}
	const bodyAt = TWO_PART_PREFIX_BYTES + headerBytes;
	return { header: message.subarray(TWO_PART_PREFIX_BYTES, bodyAt), body: message.subarray(bodyAt) };
}

/** Receives the parts of a frame; an absent part is an empty buffer. Both may be views on the chunk that was pushed. */
export type OnTwoPart = (header: Buffer, body: Buffer) => void;

/** Reads a stream of two-part messages; the checksum is not looked at, as in release builds of Dynamo. */
export class TwoPartDecoder extends FrameReader {
	readonly #maxBytes: number;
	#onFrame: OnTwoPart = () => {};

	constructor(maxBytes: number = MAX_FRAME_BYTES) {
		super();
		this.#maxBytes = maxBytes;
	}

	/**
	 * Calls onFrame for each frame that the chunk completes.
	 *
	 * @throws FrameTooLargeError; the stream cannot be read any further.
	 */
	push(chunk: Buffer, onFrame: OnTwoPart): void {
		this.#onFrame = onFrame;
		this.read(chunk);
	}

	protected override bytesNeeded(buffer: Buffer, offset: number, end: number): number {
		if (end - offset < TWO_PART_PREFIX_BYTES) return TWO_PART_PREFIX_BYTES;
		const total = TWO_PART_PREFIX_BYTES + lengthAt(buffer, offset) + lengthAt(buffer, offset + 8);
		if (total > this.#maxBytes) throw new FrameTooLargeError(total, this.#maxBytes);
		return total;
	}

	protected override onWholeFrame(buffer: Buffer, offset: number, end: number): void {
		const headerAt = offset + TWO_PART_PREFIX_BYTES;
		const bodyAt = headerAt + buffer.readUInt32BE(offset + 4);
		this.#onFrame(
			bodyAt === headerAt ? EMPTY : buffer.subarray(headerAt, bodyAt),
			bodyAt === end ? EMPTY : buffer.subarray(bodyAt, end),
		);
	}
}
