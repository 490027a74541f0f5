// SPDX-License-Identifier: Apache-2.0
// What does one request cost on each request plane: CPU of both sides and latency, from send to the end of a response of
// one item? With `DYNAMO_BENCH_ROLE` this file is the serving process. The real Dynamo is measured by the same client
// against its mocker, where it is installed: what differs then is the worker's side.
import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import { DistributedRuntime, type EndpointClient } from "@dynamo-ts/runtime";
import {
	CertificateAuthority,
	Child,
	fileDiscoveryEnv,
	findNatsServer,
	findOpenssl,
	findRealDynamo,
	freePort,
	NatsServer,
	startRealMocker,
} from "@dynamo-ts/testing/internal";
import { cpuSeconds, report, withTempFolder } from "./lib.js";

const REQUESTS = Number(process.argv[2] ?? 5000);
const CONCURRENCY = 16;
/** Of the size of a short chat, tokenized. */
const PAYLOAD = {
	model: "m",
	token_ids: Array.from({ length: 200 }, (_, i) => 1000 + i),
	stop_conditions: { max_tokens: 1, ignore_eos: true },
	sampling_options: {},
	output_options: {},
	eos_token_ids: [],
	annotations: [],
	routing: {},
};

if (process.env.DYNAMO_BENCH_ROLE === "serve") {
	const runtime = await DistributedRuntime.create();
	await echo(runtime);
	console.log("serving");
	process.once("SIGTERM", () => void runtime.shutdown().then(() => process.exit(0)));
} else {
	await main();
}

async function echo(runtime: DistributedRuntime): Promise<void> {
	await runtime
		.namespace("bench")
		.component("backend")
		.endpoint("generate")
		.serve((_request, response) => {
			response.send({ data: { token_ids: [1], finish_reason: "length" } });
			response.end();
		});
}

async function main(): Promise<void> {
	const rows: Record<string, string | number>[] = [];
	await withTempFolder(async (folder) => {
		process.env.DYN_LOG = "warn";
		rows.push(await inProcess());
		const file = { ...fileDiscoveryEnv(folder), DYN_LOG: "warn" };
		rows.push(await against("tcp", file, ours));
		const openssl = findOpenssl();
		if (openssl.path) rows.push(await overTls(file));
		const nats = findNatsServer();
		if (nats.missing) console.error(nats.missing);
		const server = nats.path ? await NatsServer.start({ jetStream: false }) : undefined;
		const overNats = { ...file, DYN_REQUEST_PLANE: "nats", NATS_SERVER: server?.url ?? "" };
		if (server !== undefined) rows.push(await against("nats", overNats, ours));
		const peer = findRealDynamo();
		const modelPath = process.env.DYNAMO_TEST_MODEL_HF;
		if (peer.path && modelPath) {
			const real = (env: Record<string, string>) =>
				startRealMocker(peer.path, env, modelPath, "m", [
					...["--speedup-ratio", "1000", "--endpoint", "dyn://bench.backend.generate"],
				]);
			rows.push(await against("tcp, real mocker", file, real));
			if (server !== undefined) rows.push(await against("nats, real mocker", overNats, real));
		} else console.error("no real Dynamo, or DYNAMO_TEST_MODEL_HF is not set: it is left out");
		await server?.stop();
	});
	report(`Request plane: ${REQUESTS} requests of one item, ${CONCURRENCY} at a time; latency one at a time`, rows);
}

function ours(env: Record<string, string>): Child {
	return new Child(process.execPath, [...process.execArgv, fileURLToPath(import.meta.url)], {
		env: { ...env, DYNAMO_BENCH_ROLE: "serve" },
	});
}

async function overTls(env: Record<string, string>): Promise<Record<string, string | number>> {
	const authority = new CertificateAuthority();
	try {
		const { cert, key } = authority.sign();
		const tls = { DYN_TCP_TLS_CERT_PATH: cert, DYN_TCP_TLS_KEY_PATH: key, DYN_TCP_TLS_CA_CERT_PATH: authority.ca };
		return await against("tcp with TLS", { ...env, ...tls }, ours);
	} finally {
		authority.remove();
	}
}

async function inProcess(): Promise<Record<string, string | number>> {
	process.env.DYN_DISCOVERY_BACKEND = "mem";
	const runtime = await DistributedRuntime.create();
	await echo(runtime);
	const row = await measure("in process", runtime, undefined);
	await runtime.shutdown();
	return row;
}

/** Starts a worker, measures with a client in this process, and ends both. */
async function against(
	name: string,
	env: Record<string, string>,
	start: (env: Record<string, string>) => Child,
): Promise<Record<string, string | number>> {
	const before = { ...process.env };
	Object.assign(process.env, env);
	const child = start({ ...env, DYN_SYSTEM_PORT: String(await freePort()) });
	const runtime = await DistributedRuntime.create();
	try {
		return await measure(name, runtime, child);
	} finally {
		await runtime.shutdown();
		await child.stop();
		for (const key of Object.keys(env)) delete process.env[key];
		Object.assign(process.env, before);
	}
}

async function measure(
	name: string,
	runtime: DistributedRuntime,
	child: Child | undefined,
): Promise<Record<string, string | number>> {
	const client = await runtime.namespace("bench").component("backend").endpoint("generate").client();
	await client.waitForInstances(60_000);
	await run(client, 500, CONCURRENCY);
	const own = process.cpuUsage();
	const theirs = child === undefined ? 0 : cpuSeconds(child.pid);
	const started = performance.now();
	await run(client, REQUESTS, CONCURRENCY);
	const seconds = (performance.now() - started) / 1000;
	const used = process.cpuUsage(own);
	const worker = child === undefined ? 0 : cpuSeconds(child.pid) - theirs;
	const latencies = (await run(client, Math.min(1000, REQUESTS), 1)).sort((a, b) => a - b);
	const at = (share: number) => ((latencies[Math.floor(latencies.length * share)] as number) * 1000).toFixed(0);
	client.close();
	return {
		plane: name,
		"CPU client (µs)": (((used.user + used.system) / REQUESTS) | 0).toString(),
		"CPU worker (µs)": child === undefined ? "in the client's" : ((worker / REQUESTS) * 1e6).toFixed(0),
		"requests/s": (REQUESTS / seconds).toFixed(0),
		"latency p50 (µs)": at(0.5),
		"latency p99 (µs)": at(0.99),
	};
}

/** Sends `count` requests, `lanes` at a time; the milliseconds that each took. */
async function run(client: EndpointClient, count: number, lanes: number): Promise<number[]> {
	const times: number[] = [];
	let sent = 0;
	const lane = async (): Promise<void> => {
		while (sent < count) {
			sent++;
			const started = performance.now();
			await new Promise<void>((resolve, reject) => {
				const [instance] = client.instances();
				if (instance === undefined) throw new Error("the worker is gone");
				client.send(instance, { id: randomUUID(), payload: PAYLOAD }, { onItem() {}, onEnd: resolve, onError: reject });
			});
			times.push(performance.now() - started);
		}
	};
	await Promise.all(Array.from({ length: lanes }, lane));
	return times;
}
