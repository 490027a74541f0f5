// SPDX-License-Identifier: Apache-2.0
// What does an index of cached blocks cost that others ask? Our `dynamo router --serve-indexer` and the real
// `dynamo.router` stand side by side before the same workers: the same events, the same questions, over the event and
// request planes. `dynamo.indexer` gets the same blocks from engines' sockets, and its questions over HTTP. CPU and memory
// are those of the asked process, from /proc.
import { randomUUID } from "node:crypto";
import { startScriptedWorker } from "@dynamo-ts/frontend/internal";
import { blockHashes, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { EndpointClient } from "@dynamo-ts/runtime";
import { DistributedRuntime } from "@dynamo-ts/runtime/internal";
import {
	Child,
	CollectingSink,
	fileDiscoveryEnv,
	freePort,
	PROJECT_ROOT,
	startDynamo,
	until,
} from "@dynamo-ts/testing/internal";
import { KvEventPublisher } from "@dynamo-ts/worker";
import { EngineSocket } from "@dynamo-ts/worker/internal";
import { BLOCK_SIZE, CHAIN, chainOf, chainsOf, promptsOf, storedOf } from "./kv-blocks.js";
import { cpuSeconds, report, requireRealDynamo, residentBytes, withTempFolder } from "./lib.js";

const BLOCKS = Number(process.argv[2] ?? 1_000_000);
const WORKERS = Number(process.argv[3] ?? 4);
const PROMPTS = 500;
const WARM = 3;
const ROUNDS = 4;
const CONCURRENCY = 8;
const ENDPOINT = { namespace: "bench", component: "backend", name: "generate" };
/** Chains that are published before it is waited until all have them. */
const BURST = 250;

const python = requireRealDynamo();
const chains = chainsOf(BLOCKS);
const blocks = (chains * CHAIN) / BLOCK_SIZE;
const prompts = promptsOf(PROMPTS, chains);
const hashesOf = (tokens: readonly number[]): readonly bigint[] => blockHashes(tokens, BLOCK_SIZE).tokensHashes;

interface Asked {
	readonly perSecond: number;
	readonly cpuMicros: number;
}
interface Figures {
	readonly who: string;
	readonly pid: number;
	applyCpu: number;
	bytes: number;
	readonly asked: Record<string, Asked>;
	/** Leading blocks that the holders of all prompts have, for comparison. */
	found: number;
}

/** Asks all questions, eight at a time, after rounds to get warm. */
async function measure(pid: number, ask: (question: number) => Promise<unknown>): Promise<Asked> {
	const run = async (count: number): Promise<void> => {
		let at = 0;
		const asker = async (): Promise<void> => {
			while (at < count) await ask(at++ % PROMPTS);
		};
		await Promise.all(Array.from({ length: CONCURRENCY }, asker));
	};
	await run(WARM * PROMPTS);
	const [cpu, wall] = [cpuSeconds(pid), performance.now()];
	await run(ROUNDS * PROMPTS);
	const count = ROUNDS * PROMPTS;
	return {
		perSecond: (count * 1000) / (performance.now() - wall),
		cpuMicros: ((cpuSeconds(pid) - cpu) * 1e6) / count,
	};
}

async function ask(client: EndpointClient, instance: EndpointRecord, payload: unknown): Promise<unknown> {
	const sink = new CollectingSink();
	client.send(instance, { id: randomUUID(), payload }, sink, { firstResponseTimeoutMs: 20_000 });
	await sink.done;
	if (sink.error !== undefined) throw sink.error;
	return sink.items[0];
}

interface Scores {
	readonly TieredScores: { readonly device: { readonly scores: readonly [unknown, number][] } };
}
const most = ({ TieredScores }: Scores): number => Math.max(0, ...TieredScores.device.scores.map(([, n]) => n));

/** Both routers, with the same events at the same time. */
async function measureRouters(folder: string): Promise<Figures[]> {
	const env = { ...fileDiscoveryEnv(folder), DYN_LOG: "error" };
	const runtimes: DistributedRuntime[] = [];
	const children: Child[] = [];
	const runtime = async (): Promise<DistributedRuntime> => {
		const options = { discoveryBackend: "file", fileKvRoot: folder, systemPort: -1, tcpRpcHost: "127.0.0.1" } as const;
		const log = { filter: "error", format: "readable", ansi: false, localTime: false } as const;
		runtimes.push(await DistributedRuntime.create({ ...options, log }));
		return runtimes.at(-1) as DistributedRuntime;
	};
	try {
		const publishers: KvEventPublisher[] = [];
		for (let i = 0; i < WORKERS; i++) {
			const worker = await runtime();
			const { namespace, component } = ENDPOINT;
			const folder = `${PROJECT_ROOT}/packages/frontend/fixtures/tiny-model`;
			const card = { kv_cache_block_size: BLOCK_SIZE };
			await startScriptedWorker(worker, { namespace, component, model: "m", folder, script: () => {}, card });
			publishers.push(await KvEventPublisher.open(worker, { endpoint: ENDPOINT, blockSize: BLOCK_SIZE }));
		}
		const client = await runtime();
		const component = client.namespace(ENDPOINT.namespace).component(ENDPOINT.component);
		const index = await component.endpoint("kv_indexer_query").client();
		const best = await client.namespace(ENDPOINT.namespace).component("router").endpoint("best_worker_id").client();
		const args = ["--endpoint", "bench.backend.generate", "--router-block-size", String(BLOCK_SIZE), "--serve-indexer"];
		const routers: { figures: Figures; id: bigint }[] = [];
		for (const who of ["ours", "dynamo.router"]) {
			const threads = ["--router-event-threads", "1"];
			const child =
				who === "ours"
					? startDynamo(["router", ...args], { env })
					: new Child(python, ["-m", "dynamo.router", ...args, ...threads], { env });
			children.push(child);
			await until(`${who} serves`, () => index.instances().length > routers.length, { child, timeoutMs: 60_000 });
			await until(`${who} routes`, () => best.instances().length > routers.length, { child, timeoutMs: 60_000 });
			const known = routers.map(({ id }) => id);
			const id = index.instances().find(({ instance_id }) => !known.includes(instance_id))?.instance_id as bigint;
			routers.push({ id, figures: { who, pid: child.pid, applyCpu: 0, bytes: 0, asked: {}, found: 0 } });
		}
		const recordOf = (of: EndpointClient, id: bigint): EndpointRecord =>
			of.instances().find(({ instance_id }) => instance_id === id) as EndpointRecord;
		const query = async (id: bigint, tokensHashes: readonly bigint[]): Promise<Scores> =>
			(await ask(index, recordOf(index, id), {
				model_name: "m",
				block_hashes: tokensHashes,
				device_only: false,
			})) as Scores;
		const before = routers.map(({ figures: { pid } }) => ({ cpu: cpuSeconds(pid), bytes: residentBytes(pid) }));
		for (let n = 0; n < chains; n++) {
			(publishers[n % WORKERS] as KvEventPublisher).publishChanges([{ data: storedOf(n) }]);
			if (n % BURST !== BURST - 1 && n !== chains - 1) continue;
			const hashes = hashesOf(chainOf(n));
			for (const { id } of routers) {
				await until("the blocks have arrived", async () => most(await query(id, hashes)) === CHAIN / BLOCK_SIZE, {
					timeoutMs: 60_000,
				});
			}
		}
		const questions = prompts.map(hashesOf);
		for (const [i, { id, figures }] of routers.entries()) {
			const { pid, asked } = figures;
			figures.applyCpu = cpuSeconds(pid) - (before[i]?.cpu ?? 0);
			figures.bytes = residentBytes(pid) - (before[i]?.bytes ?? 0);
			asked.query = await measure(pid, (at) => query(id, questions[at] as readonly bigint[]));
			asked.one = await measure(pid, (at) => query(id, (questions[at] as readonly bigint[]).slice(0, 1)));
			const record = recordOf(best, id);
			asked.choice = await measure(pid, (at) => ask(best, record, prompts[at]));
			for (const question of questions) figures.found += most(await query(id, question));
		}
		return routers.map(({ figures }) => figures);
	} finally {
		await Promise.all(children.map((child) => child.stop(5000)));
		for (const one of runtimes.reverse()) await one.shutdown();
	}
}

async function measureIndexer(): Promise<Figures> {
	const port = await freePort();
	const child = new Child(python, ["-m", "dynamo.indexer", "--port", String(port), "--threads", "1"], {
		env: { DYN_LOG: "error" },
	});
	const engines: EngineSocket[] = [];
	const post = async (path: string, body: string): Promise<string> => {
		const answer = await fetch(`http://127.0.0.1:${port}${path}`, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body,
		});
		const text = await answer.text();
		if (!answer.ok) throw new Error(`${path}: ${answer.status} ${text}`);
		return text;
	};
	try {
		const healthy = async (): Promise<boolean> =>
			(await fetch(`http://127.0.0.1:${port}/health`).catch(() => undefined))?.ok ?? false;
		await until("the indexer is up", healthy, { child, timeoutMs: 60_000 });
		for (let id = 1; id <= WORKERS; id++) {
			const endpoint = `tcp://127.0.0.1:${await freePort()}`;
			engines.push(await EngineSocket.open({ endpoint, topic: "" }));
			await post("/register", JSON.stringify({ instance_id: id, endpoint, model_name: "m", block_size: BLOCK_SIZE }));
		}
		// Subscriptions are on their way for a moment.
		await new Promise((resolve) => setTimeout(resolve, 3000));
		const figures: Figures = { who: "dynamo.indexer", pid: child.pid, applyCpu: 0, bytes: 0, asked: {}, found: 0 };
		const before = { cpu: cpuSeconds(child.pid), bytes: residentBytes(child.pid) };
		const mostOf = (text: string): number =>
			Math.max(0, ...[...text.matchAll(/"\d+":(\d+)[,}]/g)].map(([, n]) => Number(n) / BLOCK_SIZE));
		const tokens = (prompt: readonly number[]): string => JSON.stringify({ model_name: "m", token_ids: prompt });
		for (let n = 0; n < chains; n++) {
			(engines[n % WORKERS] as EngineSocket).publish([storedOf(n)]);
			if (n % BURST !== BURST - 1 && n !== chains - 1) continue;
			const arrived = async (): Promise<boolean> =>
				mostOf(await post("/query", tokens(chainOf(n)))) >= CHAIN / BLOCK_SIZE;
			await until("the blocks have arrived", arrived, { child, timeoutMs: 60_000 });
		}
		figures.applyCpu = cpuSeconds(child.pid) - before.cpu;
		figures.bytes = residentBytes(child.pid) - before.bytes;
		const hashes = (some: readonly bigint[]): string =>
			`{"model_name":"m","block_hashes":[${some.map(signed).join()}]}`;
		const byHash = prompts.map((prompt) => hashes(hashesOf(prompt)));
		const byOne = prompts.map((prompt) => hashes(hashesOf(prompt).slice(0, 1)));
		const byTokens = prompts.map(tokens);
		figures.asked.query = await measure(child.pid, (at) => post("/query_by_hash", byHash[at] as string));
		figures.asked.one = await measure(child.pid, (at) => post("/query_by_hash", byOne[at] as string));
		figures.asked.tokens = await measure(child.pid, (at) => post("/query", byTokens[at] as string));
		for (const question of byTokens) figures.found += mostOf(await post("/query", question));
		return figures;
	} finally {
		for (const engine of engines) await engine.close();
		await child.stop(5000);
	}
}

/** Hashes are signed in that service's JSON. */
const signed = (hash: bigint): string => String(BigInt.asIntN(64, hash));

const all = [...(await withTempFolder(measureRouters)), await measureIndexer()];
const shown = (asked: Asked | undefined): string =>
	asked === undefined ? "" : `${asked.cpuMicros.toFixed(0)}, ${asked.perSecond.toFixed(0)}`;
report(
	`an index that others ask, ${blocks} blocks of ${WORKERS} workers`,
	all.map(({ who, applyCpu, bytes, asked, found }) => ({
		index: who,
		"blocks taken in per CPU second": (blocks / applyCpu).toFixed(0),
		"memory per block (bytes)": (bytes / blocks).toFixed(0),
		"question by hashes: CPU (µs), per second": shown(asked.query),
		"by one hash": shown(asked.one),
		"by tokens": shown(asked.tokens),
		"best worker by tokens": shown(asked.choice),
		"blocks found": found,
	})),
);
