// SPDX-License-Identifier: Apache-2.0
// How many KV events per second go through the event plane, and what one costs each side? Publisher and subscriber are
// processes of their own; every message is one event that stores four blocks, decoded by the subscriber.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { decodeRouterEvents, encodeRouterEvents, type RouterEvent } from "@dynamo-ts/protocols/internal";
import { DistributedRuntime, type RuntimeConfig } from "@dynamo-ts/runtime/internal";
import { findNatsServer, NatsServer } from "@dynamo-ts/testing/internal";
import { report, withTempFolder } from "./lib.js";

const SCOPE = { kind: "endpoint", endpoint: { namespace: "bench", component: "backend", name: "generate" } } as const;
const MESSAGES = Number(process.argv[2] ?? 200_000);
/** Messages between two looks at the network: a publisher that never waits only fills its queue. */
const BURST = 1000;

interface PublisherTask {
	readonly config: Partial<RuntimeConfig>;
	readonly messages: number;
}
interface PublisherReport {
	readonly microseconds: number;
	readonly dropped: number;
}

function cpuMicroseconds(): number {
	const { user, system } = process.cpuUsage();
	return user + system;
}

async function publish({ config, messages }: PublisherTask): Promise<PublisherReport> {
	const runtime = await DistributedRuntime.create(config);
	const publisher = await runtime.events.createPublisher(SCOPE, "kv-events");
	await new Promise((resolve) => process.once("message", resolve));
	const event: RouterEvent = {
		workerId: runtime.instanceId,
		dpRank: 0,
		eventId: 1n,
		storageTier: "device",
		residencyDomain: "worker",
		data: {
			type: "stored",
			parentHash: 0x7fff_ffff_ffff_fff0n,
			blocks: Array.from({ length: 4 }, (_, i) => ({
				blockHash: 0xf123_4567_89ab_cde0n + BigInt(i),
				tokensHash: 0xe123_4567_89ab_cde0n + BigInt(i),
			})),
		},
	};
	const begin = cpuMicroseconds();
	for (let sent = 0; sent < messages; sent += BURST) {
		for (let i = 0; i < BURST; i++) publisher.publish(encodeRouterEvents([event]));
		await publisher.flush(10_000);
	}
	const microseconds = cpuMicroseconds() - begin;
	// The last ones are still on their way out.
	await new Promise((resolve) => process.once("message", resolve));
	const { dropped } = publisher;
	await runtime.shutdown();
	return { microseconds, dropped };
}

async function measure(name: string, config: Partial<RuntimeConfig>): Promise<Record<string, string | number>> {
	const runtime = await DistributedRuntime.create(config);
	let received = 0;
	let first = 0;
	let last = 0;
	const child = fork(fileURLToPath(import.meta.url), ["publisher"], { execArgv: process.execArgv });
	let connected: () => void = () => {};
	const ready = new Promise<void>((resolve) => {
		connected = resolve;
	});
	let begin = 0;
	let cpu = 0;
	const subscription = await runtime.events.subscribe(SCOPE, "kv-events", {
		onPublisher: () => connected(),
		onEvent: ({ payload }) => {
			received += decodeRouterEvents(payload).length;
			last = performance.now();
			if (first === 0) {
				first = last;
				begin = cpuMicroseconds();
			}
			cpu = cpuMicroseconds() - begin;
		},
	});
	child.send({ config, messages: MESSAGES } satisfies PublisherTask);
	await ready;
	await new Promise((resolve) => setTimeout(resolve, 1000));
	child.send("go");
	const told = new Promise<PublisherReport>((resolve) => child.on("message", resolve as (message: unknown) => void));
	for (let quiet = 0; quiet < 10; ) {
		const before = received;
		await new Promise((resolve) => setTimeout(resolve, 200));
		quiet = received === before && received > 0 ? quiet + 1 : 0;
	}
	child.send("done");
	const { microseconds, dropped } = await told;
	const row = {
		transport: name,
		messages: MESSAGES,
		"events/s": Math.round(received / ((last - first) / 1000)),
		"publisher CPU, µs": (microseconds / MESSAGES).toFixed(1),
		"subscriber CPU, µs": (cpu / received).toFixed(1),
		lost: subscription.lost,
		dropped,
	};
	await runtime.shutdown();
	return row;
}

if (process.argv[2] === "publisher") {
	process.once("message", async (task: PublisherTask) => {
		process.send?.(await publish(task));
		process.disconnect();
	});
} else {
	await withTempFolder(async (folder) => {
		const base = {
			discoveryBackend: "file",
			fileKvRoot: folder,
			systemPort: -1,
			shutdownGraceMs: 0,
			log: { filter: "warn", format: "readable", ansi: false, localTime: false },
		} as const satisfies Partial<RuntimeConfig>;
		const rows = [await measure("zmq", { ...base, events: { plane: "zmq", host: "127.0.0.1" } })];
		if (!findNatsServer().missing) {
			const server = await NatsServer.start({ jetStream: false });
			const nats = { server: server.url, tlsInsecure: false, startupTimeoutMs: 5000 };
			rows.push(await measure("nats", { ...base, events: { plane: "nats" }, nats }));
			await server.stop();
		}
		report("events through the event plane, one event of four blocks per message", rows);
	});
}
