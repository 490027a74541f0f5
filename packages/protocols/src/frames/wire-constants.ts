// SPDX-License-Identifier: Apache-2.0

/** Most bytes of one frame, lengths included, that a reader takes (DYN_TCP_MAX_MESSAGE_SIZE's default). */
export const MAX_FRAME_BYTES = 33_554_432;

/** Bytes of `u64be header_len | u64be body_len | u64be checksum`. */
export const TWO_PART_PREFIX_BYTES = 24;

/** A peer announced a frame beyond the limit; the connection cannot be read any further. The message is also the ack text. */
export class FrameTooLargeError extends Error {
	/** Bytes announced, lengths included. */
	readonly frameBytes: number;
	readonly maxBytes: number;

	constructor(frameBytes: number, maxBytes: number) {
		super(`Read error: message too large: ${frameBytes} bytes (max: ${maxBytes} bytes)`);
		this.name = "FrameTooLargeError";
		this.frameBytes = frameBytes;
		this.maxBytes = maxBytes;
	}
}
