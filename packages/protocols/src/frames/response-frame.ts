// SPDX-License-Identifier: Apache-2.0
import type { Annotated, ResponseFrame } from "../annotated.js";
import type { RequestPlaneCodec } from "../discovery-records.js";
import { isJsonObject, stringifyJson } from "../json.js";
import { decodeBody, encodeBody } from "./body-codec.js";
import { MsgpackWriter } from "./msgpack-writer.js";
import { encodeTwoPart } from "./two-part-frame.js";
import { TWO_PART_PREFIX_BYTES } from "./wire-constants.js";

/** Where the low half of the body's length stands in the prefix; the high half stays 0. */
const BODY_LENGTH_LOW_AT = 12;

const writer = new MsgpackWriter();

/** One item as a whole two-part frame: `{"data":item,"complete_final":false}` as body, no header. */
export function encodeResponseFrame(item: Annotated<unknown>, codec: RequestPlaneCodec): Buffer {
	if (codec === "json") {
		return encodeTwoPart(undefined, Buffer.from(`{"data":${stringifyJson(item)},"complete_final":false}`, "utf8"));
	}
	writer.begin(TWO_PART_PREFIX_BYTES);
	writer.mapHeader(2);
	writer.string("data");
	writer.value(item);
	writer.string("complete_final");
	writer.value(false);
	writer.setUInt32(writer.length - TWO_PART_PREFIX_BYTES, BODY_LENGTH_LOW_AT);
	return writer.finish();
}

const finalFrame = (codec: RequestPlaneCodec): Buffer =>
	encodeTwoPart(undefined, encodeBody({ complete_final: true }, codec));

/** The last data frame of a stream that ended well; shared bytes, do not write to them. */
export const COMPLETE_FINAL_FRAME: Readonly<Record<RequestPlaneCodec, Buffer>> = {
	msgpack: finalFrame("msgpack"),
	json: finalFrame("json"),
};

/**
 * Reads the body of a data frame.
 *
 * @throws Error when it does not decode, has no `complete_final`, or is an item without `data`.
 */
export function decodeResponseFrame<T>(body: Buffer, codec: RequestPlaneCodec): ResponseFrame<T> {
	const frame = decodeBody(body, codec) as ResponseFrame<T>;
	if (isJsonObject(frame)) {
		if (frame.complete_final === true) return frame;
		if (frame.complete_final === false && isJsonObject(frame.data)) return frame;
	}
	throw new Error("response frame needs complete_final and, unless that is true, an object in data");
}
