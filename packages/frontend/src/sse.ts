// SPDX-License-Identifier: Apache-2.0
import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { SSE_DONE } from "@dynamo-ts/protocols/internal";
import { flushAfterTurn } from "@dynamo-ts/runtime/internal";
import { hasOddHeaders } from "./answers.js";

const KEEP_ALIVE_EVENT = ":\n\n";
/** An empty chunk ends the body; node would write it if it did the framing. */
const LAST_CHUNK = "0\r\n\r\n";

const NOTHING = Buffer.alloc(0);

/** Told about what happens to an event stream from the client's side. */
export interface SseListener {
	/** The client does not keep up: nothing more should be queued until {@link onDrain}. */
	onBlocked(): void;
	onDrain(): void;
}

/**
 * Writes an event stream. What is queued in one turn of the event loop goes out in one write, whatever the number of
 * events. The headers go with the first, or when {@link commit} says so; until then the answer can still become a
 * plain error.
 *
 * Chunks are framed here and not by node, which would hand each write to the socket in four pieces.
 */
export class SseWriter {
	private readonly response: ServerResponse;
	private readonly listener: SseListener;
	private readonly keepAliveMs: number;
	private keepAlive: NodeJS.Timeout | undefined;
	/** HTTP/1.0 has no chunks; there the end of the connection ends the body. */
	private readonly framed: boolean;
	private socket: Socket | null = null;
	private pending = "";
	private scheduled = false;
	private blocked = false;
	private ended = false;
	/** The status is decided: whatever happens from here on is told inside the stream. */
	committed = false;
	/** Something was written, so the status is out. */
	private started = false;

	/** @param keepAliveMs silence after which a comment event is sent, milliseconds; 0: never. */
	constructor(response: ServerResponse, keepAliveMs: number, listener: SseListener) {
		this.response = response;
		this.keepAliveMs = keepAliveMs;
		this.listener = listener;
		this.framed = response.req.httpVersionMajor > 1 || response.req.httpVersionMinor > 0;
		if (keepAliveMs > 0) this.keepAlive = setTimeout(this.onSilence, keepAliveMs);
		response.on("close", () => this.stop());
	}

	/** Sends the headers, at the end of the turn and with what is queued until then. */
	commit(): void {
		if (this.committed) return;
		this.committed = true;
		this.queue("");
	}

	/** Queues whole events; each ends in an empty line. */
	queue(events: string): void {
		if (this.ended) return;
		this.committed = true;
		this.pending += events;
		if (this.scheduled) return;
		this.scheduled = true;
		flushAfterTurn(this);
	}

	/** Ends the stream with `[DONE]`. */
	end(): void {
		if (this.ended) return;
		this.pending += SSE_DONE;
		// From here on a client that is slow holds up nobody: all that there is has been written.
		this.ended = true;
		this.write(LAST_CHUNK);
		this.stop();
		this.response.end();
	}

	/** Nothing will be written, so that something else can be answered; only before {@link committed}. */
	discard(): void {
		this.stop();
	}

	/** Called at the end of the turn. */
	flush(): void {
		this.scheduled = false;
		if (!this.ended) this.write();
	}

	/** @param after what follows the chunk in the same write. */
	private write(after = ""): void {
		if (this.pending === "") {
			this.sendHeaders();
			return;
		}
		const events = this.pending;
		this.pending = "";
		if (!this.started) this.start();
		const bytes = Buffer.byteLength(events);
		// Plain ASCII needs no conversion, and most text is.
		const encoding = bytes === events.length ? "latin1" : "utf8";
		const chunk = this.framed ? `${bytes.toString(16)}\r\n${events}\r\n${after}` : events;
		const room = this.socket === null ? this.writeFirst(chunk, encoding) : this.socket.write(chunk, encoding);
		this.keepAlive?.refresh();
		if (!room && !this.blocked && !this.ended) {
			this.blocked = true;
			this.listener.onBlocked();
			(this.socket ?? this.response).once("drain", this.onDrain);
		}
	}

	private readonly onDrain = (): void => {
		this.blocked = false;
		if (!this.ended) this.listener.onDrain();
	};

	/**
	 * Once headers and first events are on their way, the socket takes the rest: what node's response adds per write
	 * (framing, corking) is not needed. While an earlier response holds the connection there is no socket yet.
	 */
	private writeFirst(chunk: string, encoding: BufferEncoding): boolean {
		const { response } = this;
		const room = hasOddHeaders(response)
			? response.write(Buffer.from(chunk, encoding))
			: response.write(chunk, encoding);
		this.socket = this.response.socket;
		return room;
	}

	/** Headers alone, while the first event is not there yet. */
	private sendHeaders(): void {
		if (this.started) return;
		this.start();
		// An empty write sends headers; it takes a buffer for hasOddHeaders' sake.
		this.response.write(NOTHING);
		this.socket = this.response.socket;
	}

	private start(): void {
		this.started = true;
		this.response.writeHead(200, {
			"content-type": "text/event-stream",
			"cache-control": "no-cache",
			"x-accel-buffering": "no",
			...(this.framed ? { "transfer-encoding": "chunked" } : {}),
		});
		if (this.framed) this.response.chunkedEncoding = false;
	}

	private readonly onSilence = (): void => {
		if (this.ended) return;
		this.queue(KEEP_ALIVE_EVENT);
		this.keepAlive = setTimeout(this.onSilence, this.keepAliveMs);
	};

	private stop(): void {
		this.ended = true;
		this.pending = "";
		clearTimeout(this.keepAlive);
	}
}
