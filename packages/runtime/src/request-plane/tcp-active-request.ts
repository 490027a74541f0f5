// SPDX-License-Identifier: Apache-2.0
import type { Socket } from "node:net";
import {
	type Annotated,
	ackMeaning,
	DynamoError,
	decodeResponseFrame,
	fromWireError,
	KILL_FRAME,
	parseControlWord,
	parsePrologue,
	type RequestPlaneCodec,
	STOP_FRAME,
} from "@dynamo-ts/protocols/internal";
import { type DeadlineHolder, type Deadlines, deadlineAfter } from "./deadlines.js";
import type { PlaneClientMetrics } from "./plane-client-metrics.js";
import type { AckWaiter, SentRequest } from "./request-carrier.js";
import type { PlaneRequest, ResponseSink } from "./request-plane.js";
import type { ResponseStreamOwner, ResponseStreamReceiver } from "./response-server.js";

export interface TcpActiveRequestOptions {
	readonly id: string;
	/** For messages: `{address}/{path}`. */
	readonly target: string;
	readonly codec: RequestPlaneCodec;
	readonly ackTimeoutMs: number;
	readonly callHomeTimeoutMs: number;
	readonly firstResponseTimeoutMs: number;
	readonly idleTimeoutMs: number;
	readonly deadlines: Deadlines;
	readonly metrics?: PlaneClientMetrics | undefined;
	/** Called once, when nothing will be delivered any more. */
	readonly onFinished: () => void;
	/** Calls onEnd or onError of the sink, and keeps what that throws away from the socket. */
	readonly deliverEnd: (sink: ResponseSink, error: DynamoError | undefined) => void;
}

/** After its instance left discovery a silent stream is given this long, whatever its own deadlines say. */
const GONE_GRACE_MS = 30_000;
/** A worker that acknowledged and then closed its connection has this long to call home: it may be gone. */
const LOST_GRACE_MS = 500;
/** How long the worker may take to close after it was told to drop the work, or after the stream's end. */
const LINGER_MS = 2000;

const NEVER = Number.POSITIVE_INFINITY;

/**
 * One request under way: waits for ack, call-home, prologue, items, end; whichever of the failures comes first ends
 * it. The ack and the call-home may come in either order.
 */
