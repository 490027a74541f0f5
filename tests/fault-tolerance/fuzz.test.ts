// SPDX-License-Identifier: Apache-2.0
// Nonsense on every listening socket of real processes, and on their NATS subjects: nothing ends, nothing grows, the
// log tells a little of it.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import {
	encodeControl,
	encodeHandshake,
	encodeRequestFrame,
	encodeTwoPart,
	parseJson,
} from "@dynamo-ts/protocols/internal";
import { createLogger, NatsConnection, runtimeConfigFromEnv } from "@dynamo-ts/runtime/internal";
import {
	Fleet,
	findNatsServer,
	freePort,
	type HttpChild,
	http,
	NatsServer,
	scrape,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";

const hf = testModel("hf");
const program = findNatsServer();
const missing = hf.missing;
const missingNats = missing || program.missing;
const modelPath = hf.path;
const MODEL = "mock";
const ROUNDS = 400;

const stops: (() => Promise<unknown>)[] = [];
afterEach(async () => {
	for (const stop of stops.splice(0).reverse()) await stop();
});

/** Bytes that look random and are the same in every run. */
function noise(seed: number, length: number): Buffer {
	const parts: Buffer[] = [];
	for (let i = 0, bytes = 0; bytes < length; i++, bytes += 64) {
		parts.push(createHash("sha512").update(`${seed} ${i}`).digest());
	}
	return Buffer.concat(parts).subarray(0, length);
}

/** What a peer that is broken, hostile or of another protocol may send; one of many for each `round`. */
function nonsense(round: number, path: string): Buffer {
	const control = encodeControl({ id: `fuzz-${round}`, codec: "msgpack", address: "127.0.0.1:9", subject: "s" });
	const whole = encodeRequestFrame({ path, headers: {}, payload: encodeTwoPart(control, noise(round, 40)) });
	const at = round % whole.length;
	switch (round % 10) {
		case 0:
			return noise(round, 1 + (round % 500));
		case 1: // truncated
			return whole.subarray(0, at);
		case 2: {
			const flipped = Buffer.from(whole);
			flipped[at] = (flipped[at] as number) ^ (1 << (round % 8));
			return flipped;
		}
		case 3: // an oversized request
			return Buffer.concat([
				encodeRequestFrame({ path, headers: {}, payload: Buffer.alloc(0) }).subarray(0, -4),
				Buffer.alloc(4, 0xff),
			]);
		case 4: // an oversized two-part message
			return Buffer.alloc(24, 0xff);
		case 5: // wrong types
			return encodeRequestFrame({
				path,
				headers: {},
				payload: encodeTwoPart('{"id":7,"request_type":[]}', Buffer.from("[1]")),
			});
		case 6:
			return encodeHandshake(`nobody-${round}`);
		case 7: // a handshake that never ends
			return Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 0x10, 0, 0]), Buffer.alloc(16), noise(round, 1000)]);
		case 8:
			return Buffer.from("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n");
		default: // the greeting of TLS
			return Buffer.concat([Buffer.from("16030100a5010000a10303", "hex"), noise(round, 160)]);
	}
}

/** Connects, sends, and leaves in one of three ways; resolves when the connection is over. */
function bother(port: number, bytes: Buffer, round: number): Promise<void> {
	return new Promise((resolve) => {
		const socket = connect(port, "127.0.0.1");
		socket.on("error", () => {});
		socket.on("close", () => resolve());
		socket.resume();
		if (round % 3 === 0) socket.end(bytes);
		else {
			socket.write(bytes.subarray(0, bytes.length >> 1));
			socket.write(bytes.subarray(bytes.length >> 1), () => {
				if (round % 3 === 1) socket.destroy();
				else setTimeout(() => socket.destroy(), 20);
			});
		}
	});
}

const ask = async (frontend: HttpChild): Promise<number> =>
	(
		await http(`${frontend.url}/v1/chat/completions`, {
			body: { model: MODEL, messages: [{ role: "user", content: "Hi" }], max_tokens: 3 },
		})
	).status;
const memory = async (url: string) => (await scrape(url)).sum("process_resident_memory_bytes");
const descriptors = (pid: number) => readdirSync(`/proc/${pid}/fd`).length;

/** The transport of the worker's generate endpoint, out of its record. */
function transportOf(fleet: Fleet): Record<string, string> {
	const folder = join(fleet.folder, "v1", "instances");
	const file = readdirSync(folder).find((name) => name.includes("generate")) as string;
	return (parseJson(readFileSync(join(folder, file))) as { transport: Record<string, string> }).transport;
}

