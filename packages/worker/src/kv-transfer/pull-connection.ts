// SPDX-License-Identifier: Apache-2.0
// The decode worker's end of the side channel: one connection, on which one prompt at a time is fetched.
import type { FileHandle } from "node:fs/promises";
import type { Socket } from "node:net";
import type { KvFetch } from "@dynamo-ts/engine";
import { type ClientTls, dialStream } from "@dynamo-ts/runtime/internal";
import { NONCE_BYTES, openSegment } from "./shared-segment.js";
import {
	DamagedBlockError,
	encodeFrame,
	FRAME,
	FrameReader,
	PREAMBLE,
	TransferFormatError,
	u32,
} from "./transfer-frames.js";

/** Why a prompt was not fetched. */
export type PullFailure = "unreachable" | "refused" | "timeout" | "lost" | "protocol" | "damaged";

export interface DialTarget {
	readonly host: string;
	readonly port: number;
	readonly tls: ClientTls | undefined;
	/** Milliseconds. */
	readonly connectTimeoutMs: number;
}

export interface PullOutcome {
	/** Undefined: all blocks are there. */
	readonly failure: PullFailure | undefined;
	/** Bytes that came. */
	readonly bytes: number;
	readonly transport: "tcp" | "shm";
	/** The peer had said nothing yet: another connection may do better. */
	readonly early: boolean;
}

interface Pull {
	readonly fetch: KvFetch;
	readonly blockBytes: number;
	readonly missing: Set<number>;
	readonly settle: (outcome: PullOutcome) => void;
	/** Reads out of the segment that have not ended. */
	reading: number;
	bytes: number;
	transport: "tcp" | "shm";
	accepted: boolean;
	done: boolean;
	/** Set when it will not be complete; settled once nobody writes to the blocks. */
	failure: PullFailure | undefined;
}

export class PullConnection {
	readonly #socket: Socket;
	readonly #reader: FrameReader;
	#segment: FileHandle | undefined;
	#pull: Pull | undefined;
	#connected = false;

