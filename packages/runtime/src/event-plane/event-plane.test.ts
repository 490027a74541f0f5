// SPDX-License-Identifier: Apache-2.0
// Parts of the event plane by themselves, and what peers that send nonsense do to it.
import { connect } from "node:net";
import { type EventChannelRecord, encodeEventFrames } from "@dynamo-ts/protocols/internal";
import { until } from "@dynamo-ts/testing/internal";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createMemStore, MemDiscovery } from "../discovery/mem.js";
import { createLogger } from "../observability/logging.js";
import { DistributedRuntime } from "../runtime.js";
import { resolveEventHost, zmqEndpoint } from "./event-host.js";
import { SequenceTracker } from "./sequence-tracker.js";
import { discoveredBrokers, fixedBrokers, parseBrokerUrl } from "./zmq-brokers.js";
import { loadZmq } from "./zmq-sockets.js";
import { type BrokerEndpoints, ZmqBrokerDriver } from "./zmq-transport.js";

const lines: string[] = [];
const LOG = { filter: "warn", format: "readable", ansi: false, localTime: false } as const;
const log = createLogger(LOG, "test", (line) => {
	lines.push(line);
});

describe("where sockets are bound", () => {
	const v4 = (address: string, internal = false) => ({ address, internal, family: "IPv4" }) as never;
	const v6 = (address: string, scopeid = 0) => ({ address, internal: false, family: "IPv6", scopeid }) as never;
	const interfaces = {
		lo: [v4("127.0.0.1", true)],
		eth0: [v6("fe80::1", 2), v4("192.0.2.7")],
		tun: [v6("fe80::2", 3)],
	};

	it.each([
		[undefined, undefined, { bind: "192.0.2.7", advertise: "192.0.2.7" }],
		["eth0", undefined, { bind: "192.0.2.7", advertise: "192.0.2.7" }],
		["127.0.0.1", undefined, { bind: "127.0.0.1", advertise: "127.0.0.1" }],
		["[::1]", undefined, { bind: "::1", advertise: "::1" }],
		["203.0.113.9", "0.0.0.0", { bind: "0.0.0.0", advertise: "203.0.113.9" }],
		["203.0.113.9", "eth0", { bind: "192.0.2.7", advertise: "203.0.113.9" }],
	])("host %s, bind host %s", async (host, bindHost, expected) => {
		expect(await resolveEventHost(host, bindHost, interfaces)).toEqual(expected);
	});

	it("without an outside interface: loopback", async () => {
		const expected = { bind: "127.0.0.1", advertise: "127.0.0.1" };
		expect(await resolveEventHost(undefined, undefined, { lo: interfaces.lo })).toEqual(expected);
	});

	it.each([
		["0.0.0.0", /DYN_EVENT_PLANE_HOST=0\.0\.0\.0 is not valid: others cannot connect/],
		["[::]", /others cannot connect/],
		["tun", /the interface has no address/],
		["no.such.host.invalid", /no host name that resolves/],
	])("%s is refused", async (host, message) => {
		await expect(resolveEventHost(host, undefined, interfaces)).rejects.toThrow(message);
	});

	it("IPv6 stands in brackets", () => {
		expect(zmqEndpoint("::1", 5)).toBe("tcp://[::1]:5");
	});
});

describe("sequence numbers", () => {
	it("every number is told once, whatever the order, and counted as missing until it comes", () => {
		fc.assert(
			fc.property(fc.array(fc.nat({ max: 60 }), { minLength: 1, maxLength: 80 }), (order) => {
				const tracker = new SequenceTracker();
				const told = new Set<number>();
				let missing = 0;
				let first: number | undefined;
				for (const number of order) {
					const verdict = tracker.see(1n, BigInt(number));
					first ??= number;
					if (verdict.kind === "duplicate") {
						// Before the first one is before our time.
						expect(told.has(number) || number < first).toBe(true);
						continue;
					}
					expect(told.has(number)).toBe(false);
					told.add(number);
					if (verdict.kind === "late") missing--;
					else if (verdict.gap !== undefined) missing += Number(verdict.gap.to - verdict.gap.from) + 1;
				}
				const highest = Math.max(...told);
				expect(missing).toBe(highest - first! + 1 - told.size);
			}),
		);
	});

	it("a huge gap costs bounded memory and time", () => {
		const tracker = new SequenceTracker();
		tracker.see(1n, 0n);
		expect(tracker.see(1n, 2n ** 63n)).toEqual({ kind: "new", gap: { from: 1n, to: 2n ** 63n - 1n } });
		expect(tracker.see(1n, 2n ** 63n - 1n)).toEqual({ kind: "late" });
		expect(tracker.see(1n, 5n)).toEqual({ kind: "duplicate" });
	});

	it("publishers that come and go do not pile up", () => {
		const tracker = new SequenceTracker();
		for (let id = 0n; id < 20_000n; id++) tracker.see(id, 0n);
		expect(tracker.size).toBe(10_000);
		tracker.forget(19_999n);
		expect(tracker.size).toBe(9_999);
	});
});

