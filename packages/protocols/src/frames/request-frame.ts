// SPDX-License-Identifier: Apache-2.0
import { isJsonObject, parseJson } from "../json.js";
import { FrameReader } from "./frame-reader.js";
import { FrameTooLargeError, MAX_FRAME_BYTES } from "./wire-constants.js";

/** One request on a request connection. */
export interface RequestFrame {
	/** Which endpoint of the peer: `{id:x}/{ns}/{component}/{endpoint}`. */
	path: string;
	/** `request-id`, `traceparent`, `x-frontend-send-ts-ns` and so on; none is required. */
	headers: Record<string, string>;
	/** A two-part message: control header and body. */
	payload: Buffer;
}

/** A frame as read. `headersError` tells what is wrong with the headers, which are then empty. */
export interface DecodedRequestFrame extends RequestFrame {
	headersError?: string;
}

const MAX_U16 = 0xffff;

/**
 * `u16be path_len | path | u16be headers_len | headers as JSON | u32be payload_len | payload`.
 *
 * @throws RangeError when path or headers are longer than 65535 bytes.
 * @throws FrameTooLargeError when the whole is beyond the limit: no peer would take it.
 */
export function encodeRequestFrame(frame: RequestFrame, maxBytes: number = MAX_FRAME_BYTES): Buffer {
	const headers = JSON.stringify(frame.headers);
	const pathBytes = Buffer.byteLength(frame.path);
	const headersBytes = Buffer.byteLength(headers);
	if (pathBytes > MAX_U16 || headersBytes > MAX_U16) {
		throw new RangeError(
			`request frame: path of ${pathBytes} and headers of ${headersBytes} bytes; at most ${MAX_U16} each`,
		);
	}
	const total = 8 + pathBytes + headersBytes + frame.payload.length;
	if (total > maxBytes) throw new FrameTooLargeError(total, maxBytes);
	const bytes = Buffer.allocUnsafe(total);
	let at = bytes.writeUInt16BE(pathBytes, 0);
	at += bytes.write(frame.path, at, "utf8");
	at = bytes.writeUInt16BE(headersBytes, at);
	at += bytes.write(headers, at, "utf8");
	at = bytes.writeUInt32BE(frame.payload.length, at);
	frame.payload.copy(bytes, at);
	return bytes;
}

function parseHeaders(bytes: Buffer): { headers: Record<string, string>; headersError?: string } {
	let value: unknown;
	try {
		value = parseJson(bytes);
	} catch (error) {
		return { headers: {}, headersError: `headers are not JSON: ${(error as Error).message}` };
	}
	if (!isJsonObject(value)) return { headers: {}, headersError: "headers are not a JSON object" };
	for (const name in value) {
		if (typeof value[name] !== "string")
			return { headers: {}, headersError: `header ${JSON.stringify(name)} is not a string` };
	}
	return { headers: value as Record<string, string> };
}

const NONE: DecodedRequestFrame[] = [];

/** Reads a stream of request frames. */
export class RequestFrameDecoder extends FrameReader {
	readonly #maxBytes: number;
	#frames: DecodedRequestFrame[] = NONE;

	constructor(maxBytes: number = MAX_FRAME_BYTES) {
		super();
		this.#maxBytes = maxBytes;
	}

	/**
	 * The frames that the chunk completes, in order; payloads may be views on the chunk. When it throws, frames
	 * that came whole before the bad one are in {@link framesBeforeError}.
	 *
	 * @throws FrameTooLargeError; the stream cannot be read any further.
	 */
	push(chunk: Buffer): DecodedRequestFrame[] {
		this.#frames = NONE;
		this.read(chunk);
		const frames = this.#frames;
		this.#frames = NONE;
		return frames;
	}

	/** Frames that the last push completed before it threw. */
	get framesBeforeError(): DecodedRequestFrame[] {
		return this.#frames;
	}

	protected override bytesNeeded(buffer: Buffer, offset: number, end: number): number {
		const have = end - offset;
		if (have < 2) return 2;
		const headersAt = 2 + buffer.readUInt16BE(offset);
		if (have < headersAt + 2) return headersAt + 2;
		const payloadAt = headersAt + 2 + buffer.readUInt16BE(offset + headersAt);
		if (have < payloadAt + 4) return payloadAt + 4;
		const total = payloadAt + 4 + buffer.readUInt32BE(offset + payloadAt);
		if (total > this.#maxBytes) throw new FrameTooLargeError(total, this.#maxBytes);
		return total;
	}

	protected override onWholeFrame(buffer: Buffer, offset: number, end: number): void {
		const pathAt = offset + 2;
		const headersLengthAt = pathAt + buffer.readUInt16BE(offset);
		const headersAt = headersLengthAt + 2;
		const payloadLengthAt = headersAt + buffer.readUInt16BE(headersLengthAt);
		if (this.#frames === NONE) this.#frames = [];
		this.#frames.push({
			path: buffer.toString("utf8", pathAt, headersLengthAt),
			...parseHeaders(buffer.subarray(headersAt, payloadLengthAt)),
			payload: buffer.subarray(payloadLengthAt + 4, end),
		});
	}
}
