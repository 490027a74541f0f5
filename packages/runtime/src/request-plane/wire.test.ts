// SPDX-License-Identifier: Apache-2.0
// Both ends against recorded bytes and against peers that break the rules.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { fileURLToPath } from "node:url";
import {
	type Annotated,
	COMPLETE_FINAL_FRAME,
	type DecodedRequestFrame,
	DynamoError,
	decodeBody,
	decodeResponseFrame,
	type EndpointRecord,
	encodeAck,
	encodeBody,
	encodeHandshake,
	encodeRequestFrame,
	encodeResponseFrame,
	encodeTwoPart,
	PROLOGUE_OK_FRAME,
	parseControl,
	parseHandshake,
	parsePrologue,
	RequestFrameDecoder,
	type RequestPlaneCodec,
	SENTINEL_FRAME,
	splitTwoPart,
	TwoPartDecoder,
} from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createLogger } from "../observability/logging.js";
import type { CallHomeClient } from "./call-home-client.js";
import type { EndpointHandler, RequestOptions, ResponseSink } from "./request-plane.js";
import { openTcpClient } from "./tcp-client.js";
import { TcpRequestPlaneServer } from "./tcp-server.js";

const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });
const MAX_BYTES = 1024 * 1024;
const fixture = (name: string) => readFileSync(fileURLToPath(new URL(`../../fixtures/wire/${name}`, import.meta.url)));

const closers: (() => Promise<void> | void)[] = [];
afterEach(async () => {
	for (const close of closers.splice(0).reverse()) await close();
});

async function listen(onConnection: (socket: Socket) => void): Promise<{ server: Server; port: number }> {
	const sockets = new Set<Socket>();
	const server = createServer((socket) => {
		sockets.add(socket);
		socket.on("error", () => {});
		onConnection(socket);
	});
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	closers.push(async () => {
		for (const socket of sockets) socket.destroy();
		await new Promise((resolve) => server.close(resolve));
	});
	return { server, port: (server.address() as AddressInfo).port };
}

async function dial(port: number): Promise<Socket> {
	const socket = connect({ host: "127.0.0.1", port, noDelay: true });
	socket.on("error", () => {});
	closers.push(() => void socket.destroy());
	await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
	return socket;
}

/** Everything that comes until the other side ends. */
function readAll(socket: Socket): Promise<Buffer> {
	const chunks: Buffer[] = [];
	return new Promise((resolve) => {
		socket.on("data", (chunk) => chunks.push(chunk));
		socket.on("close", () => resolve(Buffer.concat(chunks)));
	});
}

function framesOf(stream: Buffer): { header: Buffer; body: Buffer }[] {
	const frames: { header: Buffer; body: Buffer }[] = [];
	new TwoPartDecoder().push(stream, (header, body) => frames.push({ header, body }));
	return frames;
}

function itemsOf(stream: Buffer, codec: RequestPlaneCodec): Annotated<unknown>[] {
	const items: Annotated<unknown>[] = [];
	for (const { body } of framesOf(stream)) {
		if (body.length === 0) continue;
		const frame = decodeResponseFrame<unknown>(body, codec);
		if (!frame.complete_final) items.push(frame.data);
	}
	return items;
}

