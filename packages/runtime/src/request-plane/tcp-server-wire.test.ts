// SPDX-License-Identifier: Apache-2.0
// The request listener against recorded bytes and against clients that break the rules.
import {
	type DecodedRequestFrame,
	decodeBody,
	encodeAck,
	encodeHandshake,
	encodeRequestFrame,
	encodeTwoPart,
	parsePrologue,
	RequestFrameDecoder,
	splitTwoPart,
} from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { EndpointHandler } from "./request-plane.js";
import { TcpRequestPlaneServer } from "./tcp-server.js";
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
					onFail: ignore,
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
				return {
					onPrologue: ignore,
					onResponseBytes: ignore,
					onError: ignore,
					onFail: ignore,
					onCancel: ignore,
					onClose: ignore,
				};
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
