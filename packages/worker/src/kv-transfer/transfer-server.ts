// SPDX-License-Identifier: Apache-2.0
// The prefill worker's end of the side channel: gives the blocks that a handle names to whoever dials and knows it.
import type { Server, Socket } from "node:net";
import type { HeldKv, KvPort } from "@dynamo-ts/engine";
import { ENV } from "@dynamo-ts/protocols/internal";
import type { Logger } from "@dynamo-ts/runtime";
import { createStreamServer, listenTcp, type ServerTls } from "@dynamo-ts/runtime/internal";
import type { HoldRegistry } from "./hold-registry.js";
import { SharedSegment } from "./shared-segment.js";
import {
	encodeBlockHead,
	encodeFrame,
	FRAME,
	FrameReader,
	REFUSAL,
	TransferFormatError,
	u16,
	u32,
} from "./transfer-frames.js";
import { HANDLE_BYTES } from "./transfer-params.js";

/** Connections at a time; further ones are closed at once. */
const MAX_CONNECTIONS = 256;
/** Longest wait for the first request of a connection, and for a reader that does not read. */
const STALL_MS = 10_000;
/** A connection without requests is closed after this. */
const IDLE_MS = 60_000;
/** Bytes of a segment, where two blocks are not more. */
const SEGMENT_BYTES = 8 * 2 ** 20;
const MAX_PIECES = 64;
/** Blocks asked of the engine at a time. */
const READ_AHEAD = 4;

export interface TransferServerOptions {
	readonly kv: KvPort;
	readonly holds: HoldRegistry;
	/** Address to listen on. */
	readonly host: string;
	/** 0: any. */
	readonly port: number;
	readonly tls: ServerTls | undefined;
	/** False: no shared memory, whatever a peer asks for. */
	readonly sharedMemory: boolean;
	readonly log: Logger;
	/** Told of bytes that went out. */
	onSent(bytes: number, transport: "tcp" | "shm"): void;
}

export class TransferServer {
	readonly port: number;
	readonly #server: Server;
	readonly #connections: Set<Connection>;

	private constructor(server: Server, port: number, connections: Set<Connection>) {
		this.#server = server;
		this.port = port;
		this.#connections = connections;
	}

