// SPDX-License-Identifier: Apache-2.0
// What every event travels in: an envelope (one msgpack map), and for ZeroMQ the four frames around it. Recorded from
// Dynamo 1.6.1.

import type { EventScope } from "../discovery-records.js";
import { DynamoError } from "../dynamo-error.js";
import { FieldReader } from "../field-reader.js";
import { unpackMsgpack } from "../frames/msgpack-reader.js";
import { MsgpackWriter } from "../frames/msgpack-writer.js";

/** An event with where it comes from. */
export interface EventEnvelope {
	/** Random, below 2^53; each publisher has its own. */
	readonly publisherId: bigint;
	/** Counts the publisher's messages, from 0. Has nothing to do with ids inside the payload. */
	readonly sequence: bigint;
	/** Milliseconds since 1970. */
	readonly publishedAt: number;
	readonly topic: string;
	/** msgpack. */
	readonly payload: Buffer;
}

const FRAME_VERSION = 1;
const FRAME_HEADER_BYTES = 5;
/** Publisher ids stand in JSON numbers of peers that have doubles. */
const MAX_PUBLISHER_ID = (1n << 53n) - 1n;

/** A publisher id out of 64 random bits. */
export function publisherIdFrom(random: bigint): bigint {
	return random & MAX_PUBLISHER_ID;
}

/** `namespace.{ns}[.component.{c}[.endpoint.{e}]]`: the NATS subject of a scope, without the topic. */
export function eventSubjectPrefix(scope: EventScope): string {
	switch (scope.kind) {
		case "namespace":
			return `namespace.${scope.name}`;
		case "component":
			return `namespace.${scope.namespace}.component.${scope.component}`;
		case "endpoint": {
			const { namespace, component, name } = scope.endpoint;
			return `namespace.${namespace}.component.${component}.endpoint.${name}`;
		}
	}
}

/** The NATS subject of a topic, which is also the ZeroMQ topic behind a broker. */
export function eventSubject(scope: EventScope, topic: string): string {
	return `${eventSubjectPrefix(scope)}.${topic}`;
}

const writer = new MsgpackWriter();

/** The envelope with the five bytes that stand before it in a ZeroMQ frame (version, u32 length). */
export function encodeEnvelopeFrame(envelope: EventEnvelope): Buffer {
	writer.begin(FRAME_HEADER_BYTES);
	writer.mapHeader(5);
	writer.string("publisher_id");
	writer.value(envelope.publisherId);
	writer.string("sequence");
	writer.value(envelope.sequence);
	writer.string("published_at");
	writer.integer(envelope.publishedAt);
	writer.string("topic");
	writer.string(envelope.topic);
	writer.string("payload");
	writer.bin(envelope.payload);
	writer.setUInt32(writer.length - FRAME_HEADER_BYTES, 1);
	const frame = writer.finish();
	frame[0] = FRAME_VERSION;
	return frame;
}

/** The envelope alone, as it travels over NATS. */
export function encodeEnvelope(envelope: EventEnvelope): Buffer {
	return encodeEnvelopeFrame(envelope).subarray(FRAME_HEADER_BYTES);
}

/**
 * Reads an envelope; members that are not known are ignored.
 * @throws DynamoError InvalidArgument for a member at fault, Error for bytes that are no msgpack.
 */
export function decodeEnvelope(bytes: Buffer): EventEnvelope {
	const body = new FieldReader(unpackMsgpack(bytes), "event envelope");
	const payload = body.member("payload");
	if (!Buffer.isBuffer(payload)) return body.fail("payload must be bytes");
	return {
		publisherId: body.u64("publisher_id"),
		sequence: body.u64("sequence"),
		publishedAt: Number(body.u64("published_at")),
		topic: body.string("topic"),
		payload,
	};
}

/** The four frames of a ZeroMQ message. `topicFrame`: the topic, or the whole subject behind a broker. */
export function encodeEventFrames(topicFrame: string, envelope: EventEnvelope): Buffer[] {
	const ids = Buffer.allocUnsafe(16);
	ids.writeBigUInt64BE(envelope.publisherId, 0);
	ids.writeBigUInt64BE(envelope.sequence, 8);
	return [Buffer.from(topicFrame, "utf8"), ids.subarray(0, 8), ids.subarray(8), encodeEnvelopeFrame(envelope)];
}

function bad(what: string): never {
	throw new DynamoError("InvalidArgument", `event message: ${what}`);
}

/**
 * Reads a ZeroMQ message and checks it against what was subscribed to.
 * @throws DynamoError InvalidArgument for a message of another shape or topic, Error for bytes that are no msgpack.
 */
export function decodeEventFrames(frames: readonly Buffer[], topicFrame: string, topic: string): EventEnvelope {
	const [name, publisher, sequence, body] = frames;
	if (
		frames.length !== 4 ||
		name === undefined ||
		publisher === undefined ||
		sequence === undefined ||
		body === undefined
	)
		return bad(`has ${frames.length} frames instead of 4`);
	if (name.toString("utf8") !== topicFrame) return bad("is of another topic");
	if (publisher.length !== 8 || sequence.length !== 8) return bad("ids must have 8 bytes");
	if (body.length < FRAME_HEADER_BYTES || body[0] !== FRAME_VERSION)
		return bad(`frame version ${body[0]} is not known`);
	if (body.readUInt32BE(1) !== body.length - FRAME_HEADER_BYTES) return bad("the length does not fit the frame");
	const envelope = decodeEnvelope(body.subarray(FRAME_HEADER_BYTES));
	if (envelope.topic !== topic) return bad("the envelope is of another topic");
	if (envelope.publisherId !== publisher.readBigUInt64BE() || envelope.sequence !== sequence.readBigUInt64BE())
		return bad("the envelope's ids differ from the frames'");
	return envelope;
}
