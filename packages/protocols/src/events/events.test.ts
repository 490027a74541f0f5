// SPDX-License-Identifier: Apache-2.0
// Envelopes, ZeroMQ frames and payloads against what Dynamo 1.6.1 sent over ZeroMQ and NATS.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeRouterEvents, encodeRouterEvents } from "../kv/router-event.js";
import { fixture, fixtureLines } from "../testing/fixtures.js";
import {
	decodeEnvelope,
	decodeEventFrames,
	encodeEnvelope,
	encodeEventFrames,
	eventSubject,
	publisherIdFrom,
} from "./envelope.js";
import { decodeForwardPassMetrics, encodeForwardPassMetrics } from "./forward-pass-metrics.js";
import {
	decodeActiveSequences,
	decodeSessionAffinity,
	decodeWorkerLoad,
	encodeActiveSequences,
	encodeSessionAffinity,
	encodeWorkerLoad,
} from "./load-events.js";

interface ZmqSample {
	topic?: string;
	channel_topic?: string;
	frames_hex: string[];
}

/** Decodes and encodes again a payload of any topic. */
function again(topic: string, payload: Buffer, form: "batch" | "bare"): Buffer {
	switch (topic) {
		case "kv-events":
			return encodeRouterEvents(decodeRouterEvents(payload));
		case "kv_metrics":
			return encodeWorkerLoad(decodeWorkerLoad(payload));
		case "active_sequences_events": {
			const out = encodeActiveSequences(decodeActiveSequences(payload), form);
			expect(out).toHaveLength(1);
			return out[0]!;
		}
		case "forward-pass-metrics":
			return encodeForwardPassMetrics(decodeForwardPassMetrics(payload));
		case "session_affinity_events":
			return encodeSessionAffinity(decodeSessionAffinity(payload));
		default:
			throw new Error(`no codec for ${topic}`);
	}
}

const overZmq = [
	...(JSON.parse(fixture("kv/event_plane_zmq_frames.json").toString()) as ZmqSample[]),
	...fixtureLines<ZmqSample>("kv/replica_sync_and_affinity_frames.jsonl"),
].map((sample) => ({ topic: (sample.topic ?? sample.channel_topic) as string, frames_hex: sample.frames_hex }));

test("recorded ZeroMQ messages of every topic come out byte for byte", () => {
	const topics = new Set<string>();
	for (const { topic, frames_hex } of overZmq) {
		const frames = frames_hex.map((hex) => Buffer.from(hex, "hex"));
		const envelope = decodeEventFrames(frames, topic, topic);
		const payload = again(topic, envelope.payload, "batch");
		expect(payload.toString("hex")).toBe(envelope.payload.toString("hex"));
		const out = encodeEventFrames(topic, { ...envelope, payload });
		expect(out.map((frame) => frame.toString("hex"))).toEqual(frames_hex);
		topics.add(topic);
	}
	expect([...topics].sort()).toEqual([
		"active_sequences_events",
		"forward-pass-metrics",
		"kv-events",
		"kv_metrics",
		"session_affinity_events",
	]);
});

test("recorded NATS messages come out byte for byte, under their subjects", () => {
	const samples = fixtureLines<{ subject: string; payload_hex: string }>("kv/event_plane_nats.jsonl");
	const scope = {
		kind: "endpoint",
		endpoint: { namespace: "dynamo", component: "backend", name: "generate" },
	} as const;
	for (const { subject, payload_hex } of samples) {
		const envelope = decodeEnvelope(Buffer.from(payload_hex, "hex"));
		expect(eventSubject(scope, envelope.topic)).toBe(subject);
		const payload = again(envelope.topic, envelope.payload, "bare");
		expect(encodeEnvelope({ ...envelope, payload }).toString("hex")).toBe(payload_hex);
	}
	expect(samples.length).toBeGreaterThan(10);
});

describe("messages at fault", () => {
	const [topic, publisher, sequence, body] = overZmq[0]!.frames_hex.map((hex) => Buffer.from(hex, "hex")) as [
		Buffer,
		Buffer,
		Buffer,
		Buffer,
	];
	const name = topic.toString();
	const other = (at: number, byte: number): Buffer => {
		const copy = Buffer.from(body);
		copy[at] = byte;
		return copy;
	};
	test.each<[string, Buffer[]]>([
		["frames instead of 4", [topic, publisher, sequence]],
		["another topic", [Buffer.from(`${name}-x`), publisher, sequence, body]],
		["8 bytes", [topic, publisher.subarray(1), sequence, body]],
		["frame version 2", [topic, publisher, sequence, other(0, 2)]],
		["frame version undefined", [topic, publisher, sequence, Buffer.alloc(0)]],
		["the length does not fit", [topic, publisher, sequence, body.subarray(0, -1)]],
		["ids differ", [topic, publisher, Buffer.alloc(8, 1), body]],
	])("%s", (message, frames) => {
		expect(() => decodeEventFrames(frames, name, name)).toThrow(message);
	});
	test("an envelope of another topic", () => {
		expect(() =>
			decodeEventFrames([Buffer.from("kv-events"), publisher, sequence, body], "kv-events", "kv-events"),
		).toThrow("envelope is of another topic");
	});
	test("random frames give an error, never anything else", () => {
		fc.assert(
			fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
				const frame = Buffer.concat([Buffer.from([1, 0, 0, 0, bytes.length]), bytes]);
				expect(() => decodeEventFrames([topic, publisher, sequence, frame], name, name)).toThrow();
			}),
		);
	});
});

test("publisher ids fit a double", () => {
	expect(publisherIdFrom(2n ** 64n - 1n)).toBe(2n ** 53n - 1n);
});

test("several changes of active sequences: one batch, or one message each", () => {
	const events = [
		{
			requestId: "a",
			worker: { workerId: 2n ** 64n - 1n, dpRank: 1 },
			change: { type: "free" as const },
			routerId: 7n,
		},
		{
			requestId: "b",
			worker: { workerId: 1n, dpRank: 0 },
			change: { type: "add" as const, tokenSequence: undefined, trackPrefillTokens: false },
			routerId: 8n,
			loraName: "l",
		},
	];
	expect(encodeActiveSequences(events, "batch")).toHaveLength(1);
	const bare = encodeActiveSequences(events, "bare");
	expect(bare).toHaveLength(2);
	expect(bare.flatMap((payload) => decodeActiveSequences(Buffer.from(payload)))).toMatchObject(events);
});
