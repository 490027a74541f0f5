// SPDX-License-Identifier: Apache-2.0
// Meetings as Dynamo's mockers have them, recorded between a prefill and a decode worker of 1.6.1.
import { readFileSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { fileURLToPath } from "node:url";
import type { IngressRequest, ResponseWriter } from "@dynamo-ts/runtime";
import { createLogger } from "@dynamo-ts/runtime";
import { freePort, until } from "@dynamo-ts/testing/internal";
import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { awaitMeetings } from "./await-meetings.js";
import {
	encodeMeetingFrame,
	MEETING_HEADER,
	MeetingFormatError,
	MeetingFrameReader,
	type MeetingIdentity,
	type MeetingMessage,
} from "./meeting-frames.js";
import { MeetingServer } from "./meeting-server.js";

const path = fileURLToPath(new URL("../../fixtures/meeting-dynamo-1.6.1.json", import.meta.url));
const recording = JSON.parse(readFileSync(path, "utf8")) as { from: "decode" | "prefill"; bytes: string }[];
const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });

const bytesOf = (from: "decode" | "prefill") =>
	Buffer.concat(recording.filter((one) => one.from === from).map(({ bytes }) => Buffer.from(bytes, "latin1")));

interface Frame {
	readonly identity: MeetingIdentity;
	readonly message: MeetingMessage;
}

/** Reads a side's bytes in pieces. */
function read(from: "decode" | "prefill", bytes: Buffer, cuts: readonly number[] = []): Frame[] {
	const frames: Frame[] = [];
	const reader = new MeetingFrameReader((identity, message) => frames.push({ identity, message }), from === "decode");
	let at = 0;
	for (const cut of [...cuts, bytes.length]) {
		reader.push(bytes.subarray(at, at + cut));
		at += cut;
	}
	return frames;
}

const decodeFrames = read("decode", bytesOf("decode"));
const prefillFrames = read("prefill", bytesOf("prefill"));
const { identity } = decodeFrames[0] as Frame;
const written = ({ message: { kind, value } }: Frame) => (value === undefined ? kind : { [kind]: value });

describe("the recorded bytes", () => {
	test("are understood however they are cut, and written the same", () => {
		expect(decodeFrames.map(({ message }) => message.kind)).toEqual(["Register", "ActionAck", "Fact", "ActionAck"]);
		expect(prefillFrames.map(({ message }) => message.kind)).toEqual([
			...["Registered", "Fact", "Action", "Action", "Complete"],
		]);
		const rewritten = (frames: Frame[]) =>
			Buffer.concat(frames.map((frame) => encodeMeetingFrame(identity, written(frame))));
		expect(Buffer.concat([MEETING_HEADER, rewritten(decodeFrames)])).toEqual(bytesOf("decode"));
		expect(rewritten(prefillFrames)).toEqual(bytesOf("prefill"));
		fc.assert(
			fc.property(fc.array(fc.integer({ min: 1, max: 400 }), { maxLength: 12 }), (cuts) => {
				expect(read("decode", bytesOf("decode"), cuts)).toEqual(decodeFrames);
				expect(read("prefill", bytesOf("prefill"), cuts)).toEqual(prefillFrames);
			}),
		);
	});

	test("with anything changed are understood or refused, nothing else", () => {
		fc.assert(
			fc.property(fc.nat(), fc.uint8Array({ minLength: 1, maxLength: 8 }), (at, bytes) => {
				const changed = Buffer.from(bytesOf("decode"));
				changed.set(bytes.subarray(0, changed.length - (at % changed.length)), at % changed.length);
				try {
					read("decode", changed);
				} catch (error) {
					expect(error).toBeInstanceOf(MeetingFormatError);
				}
			}),
		);
	});
});

const open: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
	for (const close of open.splice(0).reverse()) await close();
});

/** Plays one side of the recording, each part once the other side has said all that came before it. */
function play(socket: Socket, side: "decode" | "prefill"): { readonly heard: () => Frame[] } {
	const other = side === "decode" ? "prefill" : "decode";
	let before = Buffer.alloc(0);
	const parts: { readonly bytes: Buffer; readonly after: number }[] = [];
	for (const { from, bytes } of recording) {
		const raw = Buffer.from(bytes, "latin1");
		if (from === side) parts.push({ bytes: raw, after: read(other, before).length });
		else before = Buffer.concat([before, raw]);
	}
	let heard = Buffer.alloc(0);
	const goOn = (): void => {
		const frames = read(other, heard).length;
		while (parts[0] !== undefined && parts[0].after <= frames) socket.write((parts.shift() as { bytes: Buffer }).bytes);
	};
	socket.on("data", (chunk: Buffer) => {
		heard = Buffer.concat([heard, chunk]);
		goOn();
	});
	socket.on("error", () => {});
	goOn();
	return { heard: () => read(other, heard) };
}

