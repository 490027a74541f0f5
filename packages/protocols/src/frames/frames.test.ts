// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { RequestPlaneCodec } from "../discovery-records.js";
import { parseJson } from "../json.js";
import { fixture, fixtureNames } from "../testing/fixtures.js";
import { AckDecoder, ackMeaning, encodeAck, MAX_ACK_BYTES } from "./ack-frame.js";
import { decodeBody, encodeBody } from "./body-codec.js";
import { encodeControl, parseControl } from "./control-message.js";
import { encodeRequestFrame, RequestFrameDecoder } from "./request-frame.js";
import { COMPLETE_FINAL_FRAME, decodeResponseFrame, encodeResponseFrame } from "./response-frame.js";
import {
	encodeHandshake,
	encodePrologueError,
	KILL_FRAME,
	PROLOGUE_OK_FRAME,
	parseControlWord,
	parseHandshake,
	parsePrologue,
	SENTINEL_FRAME,
	STOP_FRAME,
} from "./response-stream.js";
import { encodeTwoPart, splitTwoPart, TwoPartDecoder } from "./two-part-frame.js";
import { FrameTooLargeError, MAX_FRAME_BYTES } from "./wire-constants.js";

const frame = (name: string): Buffer => fixture(`wire/frames/${name}.bin`);

/** Decoded form as the fixtures write it: bin as `{"$bin":hex}`. */
function plain(value: unknown): unknown {
	if (value instanceof Uint8Array) return { $bin: Buffer.from(value).toString("hex") };
	if (Array.isArray(value)) return value.map(plain);
	if (typeof value !== "object" || value === null) return value;
	return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, plain(member)]));
}

function twoParts(bytes: Buffer): { header: Buffer; body: Buffer }[] {
	const frames: { header: Buffer; body: Buffer }[] = [];
	new TwoPartDecoder().push(bytes, (header, body) => frames.push({ header, body }));
	return frames;
}

describe("frames of Dynamo 1.6.1, byte for byte", () => {
	it("acks", () => {
		expect(encodeAck()).toEqual(frame("ack-ok"));
		const text = "Server unavailable: unknown endpoint deadbeef/dynamo/backend/generate";
		expect(encodeAck(text)).toEqual(frame("ack-unavailable"));
		expect(new AckDecoder().push(Buffer.concat([frame("ack-ok"), frame("ack-unavailable"), frame("ack-ok")]))).toEqual([
			"",
			text,
			"",
		]);
		expect(ackMeaning(text)).toBe("unavailable");
	});

	it("control words", () => {
		expect(KILL_FRAME).toEqual(frame("control-kill-from-frontend"));
		expect(STOP_FRAME).toEqual(frame("control-stop"));
		expect(SENTINEL_FRAME).toEqual(frame("resp-05-sentinel"));
		for (const word of ["kill", "stop", "sentinel"]) expect(parseControlWord(Buffer.from(`"${word}"`))).toBe(word);
		expect(parseControlWord(Buffer.from('"stops"'))).toBeUndefined();
		expect(parseControlWord(Buffer.from('{"error":null}'))).toBeUndefined();
	});

	it("handshake and prologue", () => {
		const [handshake] = twoParts(frame("resp-01-handshake"));
		const { subject, streamType } = parseHandshake(handshake?.header as Buffer);
		expect(streamType).toBe("response");
		expect(encodeHandshake(subject)).toEqual(frame("resp-01-handshake"));
		expect(PROLOGUE_OK_FRAME).toEqual(frame("resp-02-prologue-ok"));
		expect(encodePrologueError("boom from ts")).toEqual(frame("resp-prologue-error"));
	});

	it.each([0, 1, 2, 3, 4])("data %d", (i) => {
		const bytes = frame(`resp-03-data-${i}`);
		const [{ header, body }] = twoParts(bytes) as [{ header: Buffer; body: Buffer }];
		expect(header).toHaveLength(0);
		const decoded = decodeResponseFrame(body, "msgpack");
		if (decoded.complete_final) throw new Error("not a final frame");
		expect(encodeResponseFrame(decoded.data, "msgpack")).toEqual(bytes);
	});

	it("final frame", () => {
		expect(COMPLETE_FINAL_FRAME.msgpack).toEqual(frame("resp-04-complete-final"));
		expect(COMPLETE_FINAL_FRAME.json.subarray(24).toString()).toBe('{"complete_final":true}');
	});
});

const REQUESTS = fixtureNames("wire").filter((name) => /\.req\d\.bin$/.test(name));
const STREAMS = fixtureNames("wire").filter((name) => /\.resp-.*\.bin$/.test(name));
const CLIENT_REQUESTS = fixtureNames("wire").filter(
	(name) => /^client-.*\.request\.bin$/.test(name) && !name.includes("nats"),
);
const CLIENT_STREAMS = fixtureNames("wire").filter((name) => /^client-.*\.response\.bin$/.test(name));