	/** Dials. @param onClose called once, when it is of no use any more. */
	constructor(target: DialTarget, onClose: () => void) {
		this.#reader = new FrameReader(
			{
				onFrame: (type, payload) => this.#onFrame(type, payload),
				onBlock: (index, bytes) => this.#onBlock(index, bytes),
				onBlockEnd: (index) => this.#received(index),
			},
			false,
		);
		this.#socket = dialStream({
			...target,
			onReady: () => {
				this.#connected = true;
				this.#socket.setTimeout(0);
			},
		});
		this.#socket.write(PREAMBLE);
		this.#socket.on("timeout", () => this.#socket.destroy());
		this.#socket.on("error", () => {});
		this.#socket.on("data", (chunk: Buffer) => this.#onData(chunk));
		this.#socket.once("end", () => this.#socket.destroy());
		this.#socket.once("close", () => {
			onClose();
			this.#fail(this.#connected ? "lost" : "unreachable");
			if (this.#pull === undefined) void this.#segment?.close().catch(() => {});
		});
	}

	/** Its bytes are of no interest any more; the event comes later. */
	get #closed(): boolean {
		return this.#socket.destroyed;
	}

	get usable(): boolean {
		return !this.#closed && this.#pull === undefined;
	}

	/** Keeps the process alive or not. */
	ref(alive: boolean): void {
		if (alive) this.#socket.ref();
		else this.#socket.unref();
	}

	/**
	 * Fetches the blocks that `fetch` wants; its memory is left alone once the promise resolves. Never rejects.
	 * @param timeoutMs longest time for all of it, milliseconds.
	 */
	pull(handle: string, fetch: KvFetch, blockBytes: number, timeoutMs: number, mayShare: boolean): Promise<PullOutcome> {
		return new Promise((resolve) => {
			const late = setTimeout(() => this.#giveUp("timeout"), timeoutMs);
			const left = () => this.#giveUp("lost");
			fetch.signal.addEventListener("abort", left, { once: true });
			this.#pull = {
				fetch,
				blockBytes,
				missing: new Set(Array.from({ length: fetch.numBlocks }, (_, i) => fetch.firstBlock + i)),
				settle: (outcome) => {
					clearTimeout(late);
					fetch.signal.removeEventListener("abort", left);
					this.#pull = undefined;
					if (this.#closed) void this.#segment?.close().catch(() => {});
					resolve(outcome);
				},
				reading: 0,
				bytes: 0,
				transport: "tcp",
				accepted: false,
				done: false,
				failure: undefined,
			};
			if (this.#closed) {
				this.#fail("lost");
				return;
			}
			if (fetch.signal.aborted) {
				this.#giveUp("lost");
				return;
			}
			const request = [Buffer.from(handle, "hex"), u32(fetch.firstBlock), u32(fetch.numBlocks)];
			this.#socket.write(encodeFrame(FRAME.pull, ...request, Uint8Array.of(mayShare ? 1 : 0)));
		});
	}

	/** Says that what a handle names is not needed. */
	release(handle: string): void {
		this.#socket.write(encodeFrame(FRAME.release, Buffer.from(handle, "hex")));
	}

	destroy(): void {
		this.#socket.destroy();
	}

	/** Ends after what was written has gone out. */
	end(): void {
		this.#socket.end();
	}

	#onData(chunk: Buffer): void {
		if (this.#closed) return;
		try {
			this.#reader.push(chunk);
		} catch (error) {
			this.#giveUp(error instanceof DamagedBlockError ? "damaged" : "protocol");
		}
	}

	#onFrame(type: number, payload: Buffer): void {
		const pull = this.#pull;
		if (pull === undefined) throw new TransferFormatError(`frame ${type} without a request`);
		switch (type) {
			case FRAME.accept:
				if (payload.length !== 4 || payload.readUInt32BE() !== pull.blockBytes) throw new TransferFormatError("accept");
				pull.accepted = true;
				return;
			case FRAME.refuse:
				pull.failure = "refused";
				this.#settleIfDone();
				return;
			case FRAME.segment:
				void this.#openSegment(payload);
				return;
			case FRAME.piece:
				if (payload.length !== 6 || this.#segment === undefined) throw new TransferFormatError("piece");
				void this.#readPiece(pull, this.#segment, payload.readUInt32BE(), payload.readUInt16BE(4));
				return;
			case FRAME.done:
				pull.done = true;
				this.#settleIfDone();
				return;
			default:
				throw new TransferFormatError(`frame ${type}`);
		}
	}

	#onBlock(index: number, bytes: number): Uint8Array {
		const pull = this.#pull;
		if (pull === undefined || pull.failure !== undefined || !pull.accepted || bytes !== pull.blockBytes) {
			throw new TransferFormatError("a block that is not wanted");
		}
		if (!pull.missing.has(index)) throw new TransferFormatError(`block ${index} is not wanted`);
		return pull.fetch.memory(index);
	}

	#received(index: number): void {
		const pull = this.#pull;
		if (pull === undefined) return;
		pull.missing.delete(index);
		pull.bytes += pull.blockBytes;
		pull.fetch.written(index);
	}

	async #openSegment(payload: Buffer): Promise<void> {
		const nonce = Buffer.from(payload.subarray(0, NONCE_BYTES));
		const name = payload.toString("latin1", NONCE_BYTES + 2);
		const file = await openSegment(name, nonce);
		if (this.#closed) {
			await file?.close().catch(() => {});
			return;
		}
		void this.#segment?.close().catch(() => {});
		this.#segment = file;
		this.#socket.write(encodeFrame(FRAME.shared, Uint8Array.of(file === undefined ? 0 : 1)));
	}

	/** A block lies in the segment: takes it out and gives the piece back. */
	async #readPiece(pull: Pull, segment: FileHandle, index: number, piece: number): Promise<void> {
		if (!pull.missing.delete(index) || pull.failure !== undefined) {
			this.#giveUp("protocol");
			return;
		}
		pull.transport = "shm";
		pull.reading++;
		let right = false;
		try {
			const { bytesRead } = await segment.read(pull.fetch.memory(index), 0, pull.blockBytes, piece * pull.blockBytes);
			right = bytesRead === pull.blockBytes;
		} catch {
			// Told below.
		}
		pull.reading--;
		if (right && pull.failure === undefined) {
			pull.bytes += pull.blockBytes;
			pull.fetch.written(index);
			if (!this.#closed) this.#socket.write(encodeFrame(FRAME.credit, u32(1)));
		} else if (!right) this.#giveUp("protocol");
		this.#settleIfDone();
	}

	/** The connection is closed, which tells the peer. */
	#giveUp(failure: PullFailure): void {
		this.#fail(failure);
		this.#socket.destroy();
	}

	#fail(failure: PullFailure): void {
		const pull = this.#pull;
		if (pull === undefined) return;
		pull.failure ??= failure;
		this.#settleIfDone();
	}

	#settleIfDone(): void {
		const pull = this.#pull;
		if (pull === undefined || pull.reading > 0) return;
		if (pull.failure === undefined && !pull.done) return;
		const short = pull.failure === undefined && pull.missing.size > 0;
		const failure = short ? "protocol" : pull.failure;
		if (short) this.#socket.destroy();
		const { bytes, transport, accepted } = pull;
		pull.settle({ failure, bytes, transport, early: !accepted && failure === "lost" });
	}
}
