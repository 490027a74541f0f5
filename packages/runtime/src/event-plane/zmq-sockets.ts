// SPDX-License-Identifier: Apache-2.0
// ZeroMQ as the planes use it: loaded when first needed, one send at a time (two at once are EBUSY), nothing lingering.
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { Socket, Subscriber } from "zeromq";
import { MAX_EVENT_BYTES } from "./event-transport.js";

export type Zmq = typeof import("zeromq");
export type {
	Dealer as ZmqDealer,
	Publisher as ZmqPublisher,
	Router as ZmqRouter,
	Subscriber as ZmqSubscriber,
} from "zeromq";

/** @throws DynamoError `Unavailable` where the library has no build for this platform. */
export async function loadZmq(): Promise<Zmq> {
	try {
		return await import("zeromq");
	} catch (cause) {
		const text = `ZeroMQ cannot be loaded on this platform (${process.platform} ${process.arch}): ${(cause as Error).message}`;
		throw new DynamoError("Unavailable", text, { publicMessage: text, cause });
	}
}

/** Options of every socket: closed means gone, dead peers are noticed, IPv6 where the address is one. */
export function socketOptions(endpoints: readonly string[]): {
	linger: number;
	maxMessageSize: number;
	tcpKeepalive: number;
	tcpKeepaliveIdle: number;
	ipv6: boolean;
} {
	return {
		linger: 0,
		maxMessageSize: MAX_EVENT_BYTES,
		tcpKeepalive: 1,
		tcpKeepaliveIdle: 30,
		ipv6: endpoints.some((endpoint) => endpoint.includes("[")),
	};
}

/** The messages that wait for one socket; sends them one after the other. */
export class SendQueue {
	readonly #send: (frames: Buffer[]) => Promise<void>;
	readonly #limit: number;
	#waiting: Buffer[][] = [];
	#pump: Promise<void> | undefined;
	#closed = false;

	constructor(socket: Socket & { send(frames: Buffer[]): Promise<void> }, limit: number) {
		this.#send = (frames) => socket.send(frames);
		this.#limit = limit;
	}

	/** @returns false when it is full or closed. */
	push(frames: Buffer[]): boolean {
		if (this.#closed || this.#waiting.length >= this.#limit) return false;
		this.#waiting.push(frames);
		this.#pump ??= this.#run();
		return true;
	}

	async #run(): Promise<void> {
		while (this.#waiting.length > 0) {
			const batch = this.#waiting;
			this.#waiting = [];
			for (const frames of batch) {
				if (this.#closed) return;
				// A publishing socket sends to nobody, or drops, rather than wait; what fails is seen as a gap.
				await this.#send(frames).catch(() => {});
			}
		}
		this.#pump = undefined;
	}

	async flush(timeoutMs: number): Promise<void> {
		let timer: NodeJS.Timeout | undefined;
		const limit = new Promise<void>((resolve) => {
			timer = setTimeout(resolve, timeoutMs);
		});
		while (this.#pump !== undefined) {
			const done = await Promise.race([this.#pump.then(() => true), limit.then(() => false)]);
			if (!done) break;
		}
		clearTimeout(timer);
	}

	close(): void {
		this.#closed = true;
		this.#waiting = [];
	}
}

/** Reads a socket until it is closed. */
export async function readSocket(socket: Subscriber, onMessage: (frames: Buffer[]) => void): Promise<void> {
	for (;;) {
		let frames: Buffer[];
		try {
			frames = await socket.receive();
		} catch (error) {
			if (socket.closed) return;
			// Nothing that a peer sends ends a socket; whatever else this is must not become a busy loop.
			if ((error as NodeJS.ErrnoException).code === "ETERM") return;
			await new Promise((resolve) => setTimeout(resolve, 100));
			continue;
		}
		onMessage(frames);
	}
}
