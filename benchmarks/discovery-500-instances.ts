// SPDX-License-Identifier: Apache-2.0
// How long does a newcomer take to know 500 instances? A watcher within this process, a fresh `dynamo frontend`, and,
// where it is installed, a fresh real frontend; over etcd and over a folder. Each instance has an endpoint record and a
// model card, as a simulated worker writes them.
import type { DiscoveryRecord } from "@dynamo-ts/protocols/internal";
import { createLogger, type Discovery, openDiscovery, runtimeConfigFromEnv } from "@dynamo-ts/runtime/internal";
import {
	EtcdServer,
	Fleet,
	findEtcd,
	findRealDynamo,
	http,
	startOwnHttp,
	startRealFrontend,
	testModel,
	until,
} from "@dynamo-ts/testing/internal";
import { cpuSeconds, report } from "./lib.js";

const INSTANCES = Number(process.argv[2] ?? 500);
const MODEL = "mock";
const log = createLogger({ filter: "error", format: "readable", ansi: false, localTime: false });
const hf = testModel("hf");
if (hf.missing) throw new Error(hf.missing);
const modelPath = hf.path;
const rows: Record<string, string | number>[] = [];

const etcd = findEtcd();
if (etcd.missing) console.warn(etcd.missing);
else {
	const server = await EtcdServer.start();
	await measure({ DYN_DISCOVERY_BACKEND: "etcd", ETCD_ENDPOINTS: server.url }).finally(() => server.stop());
}
await measure({});
report(`until a newcomer knows ${INSTANCES} instances and their cards`, rows);

async function open(env: Record<string, string>): Promise<Discovery> {
	return openDiscovery(runtimeConfigFromEnv(env), log, { records: new Map(), watches: new Set() });
}

async function measure(settings: Record<string, string>): Promise<void> {
	const fleet = new Fleet({ DYN_EVENT_PLANE: "zmq", ...settings });
	const owner = await open(fleet.env);
	try {
		await fleet.mocker(modelPath, MODEL);
		const records: DiscoveryRecord[] = [];
		for (const bucket of ["v1/instances", "v1/mdc"] as const) {
			for (const record of await owner.list(bucket)) {
				if ((record.type === "Endpoint" || record.type === "Model") && record.endpoint === "generate")
					records.push(record);
			}
		}
		const one = "instance_id" in (records[0] as object) ? (records[0] as { instance_id: bigint }).instance_id : 0n;
		const copies = Array.from({ length: INSTANCES - 1 }, (_, i) =>
			records.map((record) => ({ ...record, instance_id: one + BigInt(i) + 1n }) as DiscoveryRecord),
		).flat();
		await Promise.all(copies.map((record) => owner.put(record)));
		await watcher(fleet.env);
		await frontend("our frontend, from its start", fleet.env, (env) => startOwnHttp("frontend", [], env, MODEL));
		const peer = findRealDynamo();
		if (peer.path) {
			await frontend("real frontend, from its start", fleet.env, (env) => startRealFrontend(peer.path, env, MODEL));
		}
	} finally {
		await owner.close();
		await fleet.stop();
	}
}

async function watcher(env: Record<string, string>): Promise<void> {
	const discovery = await open(env);
	const [started, before] = [performance.now(), process.cpuUsage()];
	let seen = 0;
	const records = INSTANCES * 2;
	for (const bucket of ["v1/instances", "v1/mdc"] as const) await discovery.watch(bucket, () => seen++);
	await until("all records", () => seen >= records);
	const { user, system } = process.cpuUsage(before);
	row("watcher, connected", env, performance.now() - started, (user + system) / 1000);
	await discovery.close();
}

async function frontend(
	who: string,
	env: Record<string, string>,
	start: (env: Record<string, string>) => ReturnType<typeof startOwnHttp>,
): Promise<void> {
	const started = performance.now();
	const { child, url } = await start(env);
	const known = async () => {
		const instances = (await http(`${url}/health`)).json.instances as { endpoint: string }[];
		return instances.filter(({ endpoint }) => endpoint === "generate").length >= INSTANCES;
	};
	await until("all instances", known, { child, timeoutMs: 120_000 });
	row(who, env, performance.now() - started, cpuSeconds(child.pid) * 1000);
	await child.stop();
}

function row(who: string, env: Record<string, string>, ms: number, cpuMs: number): void {
	rows.push({
		backend: env.DYN_DISCOVERY_BACKEND as string,
		who,
		"time (ms)": Math.round(ms),
		"CPU (ms)": Math.round(cpuMs),
	});
}
