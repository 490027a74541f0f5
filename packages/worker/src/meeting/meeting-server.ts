// SPDX-License-Identifier: Apache-2.0
// The prefill worker's side of meetings (`--bootstrap-ports`): a decode worker that has a request calls, and is told when the
// prompt of that meeting is computed and when it may begin. Nothing else is handed over: the engines are simulated. The steps
// are those of Dynamo's mockers; unlike them, this one computes a prompt at once, and answers when it has.
import { createServer, type Server, type Socket } from "node:net";
import { type DynamoError, ENV, isJsonObject } from "@dynamo-ts/protocols/internal";
import type { EndpointHandler, Logger } from "@dynamo-ts/runtime";
import { listenTcp } from "@dynamo-ts/runtime/internal";
import {
	encodeMeetingFrame,
	isSameMeeting,
	MeetingFormatError,
	MeetingFrameReader,
	type MeetingIdentity,
	type MeetingMessage,
	meetingOf,
	messageOf,
} from "./meeting-frames.js";
import { ObservedWriter } from "./observed-writer.js";

/** Longest silence of a decode worker, and longest wait for a prompt, milliseconds. */
const MEETING_MS = 60_000;
/** Prompts that nobody asked for are forgotten beyond so many; so many decode workers may call at a time. */
const MAX_MEETINGS = 1024;
/** Numbers of the two things that a decode worker is told to do; Dynamo counts its own steps in between, too. */
const RESERVE = 1;
const ACTIVATE = 3;

/** A prompt that this worker was asked to compute. */
interface Source {
	readonly identity: MeetingIdentity;
	readonly promptTokens: number;
	/** How it ended; a text says why it failed. */
	outcome: "computed" | { readonly failure: string } | undefined;
	session: Session | undefined;
}

export class MeetingServer {
	readonly #server: Server;
	readonly #sessions = new Set<Session>();
	/** By handoff id, the oldest first. */
	readonly #sources = new Map<string, Source>();
	/** Decode workers that called before their prompt was known, by handoff id. */
	readonly #early = new Map<string, Session>();

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
		let waiting = 0;
		for (const session of this.#sessions) if (session.isWaiting) waiting++;
		return waiting;
	}

	/** Has a prefill worker tell what became of each prompt. */
	announce(handler: EndpointHandler): EndpointHandler {
		return (request, response) => {
			const meeting = meetingOf(request.payload, request.id);
			if (meeting === undefined) return handler(request, response);
			const { token_ids } = request.payload as { token_ids?: ArrayLike<number> };
			const source: Source = {
				identity: meeting.identity,
				promptTokens: token_ids?.length ?? 0,
				outcome: undefined,
				session: undefined,
			};
			this.#add(source);
			request.onCancel(() => this.#settle(source, { failure: "the prompt was abandoned" }));
			const onEnd = (error: DynamoError | undefined) =>
				this.#settle(source, error === undefined ? "computed" : { failure: error.message });
			return this.#watch(source, async () => handler(request, new ObservedWriter(response, onEnd)));
		};
	}

	async #watch(source: Source, run: () => Promise<void>): Promise<void> {
		try {
			await run();
		} catch (error) {
			this.#settle(source, { failure: (error as Error).message });
			throw error;
		}
	}

	async close(): Promise<void> {
		for (const session of this.#sessions) session.destroy();
		await new Promise((resolve) => this.#server.close(resolve));
	}

	#onConnection(socket: Socket): void {
		const session: Session = new Session(socket, {
			onRegistered: () => this.#join(session),
			onClose: () => {
				this.#sessions.delete(session);
				const { identity, source } = session;
				if (identity !== undefined && this.#early.get(identity.handoffId) === session) {
					this.#early.delete(identity.handoffId);
				}
				if (source !== undefined) this.#forget(source);
			},
		});
		this.#sessions.add(session);
	}

	#join(session: Session): void {
		const { handoffId } = session.identity as MeetingIdentity;
		const source = this.#sources.get(handoffId);
		if (this.#sessions.size > MAX_MEETINGS) session.end("Overloaded");
		else if (source?.session !== undefined || this.#early.has(handoffId))
			session.refuse("another decode worker is here");
		else if (source === undefined) this.#early.set(handoffId, session);
		else this.#introduce(source, session);
	}

	#add(source: Source): void {
		const { handoffId } = source.identity;
		this.#sources.set(handoffId, source);
		const session = this.#early.get(handoffId);
		this.#early.delete(handoffId);
		if (session !== undefined) this.#introduce(source, session);
	}

	#introduce(source: Source, session: Session): void {
		if (!isSameMeeting(source.identity, session.identity as MeetingIdentity)) {
			session.refuse("the requests of prefill and decode worker are not the same");
			return;
		}
		source.session = session;
		session.begin(source);
	}

