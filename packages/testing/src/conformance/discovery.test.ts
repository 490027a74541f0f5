// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	createLogger,
	createMemStore,
	EnvReader,
	EtcdDiscovery,
	FileDiscovery,
	KubernetesDiscovery,
	MemDiscovery,
	readEtcdConfig,
	readKubernetesConfig,
} from "@dynamo-ts/runtime/internal";
import { EtcdServer, findEtcd } from "../etcd-server.js";
import { FakeKubeApi } from "../fake-kube-api.js";
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
			peer: () => EtcdDiscovery.open({ config: readEtcdConfig(new EnvReader(env)), log, keepMissingMs: 1000 }),
			env,
			outage: { begin: () => used.kill(), end: () => used.restart() },
			dispose: async () => {},
		};
	},
	{
		missing: etcd.missing,
		finish: async () => server?.stop(),
	},
);

discoveryConformance("kubernetes", async () => {
	const api = await FakeKubeApi.start({ pageSize: 7 });
	const folder = await mkdtemp(join(tmpdir(), "discovery-"));
	const kubeconfig = join(folder, "kubeconfig");
	await writeFile(kubeconfig, api.kubeconfig());
	let pods = 0;
	const pod = () => {
		const [name, uid] = [`worker-${++pods}`, `uid-${pods}`];
		api.setSlice("prod", [{ name, uid, ready: true }]);
		return { KUBECONFIG: kubeconfig, POD_NAME: name, POD_UID: uid, POD_NAMESPACE: "prod" };
	};
	const process = pod();
	return {
		peer: () => KubernetesDiscovery.open({ config: readKubernetesConfig(new EnvReader(pod())), log }),
		largestPublisherId: (1n << 53n) - 1n,
		env: { DYN_DISCOVERY_BACKEND: "kubernetes", ...process },
		notice: () => api.setSlice("prod", [{ name: process.POD_NAME, uid: process.POD_UID, ready: false }]),
		outage: { begin: () => api.suspend(), end: () => api.resume() },
		dispose: async () => {
			await api.suspend();
			await rm(folder, { recursive: true, force: true });
		},
	};
});
