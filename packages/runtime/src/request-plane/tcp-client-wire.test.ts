// SPDX-License-Identifier: Apache-2.0
// The client against recorded bytes and against workers that break the rules.
import { randomUUID } from "node:crypto";
import type { Socket } from "node:net";
import {
	COMPLETE_FINAL_FRAME,
	type DecodedRequestFrame,
	DynamoError,
	decodeBody,
	type EndpointRecord,
	encodeAck,
	encodeBody,
	encodeHandshake,
	encodeResponseFrame,
	encodeTwoPart,
	PROLOGUE_OK_FRAME,
	parseControl,
	parseHandshake,
	RequestFrameDecoder,
	type RequestPlaneCodec,
	SENTINEL_FRAME,
	splitTwoPart,
} from "@dynamo-ts/protocols/internal";
import { CollectingSink } from "@dynamo-ts/testing/internal";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { CallHomeClient } from "./call-home-client.js";
import type { RequestOptions } from "./request-plane.js";
import { openTcpClient } from "./tcp-client.js";
import {
	closePeers,
	closers,
	dial,
	fixture,
	framesOf,
	itemsOf,
	listen,
	log,
	MAX_BYTES,
	readAll,
} from "./test-support/wire-peers.js";

afterEach(closePeers);

describe("client, against recorded and wicked workers", () => {
	let client: CallHomeClient;

	const open = async (callHomeTimeoutMs: number, poolIdleMs = 60_000) => {
		const opened = await openTcpClient({
			responseHost: "127.0.0.1",
			responsePort: 0,
			connectTimeoutMs: 5000,
			ackTimeoutMs: 5000,
			callHomeTimeoutMs,
			firstResponseTimeoutMs: 10_000,
			idleTimeoutMs: 10_000,
			poolSize: 3,
			poolIdleMs,
			maxMessageBytes: MAX_BYTES,
			log,
		});
		closers.push(() => opened.close());
		return opened;
	};
	beforeEach(async () => {
		client = await open(5000);
	});

	interface Received {
		readonly frame: DecodedRequestFrame;
		readonly body: Buffer;
		readonly subject: string;
		readonly ack: (text?: string) => void;
		readonly requestSocket: Socket;
		/** Dials the client's response server. */
		readonly home: () => Promise<Socket>;
	}
	/** A worker made of bare sockets; `onRequest` plays it. */
	const worker = async (onRequest: (request: Received) => void | Promise<void>) => {
		const connections: Socket[] = [];
		const { port } = await listen((socket) => {
			connections.push(socket);
			const decoder = new RequestFrameDecoder();
			socket.on("data", (chunk) => {
				for (const frame of decoder.push(chunk)) {
					const { header, body } = splitTwoPart(frame.payload);
					const control = parseControl(header);
					void onRequest({
						frame,
						body,
						subject: control.subject,
						ack: (text) => void socket.write(encodeAck(text)),
						requestSocket: socket,
						home: () => dial(Number(control.address.split(":")[1])),
					});
				}
			});
		});
		return { port, connections };
	};
	const instance = (port: number, codec: RequestPlaneCodec = "msgpack"): EndpointRecord => ({
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: 0xfan,
		transport: { tcp: `127.0.0.1:${port}/fa/dynamo/backend/generate` },
		request_plane_codec: codec,
	});
	const send = (record: EndpointRecord, options?: RequestOptions, payload: unknown = { token_ids: [1] }) => {
		const sink = new CollectingSink();
		const call = client.send(record, { id: randomUUID(), payload, headers: { "x-request-id": "r" } }, sink, options);
		return { sink, call };
	};
	/** A recorded stream under our subject: the ids have the same length. */
	const asOurs = (stream: Buffer, subject: string) => {
		const recorded = parseHandshake(framesOf(stream)[0]?.header as Buffer).subject;
		return Buffer.from(stream.toString("latin1").replace(recorded, subject), "latin1");
	};
	const finished = async (sink: CollectingSink) => {
		await sink.done;
		expect(sink.ends).toBe(1);
		expect(client.inflight).toBe(0);
	};

	for (const [response, codec] of [
		["agg-chat.resp-2-44730.bin", "msgpack"],
		["client-tcp.response.bin", "msgpack"],
		["client-tcp-json.response.bin", "json"],
		["disagg-bootstrap.resp-2-53816.bin", "msgpack"],
	] as const) {
		it(`${response}: read whole, and in pieces of any size`, async () => {
			const recorded = fixture(response);
			await fc.assert(
				fc.asyncProperty(fc.integer({ min: 1, max: recorded.length }), async (size) => {
					const { port } = await worker(async ({ ack, home, subject }) => {
						ack();
						const socket = await home();
						const bytes = asOurs(recorded, subject);
						for (let at = 0; at < bytes.length; at += size) {
							socket.write(bytes.subarray(at, at + size));
							if (size < 50) await new Promise((resolve) => setImmediate(resolve));
						}
						socket.end();
					});
					const { sink } = send(instance(port, codec));
					await finished(sink);
					expect(sink.error).toBeUndefined();
					expect(sink.items).toEqual(itemsOf(recorded, codec));
				}),
				{ numRuns: 8, examples: [[1], [recorded.length]] },
			);
		});
	}

	it("a recorded error prologue fails the request with the worker's words", async () => {
		const { port } = await worker(async ({ ack, home, subject }) => {
			ack();
			(await home()).end(asOurs(fixture("client-prologue-error.response.bin"), subject));
		});
		const { sink } = send(instance(port));
		await finished(sink);
		expect(sink.items).toEqual([]);
		expect(sink.error?.message).toContain("requires a handoff ID");
	});

	it("a recorded error item fails the request as an invalid argument", async () => {
		const { port } = await worker(async ({ ack, home, subject }) => {
			ack();
			(await home()).end(asOurs(fixture("client-tcp-error-item.response.bin"), subject));
		});
		const { sink } = send(instance(port));
		await finished(sink);
		expect(["InvalidArgument", "InvalidRequest"]).toContain(sink.error?.errorClass);
		expect(sink.error?.message).toContain("max_output_tokens must be specified");
	});

	it("sends what the real client sends", async () => {
		const [recorded] = new RequestFrameDecoder().push(fixture("agg-chat.req1.bin")) as [DecodedRequestFrame];
		const parts = splitTwoPart(recorded.payload);
		const control = JSON.parse(parts.header.toString());
		let seen: Received | undefined;
		const { port } = await worker(async (request) => {
			seen = request;
			request.ack("Server unavailable: not now");
		});
		const record = { ...instance(port), transport: { tcp: `127.0.0.1:${port}/${recorded.path}` } };
		const sink = new CollectingSink();
		client.send(
			record,
			{ id: control.id, payload: decodeBody(parts.body, "msgpack"), headers: recorded.headers },
			sink,
		);
		await finished(sink);
		expect(sink.error?.errorClass).toBe("WorkerUnavailable");
		expect(seen?.frame.path).toBe(recorded.path);
		expect(seen?.frame.headers).toEqual(recorded.headers);
		expect(seen?.body.toString("hex")).toBe(parts.body.toString("hex"));
		const ours = JSON.parse(splitTwoPart(seen?.frame.payload as Buffer).header.toString());
		const info = JSON.parse(control.connection_info.info);
		const ourInfo = JSON.parse(ours.connection_info.info);
		expect(Object.keys(ourInfo)).toEqual(Object.keys(info));
		expect({ ...ours, connection_info: { ...ours.connection_info, info: "" } }).toEqual({
			...control,
			connection_info: { ...control.connection_info, info: "" },
			...(ours.frontend_send_ts_ns === undefined ? {} : { frontend_send_ts_ns: ours.frontend_send_ts_ns }),
		});
	});

	const item = encodeResponseFrame({ data: { token_ids: [1] } }, "msgpack");
	const FINAL = COMPLETE_FINAL_FRAME.msgpack;
	const play = async (...frames: Buffer[]) => {
		const { port } = await worker(async ({ ack, home, subject }) => {
			ack();
			(await home()).end(Buffer.concat([encodeHandshake(subject), ...frames]));
		});
		const { sink } = send(instance(port));
		await finished(sink);
		return sink;
	};

	it("a stream that ends without complete_final is a disconnect, sentinel or not", async () => {
		expect((await play(PROLOGUE_OK_FRAME, item)).error?.errorClass).toBe("Disconnected");
		expect((await play(PROLOGUE_OK_FRAME, item, SENTINEL_FRAME)).error?.errorClass).toBe("Disconnected");
		expect((await play()).error?.errorClass).toBe("Disconnected");
	});

	it("a complete stream may lack the sentinel", async () => {
		const sink = await play(PROLOGUE_OK_FRAME, item, FINAL);
		expect(sink.error).toBeUndefined();
		expect(sink.items).toHaveLength(1);
	});

	it("an item after complete_final is an error", async () => {
		const sink = await play(PROLOGUE_OK_FRAME, FINAL, item, SENTINEL_FRAME);
		expect(sink.error?.message).toContain("response received after generation ended");
	});

	it("items that do not decode, or lack complete_final, are errors", async () => {
		const bad = encodeTwoPart(undefined, Buffer.from([0xc1]));
		expect((await play(PROLOGUE_OK_FRAME, bad)).error?.errorClass).toBe("BackendProtocol");
		const lacking = encodeTwoPart(undefined, encodeBody({ data: { data: {} } }, "msgpack"));
		expect((await play(PROLOGUE_OK_FRAME, lacking)).error?.errorClass).toBe("BackendProtocol");
		expect((await play(encodeTwoPart('"what"', undefined))).error?.errorClass).toBe("BackendProtocol");
	});

	it("an untyped error prologue counts against the worker", async () => {
		const sink = await play(encodeTwoPart('{"error":"no engine"}', undefined), SENTINEL_FRAME);
		expect(sink.error?.errorClass).toBe("WorkerUnavailable");
		expect(sink.error?.message).toContain("no engine");
	});

	it("the worker may call home, and finish, before it acknowledges", async () => {
		const { port } = await worker(async ({ ack, home, subject }) => {
			const socket = await home();
			socket.write(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME, item]));
			setTimeout(() => {
				ack();
				socket.end(Buffer.concat([FINAL, SENTINEL_FRAME]));
			}, 20);
		});
		const { sink } = send(instance(port));
		await finished(sink);
		expect(sink.error).toBeUndefined();
		expect(sink.items).toHaveLength(1);
	});

	it("any ack text but the two refusals is an acceptance", async () => {
		const { port } = await worker(async ({ ack, home, subject }) => {
			ack("queued");
			(await home()).end(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME, FINAL, SENTINEL_FRAME]));
		});
		const { sink } = send(instance(port));
		await finished(sink);
		expect(sink.error).toBeUndefined();
	});

	it("an overloaded worker is told apart from an unavailable one", async () => {
		const { port } = await worker(({ ack }) => ack("Server overloaded: worker at capacity"));
		const { sink } = send(instance(port));
		await finished(sink);
		expect(sink.error?.errorClass).toBe("WorkerOverloaded");
	});

	it("a worker that does not acknowledge fails within the deadline, others go on", async () => {
		const mute = await worker(() => {});
		const good = await worker(async ({ ack, home, subject }) => {
			ack();
			(await home()).end(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME, item, FINAL, SENTINEL_FRAME]));
		});
		const bad = send(instance(mute.port), { ackTimeoutMs: 100 });
		const fine = send(instance(good.port));
		await fine.sink.done;
		expect(fine.sink.error).toBeUndefined();
		await finished(bad.sink);
		expect(bad.sink.error?.errorClass).toBe("ConnectionTimeout");
	});

	it("a worker that acknowledges and never calls home fails within the deadline", async () => {
		const { port } = await worker(({ ack }) => ack());
		const { sink } = send(instance(port), { firstResponseTimeoutMs: 100 });
		await finished(sink);
		expect(sink.error?.errorClass).toBe("ResponseTimeout");
		client = await open(100);
		const again = send(instance(port));
		await finished(again.sink);
		// Another worker may have the request: this one never began.
		expect(again.sink.error?.errorClass).toBe("ConnectionTimeout");
		expect(again.sink.error?.message).toContain("opened no response stream within 100 ms");
	});

	it("a worker that closes the request connection without an ack is a disconnect", async () => {
		const { port } = await worker(({ requestSocket }) => void requestSocket.destroy());
		const { sink } = send(instance(port));
		await finished(sink);
		expect(sink.error?.errorClass).toBe("Disconnected");
	});

	it("a worker that closes the request connection after the ack may still call home, but not for long", async () => {
		const gone = await worker(({ ack, requestSocket }) => {
			ack();
			requestSocket.end();
		});
		const leaving = await worker(({ ack, requestSocket, home, subject }) => {
			ack();
			requestSocket.end();
			requestSocket.once("close", async () => {
				const socket = await home();
				socket.end(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME, item, FINAL, SENTINEL_FRAME]));
			});
		});
		const [lost, kept] = [gone, leaving].map(({ port }) => send(instance(port)).sink) as [
			CollectingSink,
			CollectingSink,
		];
		await Promise.all([lost.done, kept.done]);
		await finished(lost);
		expect(lost.error?.errorClass).toBe("Disconnected");
		expect([kept.error, kept.items.length]).toEqual([undefined, 1]);
	});

	it("an idle connection is closed, but not before an acknowledged request was called home for", async () => {
		client = await open(5000, 50);
		let closed: Promise<unknown> | undefined;
		const { port } = await worker(async ({ ack, requestSocket, home, subject }) => {
			ack();
			closed = new Promise((resolve) => requestSocket.once("close", resolve));
			// Longer than the client's connection may be idle.
			await new Promise((resolve) => setTimeout(resolve, 200));
			const socket = await home();
			socket.end(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME, item, FINAL, SENTINEL_FRAME]));
		});
		const { sink } = send(instance(port));
		await finished(sink);
		expect([sink.error, sink.items.length]).toEqual([undefined, 1]);
		await closed;
	});

	it("a refused connection and an unusable address cannot be connected to", async () => {
		const { server, port } = await listen(() => {});
		await new Promise((resolve) => server.close(resolve));
		for (const tcp of [`127.0.0.1:${port}/x`, "nonsense", "127.0.0.1:99999/x"]) {
			const { sink } = send({ ...instance(1), transport: { tcp } });
			await finished(sink);
			expect(sink.error?.errorClass).toBe("CannotConnect");
		}
		const { sink } = send({ ...instance(1), transport: { nats_tcp: "dynamo_backend.generate-fa" } });
		await finished(sink);
		expect(sink.error?.errorClass).toBe("CannotConnect");
	});

	it("an oversized request is refused before it is sent", async () => {
		const { port, connections } = await worker(() => {});
		const { sink } = send(instance(port), {}, { text: "x".repeat(MAX_BYTES) });
		await finished(sink);
		expect(sink.error?.errorClass).toBe("PayloadTooLarge");
		expect(sink.error?.message).toContain(String(MAX_BYTES));
		expect(connections).toHaveLength(0);
	});

	it("many requests share a connection, and acks that lag open a few more", async () => {
		const waiting: Received[] = [];
		let all: () => void = () => {};
		const arrived = new Promise<void>((resolve) => {
			all = resolve;
		});
		const { port, connections } = await worker((request) => {
			waiting.push(request);
			if (waiting.length === 100) all();
		});
		const calls = Array.from({ length: 100 }, () => send(instance(port)));
		await arrived;
		expect(connections.length).toBe(3);
		for (const { ack, home, subject } of waiting) {
			ack();
			void home().then((socket) =>
				socket.end(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME, FINAL, SENTINEL_FRAME])),
			);
		}
		for (const { sink } of calls) {
			await sink.done;
			expect(sink.error).toBeUndefined();
		}
		expect(client.inflight).toBe(0);
		send(instance(port)).call.kill();
		expect(connections.length).toBe(3);
	});

	it("kill and stop are the real client's bytes", async () => {
		const received: Promise<Buffer>[] = [];
		const { port } = await worker(async ({ ack, home, subject }) => {
			ack();
			const socket = await home();
			received.push(readAll(socket));
			socket.write(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME, item]));
			socket.on("end", () => socket.end());
		});
		for (const [action, expected] of [
			["kill", fixture("frames/control-kill-from-frontend.bin")],
			["stop", Buffer.concat([fixture("frames/control-stop.bin"), fixture("frames/control-kill-from-frontend.bin")])],
		] as const) {
			const { sink, call } = send(instance(port));
			await new Promise<void>((resolve) => {
				sink.onItem = () => resolve();
			});
			if (action === "stop") call.stop();
			call.kill();
			await finished(sink);
			expect(await received.pop()).toEqual(expected);
		}
	});

	it("a worker that calls home for a request that is over is told to drop it", async () => {
		let late: Received | undefined;
		const { port } = await worker((request) => {
			late = request;
			request.ack();
		});
		const { sink } = send(instance(port), { firstResponseTimeoutMs: 100 });
		await finished(sink);
		const socket = await (late as Received).home();
		socket.write(encodeHandshake((late as Received).subject));
		expect(await readAll(socket)).toEqual(fixture("frames/control-kill-from-frontend.bin"));
	});

	it("the response listener survives any bytes", async () => {
		let address = "";
		const { port } = await worker(({ ack, frame }) => {
			address = parseControl(splitTwoPart(frame.payload).header).address;
			ack("Server unavailable: x");
		});
		await finished(send(instance(port)).sink);
		const home = Number(address.split(":")[1]);
		const valid = Buffer.concat([encodeHandshake(randomUUID()), PROLOGUE_OK_FRAME, item, FINAL, SENTINEL_FRAME]);
		const chunk = fc.oneof(
			fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array)),
			fc.tuple(fc.nat({ max: valid.length - 1 }), fc.nat({ max: 255 })).map(([at, value]) => {
				const mutated = Buffer.from(valid);
				mutated[at] = value;
				return mutated;
			}),
		);
		await fc.assert(
			fc.asyncProperty(fc.array(chunk, { maxLength: 3 }), async (chunks) => {
				const socket = await dial(home);
				for (const one of chunks) socket.write(one);
				socket.end();
				await readAll(socket);
			}),
			{ numRuns: 60 },
		);
		expect((await play(PROLOGUE_OK_FRAME, item, FINAL, SENTINEL_FRAME)).items).toHaveLength(1);
	});

	it("a worker's stream of any bytes after the handshake fails that request only", async () => {
		await fc.assert(
			fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
				const { port } = await worker(async ({ ack, home, subject }) => {
					ack();
					(await home()).end(Buffer.concat([encodeHandshake(subject), Buffer.from(bytes)]));
				});
				const { sink } = send(instance(port));
				await finished(sink);
				expect(sink.error).toBeInstanceOf(DynamoError);
			}),
			{ numRuns: 30 },
		);
	});
});
