// SPDX-License-Identifier: Apache-2.0
// A worker process before frontends that break every rule: it lives, drops their work, and serves the others.
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import {
	AckDecoder,
	type EndpointRecord,
	encodeBody,
	encodeControl,
	encodeRequestFrame,
	encodeTwoPart,
	KILL_FRAME,
	STOP_FRAME,
	splitTcpAddress,
	TwoPartDecoder,
} from "@dynamo-ts/protocols/internal";
import { createLogger, FileDiscovery } from "@dynamo-ts/runtime/internal";
import {
	Fleet,
	type HttpChild,
	LEAK_PROBE_ENV,
	LeakCheck,
	runStreamLoad,
	scrape,
	testModel,
	titled,
	until,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const modelPath = hf.path;
const MODEL = "mock";
const BUFFER_BYTES = 1024 * 1024;

describe.skipIf(missing)(titled("a frontend that", missing), () => {
	const fleet = new Fleet(LEAK_PROBE_ENV);
	const sockets = new Set<Socket>();
	let leaks: LeakCheck;
	let worker: WorkerChild;
	let frontend: HttpChild;
	let target: { host: string; port: number; path: string };
	let home: Server;
	let homeAddress: string;
	/** Plays the frontend's response server. */
	let onCallHome: (socket: Socket) => void = (socket) => socket.resume();

	const keep = (socket: Socket): Socket => {
		sockets.add(socket);
		socket.on("error", () => {});
		socket.on("close", () => sockets.delete(socket));
		return socket;
	};
	const dial = async (): Promise<Socket> => {
		const socket = keep(connect({ host: target.host, port: target.port, noDelay: true }));
		await once(socket, "connect");
		return socket;
	};
	const payload = (maxTokens: number) => ({
		model: MODEL,
		token_ids: [1, 2, 3],
		stop_conditions: { max_tokens: maxTokens, ignore_eos: true },
		sampling_options: {},
		output_options: {},
		eos_token_ids: [],
		annotations: [],
		routing: {},
	});
	const frame = (address: string, maxTokens = 1_000_000): Buffer => {
		const control = encodeControl({ id: randomUUID(), codec: "msgpack", address, subject: randomUUID() });
		const body = encodeBody(payload(maxTokens), "msgpack");
		return encodeRequestFrame({ path: target.path, headers: {}, payload: encodeTwoPart(control, body) });
	};
	/** Sends one request and waits for its ack. */
	const ask = async (maxTokens?: number): Promise<Socket> => {
		const socket = await dial();
		socket.write(frame(homeAddress, maxTokens));
		const [chunk] = (await once(socket, "data")) as [Buffer];
		expect(new AckDecoder().push(chunk)).toEqual([""]);
		return socket;
	};
	const rss = async (of: WorkerChild) => (await scrape(of.system)).sum("process_resident_memory_bytes");
	const addressOf = async (component: string) => {
		const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });
		const discovery = await FileDiscovery.open({ root: fleet.folder, log });
		const records = (await discovery.list("v1/instances")) as EndpointRecord[];
		await discovery.close();
		const record = records.find((candidate) => candidate.component === component) as EndpointRecord;
		return splitTcpAddress((record.transport as { tcp: string }).tcp) as typeof target;
	};

	beforeAll(async () => {
		worker = await fleet.mocker(modelPath, MODEL, ["--max-num-seqs", "4096"], {
			DYN_TCP_CONNECT_TIMEOUT: "1",
			DYN_TCP_RESPONSE_BUFFER_SIZE: String(BUFFER_BYTES),
		});
		frontend = await fleet.frontend(MODEL);
		target = await addressOf("backend");
		home = createServer((socket) => onCallHome(keep(socket)));
		home.listen(0, "127.0.0.1");
		await once(home, "listening");
		homeAddress = `127.0.0.1:${(home.address() as AddressInfo).port}`;
		leaks = await LeakCheck.begin([{ name: "worker", child: worker.child, url: worker.system }]);
	});
	afterEach(async () => {
		// Whatever was done to it, it has dropped that work and serves the others.
		await runStreamLoad({
			url: frontend.url,
			model: MODEL,
			streams: 4,
			concurrency: 4,
			maxTokens: 8,
			randomTokens: true,
		});
		await untilWorkerIdle(worker);
		for (const socket of sockets) socket.destroy();
		onCallHome = (socket) => socket.resume();
	});
	afterAll(async () => {
		home?.close();
		await leaks.end();
		expect(worker.child.output).not.toMatch(/\n\s+at /);
		worker.child.kill("SIGTERM");
		expect((await worker.child.exited).code).toBe(0);
		await fleet.stop();
	});

	test.each<readonly [string, () => Buffer]>([
		["random bytes", () => randomBytes(100_000)],
		["zeros", () => Buffer.alloc(100_000)],
		["0xff", () => Buffer.alloc(100_000, 0xff)],
		["an HTTP request", () => Buffer.from("GET / HTTP/1.1\r\nhost: x\r\n\r\n")],
		["half a frame", () => frame(homeAddress).subarray(0, 60)],
		[
			"a frame with a payload of 4 GB",
			() => Buffer.concat([frame(homeAddress).subarray(0, 40), Buffer.alloc(200, 0xff)]),
		],
		[
			"a frame whose payload is no message",
			() => encodeRequestFrame({ path: target.path, headers: {}, payload: randomBytes(64) }),
		],
		["an empty payload", () => encodeRequestFrame({ path: target.path, headers: {}, payload: Buffer.alloc(0) })],
	])("sends %s", async (_name, bytes) => {
		const socket = await dial();
		socket.resume();
		socket.end(bytes());
		await once(socket, "close");
	});

	test("connects 300 times and says nothing", async () => {
		const idle = await Promise.all(Array.from({ length: 300 }, dial));
		expect(idle.every((socket) => !socket.destroyed)).toBe(true);
	});

	test("names a response address where nobody listens, or that is none", async () => {
		const socket = await dial();
		const decoder = new AckDecoder();
		const acks: string[] = [];
		socket.on("data", (chunk) => acks.push(...decoder.push(chunk)));
		socket.write(
			Buffer.concat([frame("127.0.0.1:1"), frame("192.0.2.1:9"), frame("nowhere"), frame("256.1.1.1:99999")]),
		);
		await until("all are acknowledged", () => acks.length === 4);
		expect(acks).toEqual(["", "", "", ""]);
	});

	test("sends requests and never reads the acks", async () => {
		const socket = await dial();
		socket.pause();
		const unknown = encodeRequestFrame({ path: "x".repeat(1000), headers: {}, payload: Buffer.alloc(0) });
		const many = Buffer.concat(Array.from({ length: 1000 }, () => unknown));
		// Its acks pile up, so the worker hangs up.
		const closed = new Promise((resolve) => socket.on("close", resolve));
		const pump = (): void => {
			while (!socket.destroyed && socket.write(many));
			if (!socket.destroyed) socket.once("drain", pump);
		};
		pump();
		await closed;
	});

	test("never reads its response streams: each is cut off when too much waits", async () => {
		const component = ["--endpoint", "dyn://dynamo.fast.generate"];
		const fast = await fleet.mocker(modelPath, "fast", ["--speedup-ratio", "0", ...component], {
			DYN_TCP_RESPONSE_BUFFER_SIZE: String(BUFFER_BYTES),
		});
		const paced = target;
		target = await addressOf("fast");
		let called = 0;
		onCallHome = (socket) => {
			socket.pause();
			called++;
		};
		const before = await rss(fast);
		await Promise.all(Array.from({ length: 5 }, () => ask()));
		target = paced;
		await until("all have called home", () => called === 5);
		// Nobody reads and nobody closes: it is the worker that gives up.
		await untilWorkerIdle(fast);
		expect((await rss(fast)) - before).toBeLessThan(150e6);
		expect((await scrape(fast.system)).sum("dynamo_component_cancellation_total")).toBe(5);
		fast.child.kill("SIGTERM");
		expect((await fast.child.exited).code).toBe(0);
	});

	test.each<readonly [string, (socket: Socket) => void]>([
		["closes as soon as it is called", (socket) => socket.destroy()],
		["resets as soon as it is called", (socket) => socket.resetAndDestroy()],
		["kills before it was told anything", (socket) => void socket.resume().end(KILL_FRAME)],
		["half-closes at once", (socket) => void socket.resume().end()],
		["sends garbage on the response stream", (socket) => void socket.resume().write(randomBytes(5000))],
		["announces a control word of 16 EB", (socket) => void socket.resume().write(Buffer.alloc(24, 0xff))],
		["stops at once", (socket) => void socket.resume().write(STOP_FRAME)],
		["kills after some tokens", (socket) => afterFrames(socket, 6, () => socket.write(KILL_FRAME))],
		["stops after some tokens", (socket) => afterFrames(socket, 6, () => socket.write(STOP_FRAME))],
		[
			"stops, then kills",
			(socket) => afterFrames(socket, 6, () => socket.write(Buffer.concat([STOP_FRAME, KILL_FRAME]))),
		],
		["closes after some tokens", (socket) => afterFrames(socket, 6, () => socket.destroy())],
		["resets after some tokens", (socket) => afterFrames(socket, 6, () => socket.resetAndDestroy())],
	])("%s", async (_name, behaviour) => {
		const called = new Promise<void>((resolve) => {
			onCallHome = (socket) => {
				behaviour(socket);
				socket.on("close", resolve);
			};
		});
		await ask();
		await called;
	});

	test("kills after the end, and keeps its half open", async () => {
		const ended = new Promise<void>((resolve) => {
			onCallHome = (socket) => {
				socket.allowHalfOpen = true;
				socket.resume();
				socket.on("end", () => {
					socket.write(KILL_FRAME);
					resolve();
				});
			};
		});
		await ask(3);
		await ended;
	});
});

/** Calls back after `count` frames of a response stream, prologue included. */
function afterFrames(socket: Socket, count: number, then: () => void): void {
	let seen = 0;
	const decoder = new TwoPartDecoder();
	socket.on("data", (chunk) => {
		decoder.push(chunk, () => {
			if (++seen === count) then();
		});
	});
}
