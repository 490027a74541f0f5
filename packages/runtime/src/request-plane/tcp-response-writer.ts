// SPDX-License-Identifier: Apache-2.0
import type { Socket } from "node:net";
import {
	type Annotated,
	COMPLETE_FINAL_FRAME,
	DynamoError,
	encodeHandshake,
	encodePrologueError,
	encodeResponseFrame,
	PROLOGUE_OK_FRAME,
	parseControlWord,
	type RequestPlaneCodec,
	SENTINEL_FRAME,
	TwoPartDecoder,
	toWireError,
} from "@dynamo-ts/protocols/internal";
import { dialStream } from "../net/streams.js";
import type { ClientTls } from "../net/tcp-tls.js";
import type { Logger } from "../observability/logging.js";
import type { ActiveResponse } from "./endpoint-entry.js";
import type { CancellableRequest } from "./ingress-request.js";
import type { CancelKind, RequestObserver } from "./request-plane.js";
import { flushAfterTurn } from "./turn-flush.js";

/** What a writer needs to know beside its request. */
export interface ResponseWriterOptions {
	readonly connectTimeoutMs: number;
	/** A client that lets more than this pile up is cut off. */
	readonly maxBufferedBytes: number;
	readonly tls: ClientTls | undefined;
	readonly log: Logger;
}

/** Where the client waits for the response. */
export interface CallHome {
	readonly host: string;
	readonly port: number;
	readonly subject: string;
	readonly codec: RequestPlaneCodec;
}

/** Clients send control words only. */
const MAX_CONTROL_FRAME_BYTES = 64 * 1024;
/** How long a client may take to read the end of a stream and close. */
const LINGER_MS = 30_000;

/**
 * Dials the client's response server and streams a response to it. Until the connection stands, everything is
 * gathered, so that handshake, prologue and what there is by then leave in one write; an error until then goes into
 * the prologue.
 */
export class TcpResponseWriter implements ActiveResponse {
	readonly #socket: Socket;
	readonly #callHome: CallHome;
	readonly #options: ResponseWriterOptions;
	readonly #request: CancellableRequest;
	readonly #observer: RequestObserver;
	#onDone: ((writer: TcpResponseWriter) => void) | undefined;
	#pending: Buffer[] = [];
	#pendingBytes = 0;
	#flushAsked = false;
	#connected = false;
	#ended = false;
	#cut = false;
	#prologueError: DynamoError | undefined;

