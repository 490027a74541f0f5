// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLogger, createMemStore, EtcdDiscovery, FileDiscovery, MemDiscovery } from "@dynamo-ts/runtime/internal";
import { EtcdServer, findEtcd } from "../etcd-server.js";
import { discoveryConformance } from "./discovery.js";

const log = createLogger({ filter: "error", format: "readable", ansi: false, localTime: false });

discoveryConformance("mem", async () => {
	const store = createMemStore();
	return { peer: async () => new MemDiscovery(store), dispose: async () => {} };
});

discoveryConformance("file", async () => {
	const root = await mkdtemp(join(tmpdir(), "discovery-"));
	return {
		peer: () => FileDiscovery.open({ root, log }),
		dispose: () => rm(root, { recursive: true, force: true }),
	};
});

const etcd = findEtcd();
discoveryConformance(
	"etcd",
	async () => {
		const server = await EtcdServer.start();
		const config = { endpoints: [server.url], leaseTtlSeconds: 2, startupTimeoutMs: 10_000 };
		const pings = { keepAliveIntervalMs: 10_000, keepAliveTimeoutMs: 5000 };
		return {
			peer: () => EtcdDiscovery.open({ config: { ...config, ...pings }, log }),
			dispose: () => server.stop(),
		};
	},
	"missing" in etcd ? etcd.missing : undefined,
);
