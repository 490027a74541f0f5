// SPDX-License-Identifier: Apache-2.0
// The bytes over which simulated prefill and decode workers meet, as Dynamo's mockers write them (recorded from 1.6.1). The
// decode worker dials and sends a header: "DMHF", u16le version, u16le flags. All else, both ways, is frames: u32le length,
// then JSON `{"identity":{..},"message":..}`; a message is a word or an object with one member.
import { type BootstrapInfo, DynamoError, isJsonObject, parseJson, stringifyJson } from "@dynamo-ts/protocols/internal";

/** "DMHF", version 1, no flags. */
export const MEETING_HEADER = Buffer.from("DMHF\x01\x00\x00\x00", "latin1");
const LENGTH_BYTES = 4;
/** Longest JSON of a frame, bytes. */
const MAX_FRAME_BYTES = 64 * 1024;

/** What both sides know of a meeting from their requests. */
export interface MeetingIdentity {
	/** UUID text. */
	readonly handoffId: string;
	/** u64. */
	readonly room: bigint;
	/** The context id, which both requests share. UUID text. */
	readonly requestId: string;
}

/** @param kind the word, or the name of the only member. */
export interface MeetingMessage {
	readonly kind: string;
	readonly value: unknown;
}

/** A peer that does not keep to the format. */
export class MeetingFormatError extends Error {}

/**
 * Which meeting a request is for; undefined: for none.
 * @throws DynamoError `InvalidArgument` when it cannot be found.
 */
export function meetingOf(
	payload: unknown,
	requestId: string,
): { readonly host: string; readonly port: number; readonly identity: MeetingIdentity } | undefined {
	const { bootstrap_info: info } = (payload ?? {}) as { bootstrap_info?: BootstrapInfo | null };
	if (info === null || info === undefined) return undefined;
	const { bootstrap_host: host, bootstrap_port: port, bootstrap_room, handoff_id: handoffId } = info;
	const room = u64(bootstrap_room);
	if (typeof host !== "string" || typeof port !== "number" || room === undefined || typeof handoffId !== "string") {
		const members = "bootstrap_host, bootstrap_port, bootstrap_room and handoff_id";
		throw new DynamoError("InvalidArgument", `bootstrap_info needs ${members}`);
	}
	// Dynamo trims the brackets of IPv6 addresses, too.
	return { host: host.replace(/^\[|\]$/g, ""), port, identity: { handoffId, room, requestId } };
}

/** One frame. @param message a word, or an object with one member. */
export function encodeMeetingFrame({ handoffId, room, requestId }: MeetingIdentity, message: unknown): Buffer {
	const identity = { handoff_id: handoffId, bootstrap_room: room, request_id: requestId };
	const json = Buffer.from(stringifyJson({ identity, message }));
	const length = Buffer.allocUnsafe(LENGTH_BYTES);
	length.writeUInt32LE(json.length);
	return Buffer.concat([length, json]);
}

export function isSameMeeting(a: MeetingIdentity, b: MeetingIdentity): boolean {
	return a.handoffId === b.handoffId && a.room === b.room && a.requestId === b.requestId;
}

/** Takes bytes apart as they come; holds no more of them than one frame. */
export class MeetingFrameReader {
	readonly #onFrame: (identity: MeetingIdentity, message: MeetingMessage) => void;
	#rest: Buffer = Buffer.alloc(0);
	#header: boolean;

	/** @param expectsHeader of the side that was dialled. */
	constructor(onFrame: (identity: MeetingIdentity, message: MeetingMessage) => void, expectsHeader: boolean) {
		this.#onFrame = onFrame;
		this.#header = expectsHeader;
	}

	/** @throws MeetingFormatError, and what the callback throws; the reader is of no use afterwards. */
	push(chunk: Buffer): void {
		let data = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
		if (this.#header) {
			const length = Math.min(data.length, MEETING_HEADER.length);
			if (!data.subarray(0, length).equals(MEETING_HEADER.subarray(0, length))) {
				throw new MeetingFormatError("this is no meeting, or of another version");
			}
			if (length === MEETING_HEADER.length) {
				this.#header = false;
				data = data.subarray(length);
			}
		}
		while (!this.#header && data.length >= LENGTH_BYTES) {
			const length = data.readUInt32LE();
			if (length < 1 || length > MAX_FRAME_BYTES) throw new MeetingFormatError(`a frame of ${length} bytes`);
			if (data.length < LENGTH_BYTES + length) break;
			const { identity, message } = parseFrame(data.subarray(LENGTH_BYTES, LENGTH_BYTES + length));
			data = data.subarray(LENGTH_BYTES + length);
			this.#onFrame(identity, message);
		}
		this.#rest = Buffer.from(data);
	}
}

function parseFrame(json: Buffer): { identity: MeetingIdentity; message: MeetingMessage } {
	let frame: unknown;
	try {
		frame = parseJson(json);
	} catch (error) {
		throw new MeetingFormatError(`a frame that is no JSON: ${(error as Error).message}`);
	}
	const { identity, message } = isJsonObject(frame) ? frame : {};
	const { handoff_id: handoffId, bootstrap_room, request_id: requestId } = isJsonObject(identity) ? identity : {};
	const room = u64(bootstrap_room);
	if (typeof handoffId !== "string" || room === undefined || typeof requestId !== "string") {
		throw new MeetingFormatError("a frame without an identity");
	}
	return { identity: { handoffId, room, requestId }, message: messageOf(message) };
}

/** @throws MeetingFormatError for what is neither a word nor an object with one member. */
export function messageOf(message: unknown): MeetingMessage {
	if (typeof message === "string") return { kind: message, value: undefined };
	const [member, ...more] = isJsonObject(message) ? Object.entries(message) : [];
	if (member === undefined || more.length > 0) throw new MeetingFormatError("a frame without a message");
	return { kind: member[0], value: member[1] };
}

function u64(value: unknown): bigint | undefined {
	if (typeof value === "bigint") return value;
	return Number.isSafeInteger(value) && (value as number) >= 0 ? BigInt(value as number) : undefined;
}