describe("brokers", () => {
	it("are read from the variable", () => {
		expect(parseBrokerUrl("xsub=tcp://a:1;tcp://b:2 , xpub=tcp://a:3")).toEqual({
			xsub: ["tcp://a:1", "tcp://b:2"],
			xpub: ["tcp://a:3"],
		});
	});
	it.each(["", "xsub=tcp://a:1", "xsub=tcp://a:1,xpub=", "tcp://a:1", "xsub=a:1,xpub=b:2"])("%j is refused", (text) => {
		expect(() => parseBrokerUrl(text)).toThrow(/DYN_ZMQ_BROKER_URL=.* is not valid/);
	});

	it("an address that none can connect to leaves the other brokers in use", async () => {
		const scope = { kind: "namespace", name: "ns" } as const;
		const zmq = await loadZmq();
		const [front, back] = [new zmq.XSubscriber({ linger: 0 }), new zmq.XPublisher({ linger: 0 })];
		await Promise.all([front.bind("tcp://127.0.0.1:*"), back.bind("tcp://127.0.0.1:*")]);
		const broker = new zmq.Proxy(front, back);
		const ended = broker.run();
		const bad = ["nonsense", "tcp://127.0.0.1:99999"];
		const xsub = [...bad, front.lastEndpoint ?? ""];
		const driver = new ZmqBrokerDriver(fixedBrokers({ xsub, xpub: [...bad, back.lastEndpoint ?? ""] }));
		let received = 0;
		const subscriber = await driver.openSubscriber(scope, "t", {
			onEnvelope: () => void received++,
			onMalformed: () => {},
		});
		const publisher = await driver.openPublisher(scope, "t");
		let sequence = 0n;
		await until("an event", () => {
			publisher.send({ publisherId: 1n, sequence: sequence++, publishedAt: 0, topic: "t", payload: Buffer.from("x") });
			return received > 0;
		});
		await Promise.all([publisher.close(), subscriber.close()]);
		broker.terminate();
		await ended;
	});

	it("a search for brokers that fails fails the opening", async () => {
		const scope = { kind: "namespace", name: "ns" } as const;
		const driver = new ZmqBrokerDriver(() => Promise.reject(new Error("no discovery")));
		const listener = { onEnvelope: () => {}, onMalformed: () => {} };
		await expect(driver.openSubscriber(scope, "t", listener)).rejects.toThrow("no discovery");
		await expect(driver.openPublisher(scope, "t")).rejects.toThrow("no discovery");
	});

	it("are followed in discovery", async () => {
		const discovery = new MemDiscovery(createMemStore());
		const seen: BrokerEndpoints[] = [];
		const stop = await discoveredBrokers(discovery, log)("ns", (brokers) => seen.push(brokers));
		expect(lines.some((line) => line.includes("no ZeroMQ broker"))).toBe(true);
		const record = (namespace: string, id: bigint, port: number): EventChannelRecord => ({
			type: "EventChannel",
			scope: { kind: "component", namespace, component: "zmq_broker" },
			topic: "broker",
			instance_id: id,
			transport: {
				kind: "ZmqBroker",
				config: { xsub_endpoints: [`tcp://h:${port}`], xpub_endpoints: [`tcp://h:${port + 1}`] },
			},
		});
		await discovery.put(record("ns", 1n, 10));
		await discovery.put(record("other", 2n, 20));
		await discovery.put(record("ns", 3n, 30));
		await until("both brokers", () => seen.length === 2);
		expect(seen[1]).toEqual({ xsub: ["tcp://h:10", "tcp://h:30"], xpub: ["tcp://h:11", "tcp://h:31"] });
		await discovery.delete(record("ns", 1n, 10));
		await until("one broker", () => seen.length === 3);
		expect(seen[2]).toEqual({ xsub: ["tcp://h:30"], xpub: ["tcp://h:31"] });
		stop();
		await discovery.close();
	});
});