describe("request listener, against recorded clients", () => {
	let server: TcpRequestPlaneServer;
	let port: number;

	beforeEach(async () => {
		server = await TcpRequestPlaneServer.listen({
			host: "127.0.0.1",
			port: 0,
			maxMessageBytes: MAX_BYTES,
			connectTimeoutMs: 5000,
			maxBufferedResponseBytes: MAX_BYTES,
			log,
		});
		const transport = server.address("x") as { tcp: string };
		port = Number(/:(\d+)\//.exec(transport.tcp)?.[1]);
		closers.push(() => server.close());
	});

	/** The recorded frame with our own listener in place of the recorded client's. */
	const redirect = (recorded: Buffer, address: string) => {
		const [frame] = new RequestFrameDecoder().push(recorded) as [DecodedRequestFrame];
		const { header, body } = splitTwoPart(frame.payload);
		const message = JSON.parse(header.toString());
		const info = JSON.parse(message.connection_info.info);
		message.connection_info.info = JSON.stringify({ ...info, address });
		const payload = encodeTwoPart(JSON.stringify(message), body);
		return { frame, body, info, bytes: encodeRequestFrame({ ...frame, payload }) };
	};
	const listenForCallHome = async () => {
		let stream: (bytes: Promise<Buffer>) => void = () => {};
		const called = new Promise<Promise<Buffer>>((resolve) => {
			stream = resolve;
		});
		const { port: homePort } = await listen((socket) => stream(readAll(socket)));
		return { address: `127.0.0.1:${homePort}`, bytes: called.then((bytes) => bytes) };
	};

	for (const [request, response, codec] of [
		["agg-chat.req1.bin", "agg-chat.resp-2-44730.bin", "msgpack"],
		["client-tcp.request.bin", "client-tcp.response.bin", "msgpack"],
		["client-tcp-json.request.bin", "client-tcp-json.response.bin", "json"],
		["disagg-bootstrap.req1.bin", "disagg-bootstrap.resp-2-53816.bin", "msgpack"],
	] as const) {
		it(`${request}: taken, and answered with the bytes of the real worker`, async () => {
			const home = await listenForCallHome();
			const { frame, body, info, bytes } = redirect(fixture(request), home.address);
			const seen: unknown[] = [];
			server.register(frame.path, (incoming, writer) => {
				seen.push(incoming.payload);
				expect(incoming.codec).toBe(codec);
				expect(incoming.headers).toEqual(frame.headers);
				expect(incoming.id).toBe(info.context);
				for (const item of itemsOf(fixture(response), codec)) writer.send(item);
				writer.end();
			});
			const socket = await dial(port);
			const ack = new Promise<Buffer>((resolve) => socket.once("data", resolve));
			socket.write(bytes);
			expect(await ack).toEqual(fixture("frames/ack-ok.bin"));
			expect(await home.bytes).toEqual(
				Buffer.concat([
					encodeHandshake(info.subject),
					...framesOf(fixture(response))
						.slice(1)
						.map(({ header, body }) => encodeTwoPart(header, body)),
				]),
			);
			expect(seen).toEqual([decodeBody(body, codec)]);
		});
	}

	it("takes a request byte by byte", async () => {
		const home = await listenForCallHome();
		const { frame, bytes } = redirect(fixture("client-tcp.request.bin"), home.address);
		server.register(frame.path, (_request, writer) => writer.end());
		const socket = await dial(port);
		for (const byte of bytes) {
			socket.write(Buffer.from([byte]));
			await new Promise((resolve) => setImmediate(resolve));
		}
		expect(
			framesOf(await home.bytes)
				.at(-1)
				?.header.toString(),
		).toBe('"sentinel"');
	});

	it("answers an unknown endpoint as the real one does, and goes on", async () => {
		const { frame, bytes } = redirect(fixture("client-tcp.request.bin"), "127.0.0.1:1");
		const socket = await dial(port);
		socket.end(Buffer.concat([bytes, bytes]));
		const refusal = encodeAck(`Server unavailable: unknown endpoint ${frame.path}`);
		expect(await readAll(socket)).toEqual(Buffer.concat([refusal, refusal]));
		const recorded = fixture("frames/ack-unavailable.bin").subarray(4).toString();
		expect(recorded.startsWith("Server unavailable: unknown endpoint ")).toBe(true);
	});

	it("refuses an oversized message with the real one's text and closes", async () => {
		const socket = await dial(port);
		const head = Buffer.alloc(2 + 1 + 2 + 2 + 4);
		head.writeUInt16BE(1, 0);
		head.write("x", 2);
		head.writeUInt16BE(2, 3);
		head.write("{}", 5);
		head.writeUInt32BE(40_000_000, 7);
		socket.write(head);
		const text = `Read error: message too large: ${40_000_000 + 11} bytes (max: ${MAX_BYTES} bytes)`;
		expect(await readAll(socket)).toEqual(encodeAck(text));
	});

	const refused = async (change: (parts: { control: Record<string, unknown>; body: Buffer }) => Buffer) => {
		const home = await listenForCallHome();
		const { frame, body, bytes } = redirect(fixture("client-tcp.request.bin"), home.address);
		const invalid: string[] = [];
		let open = 0;
		const handler: EndpointHandler = () => expect.unreachable("the handler must not see it");
		const registration = server.register(frame.path, handler, {
			onInvalid: (kind) => invalid.push(kind),
			onRequest: () => {
				open++;
				const ignore = () => {};
				return {
					onPrologue: ignore,
					onResponseBytes: ignore,
					onError: ignore,
					onCancel: ignore,
					onClose: () => open--,
				};
			},
		});
		const [redirected] = new RequestFrameDecoder().push(bytes) as [DecodedRequestFrame];
		const control = JSON.parse(splitTwoPart(redirected.payload).header.toString());
		const payload = change({ control, body });
		const socket = await dial(port);
		const ack = new Promise<Buffer>((resolve) => socket.once("data", resolve));
		socket.write(encodeRequestFrame({ path: frame.path, headers: {}, payload }));
		expect(await ack).toEqual(encodeAck());
		const frames = framesOf(await home.bytes);
		expect(await registration.drained(10_000)).toBe(true);
		expect(open).toBe(0);
		expect(frames).toHaveLength(3);
		expect(frames[2]?.header.toString()).toBe('"sentinel"');
		return { prologue: parsePrologue(frames[1]?.header as Buffer), invalid };
	};

	it("dials back with an error prologue when the body cannot be decoded", async () => {
		const { prologue, invalid } = await refused(({ control }) =>
			encodeTwoPart(JSON.stringify(control), Buffer.from([0xc1, 0xc1])),
		);
		expect(prologue.error).toContain("cannot be decoded as msgpack");
		expect(prologue.typedError?.error_type).toBe("InvalidArgument");
		expect(invalid).toEqual(["deserialization"]);
	});

	it("dials back with an error prologue when there is no body", async () => {
		const empty = await refused(({ control }) => encodeTwoPart(JSON.stringify(control), undefined));
		expect(empty.prologue.error).toContain("no body");
		expect(empty.invalid).toEqual(["invalid_message"]);
	});

	it("dials back with an error prologue when context is not the id", async () => {
		const { prologue } = await refused(({ control, body }) =>
			encodeTwoPart(JSON.stringify({ ...control, id: "another" }), body),
		);
		expect(prologue.error).toContain("is not the id another");
	});

	it("drops a message whose control cannot be read, and goes on", async () => {
		const home = await listenForCallHome();
		const { frame, bytes } = redirect(fixture("client-tcp.request.bin"), home.address);
		const invalid: string[] = [];
		server.register(frame.path, (_request, writer) => writer.end(), {
			onInvalid: (kind) => invalid.push(kind),
			onRequest: () => {
				const ignore = () => {};
				return { onPrologue: ignore, onResponseBytes: ignore, onError: ignore, onCancel: ignore, onClose: ignore };
			},
		});
		const socket = await dial(port);
		const bad = [
			Buffer.alloc(0),
			Buffer.alloc(24),
			encodeTwoPart("{}", Buffer.from("x")),
			encodeTwoPart("[", undefined),
		];
		for (const payload of bad) socket.write(encodeRequestFrame({ path: frame.path, headers: {}, payload }));
		socket.write(bytes);
		await home.bytes;
		expect(invalid).toEqual(["invalid_message", "invalid_message", "invalid_message", "invalid_message"]);
	});

	it("tells the handler when nobody listens at the response address", async () => {
		const { server: closed, port: homePort } = await listen(() => {});
		await new Promise((resolve) => closed.close(resolve));
		const { frame, bytes } = redirect(fixture("client-tcp.request.bin"), `127.0.0.1:${homePort}`);
		const cancelled = new Promise((resolve) => {
			server.register(frame.path, (request) => request.onCancel(resolve));
		});
		(await dial(port)).write(bytes);
		expect(await cancelled).toBe("disconnect");
	});

	it("an item that cannot be encoded ends the stream with an error", async () => {
		const home = await listenForCallHome();
		const { frame, bytes } = redirect(fixture("client-tcp-json.request.bin"), home.address);
		const cyclic: Record<string, unknown> = {};
		cyclic.self = cyclic;
		server.register(frame.path, (_request, writer) => writer.send({ data: cyclic }));
		(await dial(port)).write(bytes);
		const items = itemsOf(await home.bytes, "json");
		expect(items).toHaveLength(1);
		expect(items[0]?.event).toBe("error");
	});

	it("survives any bytes", async () => {
		const { frame, bytes } = redirect(fixture("client-tcp.request.bin"), "127.0.0.1:1");
		server.register(frame.path, (_request, writer) => writer.end());
		const chunk = fc.oneof(
			fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array)),
			fc.tuple(fc.nat({ max: bytes.length - 1 }), fc.nat({ max: 255 })).map(([at, value]) => {
				const mutated = Buffer.from(bytes);
				mutated[at] = value;
				return mutated;
			}),
		);
		await fc.assert(
			fc.asyncProperty(fc.array(chunk, { maxLength: 4 }), async (chunks) => {
				const socket = await dial(port);
				for (const one of chunks) socket.write(one);
				socket.end();
				await readAll(socket);
			}),
			{ numRuns: 60 },
		);
		const socket = await dial(port);
		const ack = new Promise<Buffer>((resolve) => socket.once("data", resolve));
		socket.write(encodeRequestFrame({ path: "nowhere", headers: {}, payload: Buffer.alloc(0) }));
		expect((await ack).subarray(4).toString()).toBe("Server unavailable: unknown endpoint nowhere");
	});
});