	constructor(
		callHome: CallHome,
		options: ResponseWriterOptions,
		request: CancellableRequest,
		observer: RequestObserver,
		onDone: (writer: TcpResponseWriter) => void,
	) {
		this.#callHome = callHome;
		this.#options = options;
		this.#request = request;
		this.#observer = observer;
		this.#onDone = onDone;
		const socket = dialStream({
			host: callHome.host,
			port: callHome.port,
			tls: options.tls,
			connectTimeoutMs: options.connectTimeoutMs,
			onReady: () => this.#onConnect(),
		});
		this.#socket = socket;
		socket.on("timeout", () => this.#lost(this.#connected ? "the client did not close the stream" : "connect timeout"));
		socket.on("error", (error) => this.#lost(error.message));
		socket.on("close", () => this.#lost("closed by the client"));
		socket.on("end", () => this.#lost("closed by the client"));
		const decoder = new TwoPartDecoder(MAX_CONTROL_FRAME_BYTES);
		const onFrame = (header: Buffer) => this.#onControl(header);
		socket.on("data", (chunk) => {
			try {
				decoder.push(chunk, onFrame);
			} catch (error) {
				this.#lost((error as Error).message);
			}
		});
	}

	get closed(): boolean {
		return this.#ended || this.#cut;
	}

	get bufferedBytes(): number {
		return this.#pendingBytes + this.#socket.writableLength;
	}

	send(item: Annotated<unknown>): void {
		if (this.closed) return;
		let frame: Buffer;
		try {
			frame = encodeResponseFrame(item, this.#callHome.codec);
		} catch (error) {
			this.#observer.onError("serialization");
			const { id, span } = this.#request;
			this.#options.log.error("response item cannot be encoded", { request_id: id, error }, span);
			this.#push(
				encodeResponseFrame({ event: "error", error: toWireError(encodingError(error)) }, this.#callHome.codec),
			);
			this.end();
			return;
		}
		this.#observer.onResponseBytes(frame.length);
		this.#push(frame);
		if (this.#pendingBytes + this.#socket.writableLength > this.#options.maxBufferedBytes) {
			this.#lost(`the client does not read: ${this.bufferedBytes} bytes are waiting`);
		}
	}

	fail(error: DynamoError): void {
		if (this.closed) return;
		this.#observer.onFail(error);
		if (this.#connected || this.#pending.length > 0) {
			this.#push(encodeResponseFrame({ event: "error", error: toWireError(error) }, this.#callHome.codec));
			this.end();
			return;
		}
		this.#prologueError = error;
		this.#ended = true;
		this.#request.finish();
	}

	end(): void {
		if (this.closed) return;
		this.#push(COMPLETE_FINAL_FRAME[this.#callHome.codec]);
		this.#push(SENTINEL_FRAME);
		this.#ended = true;
		this.#request.finish();
	}

	abandon(kind: CancelKind): void {
		this.#cutOff(kind);
	}

	flush(): void {
		this.#flushAsked = false;
		if (!this.#connected || this.#cut) return;
		const frames = this.#pending;
		if (frames.length > 0) {
			this.#pending = [];
			const bytes = frames.length === 1 ? (frames[0] as Buffer) : Buffer.concat(frames, this.#pendingBytes);
			this.#pendingBytes = 0;
			this.#socket.write(bytes);
		}
		if (this.#ended && !this.#socket.writableEnded) this.#finishSocket();
	}

	#push(frame: Buffer): void {
		this.#pending.push(frame);
		this.#pendingBytes += frame.length;
		if (this.#flushAsked || !this.#connected) return;
		this.#flushAsked = true;
		flushAfterTurn(this);
	}

	#onConnect(): void {
		if (this.#cut) return;
		this.#connected = true;
		this.#socket.setTimeout(0);
		const opening = [encodeHandshake(this.#callHome.subject)];
		const error = this.#prologueError;
		if (error === undefined) opening.push(PROLOGUE_OK_FRAME);
		else opening.push(encodePrologueError(error.message, toWireError(error)), SENTINEL_FRAME);
		this.#pending.unshift(...opening);
		for (const frame of opening) this.#pendingBytes += frame.length;
		this.#observer.onPrologue();
		this.flush();
	}

	/** Half-closes; the client reads the rest and closes. */
	#finishSocket(): void {
		this.#socket.setTimeout(LINGER_MS);
		this.#socket.end(() => this.#release());
	}

	#onControl(header: Buffer): void {
		const word = parseControlWord(header);
		if (word === "stop") this.#cancelled("stop");
		else if (word === "kill") this.#cutOff("kill");
	}

	/** The connection is of no more use. */
	#lost(why: string): void {
		if (this.#cut) return;
		if (this.#ended) {
			this.#cutOff("disconnect");
			return;
		}
		this.#observer.onError(this.#connected ? "publish_response" : "response_stream");
		const { id, span } = this.#request;
		const client = `${this.#callHome.host}:${this.#callHome.port}`;
		this.#options.log.debug("response stream lost", { request_id: id, client, reason: why }, span);
		this.#cutOff("disconnect");
	}

	#cutOff(kind: CancelKind): void {
		if (this.#cut) return;
		this.#cut = true;
		this.#pending = [];
		this.#pendingBytes = 0;
		if (!this.#ended) this.#cancelled(kind);
		this.#request.finish();
		this.#socket.destroy();
		this.#release();
	}

	#cancelled(kind: CancelKind): void {
		if (this.#request.cancelled === undefined) this.#observer.onCancel(kind);
		this.#request.cancel(kind);
	}

	#release(): void {
		const onDone = this.#onDone;
		if (onDone === undefined) return;
		this.#onDone = undefined;
		this.#observer.onClose();
		onDone(this);
	}
}

function encodingError(error: unknown): DynamoError {
	return new DynamoError("Internal", `response item cannot be encoded: ${(error as Error).message}`, { cause: error });
}
