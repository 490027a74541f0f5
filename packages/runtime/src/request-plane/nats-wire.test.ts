// SPDX-License-Identifier: Apache-2.0
// Both ends of the NATS request plane against recorded messages, against peers that break the rules, and against a
// NATS server that goes and comes back.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { type AddressInfo, createServer, connect as dialTcp } from "node:net";
import { fileURLToPath } from "node:url";
import {
	type Annotated,
	COMPLETE_FINAL_FRAME,
	decodeBody,
	decodeResponseFrame,
	type EndpointRecord,
	encodeHandshake,
	encodeResponseFrame,
	encodeTwoPart,
	PROLOGUE_OK_FRAME,
	parseControl,
	SENTINEL_FRAME,
	splitTwoPart,
	TwoPartDecoder,
} from "@dynamo-ts/protocols/internal";
import { CollectingSink, findNatsServer, NatsServer, titled, until } from "@dynamo-ts/testing/internal";
import fc from "fast-check";
import { connect, headers, type Msg, type NatsConnection as RawConnection } from "nats";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { runtimeConfigFromEnv } from "../config.js";
import { NatsConnection } from "../net/nats-connection.js";
import { createLogger } from "../observability/logging.js";
import { CallHomeClient } from "./call-home-client.js";
import { NatsCarrier } from "./nats-carrier.js";
import { NatsRequestPlaneServer } from "./nats-server.js";
import type { RequestOptions } from "./request-plane.js";

const program = findNatsServer();
const missing = program.missing;
const fixture = (name: string) => readFileSync(fileURLToPath(new URL(`../../fixtures/wire/${name}`, import.meta.url)));

interface RecordedMessage {
	readonly subject: string;
	readonly reply: string;
	readonly headers: string;
	readonly payload_hex: string;
}
const recorded: RecordedMessage[] = fixture("nats-messages-agg.jsonl")
	.toString()
	.trim()
	.split("\n")
	.map((line) => JSON.parse(line));

/** `250a207851e1b54/dynamo/backend/generate`, under which the recorded worker was known. */
const PATH = "250a207851e1b54/dynamo/backend/generate";
const SUBJECT = "dynamo_backend.generate-250a207851e1b54";

const lines: string[] = [];
const log = createLogger({ filter: "info", format: "readable", ansi: false, localTime: false }, "test", (line) => {
	lines.push(line);
});