describe("recorded requests", () => {
	it("are all there", () => {
		expect([REQUESTS.length, STREAMS.length, CLIENT_REQUESTS.length, CLIENT_STREAMS.length]).toEqual([7, 7, 7, 8]);
	});

	it.each(REQUESTS)("%s decodes to its .json and is written back byte for byte", (name) => {
		const bytes = fixture(`wire/${name}`);
		const [request, ...others] = new RequestFrameDecoder().push(bytes);
		if (request === undefined) throw new Error("no frame");
		expect(others).toEqual([]);
		const { header, body } = splitTwoPart(request.payload);
		const control = parseControl(header);
		const decoded = decodeBody(body, control.codec);
		const expected = parseJson(fixture(`wire/${name.replace(".bin", ".json")}`)) as Record<string, unknown>;
		expect(request.path).toBe(expected.path);
		expect(request.headers).toEqual(expected.headers);
		expect(parseJson(header)).toEqual(expected.control);

		const handoff = (decoded as { bootstrap_info?: { handoff_id?: string } }).bootstrap_info?.handoff_id;
		if (handoff !== undefined) {
			const { $bin } = (expected.body as { bootstrap_info: { handoff_id: { $bin: string } } }).bootstrap_info
				.handoff_id;
			expect(handoff.replaceAll("-", "")).toBe($bin);
			(expected.body as { bootstrap_info: { handoff_id: unknown } }).bootstrap_info.handoff_id = handoff;
		}
		expect(plain(decoded)).toEqual(expected.body);

		const again = encodeTwoPart(encodeControl(control), encodeBody(decoded, control.codec));
		expect(again).toEqual(request.payload);
		expect(encodeRequestFrame({ path: request.path, headers: request.headers, payload: again })).toEqual(bytes);
	});

	it.each(CLIENT_REQUESTS)("%s decodes and its body is written back byte for byte", (name) => {
		const [request] = new RequestFrameDecoder().push(fixture(`wire/${name}`));
		if (request === undefined) throw new Error("no frame");
		const { header, body } = splitTwoPart(request.payload);
		const { codec } = parseControl(header);
		expect(codec).toBe(name.includes("json") ? "json" : "msgpack");
		expect(decodeBody(encodeBody(decodeBody(body, codec), codec), codec)).toEqual(decodeBody(body, codec));
	});
});

describe("recorded response streams", () => {
	it.each(STREAMS)("%s decodes to its .json", (name) => {
		const decoded = twoParts(fixture(`wire/${name}`)).map(({ header, body }) =>
			header.length > 0 ? { header: parseJson(header) } : { data: decodeBody(body, "msgpack") },
		);
		expect(decoded).toEqual(parseJson(fixture(`wire/${name.replace(".bin", ".json")}`)));
	});

	it.each([...STREAMS, ...CLIENT_STREAMS])("%s is written back byte for byte", (name) => {
		const bytes = fixture(`wire/${name}`);
		const codec: RequestPlaneCodec = name.includes("json") ? "json" : "msgpack";
		const again = twoParts(bytes).map(({ header, body }) => {
			if (body.length > 0) {
				const response = decodeResponseFrame(body, codec);
				return response.complete_final ? COMPLETE_FINAL_FRAME[codec] : encodeResponseFrame(response.data, codec);
			}
			if (parseControlWord(header) === "sentinel") return SENTINEL_FRAME;
			if (header.includes("subject")) return encodeHandshake(parseHandshake(header).subject);
			const { error, typedError } = parsePrologue(header);
			return error === null ? PROLOGUE_OK_FRAME : encodePrologueError(error, typedError);
		});
		expect(Buffer.concat(again)).toEqual(bytes);
	});
});

/** Cuts bytes at the given places. */
function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
	const at = [...new Set([0, ...places.map((place) => place % (bytes.length + 1)), bytes.length])].sort(
		(a, b) => a - b,
	);
	return at.slice(1).map((end, i) => Buffer.from(bytes.subarray(at[i], end)));
}

