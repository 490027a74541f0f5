// SPDX-License-Identifier: Apache-2.0
// A frontend process before workers that break every rule: each request gets its error in time, the rest goes on.
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import {
	COMPLETE_FINAL_FRAME,
	encodeAck,
	encodeHandshake,
	encodeResponseFrame,
	encodeTwoPart,
	type ModelRecord,
	PROLOGUE_OK_FRAME,
	parseControl,
	RequestFrameDecoder,
	SENTINEL_FRAME,
	splitTwoPart,
} from "@dynamo-ts/protocols/internal";
import { createLogger, FileDiscovery } from "@dynamo-ts/runtime/internal";
import {
	Fleet,
	type HttpChild,
	http,
	LEAK_PROBE_ENV,
	LeakCheck,
	openStream,
	scrape,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const modelPath = hf.path;
const GOOD = "mock";
const WICKED = "wicked";

/** One request as the wicked worker sees it. */
interface Call {
	readonly subject: string;
	/** Where the request came in and acks go out. */
	readonly requests: Socket;
	ack(text?: string): void;
	/** Dials the frontend's response server. */
	dial(): Promise<Socket>;
	/** Dials, says who it is, and that all is well. */
	home(): Promise<Socket>;
	/** Resolves when the client has seen some text. */
	readonly shown: Promise<void>;
}

const item = (id: number, more: Record<string, unknown> = {}) =>
	encodeResponseFrame({ data: { token_ids: [id], ...more } }, "msgpack");
const FINAL = COMPLETE_FINAL_FRAME.msgpack;
const lengths = (header: bigint, body: bigint) => {
	const prefix = Buffer.alloc(24);
	prefix.writeBigUInt64BE(header, 0);
	prefix.writeBigUInt64BE(body, 8);
	return prefix;
};

/** The answer of a request that no worker took, or the error event of one that was taken. */
type Expected = { readonly status: number } | { readonly event: number } | { readonly ok: string };

const BEHAVIOURS: readonly (readonly [string, (call: Call) => unknown, Expected])[] = [
	["takes the request and says nothing", () => {}, { status: 504 }],
	["acknowledges and never calls home", (call) => call.ack(), { status: 504 }],
	[
		"calls home and says nothing",
		(call) => {
			call.ack();
			return call.dial();
		},
		{ status: 504 },
	],
	[
		"says who it is and no more",
		(call) => {
			call.ack();
			return call.home();
		},
		{ event: 504 },
	],
	["closes the request connection", (call) => call.requests.destroy(), { status: 503 }],
	["refuses", (call) => call.ack("Server unavailable: going"), { status: 503 }],
	["is full", (call) => call.ack("Server overloaded: worker at capacity"), { status: 529 }],
	["announces an ack of 4 GB", (call) => call.requests.write(Buffer.alloc(4, 0xff)), { status: 503 }],
	[
		"calls home for somebody else",
		async (call) => {
			call.ack();
			(await call.dial()).write(encodeHandshake("00000000-0000-0000-0000-000000000000"));
		},
		{ status: 504 },
	],
	[
		"sends garbage for a prologue",
		async (call) => {
			call.ack();
			(await call.dial()).write(Buffer.concat([encodeHandshake(call.subject), encodeTwoPart("{nonsense", undefined)]));
		},
		{ status: 500 },
	],
	[
		"announces a frame of 16 EB",
		async (call) => {
			call.ack();
			(await call.home()).write(lengths(0n, 0xffff_ffff_ffff_ffffn));
		},
		{ event: 503 },
	],
	[
		"announces a header of 31 MB and stops there",
		async (call) => {
			call.ack();
			(await call.home()).write(lengths(31_000_000n, 0n));
		},
		{ event: 504 },
	],
	[
		"sends an item that is no msgpack",
		async (call) => {
			call.ack();
			(await call.home()).write(encodeTwoPart(undefined, Buffer.from([0xc1, 0xc1])));
		},
		{ event: 500 },
	],
	[
		"ends without any item",
		async (call) => {
			call.ack();
			(await call.home()).write(Buffer.concat([FINAL, SENTINEL_FRAME]));
		},
		{ event: 500 },
	],
	[
		"falls silent after two tokens",
		async (call) => {
			call.ack();
			(await call.home()).write(Buffer.concat([item(70), item(71)]));
		},
		{ event: 504 },
	],
	[
		"closes in the middle of a frame",
		async (call) => {
			call.ack();
			(await call.home()).end(Buffer.concat([item(70), item(71).subarray(0, 30)]));
		},
		{ event: 503 },
	],
	[
		"closes without saying that it is complete",
		async (call) => {
			call.ack();
			const socket = await call.home();
			socket.write(item(70));
			await call.shown;
			socket.end(Buffer.concat([SENTINEL_FRAME]));
		},
		{ event: 503 },
	],
	[
		"goes on after the end",
		async (call) => {
			call.ack();
			const socket = await call.home();
			socket.write(item(70));
			await call.shown;
			socket.write(Buffer.concat([FINAL, item(71)]));
		},
		{ event: 500 },
	],
	[
		"says twice that it is complete",
		async (call) => {
			call.ack();
			const socket = await call.home();
			socket.write(item(70));
			await call.shown;
			socket.write(Buffer.concat([FINAL, FINAL]));
		},
		{ event: 500 },
	],
	[
		"resets the connection after a token",
		async (call) => {
			call.ack();
			const socket = await call.home();
			socket.write(item(70), () => socket.resetAndDestroy());
		},
		{ event: 503 },
	],
	[
		"acknowledges after everything else, and forgets the sentinel",
		async (call) => {
			const socket = await call.home();
			socket.end(Buffer.concat([item(70, { finish_reason: "stop" }), FINAL]), () => call.ack());
		},
		{ ok: "stop" },
	],
	[
		"never acknowledges, but answers",
		async (call) => {
			(await call.home()).write(Buffer.concat([item(70, { finish_reason: "length" }), FINAL, SENTINEL_FRAME]));
		},
		{ ok: "length" },
	],
	[
		"keeps its connection open after the end",
		async (call) => {
			call.ack();
			(await call.home()).write(Buffer.concat([item(70, { finish_reason: "length" }), FINAL]));
		},
		{ ok: "length" },
	],
];

describe.skipIf(missing)(titled("a worker that", missing), () => {
	const fleet = new Fleet(LEAK_PROBE_ENV);
	const sockets = new Set<Socket>();
	let leaks: LeakCheck;
	let frontend: HttpChild;
	let good: WorkerChild;
	let server: Server;
	let discovery: FileDiscovery;
	let play: (call: Call) => unknown = () => {};
	let shown: Promise<void> = Promise.resolve();
	let rssBefore = 0;

	const keep = (socket: Socket): Socket => {
		sockets.add(socket);
		socket.on("error", () => {});
		socket.on("close", () => sockets.delete(socket));
		return socket;
	};
	const dial = async (address: string): Promise<Socket> => {
		const [host, port] = address.split(":") as [string, string];
		const socket = keep(connect({ host, port: Number(port) }));
		await once(socket, "connect");
		return socket;
	};
	const onRequests = (socket: Socket): void => {
		keep(socket);
		const decoder = new RequestFrameDecoder();
		socket.on("data", (chunk) => {
			for (const { payload } of decoder.push(chunk)) {
				const { subject, address } = parseControl(splitTwoPart(payload).header);
				void play({
					subject,
					shown,
					requests: socket,
					ack: (text) => void socket.write(encodeAck(text)),
					dial: () => dial(address),
					home: async () => {
						const home = await dial(address);
						home.write(Buffer.concat([encodeHandshake(subject), PROLOGUE_OK_FRAME]));
						return home;
					},
				});
			}
		});
	};
	const rss = async () => (await scrape(frontend.url)).sum("process_resident_memory_bytes");

	beforeAll(async () => {
		good = await fleet.mocker(modelPath, GOOD);
		frontend = await fleet.frontend(GOOD, [], {
			DYN_TCP_REQUEST_TIMEOUT: "0.5",
			DYN_REQUEST_FIRST_RESPONSE_TIMEOUT_SECS: "1",
			DYN_REQUEST_IDLE_TIMEOUT_SECS: "0.5",
			DYN_RUNTIME_INHIBITED_DURATION_SECS: "0",
		});
		server = createServer(onRequests);
		server.listen(0, "127.0.0.1");
		await once(server, "listening");
		const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });
		discovery = await FileDiscovery.open({ root: fleet.folder, log });
		const [card] = (await discovery.list("v1/mdc")) as ModelRecord[];
		const where = { namespace: "dynamo", component: "wicked", endpoint: "generate", instance_id: discovery.instanceId };
		const path = `${discovery.instanceId.toString(16)}/dynamo/wicked/generate`;
		const { port } = server.address() as AddressInfo;
		await discovery.put({
			...(card as ModelRecord),
			...where,
			card_json: { ...(card as ModelRecord).card_json, display_name: WICKED, slug: WICKED },
		});
		await discovery.put({
			type: "Endpoint",
			...where,
			transport: { tcp: `127.0.0.1:${port}/${path}` },
			request_plane_codec: "msgpack",
		});
		await until("the wicked worker is listed", async () => {
			const { data } = (await http(`${frontend.url}/v1/models`)).json;
			return data.some(({ id }: { id: string }) => id === WICKED);
		});
		rssBefore = await rss();
		leaks = await LeakCheck.begin([
			{ name: "frontend", child: frontend.child, url: frontend.url },
			{ name: "worker", child: good.child, url: good.system },
		]);
	});
	afterAll(async () => {
		await discovery?.close();
		for (const socket of sockets) socket.destroy();
		server?.close();
		await fleet.stop();
	});

	const ask = (model: string) =>
		openStream(
			`${frontend.url}/v1/chat/completions`,
			{ model, messages: [{ role: "user", content: "Hi" }], max_tokens: 60, stream: true },
			{ kind: "chat", model, expectError: "either", allowReplacementCharacter: true },
		);

	test.each(BEHAVIOURS)("%s", async (_name, behaviour, expected) => {
		play = behaviour;
		let show: () => void = () => {};
		shown = new Promise((resolve) => {
			show = resolve;
		});
		const neighbour = await ask(GOOD);
		const stream = await ask(WICKED);
		if ("status" in expected && stream.status === 200) {
			// The worker had taken it, so the headers were out.
			const summary = await stream.finished();
			expect(summary.choices).toEqual([]);
			expect(summary.error?.code).toBe(expected.status);
		} else if ("status" in expected) {
			expect(stream.status).toBe(expected.status);
			await stream.finished().catch(() => {});
			expect(JSON.parse(stream.text())).toMatchObject({ code: expected.status, error: { type: expect.any(String) } });
		} else {
			expect(stream.status).toBe(200);
			await stream.events(1);
			show();
			const summary = await stream.finished();
			expect(summary.done).toBe(true);
			if ("event" in expected) expect(summary.error?.code).toBe(expected.event);
			else {
				expect(summary.error).toBeUndefined();
				expect(summary.choices[0]?.finishReason).toBe(expected.ok);
			}
		}
		const summary = await neighbour.finished();
		expect(summary.error).toBeUndefined();
		expect(summary.choices[0]?.finishReason).toBe("length");
	});

	test("sends without end to a client that does not read: the frontend holds the worker back", async () => {
		let sent = 0;
		let blocked: () => void = () => {};
		const held = new Promise<void>((resolve) => {
			blocked = resolve;
		});
		const many = Buffer.concat(Array.from({ length: 1000 }, (_, i) => item(60 + (i % 200))));
		play = async (call) => {
			call.ack();
			const home = await call.home();
			let waiting: NodeJS.Timeout | undefined;
			const pump = (): void => {
				clearTimeout(waiting);
				if (home.destroyed) return;
				while (sent < 1_000_000_000) {
					sent += many.length;
					if (home.write(many)) continue;
					// Held back for good once nothing drains for a while.
					waiting = setTimeout(blocked, 1000);
					home.once("drain", pump);
					return;
				}
				blocked();
			};
			pump();
		};
		const stream = await ask(WICKED);
		await stream.events(1);
		stream.pause();
		await held;
		expect(sent).toBeLessThan(200_000_000);
		expect((await http(`${frontend.url}/live`)).status).toBe(200);
		expect((await rss()) - rssBefore).toBeLessThan(200e6);
		stream.abort();
	});

	test("did any of this leaves no trace in the frontend", async () => {
		await untilFrontendIdle(frontend);
		await untilWorkerIdle(good);
		for (const socket of sockets) socket.destroy();
		await leaks.end();
		expect(frontend.child.ended).toBeUndefined();
		expect(frontend.child.output).not.toMatch(/\n\s+at /);
		frontend.child.kill("SIGTERM");
		expect((await frontend.child.exited).code).toBe(0);
	});
});