export class TcpActiveRequest
	implements PlaneRequest, AckWaiter, ResponseStreamOwner, ResponseStreamReceiver, DeadlineHolder
{
	readonly id: string;
	readonly #options: TcpActiveRequestOptions;
	readonly #sink: ResponseSink;
	readonly #startedAt: number;
	#sent: SentRequest | undefined;
	#socket: Socket | undefined;
	#ackAt: number;
	#homeAt: number;
	/** Until the first item: when that is due; afterwards: when the next one is. */
	#itemAt: number;
	#isTaken = false;
	#prologueSeen = false;
	#firstItemSeen = false;
	#complete = false;
	#finished = false;
	#finishedAt = 0;
	#stopAsked = false;
	#paused = false;
	/** Frames that had been read when delivery was paused; an absent body stands for the stream's close. */
	#held: { header: Buffer; body: Buffer }[] = [];
	#heldClose: string | undefined;
	/** Of the connection that the request went by, once the worker had acknowledged it. */
	#lostWith: DynamoError | undefined;

	constructor(options: TcpActiveRequestOptions, sink: ResponseSink) {
		this.id = options.id;
		this.#options = options;
		this.#sink = sink;
		this.#startedAt = performance.now();
		this.#ackAt = deadlineAfter(this.#startedAt, options.ackTimeoutMs);
		this.#homeAt = deadlineAfter(this.#startedAt, options.callHomeTimeoutMs);
		this.#itemAt = deadlineAfter(this.#startedAt, options.firstResponseTimeoutMs);
		options.deadlines.add(this);
	}

	/** Called right after sending. */
	sentAs(sent: SentRequest): void {
		if (this.#finished || this.#socket !== undefined) sent.settled(this);
		else this.#sent = sent;
	}

	get finished(): boolean {
		return this.#finished;
	}

	// -- caller's side

	kill(): void {
		if (this.#finished) return;
		this.#socket?.write(KILL_FRAME);
		this.fail(new DynamoError("Cancelled", `request ${this.id} was cancelled`));
	}

	stop(): void {
		if (this.#finished || this.#stopAsked) return;
		this.#stopAsked = true;
		this.#socket?.write(STOP_FRAME);
	}

	pause(): void {
		if (this.#finished || this.#paused) return;
		this.#paused = true;
		this.#socket?.pause();
	}

	resume(): void {
		if (!this.#paused) return;
		this.#paused = false;
		this.#touch();
		const held = this.#held;
		this.#held = [];
		while (held.length > 0 && !this.#paused && !this.#finished) {
			const frame = held.shift() as { header: Buffer; body: Buffer };
			this.#deliver(frame.header, frame.body);
		}
		if (this.#finished) return;
		if (this.#paused) {
			this.#held = held;
			return;
		}
		this.#socket?.resume();
		if (this.#heldClose !== undefined) this.onClosed(this.#heldClose);
	}

	instanceGone(): void {
		if (this.#finished) return;
		if (this.#socket === undefined) {
			this.fail(
				new DynamoError(
					"Disconnected",
					`worker ${this.#options.target} left discovery before it answered request ${this.id}`,
				),
			);
			return;
		}
		// The connection stands, so the worker probably finishes what it has; but it is not waited for as long.
		this.#itemAt = Math.min(this.#itemAt, performance.now() + GONE_GRACE_MS);
	}

	// -- acknowledgement

	onAck(text: string): boolean {
		this.#ackAt = NEVER;
		if (this.#finished) return false;
		this.#taken();
		switch (ackMeaning(text)) {
			case "unavailable":
				this.fail(new DynamoError("WorkerUnavailable", `worker ${this.#options.target} refused: ${text}`));
				break;
			case "overloaded":
				this.fail(new DynamoError("WorkerOverloaded", `worker ${this.#options.target} refused: ${text}`));
				break;
			case "accepted":
				break;
		}
		return !this.#finished && this.#socket === undefined;
	}

	onConnectionLost(error: DynamoError): void {
		this.#ackAt = NEVER;
		this.#sent = undefined;
		// A worker that calls home has accepted, whatever became of its ack.
		if (this.#socket !== undefined || this.#finished) return;
		if (this.#isTaken) {
			this.#homeAt = Math.min(this.#homeAt, performance.now() + LOST_GRACE_MS);
			this.#lostWith = error;
			return;
		}
		this.#options.metrics?.sendFailed();
		this.fail(error);
	}

	/** The worker has it: by its ack or its call home, whichever comes first. */
	#taken(): void {
		if (this.#isTaken) return;
		this.#isTaken = true;
		this.#options.metrics?.acknowledged(this.#startedAt);
	}

	// -- response stream

	onCallHome(socket: Socket): ResponseStreamReceiver {
		this.#socket = socket;
		this.#ackAt = NEVER;
		this.#homeAt = NEVER;
		this.#taken();
		this.#settle();
		if (this.#stopAsked) socket.write(STOP_FRAME);
		if (this.#paused) socket.pause();
		return this;
	}

	onFrame(header: Buffer, body: Buffer): void {
		if (this.#finished) {
			// A worker that goes on after a kill does not keep the connection for ever.
			if (performance.now() > this.#finishedAt + LINGER_MS) this.#socket?.destroy();
			return;
		}
		this.#options.metrics?.received(header.length + body.length);
		if (this.#paused) this.#held.push({ header, body });
		else this.#deliver(header, body);
	}

	onClosed(why: string): void {
		if (this.#finished) return;
		if (this.#paused && this.#held.length > 0) {
			this.#heldClose = why;
			return;
		}
		if (this.#complete) this.#finish();
		else {
			this.fail(
				new DynamoError(
					"Disconnected",
					`the response stream of worker ${this.#options.target} ended before it was complete: ${why}`,
				),
			);
		}
	}

	checkDeadlines(now: number): void {
		if (this.#finished) return;
		if (now >= this.#ackAt) {
			const sent = this.#sent;
			this.#sent = undefined;
			this.#options.metrics?.sendFailed();
			this.fail(
				sent?.overdue(this.#options.ackTimeoutMs) ??
					new DynamoError("ConnectionTimeout", `the request was not sent within ${this.#options.ackTimeoutMs} ms`),
			);
			sent?.giveUp();
		} else if (now >= this.#homeAt) {
			this.fail(
				this.#lostWith ??
					new DynamoError(
						"ConnectionTimeout",
						`worker ${this.#options.target} took the request but opened no response stream within ${this.#options.callHomeTimeoutMs} ms`,
					),
			);
		} else if (now >= this.#itemAt && !this.#paused) {
			if (this.#complete) {
				this.#finish();
				return;
			}
			const waited = Math.round(now - (this.#firstItemSeen ? this.#lastItemAt() : this.#startedAt));
			this.#socket?.write(KILL_FRAME);
			this.fail(
				new DynamoError(
					"ResponseTimeout",
					`worker ${this.#options.target} sent ${this.#firstItemSeen ? "no further" : "no"} response within ${waited} ms`,
				),
			);
		}
	}

	/** Ends the request with an error; later failures do nothing. */
	fail(error: DynamoError): void {
		if (this.#finished) return;
		this.#release();
		this.#options.deliverEnd(this.#sink, error);
	}

	#deliver(header: Buffer, body: Buffer): void {
		if (header.length > 0) this.#onHeader(header);
		if (body.length === 0 || this.#finished) return;
		let frame: ReturnType<typeof decodeResponseFrame>;
		try {
			frame = decodeResponseFrame(body, this.#options.codec);
		} catch (error) {
			this.#protocolError(`a response item cannot be decoded: ${(error as Error).message}`);
			return;
		}
		if (this.#complete) {
			this.#protocolError("response received after generation ended");
			return;
		}
		if (frame.complete_final) {
			this.#complete = true;
			this.#itemAt = this.#options.deadlines.now + LINGER_MS;
			return;
		}
		const item = frame.data;
		if (item.event === "error" || (item.error !== undefined && item.error !== null)) {
			this.fail(errorOfItem(item, this.#options.target));
			return;
		}
		if (!this.#firstItemSeen) {
			this.#firstItemSeen = true;
			this.#options.metrics?.firstItem(this.#startedAt);
		}
		this.#touch();
		try {
			this.#sink.onItem(item);
		} catch (error) {
			this.#socket?.write(KILL_FRAME);
			this.fail(
				new DynamoError("Internal", `the receiver of a response failed: ${(error as Error).message}`, { cause: error }),
			);
		}
	}

	#onHeader(header: Buffer): void {
		if (this.#prologueSeen) {
			if (parseControlWord(header) === "sentinel" && this.#complete) this.#finish();
			else if (parseControlWord(header) === "sentinel") this.onClosed("sentinel without complete_final");
			return;
		}
		this.#prologueSeen = true;
		try {
			const prologue = parsePrologue(header);
			if (prologue.error === null) {
				this.#sink.onOpen?.();
				return;
			}
			this.fail(
				prologue.typedError !== undefined
					? fromWireError(prologue.typedError)
					: new DynamoError("WorkerUnavailable", `worker ${this.#options.target} failed: ${prologue.error}`),
			);
		} catch (error) {
			this.#protocolError(`the response prologue cannot be read: ${(error as Error).message}`);
		}
	}

	#protocolError(text: string): void {
		this.#socket?.write(KILL_FRAME);
		this.fail(new DynamoError("BackendProtocol", `worker ${this.#options.target}: ${text}`));
	}

	/** The next item is due; rests while paused. */
	#touch(): void {
		this.#itemAt = this.#firstItemSeen
			? deadlineAfter(this.#options.deadlines.now, this.#options.idleTimeoutMs)
			: deadlineAfter(this.#options.deadlines.now, this.#options.firstResponseTimeoutMs);
	}

	#lastItemAt(): number {
		return this.#itemAt - this.#options.idleTimeoutMs;
	}

	#finish(): void {
		this.#release();
		this.#options.deliverEnd(this.#sink, undefined);
	}

	#settle(): void {
		const sent = this.#sent;
		this.#sent = undefined;
		sent?.settled(this);
	}

	#release(): void {
		this.#finished = true;
		this.#finishedAt = performance.now();
		this.#held = [];
		this.#settle();
		this.#options.deadlines.remove(this);
		this.#options.onFinished();
		const socket = this.#socket;
		if (socket === undefined || socket.destroyed) return;
		// Our half is closed and the rest is read to nothing: an early reset could overtake a kill on its way.
		socket.end();
		socket.resume();
		socket.setTimeout(LINGER_MS);
	}
}

function errorOfItem(item: Annotated<unknown>, target: string): DynamoError {
	if (item.error !== undefined && item.error !== null) return fromWireError(item.error);
	const text = item.comment?.join("; ") ?? "no message";
	return new DynamoError("Unknown", `worker ${target} sent an error: ${text}`);
}
