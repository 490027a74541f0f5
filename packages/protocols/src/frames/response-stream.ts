// SPDX-License-Identifier: Apache-2.0
// The header-only messages on a response connection: handshake, prologue, sentinel from the worker; stop and kill from
// the caller. All JSON.
import type { WireError } from "../dynamo-error.js";
import { isJsonObject, parseJson, stringifyJson } from "../json.js";
import { encodeTwoPart } from "./two-part-frame.js";

/** What a header says when it is one JSON word. */
export type ControlWord = "stop" | "kill" | "sentinel";

const word = (text: ControlWord): Buffer => encodeTwoPart(JSON.stringify(text), undefined);

/** Ends a response stream, after the final data frame or an error prologue. */
export const SENTINEL_FRAME: Buffer = word("sentinel");
/** Asks the worker to end generation at once; its result is not wanted. */
export const KILL_FRAME: Buffer = word("kill");
/** Asks the worker to end generation gracefully. */
export const STOP_FRAME: Buffer = word("stop");
/** The worker accepted the request; data frames follow. */
export const PROLOGUE_OK_FRAME: Buffer = encodeTwoPart('{"error":null}', undefined);

/** The control word in a header; undefined when it is something else. */
export function parseControlWord(header: Buffer): ControlWord | undefined {
	if (header.length < 6 || header.length > 10) return undefined;
	switch (header.toString("latin1")) {
		case '"sentinel"':
			return "sentinel";
		case '"kill"':
			return "kill";
		case '"stop"':
			return "stop";
		default:
			return undefined;
	}
}

/** The first message on a response connection: which stream this is. */
export function encodeHandshake(subject: string): Buffer {
	return encodeTwoPart(JSON.stringify({ subject, stream_type: "response" }), undefined);
}

/** @throws Error when the header is not a handshake. */
export function parseHandshake(header: Buffer): { subject: string; streamType: string } {
	const value = parseJson(header);
	if (!isJsonObject(value) || typeof value.subject !== "string" || typeof value.stream_type !== "string") {
		throw new Error("handshake needs the strings subject and stream_type");
	}
	return { subject: value.subject, streamType: value.stream_type };
}

/** The worker refuses the request; the sentinel follows. */
export function encodePrologueError(message: string, typedError?: WireError): Buffer {
	return encodeTwoPart(stringifyJson({ error: message, typed_error: typedError }), undefined);
}

/** What a prologue says: `error` null means accepted. */
export interface Prologue {
	error: string | null;
	typedError?: WireError;
}

/** @throws Error when the header is not a prologue. */
export function parsePrologue(header: Buffer): Prologue {
	const value = parseJson(header);
	if (!isJsonObject(value) || !("error" in value)) throw new Error("prologue needs the member error");
	const { error, typed_error: typed } = value;
	if (error === null) return { error };
	if (typeof error !== "string") throw new Error("prologue: error must be null or a string");
	if (isJsonObject(typed) && typeof typed.message === "string" && typed.error_type !== undefined) {
		return { error, typedError: typed as unknown as WireError };
	}
	return { error };
}
