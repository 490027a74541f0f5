// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createMemStore, DistributedRuntime, type RuntimeConfig } from "@dynamo-ts/runtime/internal";
import { describe, it } from "vitest";
import { titled } from "../found.js";
import { findNatsServer, NatsServer } from "../nats-server.js";
import { startZmqBroker } from "../zmq-broker.js";
import { type EventWorld, eventPlaneConformance } from "./event-plane.js";

const LOG = { filter: "error", format: "readable", ansi: false, localTime: false } as const;

/** Runtimes that meet in a folder. */
async function fileWorld(events: RuntimeConfig["events"], config: Partial<RuntimeConfig> = {}): Promise<EventWorld> {
	const root = await mkdtemp(join(tmpdir(), "events-"));
	return {
		peer: () =>
			DistributedRuntime.create({
				discoveryBackend: "file",
				fileKvRoot: root,
				shutdownGraceMs: 0,
				log: LOG,
				events: { host: "127.0.0.1", ...events },
				...config,
			}),
		dispose: () => rm(root, { recursive: true, force: true }),
	};
}

eventPlaneConformance("zmq, direct", () => fileWorld({ plane: "zmq" }), {
	hasChannels: true,
	interruptible: false,
});

eventPlaneConformance(
	"zmq, two brokers",
	async () => {
		let brokers = [await startZmqBroker(), await startZmqBroker()];
		const side = (name: "xsub" | "xpub") => brokers.map((broker) => broker[name]).join(";");
		const world = await fileWorld({ plane: "zmq", brokerUrl: `xsub=${side("xsub")} , xpub=${side("xpub")}` });
		return {
			...world,
			interrupt: async () => {
				await Promise.all(brokers.map((broker) => broker.stop()));
				brokers = await Promise.all(brokers.map((broker) => startZmqBroker(broker)));
			},
			dispose: async () => {
				await Promise.all(brokers.map((broker) => broker.stop()));
				await world.dispose();
			},
		};
	},
	{ hasChannels: false, interruptible: true, overtaking: true },
);

eventPlaneConformance(
	"mem",
	async () => {
		const memStore = createMemStore();
		return {
			peer: () => DistributedRuntime.create({ discoveryBackend: "mem", memStore, shutdownGraceMs: 0, log: LOG }),
			dispose: async () => {},
		};
	},
	{ hasChannels: true, interruptible: false },
);

const nats = findNatsServer();
if (nats.missing) {
	describe.skip(titled("event plane: nats", nats.missing), () => {
		it("is not run", () => {});
	});
} else {
	eventPlaneConformance(
		"nats",
		async () => {
			const server = await NatsServer.start({ jetStream: false });
			const world = await fileWorld(
				{ plane: "nats" },
				{ nats: { server: server.url, tlsInsecure: false, startupTimeoutMs: 5000 } },
			);
			return {
				...world,
				interrupt: async () => {
					await server.kill();
					await server.restart();
				},
				dispose: async () => {
					await world.dispose();
					await server.stop();
				},
			};
		},
		{ hasChannels: true, interruptible: true },
	);
}