describe("peers that send nonsense", () => {
	const scope = { kind: "endpoint", endpoint: { namespace: "n", component: "c", name: "e" } } as const;
	const start = () =>
		DistributedRuntime.create({
			discoveryBackend: "mem",
			memStore: createMemStore(),
			events: { plane: "zmq", host: "127.0.0.1" },
			shutdownGraceMs: 0,
			log: { ...LOG, filter: "off" },
		});
	const channel = (id: bigint, endpoint: string): EventChannelRecord => ({
		type: "EventChannel",
		scope,
		topic: "t",
		instance_id: id,
		transport: { kind: "Zmq", config: { endpoint } },
	});

	it("a subscriber counts messages that it cannot read and goes on", async () => {
		const runtime = await start();
		const zmq = await loadZmq();
		const socket = new zmq.Publisher({ linger: 0 });
		await socket.bind("tcp://127.0.0.1:*");
		const texts: string[] = [];
		const subscription = await runtime.events.subscribe(scope, "t", {
			onEvent: (event) => texts.push(event.payload.toString()),
		});
		await runtime.discovery.put(channel(1n, socket.lastEndpoint ?? ""));
		await runtime.discovery.put(channel(2n, "not an address"));
		await runtime.discovery.put(channel(3n, "ipc:///etc/passwd"));
		const good = (sequence: bigint) =>
			encodeEventFrames("t", {
				publisherId: 1n,
				sequence,
				publishedAt: 0,
				topic: "t",
				payload: Buffer.from(`${sequence}`),
			});
		let sequence = 0n;
		while (texts.length === 0) {
			await socket.send(good(sequence++));
			await new Promise((resolve) => setTimeout(resolve, 5));
		}
		const envelope = good(0n)[3] as Buffer;
		const nonsense: Buffer[][] = [
			["t"],
			["t", "", "", ""],
			["t", "12345678", "12345678", "\u0001\u0000\u0000\u0000\u0000"],
			["t", "12345678", "12345678", envelope],
			["t", "12345678", "12345678", Buffer.from([1, 0xff, 0xff, 0xff, 0xff])],
		].map((frames) => frames.map((frame) => Buffer.from(frame as string)));
		for (const frames of nonsense) await socket.send(frames);
		await socket.send(["t-but-longer", "x"]);
		await socket.send(good(sequence));
		await until("the good message behind them", () => texts.at(-1) === `${sequence}`);
		expect(subscription.malformed).toBe(nonsense.length);
		socket.close();
		await runtime.shutdown();
	});

	it("a publisher that changes its address is left aside until it leaves", async () => {
		const runtime = await start();
		const told: string[] = [];
		const subscription = await runtime.events.subscribe(scope, "t", {
			onEvent: () => {},
			onPublisher: (id) => told.push(`+${id}`),
			onPublisherGone: (id) => told.push(`-${id}`),
		});
		await runtime.discovery.put(channel(1n, "tcp://127.0.0.1:1"));
		await runtime.discovery.put(channel(1n, "tcp://127.0.0.1:2"));
		await runtime.discovery.put(channel(1n, "tcp://127.0.0.1:1"));
		await until("the news", () => told.length === 2);
		expect(subscription.publishers).toBe(1);
		await runtime.discovery.delete(channel(1n, "tcp://127.0.0.1:1"));
		await until("nobody", () => subscription.publishers === 0);
		await runtime.discovery.put(channel(1n, "tcp://127.0.0.1:3"));
		await until("it is back", () => told.length === 3);
		expect(told).toEqual(["+1", "-1", "+1"]);
		await runtime.shutdown();
	});

	it("bytes that are no ZeroMQ leave a publisher as it was", async () => {
		const runtime = await start();
		const publisher = await runtime.events.createPublisher(scope, "t");
		const [record] = await runtime.discovery.list("v1/event_channels");
		const endpoint =
			record?.type === "EventChannel" && record.transport.kind === "Zmq" ? record.transport.config.endpoint : "";
		const { hostname, port } = new URL(endpoint.replace("tcp:", "http:"));
		for (const bytes of [Buffer.from("GET / HTTP/1.1\r\n\r\n"), Buffer.alloc(100_000, 0xff), Buffer.alloc(64, 0)]) {
			const socket = connect({ host: hostname, port: Number(port) });
			await new Promise<void>((resolve) => socket.once("connect", resolve));
			socket.on("error", () => {});
			socket.write(bytes);
			socket.end();
		}
		const texts: string[] = [];
		await runtime.events.subscribe(scope, "t", { onEvent: (event) => texts.push(event.payload.toString()) });
		await until("a message", () => {
			publisher.publish(Buffer.from("well"));
			return texts.includes("well");
		});
		await runtime.shutdown();
	});
});