/** Collects what a request delivers. */
class Sink implements ResponseSink {
	readonly items: Annotated<unknown>[] = [];
	error: DynamoError | undefined;
	ends = 0;
	readonly done: Promise<void>;
	#resolve: () => void = () => {};
	constructor() {
		this.done = new Promise((resolve) => {
			this.#resolve = resolve;
		});
	}
	onItem(item: Annotated<unknown>): void {
		this.items.push(item);
	}
	onEnd(): void {
		this.ends++;
		this.#resolve();
	}
	onError(error: DynamoError): void {
		this.ends++;
		this.error = error;
		this.#resolve();
	}
}

describe("client, against recorded and wicked workers", () => {
	let client: CallHomeClient;

	const open = async (callHomeTimeoutMs: number) => {
		const opened = await openTcpClient({
			responseHost: "127.0.0.1",
			responsePort: 0,
			connectTimeoutMs: 5000,
			ackTimeoutMs: 5000,
			callHomeTimeoutMs,
			firstResponseTimeoutMs: 10_000,
			idleTimeoutMs: 10_000,
			poolSize: 3,
			poolIdleMs: 60_000,
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
		const sink = new Sink();
		const call = client.send(record, { id: randomUUID(), payload, headers: { "x-request-id": "r" } }, sink, options);
		return { sink, call };
	};
	/** A recorded stream under our subject: the ids have the same length. */
	const asOurs = (stream: Buffer, subject: string) => {
		const recorded = parseHandshake(framesOf(stream)[0]?.header as Buffer).subject;
		return Buffer.from(stream.toString("latin1").replace(recorded, subject), "latin1");
	};
	const finished = async (sink: Sink) => {
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
		const sink = new Sink();
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
