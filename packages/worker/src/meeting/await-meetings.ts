// SPDX-License-Identifier: Apache-2.0
// The decode worker's side of meetings: it calls the prefill worker, does what it is told, and begins when the prompt is there.
import { type Socket, connect as tcpConnect } from "node:net";
import { DynamoError, isJsonObject } from "@dynamo-ts/protocols/internal";
import type { EndpointHandler } from "@dynamo-ts/runtime";
import { formatHostPort } from "@dynamo-ts/runtime/internal";
import {
	encodeMeetingFrame,
	isSameMeeting,
	MEETING_HEADER,
	MeetingFormatError,
	MeetingFrameReader,
	type MeetingIdentity,
	type MeetingMessage,
	meetingOf,
	messageOf,
} from "./meeting-frames.js";

/** Longest silence of the prefill worker, milliseconds. */
const MEETING_MS = 60_000;

/** Has a decode worker wait for the prompts of meetings before it begins. */
export function awaitMeetings(handler: EndpointHandler): EndpointHandler {
	return (request, response) => {
		const meeting = meetingOf(request.payload, request.id);
		if (meeting === undefined) return handler(request, response);
		const { token_ids } = request.payload as { token_ids?: ArrayLike<number> };
		const abort = new AbortController();
		request.onCancel(() => abort.abort());
		return meet(meeting, token_ids?.length ?? 0, abort.signal).then(
			() => {
				if (!response.closed) return handler(request, response);
			},
			(error: DynamoError) => response.fail(error),
		);
	};
}

/** Resolves when the prefill worker has computed the prompt and let go of it. */
function meet(
	{ host, port, identity }: { readonly host: string; readonly port: number; readonly identity: MeetingIdentity },
	promptTokens: number,
	signal: AbortSignal,
): Promise<void> {
	return new Promise((resolve, reject) => {
		const socket = tcpConnect({ host, port });
		const fail = (why: string): void => {
			socket.destroy();
			reject(new DynamoError("Unknown", `the meeting at ${formatHostPort(host, port)} failed: ${why}`));
		};
		const onAbort = (): void => fail("the request was cancelled");
		if (signal.aborted) onAbort();
		else signal.addEventListener("abort", onAbort, { once: true });
		const visit = new Visit(socket, identity, promptTokens, {
			onComplete: () => {
				resolve();
				socket.destroy();
			},
			onFailure: fail,
		});
		const reader = new MeetingFrameReader((who, message) => visit.onFrame(who, message), false);
		socket.setTimeout(MEETING_MS, () => fail(`nothing came for ${MEETING_MS / 1000} s`));
		socket.once("connect", () => visit.register());
		socket.on("error", (error) => fail(error.message));
		socket.on("close", () => {
			signal.removeEventListener("abort", onAbort);
			fail("the prefill worker closed the connection");
		});
		socket.on("data", (chunk: Buffer) => {
			if (socket.destroyed) return;
			try {
				reader.push(chunk);
			} catch (error) {
				fail((error as Error).message);
			}
		});
	});
}

interface VisitEvents {
	onComplete(): void;
	onFailure(why: string): void;
}

/** What a decode worker says and does while it is there. */
class Visit {
	readonly #socket: Socket;
	readonly #identity: MeetingIdentity;
	readonly #promptTokens: number;
	readonly #events: VisitEvents;
	#reserved = false;
	#activated = false;

	constructor(socket: Socket, identity: MeetingIdentity, promptTokens: number, events: VisitEvents) {
		this.#socket = socket;
		this.#identity = identity;
		this.#promptTokens = promptTokens;
		this.#events = events;
	}

	register(): void {
		const registration = { role: "Destination", dp_rank: 0, order: "SourceFirst", engine_type: "vllm" };
		this.#socket.write(Buffer.concat([MEETING_HEADER, encodeMeetingFrame(this.#identity, { Register: registration })]));
	}

	/** @throws MeetingFormatError for what is not expected. */
	onFrame(identity: MeetingIdentity, { kind, value }: MeetingMessage): void {
		if (!isSameMeeting(identity, this.#identity)) throw new MeetingFormatError("another meeting");
		switch (kind) {
			case "Registered":
			case "Fact":
				return;
			case "Action":
				this.#onAction(value);
				return;
			case "Complete":
				if (!this.#activated) throw new MeetingFormatError("complete before it has begun");
				this.#events.onComplete();
				return;
			case "Overloaded":
				this.#events.onFailure("the prefill worker has too many meetings");
				return;
			case "Abort":
			case "ProtocolError":
				this.#events.onFailure(isJsonObject(value) && typeof value.message === "string" ? value.message : kind);
				return;
			default:
				throw new MeetingFormatError(`${kind} is not expected`);
		}
	}

	#onAction(value: unknown): void {
		const { id, action } = isJsonObject(value) ? value : {};
		const { kind } = messageOf(action);
		const answer = (outcome: unknown): void => this.#send({ ActionAck: { action_id: id, outcome } });
		if (kind === "ReserveDestination" && !this.#reserved) {
			this.#reserved = true;
			answer("Accepted");
			const handoff_id = this.#identity.handoffId;
			// The simulated engine makes room when it runs the request: all of the prompt is to come.
			this.#send({
				Fact: { DestinationReserved: { handoff_id, transferable_prompt_tokens: this.#promptTokens } },
			});
		} else if (kind === "ActivateDestination" && this.#reserved) {
			this.#activated = true;
			answer("Applied");
		} else if (kind === "CancelDestination") answer("Applied");
		else answer({ Failed: `${kind} is not expected` });
	}

	#send(message: unknown): void {
		this.#socket.write(encodeMeetingFrame(this.#identity, message));
	}
}