describe("decoders take chunks split anywhere", () => {
	const responses = Buffer.concat(STREAMS.slice(0, 2).map((name) => fixture(`wire/${name}`)));
	const requests = Buffer.concat(REQUESTS.slice(0, 3).map((name) => fixture(`wire/${name}`)));
	const acks = Buffer.concat([encodeAck(), encodeAck("Server overloaded: full"), encodeAck("é"), encodeAck()]);

	const readResponses = (chunks: Buffer[]): string[] => {
		const decoder = new TwoPartDecoder();
		const seen: string[] = [];
		for (const chunk of chunks) {
			decoder.push(chunk, (header, body) => seen.push(`${header.toString("hex")}|${body.toString("hex")}`));
		}
		expect(decoder.bufferedBytes).toBe(0);
		return seen;
	};
	const readRequests = (chunks: Buffer[]): string[] => {
		const decoder = new RequestFrameDecoder();
		const seen = chunks
			.flatMap((chunk) => decoder.push(chunk))
			.map((x) => JSON.stringify({ ...x, payload: x.payload.toString("hex") }));
		expect(decoder.bufferedBytes).toBe(0);
		return seen;
	};
	const readAcks = (chunks: Buffer[]): string[] => {
		const decoder = new AckDecoder();
		return chunks.flatMap((chunk) => decoder.push(chunk));
	};

	it.each([
		["two-part frames", responses, readResponses, 14],
		["request frames", requests, readRequests, 3],
		["acks", acks, readAcks, 4],
	] as const)("%s", (_, bytes, read, count) => {
		const whole = read([bytes]);
		expect(whole.length).toBeGreaterThanOrEqual(count);
		for (let at = 0; at <= bytes.length; at++) expect(read([bytes.subarray(0, at), bytes.subarray(at)])).toEqual(whole);
		expect(read(Array.from(bytes, (byte) => Buffer.of(byte)))).toEqual(whole);
		fc.assert(
			fc.property(fc.array(fc.nat(bytes.length), { maxLength: 30 }), (places) => {
				expect(read(cut(bytes, places))).toEqual(whole);
			}),
		);
	});

	it("without copying frames that lie whole in a chunk", () => {
		const chunk = Buffer.concat([
			encodeTwoPart("h", Buffer.from("body")),
			encodeTwoPart(undefined, Buffer.from("more")),
		]);
		const bodies: Buffer[] = [];
		new TwoPartDecoder().push(chunk, (_, body) => bodies.push(body));
		expect(bodies.map((body) => body.buffer === chunk.buffer)).toEqual([true, true]);
	});

	it("and keep what they handed out when more comes", () => {
		const decoder = new TwoPartDecoder();
		const bodies: Buffer[] = [];
		const frames = ["first", "second", "third"].map((text) => encodeTwoPart(undefined, Buffer.from(text)));
		for (const chunk of cut(Buffer.concat(frames), [10, 27, 40, 60]))
			decoder.push(chunk, (_, body) => bodies.push(body));
		expect(bodies.map(String)).toEqual(["first", "second", "third"]);
	});

	it("of any header and body", () => {
		fc.assert(
			fc.property(fc.array(fc.tuple(fc.uint8Array(), fc.uint8Array())), fc.array(fc.nat()), (parts, places) => {
				const bytes = Buffer.concat(
					parts.map(([header, body]) => encodeTwoPart(Buffer.from(header), Buffer.from(body))),
				);
				expect(readResponses(cut(bytes, places))).toEqual(
					parts.map(([header, body]) => `${Buffer.from(header).toString("hex")}|${Buffer.from(body).toString("hex")}`),
				);
			}),
		);
	});
});

