// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	createLogger,
	createMemStore,
	EnvReader,
	EtcdDiscovery,
	FileDiscovery,
	MemDiscovery,
	readEtcdConfig,
} from "@dynamo-ts/runtime/internal";
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
		env: { DYN_DISCOVERY_BACKEND: "file", DYN_FILE_KV: root },
		dispose: () => rm(root, { recursive: true, force: true }),
	};
});

const etcd = findEtcd();
let server: EtcdServer | undefined;
discoveryConformance(
	"etcd",
	async () => {
		server ??= await EtcdServer.start();
		const used = server;
		const env = { DYN_DISCOVERY_BACKEND: "etcd", ETCD_ENDPOINTS: used.url, ETCD_LEASE_TTL: "2" };
		return {
			peer: () => EtcdDiscovery.open({ config: readEtcdConfig(new EnvReader(env)), log }),
			env,
			outage: { begin: () => used.kill(), end: () => used.restart() },
			dispose: async () => {},
		};
	},
	{
		missing: "missing" in etcd ? etcd.missing : undefined,
		finish: async () => server?.stop(),
	},
);
