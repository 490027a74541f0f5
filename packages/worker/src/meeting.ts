// SPDX-License-Identifier: Apache-2.0
// Where simulated prefill and decode workers meet (`--bootstrap-ports`): a decode worker that has a request calls the
// prefill worker, which answers once the prompt of that meeting is computed. There are no blocks to hand over, so a line
// each way is all; Dynamo's own simulated workers meet in another way, and only with each other.
import { createServer, type Server, type Socket, connect as tcpConnect } from "node:net";
import { type BootstrapInfo, DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { EndpointHandler, Logger, ResponseWriter } from "@dynamo-ts/runtime";
import { formatHostPort, listenTcp } from "@dynamo-ts/runtime/internal";

/** Longest wait for the other worker, milliseconds. */
const MEETING_MS = 60_000;
/** Meetings that nobody came to are forgotten beyond so many. */
const MAX_ROOMS = 1024;
const MAX_LINE_BYTES = 512;
const DONE = "done";

/** The prefill worker's side. */
export class MeetingServer {
	readonly #server: Server;
	/** What became of prompts that no decode worker has asked for yet. */
	readonly #results = new Map<string, string>();
	readonly #waiting = new Map<string, Socket>();
	readonly #sockets = new Set<Socket>();

	private constructor(server: Server) {
		this.#server = server;
		server.on("connection", (socket) => this.#onConnection(socket));
	}

	/** @throws DynamoError `Unavailable` when the port cannot be had. */
	static async listen(host: string, port: number, log: Logger): Promise<MeetingServer> {
		const server = createServer();
		const variables = { host: ENV.DYN_TCP_RPC_HOST, port: "--bootstrap-ports" };
		await listenTcp(server, { host, port, purpose: "meetings with decode workers", variables }, log);
		return new MeetingServer(server);
	}

	/** Decode workers that wait for a prompt. */
	get waiting(): number {
		return this.#waiting.size;
	}

	/** Has a prefill worker tell what became of each prompt. */
	announce(handler: EndpointHandler): EndpointHandler {
		return (request, response) => {
			const info = meetingOf(request.payload);
			if (info === undefined) return handler(request, response);
			const room = roomOf(info);
			request.onCancel(() => this.#settle(room, "the prompt was abandoned"));
			return handler(
				request,
				new ObservedWriter(response, (error) => this.#settle(room, error === undefined ? DONE : error.message)),
			);
		};
	}

	async close(): Promise<void> {
		for (const socket of this.#sockets) socket.destroy();
		await new Promise((resolve) => this.#server.close(resolve));
	}

	#onConnection(socket: Socket): void {
		this.#sockets.add(socket);
		let room: string | undefined;
		let text = "";
		socket.setTimeout(MEETING_MS, () => socket.destroy());
		socket.on("error", () => {});
		socket.on("close", () => {
			this.#sockets.delete(socket);
			if (room !== undefined && this.#waiting.get(room) === socket) this.#waiting.delete(room);
		});
		socket.on("data", (chunk) => {
			text += chunk.toString("latin1");
			const end = text.indexOf("\n");
			if (room !== undefined || text.length > MAX_LINE_BYTES) socket.destroy();
			if (end < 0 || room !== undefined) return;
			room = text.slice(0, end);
			const result = this.#results.get(room);
			if (result === undefined) {
				this.#waiting.get(room)?.destroy();
				this.#waiting.set(room, socket);
				return;
			}
			this.#results.delete(room);
			socket.end(`${result}\n`);
		});
	}

	#settle(room: string, result: string): void {
		const socket = this.#waiting.get(room);
		if (socket !== undefined) {
			this.#waiting.delete(room);
			socket.end(`${result}\n`);
			return;
		}
		if (this.#results.has(room)) return;
		this.#results.set(room, result);
		const [oldest] = this.#results.keys();
		if (this.#results.size > MAX_ROOMS && oldest !== undefined) this.#results.delete(oldest);
	}
}

/** Has a decode worker wait for the prompts of meetings before it begins. */
export function awaitMeetings(handler: EndpointHandler): EndpointHandler {
	return (request, response) => {
		const info = meetingOf(request.payload);
		if (info === undefined) return handler(request, response);
		const abort = new AbortController();
		request.onCancel(() => abort.abort());
		return meet(info, abort.signal).then(
			() => {
				if (!response.closed) return handler(request, response);
			},
			(error: DynamoError) => response.fail(error),
		);
	};
}

/** Resolves when the prefill worker says that the prompt is computed. */
function meet(info: BootstrapInfo, signal: AbortSignal): Promise<void> {
	const { bootstrap_host: host, bootstrap_port: port } = info;
	return new Promise((resolve, reject) => {
		const socket = tcpConnect({ host, port });
		let text = "";
		const fail = (why: string): void => {
			socket.destroy();
			reject(new DynamoError("Unknown", `the meeting at ${formatHostPort(host, port)} failed: ${why}`));
		};
		const onAbort = (): void => fail("the request was cancelled");
		signal.addEventListener("abort", onAbort, { once: true });
		socket.setTimeout(MEETING_MS, () => fail(`nothing came for ${MEETING_MS / 1000} s`));
		socket.once("connect", () => socket.write(`${roomOf(info)}\n`));
		socket.on("error", (error) => fail(error.message));
		socket.on("close", () => {
			signal.removeEventListener("abort", onAbort);
			fail("the prefill worker closed the connection");
		});
		socket.on("data", (chunk) => {
			text += chunk.toString("latin1");
			if (!text.includes("\n")) return;
			const [result] = text.split("\n", 1) as [string];
			if (result !== DONE) {
				fail(result);
				return;
			}
			resolve();
			socket.destroy();
		});
	});
}

function meetingOf(payload: unknown): BootstrapInfo | undefined {
	const { bootstrap_info: info } = (payload ?? {}) as { bootstrap_info?: BootstrapInfo | null };
	if (info === null || info === undefined) return undefined;
	if (typeof info.bootstrap_host !== "string" || typeof info.bootstrap_port !== "number") {
		throw new DynamoError("InvalidArgument", "bootstrap_info needs bootstrap_host and bootstrap_port");
	}
	return info;
}

function roomOf({ bootstrap_room, handoff_id }: BootstrapInfo): string {
	return `${bootstrap_room} ${handoff_id ?? ""}`;
}

/** Passes everything on, and tells how the response ended. */
class ObservedWriter implements ResponseWriter {
	readonly #inner: ResponseWriter;
	readonly #onEnd: (error: DynamoError | undefined) => void;

	constructor(inner: ResponseWriter, onEnd: (error: DynamoError | undefined) => void) {
		this.#inner = inner;
		this.#onEnd = onEnd;
	}

	get closed(): boolean {
		return this.#inner.closed;
	}

	get bufferedBytes(): number {
		return this.#inner.bufferedBytes;
	}

	send(item: Parameters<ResponseWriter["send"]>[0]): void {
		this.#inner.send(item);
	}

	fail(error: DynamoError): void {
		this.#onEnd(error);
		this.#inner.fail(error);
	}

	end(): void {
		this.#onEnd(undefined);
		this.#inner.end();
	}
}
