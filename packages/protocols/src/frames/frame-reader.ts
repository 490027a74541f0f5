// SPDX-License-Identifier: Apache-2.0

const FIRST_BUFFER_BYTES = 16 * 1024;

/**
 * Cuts a byte stream, which arrives in chunks split anywhere, into frames. A frame that lies whole in one chunk is
 * handed over as a view on that chunk; one that spans chunks is gathered once, in a buffer that grows with what has
 * really arrived (an announced length alone reserves nothing).
 */
export abstract class FrameReader {
	#pending: Buffer | undefined;
	#pendingBytes = 0;

	/**
	 * Length of the frame that starts at `offset`, as far as the bytes up to `end` tell: at least that many bytes are
	 * needed to go on. `end - offset >= result` means the frame is whole.
	 *
	 * @throws FrameTooLargeError when the announced length is beyond the reader's limit.
	 */
	protected abstract bytesNeeded(buffer: Buffer, offset: number, end: number): number;

	/** Called for each whole frame, in order; the bytes stay valid as long as something refers to them. */
	protected abstract onWholeFrame(buffer: Buffer, offset: number, end: number): void;

	/** Bytes of an unfinished frame that are held back; 0 between frames. */
	get bufferedBytes(): number {
		return this.#pendingBytes;
	}

	/** Reads a chunk. The chunk must not be written to afterwards. */
	protected read(chunk: Buffer): void {
		let offset = 0;
		const end = chunk.length;
		while (this.#pendingBytes > 0) {
			const pending = this.#pending as Buffer;
			const needed = this.bytesNeeded(pending, 0, this.#pendingBytes);
			if (this.#pendingBytes >= needed) {
				const frameEnd = this.#pendingBytes;
				this.#pending = undefined;
				this.#pendingBytes = 0;
				this.onWholeFrame(pending, 0, frameEnd);
				break;
			}
			if (offset === end) return;
			const taken = Math.min(needed - this.#pendingBytes, end - offset);
			this.#hold(chunk, offset, offset + taken, needed);
			offset += taken;
		}
		while (offset < end) {
			const needed = this.bytesNeeded(chunk, offset, end);
			if (end - offset < needed) {
				this.#hold(chunk, offset, end, needed);
				return;
			}
			this.onWholeFrame(chunk, offset, offset + needed);
			offset += needed;
		}
	}

	#hold(chunk: Buffer, start: number, end: number, needed: number): void {
		const wanted = this.#pendingBytes + end - start;
		if (this.#pending === undefined || this.#pending.length < wanted) {
			const doubled = Math.max(FIRST_BUFFER_BYTES, 2 * (this.#pending?.length ?? 0));
			const grown = Buffer.allocUnsafe(Math.max(wanted, Math.min(needed, doubled)));
			this.#pending?.copy(grown, 0, 0, this.#pendingBytes);
			this.#pending = grown;
		}
		chunk.copy(this.#pending, this.#pendingBytes, start, end);
		this.#pendingBytes = wanted;
	}
}