describe.skipIf(missing)(titled("requests over NATS", missing), () => {
	const closers: (() => Promise<unknown> | unknown)[] = [];
	let nats: NatsServer;
	beforeEach(async () => {
		lines.length = 0;
		await startNats();
	});
	afterEach(async () => {
		for (const close of closers.splice(0).reverse()) await close();
	});

	const startNats = async (config?: string) => {
		nats = await NatsServer.start({ jetStream: false, ...(config === undefined ? {} : { config }) });
		const started = nats;
		closers.push(() => started.stop());
	};
	const ourConnection = async (): Promise<NatsConnection> => {
		const connection = await NatsConnection.open(runtimeConfigFromEnv({ NATS_SERVER: nats.url }).nats, log);
		closers.push(() => connection.close());
		return connection;
	};
	/** A peer that is not ours. */
	const bareConnection = async (): Promise<RawConnection> => {
		const connection = await connect({ servers: nats.url, maxReconnectAttempts: -1, reconnectTimeWait: 50 });
		closers.push(() => connection.close());
		return connection;
	};
	const openServer = async (): Promise<NatsRequestPlaneServer> => {
		const server = new NatsRequestPlaneServer({
			connection: await ourConnection(),
			connectTimeoutMs: 5000,
			maxBufferedResponseBytes: 1 << 20,
			log,
		});
		closers.push(() => server.close());
		return server;
	};
	interface OpenClient {
		readonly carrier: NatsCarrier;
		readonly connection: NatsConnection;
		send(payload: unknown, options?: RequestOptions, path?: string): CollectingSink;
	}
	const openClient = async (ackTimeoutMs = 10_000): Promise<OpenClient> => {
		const connection = await ourConnection();
		const carrier = await NatsCarrier.open({ connection, ackTimeoutMs, log });
		const client = await CallHomeClient.open(
			{
				responseHost: "127.0.0.1",
				responsePort: 0,
				callHomeTimeoutMs: 15_000,
				firstResponseTimeoutMs: 20_000,
				idleTimeoutMs: 20_000,
				maxMessageBytes: 1 << 20,
				log,
			},
			carrier,
		);
		closers.push(() => client.close());
		return {
			carrier,
			connection,
			send: (payload, options, subject = SUBJECT) => {
				const sink = new CollectingSink();
				client.send(instance(subject), { id: randomUUID(), payload }, sink, options);
				return sink;
			},
		};
	};
	const instance = (subject: string): EndpointRecord => ({
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: 0x250a207851e1b54n,
		transport: { nats_tcp: subject },
		request_plane_codec: "msgpack",
	});
	/** A listener for one response stream; resolves with all its bytes. */
	const listenForCallHome = async () => {
		let resolve: (bytes: Buffer) => void = () => {};
		const bytes = new Promise<Buffer>((done) => {
			resolve = done;
		});
		const server = createServer((socket) => {
			const chunks: Buffer[] = [];
			socket.on("data", (chunk) => chunks.push(chunk));
			socket.on("close", () => resolve(Buffer.concat(chunks)));
		});
		await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
		closers.push(() => server.close());
		return { address: `127.0.0.1:${(server.address() as AddressInfo).port}`, bytes };
	};
	/** The recorded payload with another response address. */
	const redirected = (payload: Buffer, address: string): Buffer => {
		const { header, body } = splitTwoPart(payload);
		const control = JSON.parse(header.toString());
		const info = JSON.parse(control.connection_info.info);
		control.connection_info.info = JSON.stringify({ ...info, address });
		return encodeTwoPart(JSON.stringify(control), body);
	};
	const homeOf = (message: Msg) => parseControl(splitTwoPart(Buffer.from(message.data)).header);
	/** Dials home and answers a request as a worker would. */
	const answer = (message: Msg, ...frames: Buffer[]): Promise<Buffer> => {
		const { address, subject } = homeOf(message);
		const socket = dialTcp(Number(address.split(":")[1]), "127.0.0.1");
		socket.on("error", () => {});
		closers.push(() => void socket.destroy());
		socket.write(Buffer.concat([encodeHandshake(subject), ...frames]));
		const chunks: Buffer[] = [];
		return new Promise((resolve) => {
			socket.on("data", (chunk) => chunks.push(chunk));
			socket.on("close", () => resolve(Buffer.concat(chunks)));
		});
	};
	const item = encodeResponseFrame({ data: { token_ids: [1] } }, "msgpack");
	const whole = [PROLOGUE_OK_FRAME, item, COMPLETE_FINAL_FRAME.msgpack, SENTINEL_FRAME];

	describe("golden messages", () => {
		it("the worker listens where the recorded one did, in its queue group, and answers with its bytes", async () => {
			const home = await listenForCallHome();
			const server = await openServer();
			expect(server.address(PATH)).toEqual({ nats_tcp: SUBJECT });
			const stream = new TwoPartDecoder();
			const items: Annotated<unknown>[] = [];
			stream.push(fixture("client-nats.response.bin"), (_header, body) => {
				if (body.length === 0) return;
				const frame = decodeResponseFrame<unknown>(body, "msgpack");
				if (!frame.complete_final) items.push(frame.data);
			});
			let seen: unknown;
			const registration = server.register(PATH, (request, response) => {
				seen = request.payload;
				for (const one of items) response.send(one);
				response.end();
			});
			await registration.ready();
			const peer = await bareConnection();
			const payload = redirected(fixture("client-nats.request.bin"), home.address);
			const ack = await peer.request(SUBJECT, payload, { timeout: 5000 });
			expect(ack.data).toHaveLength(0);
			const bytes = await home.bytes;
			expect(bytes.toString("hex")).toBe(fixture("client-nats.response.bin").toString("hex"));
			expect(seen).toEqual(decodeBody(splitTwoPart(payload).body, "msgpack"));
		});

		it("an instance that shares the queue group takes a part of the requests, none is taken twice", async () => {
			const server = await openServer();
			let ours = 0;
			await server
				.register(PATH, (_request, response) => {
					ours++;
					response.end();
				})
				.ready();
			const peer = await bareConnection();
			let theirs = 0;
			peer.subscribe(SUBJECT, {
				queue: "q",
				callback: (_error, message) => {
					theirs++;
					message.respond();
				},
			});
			await peer.flush();
			for (let i = 0; i < 40; i++) {
				await peer.request(SUBJECT, redirected(fixture("client-nats.request.bin"), "127.0.0.1:9"), { timeout: 5000 });
			}
			expect(ours + theirs).toBe(40);
			expect(Math.min(ours, theirs)).toBeGreaterThan(0);
		});

		it("the client sends what the recorded frontend sent", async () => {
			const frontend = recorded[0] as RecordedMessage;
			const parts = splitTwoPart(Buffer.from(frontend.payload_hex, "hex"));
			const control = JSON.parse(parts.header.toString());
			const names = [...frontend.headers.matchAll(/^([a-z-]+): (.*)\r$/gm)].map(([, name, value]) => [name, value]);
			const texts = Object.fromEntries(names);
			const peer = await bareConnection();
			const got: Msg[] = [];
			peer.subscribe(">", { callback: (_error, message) => got.push(message) });
			peer.subscribe(SUBJECT, {
				queue: "q",
				callback: (_error, message) => message.respond(Buffer.from("Server unavailable: no")),
			});
			await peer.flush();
			const { carrier } = await openClient();
			const message = Buffer.from(frontend.payload_hex, "hex");
			const acks: string[] = [];
			carrier.send(instance(frontend.subject), { id: control.id, payload: undefined, headers: texts }, message, {
				onAck: (text) => acks.push(text) === 0,
				onConnectionLost: (error) => acks.push(error.message),
			});
			await until("the ack", () => acks.length === 1);
			expect(acks).toEqual(["Server unavailable: no"]);
			const [request] = got as [Msg];
			expect(request.subject).toBe(frontend.subject);
			expect(request.reply).toMatch(/^_INBOX\.[^.]+\.[^.]+$/);
			expect(Buffer.from(request.data).toString("hex")).toBe(frontend.payload_hex);
			const sent = [...(request.headers ?? [])].map(([name, [value]]) => [name, value]);
			expect(Object.fromEntries(sent)).toEqual(texts);
		});
	});

	describe("failures", () => {
		it("nobody listens: cannot connect, at once", async () => {
			const client = await openClient(60_000);
			const sink = client.send({});
			await sink.done;
			expect(sink.error?.errorClass).toBe("CannotConnect");
			expect(sink.error?.message).toContain("no responders");
			expect(client.carrier.unacked).toBe(0);
		});

		it("a worker that says nothing: connection timeout at the deadline, others go on", async () => {
			const peer = await bareConnection();
			peer.subscribe("mute.x", { queue: "q", callback: () => {} });
			await peer.flush();
			const server = await openServer();
			await server.register(PATH, (_request, response) => response.end()).ready();
			const client = await openClient();
			const bad = client.send({}, { ackTimeoutMs: 150 }, "mute.x");
			const good = client.send({});
			await Promise.all([bad.done, good.done]);
			expect(good.error).toBeUndefined();
			expect(bad.error?.errorClass).toBe("ConnectionTimeout");
			expect(client.carrier.unacked).toBe(0);
		});

		it.each([
			["Server overloaded: worker at capacity", "WorkerOverloaded"],
			["Server unavailable: unknown endpoint", "WorkerUnavailable"],
		])("the ack %j fails the request as %s", async (text, errorClass) => {
			const peer = await bareConnection();
			peer.subscribe(SUBJECT, { queue: "q", callback: (_error, message) => message.respond(Buffer.from(text)) });
			await peer.flush();
			const sink = (await openClient()).send({});
			await sink.done;
			expect(sink.error?.errorClass).toBe(errorClass);
		});

		it("an address of another plane, or none at all, cannot be connected to, with advice", async () => {
			const client = await openClient();
			for (const subject of ["", "a b", "a.*", "x>", "a..b"]) {
				const sink = client.send({}, {}, subject);
				await sink.done;
				expect(sink.error?.errorClass).toBe("CannotConnect");
			}
			const record = { ...instance(""), transport: { tcp: "127.0.0.1:1/x/dynamo/backend/generate" } };
			const waiter = { onAck: () => false, onConnectionLost() {} };
			expect(() => client.carrier.send(record, { id: "x", payload: {} }, Buffer.alloc(0), waiter)).toThrow(
				/takes requests over TCP: set DYN_REQUEST_PLANE alike/,
			);
		});

		it("two endpoints whose names become one subject are not served together", async () => {
			const server = await openServer();
			server.register("1/a_b/c/generate", () => {});
			expect(() => server.register("1/a/b_c/generate", () => {})).toThrow(/served already/);
		});

		it("a request beyond max_payload is refused with both numbers and what to change", async () => {
			await nats.stop();
			await startNats("max_payload: 65536");
			const server = await openServer();
			await server.register(PATH, (_request, response) => response.end()).ready();
			const client = await openClient();
			const large = client.send({ text: "x".repeat(200_000) });
			const fits = client.send({ text: "x".repeat(60_000) });
			await Promise.all([large.done, fits.done]);
			expect(fits.error).toBeUndefined();
			expect(large.error?.errorClass).toBe("PayloadTooLarge");
			expect(large.error?.publicMessage).toMatch(/200\d{3} bytes.*65536.*max_payload.*DYN_REQUEST_PLANE=tcp/);
			expect(client.connection.up).toBe(true);
		});
	});

	describe("NATS goes and comes back", () => {
		it("streams go on, new requests wait and are served after the return", async () => {
			const server = await openServer();
			const ends: (() => void)[] = [];
			await server
				.register(PATH, (request, response) => {
					response.send({ data: { token_ids: [1] } });
					if ((request.payload as { hold?: boolean }).hold !== true) response.end();
					else {
						ends.push(() => {
							response.send({ data: { token_ids: [2] } });
							response.end();
						});
					}
				})
				.ready();
			const client = await openClient();
			const old = client.send({ hold: true });
			await until("the stream stands", () => old.items.length === 1);
			await nats.kill();
			await until("the client knows", () => !client.connection.up);
			const waiting = Array.from({ length: 20 }, () => client.send({}));
			for (const end of ends) end();
			await old.done;
			expect(old.error).toBeUndefined();
			expect(old.items).toHaveLength(2);
			expect(waiting.every((sink) => sink.ends === 0)).toBe(true);
			await nats.restart();
			for (const sink of waiting) {
				await sink.done;
				expect(sink.error).toBeUndefined();
			}
			expect(client.carrier.unacked).toBe(0);
		});

		it("stays away: the request fails in time, and nothing is wrong with the worker", async () => {
			const server = await openServer();
			await server.register(PATH, (_request, response) => response.end()).ready();
			const client = await openClient(200);
			await nats.kill();
			await until("the client knows", () => !client.connection.up);
			const sink = client.send({});
			await sink.done;
			expect(sink.error?.errorClass).toBe("Unavailable");
			expect(sink.error?.local).toBe(true);
			expect(sink.error?.message).toContain("is away");
			expect(client.carrier.unacked).toBe(0);
			await nats.restart();
			await client.connection.flushed();
			const again = client.send({}, { ackTimeoutMs: 10_000 });
			await again.done;
			expect(again.error).toBeUndefined();
		});

		it("what was lost on its way is sent again, and a worker that got it twice drops the second one", async () => {
			const peer = await bareConnection();
			const got: Msg[] = [];
			peer.subscribe(SUBJECT, { queue: "q", callback: (_error, message) => got.push(message) });
			await peer.flush();
			const client = await openClient(20_000);
			const sink = client.send({});
			await until("the first copy", () => got.length === 1);
			await nats.kill();
			await until("the client knows", () => !client.connection.up);
			await nats.restart();
			await until("the second copy", () => got.length === 2);
			expect(Buffer.from((got[1] as Msg).data)).toEqual(Buffer.from((got[0] as Msg).data));
			void answer(got[1] as Msg, ...whole);
			await sink.done;
			expect(sink.error).toBeUndefined();
			expect(sink.items).toHaveLength(1);
			expect(await answer(got[0] as Msg)).toEqual(fixture("frames/control-kill-from-frontend.bin"));
			expect(client.carrier.unacked).toBe(0);
		});

		it("a worker that comes back after its clients is waited for", async () => {
			const client = await openClient(20_000);
			await nats.kill();
			await until("the client knows", () => !client.connection.up);
			const sink = client.send({});
			await nats.restart();
			await client.connection.flushed();
			const server = await openServer();
			await server.register(PATH, (_request, response) => response.end()).ready();
			await sink.done;
			expect(sink.error).toBeUndefined();
		});
	});

	it("survives any messages, tells a few of them in the log, and serves on", async () => {
		const server = await openServer();
		const registration = server.register(PATH, (_request, response) => response.end());
		await registration.ready();
		const peer = await bareConnection();
		const valid = redirected(fixture("client-nats.request.bin"), "127.0.0.1:9");
		const inbox = "_INBOX.fuzz.x";
		const payload = fc.oneof(
			fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array)),
			fc.nat({ max: valid.length }).map((length) => valid.subarray(0, length)),
			fc.tuple(fc.nat({ max: valid.length - 1 }), fc.nat({ max: 255 })).map(([at, value]) => {
				const mutated = Buffer.from(valid);
				mutated[at] = value;
				return mutated;
			}),
			fc.json().map((text) => encodeTwoPart(text, Buffer.from(text))),
			fc.constant(Buffer.concat([Buffer.alloc(7), Buffer.from([0xff]), Buffer.alloc(100, 0xff)])),
		);
		await fc.assert(
			fc.asyncProperty(fc.array(fc.tuple(payload, fc.boolean()), { maxLength: 20 }), async (messages) => {
				for (const [bytes, extras] of messages) {
					const odd = headers();
					odd.set("x-odd", "\u0001");
					peer.publish(SUBJECT, bytes, extras ? { reply: inbox, headers: odd } : {});
				}
				await peer.flush();
			}),
			{ numRuns: 40 },
		);
		const client = await openClient();
		const sink = client.send({});
		await sink.done;
		expect(sink.error).toBeUndefined();
		await until("nothing is under way", () => registration.inflight === 0);
		const dropped = lines.filter((line) => line.includes("request dropped"));
		expect(dropped.length).toBeGreaterThan(0);
		expect(dropped.length).toBeLessThan(40);
	});

	it("the inbox for acknowledgements survives any messages", async () => {
		const peer = await bareConnection();
		let reply = "";
		peer.subscribe("quiet.x", { queue: "q", callback: (_error, message) => (reply = message.reply ?? "") });
		await peer.flush();
		const client = await openClient();
		const held = client.send({}, { ackTimeoutMs: 60_000 }, "quiet.x");
		await until("the inbox is known", () => reply !== "");
		const prefix = reply.slice(0, reply.lastIndexOf("."));
		await fc.assert(
			fc.asyncProperty(
				fc.stringMatching(/^[a-z0-9]{1,8}$/),
				fc.uint8Array({ maxLength: 100 }),
				async (token, bytes) => {
					fc.pre(`${prefix}.${token}` !== reply);
					peer.publish(`${prefix}.${token}`, bytes);
					await peer.flush();
				},
			),
			{ numRuns: 50 },
		);
		expect(held.ends).toBe(0);
		peer.publish(reply, Buffer.from([0xff, 0xfe, 0x00]));
		await until("an odd text counts as acceptance", () => client.carrier.unacked === 0);
		expect(held.ends).toBe(0);
	});
});