/** A request of the recorded meeting, and what becomes of it. */
function call(port: number): { request: IngressRequest; response: ResponseWriter; ended: string[] } {
	const ended: string[] = [];
	const payload = {
		token_ids: Array.from({ length: 100 }, (_, i) => i + 10),
		bootstrap_info: {
			bootstrap_host: "127.0.0.1",
			bootstrap_port: port,
			bootstrap_room: identity.room,
			handoff_id: identity.handoffId,
		},
	};
	const request = { id: identity.requestId, payload, onCancel() {} } as unknown as IngressRequest;
	const response = {
		closed: false,
		bufferedBytes: 0,
		send() {},
		fail: ({ message }: Error) => ended.push(message),
		end: () => ended.push("end"),
	} as unknown as ResponseWriter;
	return { request, response, ended };
}

/** Messages without the one number that is each engine's own. */
const comparable = (frames: Frame[]) =>
	JSON.parse(
		JSON.stringify(frames.map(written)).replace(/"(kv_bytes_per_token|transferable_prompt_tokens)":\w+/g, '"$1":0'),
	);

describe("ours", () => {
	test("as decode worker says what Dynamo's says", async () => {
		let heard: (() => Frame[]) | undefined;
		const server = createServer((socket) => {
			heard = play(socket, "prefill").heard;
		});
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
		open.push(() => server.close());
		const { request, response, ended } = call((server.address() as { port: number }).port);
		await awaitMeetings((_request, writer) => writer.end())(request, response);
		expect(ended).toEqual(["end"]);
		expect(comparable(heard?.() ?? [])).toEqual(comparable(decodeFrames));
	});

	test("as decode worker does not wait for a request that is cancelled already", async () => {
		const silent = createServer((socket) => socket.resume());
		await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
		open.push(() => silent.close());
		const { request, response, ended } = call((silent.address() as { port: number }).port);
		const stopped = { ...request, onCancel: (tell: (kind: "stop") => void) => tell("stop") };
		await awaitMeetings((_request, writer) => writer.end())(stopped, response);
		expect(ended).toEqual([expect.stringContaining("cancelled")]);
	});

	test.each(["before", "after"])(
		"as prefill worker says what Dynamo's says, the decode worker come %s",
		async (when) => {
			const port = await freePort();
			const meetings = await MeetingServer.listen("127.0.0.1", port, log);
			open.push(() => meetings.close());
			const { request, response } = call(port);
			let end = () => {};
			const handler = meetings.announce((_request, writer) => {
				end = () => writer.end();
			});
			if (when === "after") {
				await handler(request, response);
				end();
			}
			const socket = connect({ host: "127.0.0.1", port });
			open.push(() => socket.destroy());
			const closed = new Promise((resolve) => socket.once("end", resolve));
			const { heard } = play(socket, "decode");
			if (when === "before") {
				await until("the decode worker waits", () => meetings.waiting === 1);
				await handler(request, response);
				end();
			}
			await closed;
			expect(comparable(heard())).toEqual(comparable(prefillFrames));
			expect(meetings.waiting).toBe(0);
		},
	);

	test.each([
		["another room", { bootstrap_room: 1n }, /not the same/],
		["another request", { id: "00000000-0000-0000-0000-000000000001" }, /not the same/],
		["no handoff_id", { handoff_id: undefined }, /needs .*handoff_id/],
	])("refuses %s", async (_what, change, why) => {
		const port = await freePort();
		const meetings = await MeetingServer.listen("127.0.0.1", port, log);
		open.push(() => meetings.close());
		const prefill = call(port);
		await meetings.announce(() => {})(prefill.request, prefill.response);
		const { request, response, ended } = call(port);
		const { id, ...info } = { id: request.id, ...change };
		const payload = request.payload as { bootstrap_info: object };
		const other = { ...request, id, payload: { ...payload, bootstrap_info: { ...payload.bootstrap_info, ...info } } };
		const answer = async () => awaitMeetings((_request, writer) => writer.end())(other, response);
		await answer().catch((error: Error) => ended.push(error.message));
		expect(ended).toHaveLength(1);
		expect(ended[0]).toMatch(why);
	});
});