	/** Pulls under way. */
	get active(): number {
		let active = 0;
		for (const connection of this.#connections) if (connection.isPulling) active++;
		return active;
	}

	/** @throws DynamoError `Unavailable` when the address cannot be listened on. */
	static async listen(options: TransferServerOptions): Promise<TransferServer> {
		const connections = new Set<Connection>();
		const server = createStreamServer(options.tls, options.log, (socket) => {
			if (connections.size >= MAX_CONNECTIONS) {
				socket.destroy();
				return;
			}
			const connection = new Connection(socket, options, () => connections.delete(connection));
			connections.add(connection);
		});
		const { host, port } = options;
		const variables = { host: ENV.DYN_TCP_RPC_HOST, port: ENV.DYN_KV_TRANSFER_PORT };
		const listening = await listenTcp(
			server,
			{ host, port, purpose: "transfer of keys and values", variables },
			options.log,
		);
		return new TransferServer(server, listening, connections);
	}

	async close(): Promise<void> {
		const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
		for (const connection of this.#connections) connection.destroy();
		await closed;
	}
}

interface PullRequest {
	readonly handle: string;
	readonly first: number;
	readonly count: number;
	readonly mayShare: boolean;
}

/** What a connection's segment is good for. */
type SegmentState = "none" | "offered" | "open" | "refused";

class Connection {
	readonly #socket: Socket;
	readonly #options: TransferServerOptions;
	#segment: SharedSegment | undefined;
	#segmentState: SegmentState = "none";
	/** Pieces of the segment that may be written. */
	#freePieces = 0;
	#nextPiece = 0;
	#pulling: { readonly handle: string; readonly held: HeldKv } | undefined;
	#next: PullRequest | undefined;
	/** Wakes a pull that waits for the socket, for credit, or for the segment. */
	#wake: (() => void) | undefined;

	constructor(socket: Socket, options: TransferServerOptions, onClose: () => void) {
		this.#socket = socket;
		this.#options = options;
		const reader = new FrameReader({ onFrame: (type, payload) => this.#onFrame(type, payload) }, true);
		socket.setTimeout(STALL_MS, () => this.destroy());
		socket.on("data", (chunk: Buffer) => {
			if (this.#closed) return;
			try {
				reader.push(chunk);
			} catch (error) {
				if (!(error instanceof TransferFormatError)) options.log.warn("a transfer failed", { error });
				this.destroy();
			}
		});
		socket.on("drain", () => this.#wakeUp());
		socket.on("error", () => {});
		socket.once("end", () => this.destroy());
		socket.once("close", () => {
			onClose();
			this.#wakeUp();
			// A pull that is under way does the rest when it has stopped.
			if (this.#pulling === undefined) void this.#segment?.close();
		});
	}

	/** Nothing goes out any more; the event comes later. */
	get #closed(): boolean {
		return this.#socket.destroyed;
	}

	get isPulling(): boolean {
		return this.#pulling !== undefined;
	}

	destroy(): void {
		this.#socket.destroy();
	}

	#onFrame(type: number, payload: Buffer): void {
		if (this.#pulling === undefined) this.#socket.setTimeout(IDLE_MS);
		switch (type) {
			case FRAME.pull: {
				if (payload.length !== HANDLE_BYTES + 9 || this.#next !== undefined) throw new TransferFormatError("pull");
				const pull: PullRequest = {
					handle: payload.toString("hex", 0, HANDLE_BYTES),
					first: payload.readUInt32BE(HANDLE_BYTES),
					count: payload.readUInt32BE(HANDLE_BYTES + 4),
					mayShare: payload[HANDLE_BYTES + 8] === 1,
				};
				// A peer may know that all is there before we know that all is out.
				if (this.#pulling !== undefined) this.#next = pull;
				else void this.#pull(pull);
				return;
			}
			case FRAME.release:
				if (payload.length !== HANDLE_BYTES) throw new TransferFormatError("release");
				this.#options.holds.release(payload.toString("hex"), "released");
				return;
			case FRAME.credit: {
				if (payload.length !== 4) throw new TransferFormatError("credit");
				const credit = payload.readUInt32BE();
				if (credit > this.#pieces - this.#freePieces) throw new TransferFormatError("credit for nothing");
				this.#freePieces += credit;
				this.#wakeUp();
				return;
			}
			case FRAME.shared:
				if (payload.length !== 1 || this.#segmentState !== "offered") throw new TransferFormatError("shared");
				this.#segmentState = payload[0] === 1 ? "open" : "refused";
				void this.#segment?.unlink();
				this.#wakeUp();
				return;
			default:
				throw new TransferFormatError(`frame ${type}`);
		}
	}

	get #pieces(): number {
		const fitting = Math.floor(SEGMENT_BYTES / this.#options.kv.layout.blockBytes);
		return Math.min(MAX_PIECES, Math.max(2, fitting));
	}

	async #pull({ handle, first, count, mayShare }: PullRequest): Promise<void> {
		const { kv, holds, log } = this.#options;
		const held = holds.open(handle);
		if (held === undefined) {
			this.#socket.write(encodeFrame(FRAME.refuse, Uint8Array.of(REFUSAL.unknown)));
			return;
		}
		this.#pulling = { handle, held };
		// From here on waits are looked after one by one.
		this.#socket.setTimeout(0);
		let complete = false;
		try {
			if (count === 0 || first + count > held.blocks.length) {
				this.#socket.write(encodeFrame(FRAME.refuse, Uint8Array.of(REFUSAL.range)));
				return;
			}
			this.#socket.write(encodeFrame(FRAME.accept, u32(kv.layout.blockBytes)));
			const shared = mayShare && this.#options.sharedMemory && (await this.#share());
			complete = await this.#send(held, first, count, shared);
			if (complete) complete = await this.#finish(shared);
		} catch (error) {
			log.warn("a transfer failed", { error });
			this.destroy();
		} finally {
			this.#pulling = undefined;
			kv.close(held.id);
			// Who began to pull and left does not come again: it computes the prompt.
			if (complete || this.#closed) holds.release(handle, complete ? "pulled" : "released");
			if (this.#closed) await this.#segment?.close();
			else this.#socket.setTimeout(IDLE_MS);
		}
		const next = this.#next;
		this.#next = undefined;
		if (next !== undefined && !this.#closed) await this.#pull(next);
	}

	/** @returns whether the segment can be used. */
	async #share(): Promise<boolean> {
		if (this.#segmentState === "none") {
			try {
				this.#segment = await SharedSegment.create();
			} catch {
				this.#segmentState = "refused";
				return false;
			}
			this.#segmentState = "offered";
			this.#freePieces = this.#pieces;
			const { name, nonce } = this.#segment;
			this.#socket.write(encodeFrame(FRAME.segment, nonce, u16(this.#pieces), Buffer.from(name)));
			await this.#until(() => this.#segmentState !== "offered");
		}
		return this.#segmentState === "open";
	}

	/** @returns false when the peer is gone. */
	async #send(held: HeldKv, first: number, count: number, shared: boolean): Promise<boolean> {
		const { kv, onSent } = this.#options;
		const { blockBytes } = kv.layout;
		for (let from = 0; from < count; from += READ_AHEAD) {
			const to = Math.min(count, from + READ_AHEAD);
			const blocks = await kv.read(held.id, held.blocks.slice(first + from, first + to));
			if (blocks === undefined) {
				this.destroy();
				return false;
			}
			for (const [i, block] of blocks.entries()) {
				const index = first + from + i;
				if (shared) {
					if (!(await this.#until(() => this.#freePieces > 0))) return false;
					const piece = this.#nextPiece;
					this.#nextPiece = (piece + 1) % this.#pieces;
					this.#freePieces--;
					await this.#segment!.file.write(block, 0, blockBytes, piece * blockBytes);
					if (this.#closed) return false;
					this.#socket.write(encodeFrame(FRAME.piece, u32(index), u16(piece)));
				} else {
					if (this.#closed) return false;
					this.#socket.cork();
					this.#socket.write(encodeBlockHead(index, block));
					const buffer = Buffer.from(block.buffer, block.byteOffset, block.byteLength);
					const goesOn = this.#socket.write(buffer);
					this.#socket.uncork();
					if (!goesOn && !(await this.#until(() => !this.#socket.writableNeedDrain))) return false;
				}
				onSent(blockBytes, shared ? "shm" : "tcp");
			}
		}
		return true;
	}

	/** Waits until nothing of the blocks is needed any more. @returns false when the peer was gone before. */
	async #finish(shared: boolean): Promise<boolean> {
		let written = false;
		this.#socket.write(encodeFrame(FRAME.done), (error) => {
			written = error === null || error === undefined;
			this.#wakeUp();
		});
		return this.#until(() => written && (!shared || this.#freePieces === this.#pieces));
	}

	/** Waits for a peer that goes on. @returns false, with the connection closed, when it does not, or is gone. */
	async #until(condition: () => boolean): Promise<boolean> {
		while (!this.#closed && !condition()) {
			const stalled = setTimeout(() => this.destroy(), STALL_MS);
			await new Promise<void>((resolve) => {
				this.#wake = resolve;
			});
			clearTimeout(stalled);
		}
		return !this.#closed;
	}

	#wakeUp(): void {
		const wake = this.#wake;
		this.#wake = undefined;
		wake?.();
	}
}