describe("limits", () => {
	it("a request frame beyond 32 MiB is refused by its length alone, in Dynamo's words", () => {
		const bytes = Buffer.alloc(49);
		bytes.writeUInt16BE(24, 0);
		bytes.writeUInt16BE(17, 26);
		bytes.writeUInt32BE(41_943_040, 45);
		const decoder = new RequestFrameDecoder();
		expect(() => decoder.push(bytes)).toThrow("Read error: message too large: 41943089 bytes (max: 33554432 bytes)");
	});

	it("frames before a too long one are not lost", () => {
		const good = encodeRequestFrame({ path: "p", headers: {}, payload: Buffer.from("x") });
		const bad = Buffer.from([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
		const decoder = new RequestFrameDecoder();
		expect(() => decoder.push(Buffer.concat([good, bad]))).toThrow(FrameTooLargeError);
		expect(decoder.framesBeforeError.map(({ path }) => path)).toEqual(["p"]);
	});

	it.each([
		[2 ** 32 - 1, 0],
		[0, 0x1_0000],
		[0x100, 0],
	])("a two-part frame that announces %d*2^32+%d bytes is refused", (high, low) => {
		const bytes = Buffer.alloc(24);
		bytes.writeUInt32BE(high, 8);
		bytes.writeUInt32BE(low, 12);
		expect(() => new TwoPartDecoder(1000).push(bytes, () => {})).toThrow(FrameTooLargeError);
	});

	it("an announced length reserves nothing", () => {
		const decoder = new TwoPartDecoder();
		const bytes = Buffer.alloc(25);
		bytes.writeUInt32BE(MAX_FRAME_BYTES - 24, 12);
		const before = process.memoryUsage().arrayBuffers;
		decoder.push(bytes, () => {});
		expect(decoder.bufferedBytes).toBe(25);
		expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(1_000_000);
	});

	it("a frame of just the limit passes", () => {
		const frames: number[] = [];
		new TwoPartDecoder(34).push(encodeTwoPart(undefined, Buffer.alloc(10)), (_, body) => frames.push(body.length));
		expect(frames).toEqual([10]);
	});

	it("an endless ack is refused", () => {
		const bytes = Buffer.alloc(4);
		bytes.writeUInt32BE(MAX_ACK_BYTES + 1, 0);
		expect(() => new AckDecoder().push(bytes)).toThrow(FrameTooLargeError);
	});

	it("what no peer would take is not written", () => {
		const payload = Buffer.alloc(0);
		expect(() => encodeRequestFrame({ path: "x".repeat(65_536), headers: {}, payload })).toThrow(RangeError);
		expect(() => encodeRequestFrame({ path: "x", headers: {}, payload: Buffer.alloc(100) }, 50)).toThrow(
			FrameTooLargeError,
		);
	});
});

describe("rubbish from a peer", () => {
	const request = (headers: string): Buffer => {
		const bytes = Buffer.alloc(2 + 1 + 2 + headers.length + 4);
		bytes.writeUInt16BE(1, 0);
		bytes.write("p", 2);
		bytes.writeUInt16BE(headers.length, 3);
		bytes.write(headers, 5);
		return bytes;
	};

	it.each([
		["nope", "not JSON"],
		["[]", "not a JSON object"],
		['{"a":1}', 'header "a" is not a string'],
	])("headers %s are told apart and the stream goes on", (headers, error) => {
		const decoder = new RequestFrameDecoder();
		const [bad, good] = decoder.push(Buffer.concat([request(headers), request("{}")]));
		expect(bad?.headersError).toContain(error);
		expect(bad?.headers).toEqual({});
		expect(good?.headersError).toBeUndefined();
	});

	it.each([
		["nope", "the header is not JSON"],
		["5", "the header is not a JSON object"],
		["{}", "id must be a string"],
		['{"id":"a"}', "request_type must be a string"],
		['{"id":"a","request_type":"x"}', 'unknown request_type "x"'],
		[
			'{"id":"a","request_type":"single_in","response_type":"many_out","payload_codec":"cbor"}',
			"unknown payload_codec",
		],
		['{"id":"a","request_type":"single_in","response_type":"many_out"}', "connection_info must be an object"],
		[
			'{"id":"a","request_type":"single_in","response_type":"many_out","connection_info":{"transport":"x","info":""}}',
			"unknown transport",
		],
		[
			'{"id":"a","request_type":"single_in","response_type":"many_out","connection_info":{"transport":"tcp_server","info":"{}"}}',
			"connection_info.info.address must be a string",
		],
	])("control header %s is refused", (header, message) => {
		expect(() => parseControl(Buffer.from(header))).toThrow(message);
	});

	it("an absent payload_codec means json", () => {
		const header = JSON.parse(encodeControl({ id: "a", codec: "msgpack", address: "h:1", subject: "s" }));
		header.payload_codec = undefined;
		expect(parseControl(Buffer.from(JSON.stringify(header)))).toMatchObject({
			codec: "json",
			context: "a",
			subject: "s",
		});
	});

	it.each(["", "00", "81a46461746180", "c0", "82a46461746180ae636f6d706c6574655f66696e616cc0"])(
		"response body %j is refused",
		(hex) => {
			expect(() => decodeResponseFrame(Buffer.from(hex, "hex"), "msgpack")).toThrow();
		},
	);

	it("a two-part message must fill its payload", () => {
		expect(() => splitTwoPart(Buffer.alloc(0))).toThrow(RangeError);
		expect(() => splitTwoPart(Buffer.concat([encodeTwoPart("a", undefined), Buffer.of(1)]))).toThrow(RangeError);
	});

	it("random bytes never do more than throw", () => {
		fc.assert(
			fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
				for (const decode of [
					() => new TwoPartDecoder().push(Buffer.from(bytes), () => {}),
					() => new RequestFrameDecoder().push(Buffer.from(bytes)),
					() => decodeBody(Buffer.from(bytes), "msgpack"),
				]) {
					try {
						decode();
					} catch (error) {
						expect(error).toBeInstanceOf(Error);
					}
				}
			}),
		);
	});
});