/** Ports of the worker's event publishers, out of their records. */
function eventPorts(fleet: Fleet): number[] {
	const folder = join(fleet.folder, "v1", "event_channels");
	return readdirSync(folder).map((file) => {
		const { transport } = parseJson(readFileSync(join(folder, file))) as {
			transport: { config: { endpoint: string } };
		};
		return Number(new URL(transport.config.endpoint).port);
	});
}

/** Measures, bothers, and looks at what became of both processes. */
async function survives(frontend: HttpChild, worker: WorkerChild, attack: () => Promise<void>): Promise<void> {
	expect(await ask(frontend)).toBe(200);
	const urls = { frontend: frontend.url, worker: worker.system };
	const before = {
		frontend: await memory(urls.frontend),
		worker: await memory(urls.worker),
		frontendFiles: descriptors(frontend.child.pid),
		workerFiles: descriptors(worker.child.pid),
		lines: frontend.child.output.split("\n").length + worker.child.output.split("\n").length,
	};
	await attack();
	expect(await ask(frontend)).toBe(200);
	for (const child of [frontend.child, worker.child]) expect(child.ended).toBeUndefined();
	await untilFrontendIdle(frontend);
	await untilWorkerIdle(worker);
	await until("all connections are closed", () => {
		const more =
			descriptors(frontend.child.pid) - before.frontendFiles + descriptors(worker.child.pid) - before.workerFiles;
		return more <= 10;
	});
	expect((await memory(urls.frontend)) - before.frontend).toBeLessThan(100e6);
	expect((await memory(urls.worker)) - before.worker).toBeLessThan(100e6);
	const lines = frontend.child.output.split("\n").length + worker.child.output.split("\n").length - before.lines;
	expect(lines).toBeGreaterThan(0);
	expect(lines).toBeLessThan(ROUNDS / 2);
}

describe.skipIf(missing)(titled("nonsense", missing), () => {
	test("on every listening socket: requests, responses, HTTP, system server, events and their replay", async () => {
		const [responses, events, replay] = await Promise.all([freePort(), freePort(), freePort()]);
		const fleet = new Fleet({ DYN_TCP_RESPONSE_STREAM_PORT: String(responses) });
		stops.push(() => fleet.stop());
		const sockets = ["--zmq-kv-events-ports", String(events), "--zmq-replay-ports", String(replay)];
		const worker = await fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "0", ...sockets]);
		const frontend = await fleet.frontend(MODEL);
		const zmq = [...eventPorts(fleet), events, replay];
		expect(zmq.length).toBe(6);
		const [, port, path] = /:(\d+)\/(.*)$/.exec(transportOf(fleet).tcp ?? "") as unknown as [string, string, string];
		const http = [Number(new URL(frontend.url).port), Number(new URL(worker.system).port)];
		const ports = [Number(port), responses, ...http, ...zmq];
		await survives(frontend, worker, async () => {
			for (const target of ports) {
				for (let round = 0; round < ROUNDS; round += 20) {
					const batch = Array.from({ length: 20 }, (_, i) => bother(target, nonsense(round + i, path), round + i));
					await Promise.all(batch);
				}
			}
		});
	}, 120_000);
});

describe.skipIf(missingNats)(titled("nonsense", missingNats), () => {
	test("on the subjects of a worker, and on the inboxes", async () => {
		const nats = await NatsServer.start();
		stops.push(() => nats.stop());
		const fleet = new Fleet({ DYN_REQUEST_PLANE: "nats", NATS_SERVER: nats.url });
		stops.push(() => fleet.stop());
		const worker = await fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "0"]);
		const frontend = await fleet.frontend(MODEL);
		const subject = transportOf(fleet).nats_tcp as string;
		const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });
		const connection = await NatsConnection.open(runtimeConfigFromEnv({ NATS_SERVER: nats.url }).nats, log);
		stops.push(() => connection.close());
		const peer = connection.raw;
		const inboxes = new Set<string>();
		peer.subscribe("_INBOX.>", { callback: (_error, message) => void inboxes.add(message.subject) });
		await peer.flush();
		await survives(frontend, worker, async () => {
			for (let round = 0; round < ROUNDS; round++) {
				peer.publish(subject, nonsense(round, subject), round % 2 === 0 ? { reply: "_INBOX.fuzz.1" } : {});
				const control = encodeControl({ id: `f-${round}`, codec: "json", address: "127.0.0.1:9", subject: "s" });
				peer.publish(subject, encodeTwoPart(control, noise(round, 30)));
				for (const inbox of [...inboxes].slice(-5)) peer.publish(inbox, noise(round, 20));
				if (round % 50 === 0) await peer.flush();
			}
			await peer.flush();
		});
		expect(inboxes.size).toBeGreaterThan(0);
	}, 120_000);
});
