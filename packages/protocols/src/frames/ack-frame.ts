// SPDX-License-Identifier: Apache-2.0
import { FrameReader } from "./frame-reader.js";
import { FrameTooLargeError } from "./wire-constants.js";

/** Begins the text of an ack that refuses a request because the endpoint is not there; another instance may be tried. */
export const ACK_UNAVAILABLE_PREFIX = "Server unavailable:";
/** Begins the text of an ack that refuses a request because the worker is full; another instance may be tried. */
export const ACK_OVERLOADED_PREFIX = "Server overloaded:";

/** Longest ack text that a reader takes, in bytes. */
export const MAX_ACK_BYTES = 64 * 1024;

const ACCEPTED = Buffer.alloc(4);

/** `u32be len | text`; no text: accepted. Sent at once for each request frame, in the order of the requests. */
export function encodeAck(text?: string): Buffer {
	if (text === undefined || text === "") return ACCEPTED;
	const textBytes = Buffer.byteLength(text);
	const ack = Buffer.allocUnsafe(4 + textBytes);
	ack.writeUInt32BE(textBytes, 0);
	ack.write(text, 4, "utf8");
	return ack;
}

/** What an ack's text means: any text but the two refusals counts as accepted. */
export function ackMeaning(text: string): "accepted" | "unavailable" | "overloaded" {
	if (text.startsWith(ACK_UNAVAILABLE_PREFIX)) return "unavailable";
	return text.startsWith(ACK_OVERLOADED_PREFIX) ? "overloaded" : "accepted";
}

const NONE: string[] = [];

/** Reads a stream of acks. */
export class AckDecoder extends FrameReader {
	#acks: string[] = NONE;

	/**
	 * The texts of the acks that the chunk completes, in order; "" for accepted.
	 *
	 * @throws FrameTooLargeError for a text beyond {@link MAX_ACK_BYTES}.
	 */
	push(chunk: Buffer): string[] {
		this.#acks = NONE;
		this.read(chunk);
		return this.#acks;
	}

	protected override bytesNeeded(buffer: Buffer, offset: number, end: number): number {
		if (end - offset < 4) return 4;
		const total = 4 + buffer.readUInt32BE(offset);
		if (total > 4 + MAX_ACK_BYTES) throw new FrameTooLargeError(total, 4 + MAX_ACK_BYTES);
		return total;
	}

	protected override onWholeFrame(buffer: Buffer, offset: number, end: number): void {
		if (this.#acks === NONE) this.#acks = [];
		this.#acks.push(buffer.toString("utf8", offset + 4, end));
	}
}
