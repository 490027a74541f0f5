// SPDX-License-Identifier: Apache-2.0
import type { RequestPlaneCodec } from "../discovery-records.js";
import { DynamoError } from "../dynamo-error.js";
import { isJsonObject, parseJson, stringifyJson } from "../json.js";

/** The control header of a request: who asks, in which codec, and where the answer goes. Always JSON on the wire. */
export interface RequestControl {
	/** Context id (UUID text); equals `context`. */
	id: string;
	/** What is sent: one request, or a stream of them. */
	requestType: "single_in" | "many_in";
	/** What comes back. */
	responseType: "many_out" | "single_out";
	/** Codec of this request's body and of every response body. */
	codec: RequestPlaneCodec;
	/** `host:port` of the caller's response server. */
	address: string;
	/** The caller's name for this response stream. */
	subject: string;
	/** Context id once more; a peer that finds another one than `id` never answers. */
	context: string;
	metadata?: Record<string, string>;
	/** Nanoseconds since 1970. */
	frontendSendTsNs?: bigint;
}

/** The control header's bytes, members in Dynamo's order; `context` and types take their only usual values unless given. */
export function encodeControl(
	control: Pick<RequestControl, "id" | "codec" | "address" | "subject"> & Partial<RequestControl>,
): string {
	const info = JSON.stringify({
		address: control.address,
		subject: control.subject,
		context: control.context ?? control.id,
		stream_type: "response",
	});
	return stringifyJson({
		id: control.id,
		request_type: control.requestType ?? "single_in",
		response_type: control.responseType ?? "many_out",
		payload_codec: control.codec,
		connection_info: { transport: "tcp_server", info },
		metadata: control.metadata,
		frontend_send_ts_ns: control.frontendSendTsNs,
	});
}

function bad(what: string): DynamoError {
	return new DynamoError("InvalidRequest", `control message: ${what}`, { reason: "request.invalid_argument" });
}

function stringMember(object: Record<string, unknown>, name: string, within: string): string {
	const value = object[name];
	if (typeof value !== "string")
		throw bad(`${within}${name} must be a string, got ${JSON.stringify(value) ?? "nothing"}`);
	return value;
}

function jsonObject(text: string | Buffer, what: string): Record<string, unknown> {
	let value: unknown;
	try {
		value = parseJson(text);
	} catch (error) {
		throw bad(`${what} is not JSON: ${(error as Error).message}`);
	}
	if (!isJsonObject(value)) throw bad(`${what} is not a JSON object`);
	return value;
}

/**
 * Reads a control header; members that are not known are ignored.
 *
 * @throws DynamoError InvalidRequest that names the member at fault.
 */
export function parseControl(header: Buffer): RequestControl {
	const message = jsonObject(header, "the header");
	const id = stringMember(message, "id", "");
	const requestType = stringMember(message, "request_type", "");
	if (requestType !== "single_in" && requestType !== "many_in")
		throw bad(`unknown request_type ${JSON.stringify(requestType)}`);
	const responseType = stringMember(message, "response_type", "");
	if (responseType !== "many_out" && responseType !== "single_out") {
		throw bad(`unknown response_type ${JSON.stringify(responseType)}`);
	}
	const codec = message.payload_codec ?? "json";
	if (codec !== "json" && codec !== "msgpack") throw bad(`unknown payload_codec ${JSON.stringify(codec)}`);
	const connection = message.connection_info;
	if (!isJsonObject(connection)) throw bad("connection_info must be an object");
	const transport = stringMember(connection, "transport", "connection_info.");
	if (transport !== "tcp_server") throw bad(`unknown transport ${JSON.stringify(transport)}; only tcp_server is known`);
	const info = jsonObject(stringMember(connection, "info", "connection_info."), "connection_info.info");
	const control: RequestControl = {
		id,
		requestType,
		responseType,
		codec,
		address: stringMember(info, "address", "connection_info.info."),
		subject: stringMember(info, "subject", "connection_info.info."),
		context: stringMember(info, "context", "connection_info.info."),
	};
	if (isJsonObject(message.metadata)) control.metadata = message.metadata as Record<string, string>;
	const sentAt = message.frontend_send_ts_ns;
	if (typeof sentAt === "bigint" || Number.isSafeInteger(sentAt)) control.frontendSendTsNs = BigInt(sentAt as bigint);
	return control;
}
