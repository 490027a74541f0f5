// SPDX-License-Identifier: Apache-2.0
import type { RequestPlaneCodec } from "../discovery-records.js";
import { isJsonObject, parseJson, stringifyJson } from "../json.js";
import { unpackMsgpack, uuidOfBytes } from "./msgpack-reader.js";
import { MsgpackWriter } from "./msgpack-writer.js";

const writer = new MsgpackWriter();

/**
 * Encodes a request or response body. msgpack: maps with named keys, members that are undefined left out,
 * `sampling_options` floats as f32, bigints as 64-bit integers, `bootstrap_info.handoff_id` (UUID text) as 16 raw bytes.
 * JSON: compact, bigints bare.
 *
 * @throws TypeError or RangeError for a value that the codec cannot write.
 */
export function encodeBody(value: unknown, codec: RequestPlaneCodec): Buffer {
	if (codec === "json") return Buffer.from(stringifyJson(value), "utf8");
	writer.begin(0);
	if (isJsonObject(value)) writer.body(value);
	else writer.value(value);
	return writer.finish();
}

/**
 * Decodes a body; integers beyond 2^53 become bigint. In msgpack a bin is a Buffer (a view or a copy), except
 * `bootstrap_info.handoff_id`, which becomes UUID text.
 *
 * @throws Error when the bytes are not one value of the codec.
 */
export function decodeBody(bytes: Buffer, codec: RequestPlaneCodec): unknown {
	if (codec === "json") return parseJson(bytes);
	const value = unpackMsgpack(bytes);
	if (typeof value === "object" && value !== null) {
		const info = (value as { bootstrap_info?: { handoff_id?: unknown } | null }).bootstrap_info;
		if (info?.handoff_id instanceof Uint8Array && info.handoff_id.length === 16) {
			info.handoff_id = uuidOfBytes(info.handoff_id);
		}
	}
	return value;
}