	#settle(source: Source, outcome: Source["outcome"]): void {
		if (source.outcome !== undefined) return;
		source.outcome = outcome;
		if (source.session !== undefined) {
			source.session.onOutcome();
			return;
		}
		if (this.#sources.size <= MAX_MEETINGS) return;
		for (const old of this.#sources.values()) {
			if (old.outcome === undefined || old.session !== undefined) continue;
			this.#forget(old);
			return;
		}
	}

	#forget(source: Source): void {
		const { handoffId } = source.identity;
		if (this.#sources.get(handoffId) === source) this.#sources.delete(handoffId);
	}
}

interface SessionEvents {
	/** The decode worker has said who it is. */
	onRegistered(): void;
	onClose(): void;
}

/** One decode worker that called, for one prompt. */
class Session {
	readonly #socket: Socket;
	readonly #events: SessionEvents;
	identity: MeetingIdentity | undefined;
	source: Source | undefined;
	/** What the decode worker is to say next. */
	#expects: "register" | "nothing" | "accepted" | "reserved" | "applied" = "register";
	#ended = false;

	constructor(socket: Socket, events: SessionEvents) {
		this.#socket = socket;
		this.#events = events;
		const reader = new MeetingFrameReader((identity, message) => this.#onFrame(identity, message), true);
		socket.setTimeout(MEETING_MS, () => socket.destroy());
		socket.on("error", () => {});
		socket.on("data", (chunk: Buffer) => {
			if (this.#ended) return;
			try {
				reader.push(chunk);
			} catch (error) {
				this.refuse((error as Error).message);
			}
		});
		socket.on("end", () => socket.destroy());
		socket.on("close", () => {
			this.#ended = true;
			events.onClose();
		});
	}

	/** It has called, and the prompt is not computed yet. */
	get isWaiting(): boolean {
		return this.identity !== undefined && this.#expects === "nothing" && !this.#ended;
	}

	/** The prompt is known. */
	begin(source: Source): void {
		this.source = source;
		this.#send("Registered");
		if (source.outcome !== undefined) this.onOutcome();
	}

	/** The prompt is computed, or is not going to be. */
	onOutcome(): void {
		const { identity, outcome, promptTokens } = this.source as Source;
		if (typeof outcome === "object") {
			this.end({ Abort: { message: outcome.failure } });
			return;
		}
		const handoff_id = identity.handoffId;
		const transfer_timing = {
			mode: "full_prompt",
			full_prompt_tokens: promptTokens,
			kv_bytes_per_token: null,
			bandwidth_gb_s: null,
		};
		this.#send({ Fact: { SourceHeld: { handoff_id, transfer_timing } } });
		this.#send({ Action: { id: RESERVE, action: { ReserveDestination: { handoff_id } } } });
		this.#expects = "accepted";
	}

	refuse(message: string): void {
		this.end({ ProtocolError: { message } });
	}

	/** Says a last word. */
	end(message: unknown): void {
		if (this.#ended) return;
		if (this.identity !== undefined) this.#send(message);
		this.#ended = true;
		this.#socket.end();
	}

	destroy(): void {
		this.#socket.destroy();
	}

	#send(message: unknown): void {
		if (!this.#ended) this.#socket.write(encodeMeetingFrame(this.identity as MeetingIdentity, message));
	}

	/** @throws MeetingFormatError for what is not expected. */
	#onFrame(identity: MeetingIdentity, { kind, value }: MeetingMessage): void {
		if (this.#ended) return;
		if (this.#expects === "register") {
			if (kind !== "Register") throw new MeetingFormatError("a decode worker registers first");
			const { role, order, engine_type } = isJsonObject(value) ? value : {};
			this.identity = identity;
			if (role !== "Destination" || order !== "SourceFirst" || engine_type !== "vllm") {
				throw new MeetingFormatError("this worker meets decode workers that simulate vllm");
			}
			this.#expects = "nothing";
			this.#events.onRegistered();
			return;
		}
		if (!isSameMeeting(identity, this.identity as MeetingIdentity)) throw new MeetingFormatError("another meeting");
		if (kind === "Abort" || kind === "ProtocolError") {
			this.#socket.destroy();
			return;
		}
		const handoff_id = identity.handoffId;
		if (this.#expects === "accepted" && isAck(kind, value, RESERVE, "Accepted")) this.#expects = "reserved";
		else if (this.#expects === "reserved" && kind === "Fact" && messageOf(value).kind === "DestinationReserved") {
			this.#send({ Action: { id: ACTIVATE, action: { ActivateDestination: { handoff_id } } } });
			this.#expects = "applied";
		} else if (this.#expects === "applied" && isAck(kind, value, ACTIVATE, "Applied")) this.end("Complete");
		else throw new MeetingFormatError(`${kind} is not expected`);
	}
}

function isAck(kind: string, value: unknown, action: number, outcome: string): boolean {
	return kind === "ActionAck" && isJsonObject(value) && value.action_id === action && value.outcome === outcome;
}
