// SPDX-License-Identifier: Apache-2.0
// What does a choice by cache and load cost, and the index behind it? Ours and Dynamo's `dynamo.select_service` get the
// same blocks, it from engines' sockets (and hashes them itself), ours as the events that routers get; and the same
// questions over HTTP, where ours stands behind a server of a few lines. CPU times are those of the asked process, from /proc.
import { fork } from "node:child_process";
import { once } from "node:events";
import { Agent, createServer, request } from "node:http";
import { fileURLToPath } from "node:url";
import { blockHashes, decodeRouterEvents, encodeRouterEvents } from "@dynamo-ts/protocols/internal";
import { KvScheduler } from "@dynamo-ts/router/internal";
import { Child, findRealDynamo, freePort, until } from "@dynamo-ts/testing/internal";
import { EngineSocket } from "@dynamo-ts/worker/internal";
import { BLOCK_SIZE, CHAIN, chainOf, chainsOf, promptsOf, storedOf } from "./kv-blocks.js";
import { cpuSeconds, report, residentBytes } from "./lib.js";

const BLOCKS = Number(process.argv[2] ?? 1_000_000);
const COUNTS = (process.argv[3] ?? "1,16,256").split(",").map(Number);
const PROMPTS = 500;
const ROUNDS = 4;
/** Prompts without a block. */
const SHORT = Array.from({ length: PROMPTS }, () => [1]);
const chains = chainsOf(BLOCKS);
const prompts = promptsOf(PROMPTS, chains);

interface Figures {
	readonly who: string;
	readonly workers: number;
	/** Seconds of CPU for all blocks, and bytes for them. */
	readonly applyCpu: number;
	readonly rssBytes: number;
	readonly indexBytes?: number;
	/** Of the library alone: microseconds of CPU for a choice, and the part of it that is hashing. */
	readonly libraryMicros?: number;
	readonly hashMicros?: number;
	readonly selectionsPerSecond: number;
	readonly selectionCpuMicros: number;
	/** The same for a prompt of one token: what a request over HTTP costs anyway. */
	readonly shortCpuMicros: number;
}

/** The index and the choice, in a process of their own: loads, measures itself, then answers over HTTP. */
async function serveOurs(workers: number): Promise<void> {
	const scheduler = new KvScheduler({ blockSize: BLOCK_SIZE });
	const slots = Array.from({ length: workers }, (_, i) => scheduler.slots.obtain(BigInt(i + 1), 0));
	const before = residentBytes(process.pid);
	let applyMicros = 0;
	for (let n = 0; n < chains; n++) {
		const event = { workerId: BigInt((n % workers) + 1), dpRank: 0, eventId: BigInt(n + 1), data: storedOf(n) };
		const payload = encodeRouterEvents([{ ...event, storageTier: "device", residencyDomain: "worker" }]);
		const slot = slots[n % workers] as number;
		const from = process.cpuUsage();
		for (const { data, storageTier } of decodeRouterEvents(payload)) scheduler.tree.apply(slot, storageTier, data);
		const { user, system } = process.cpuUsage(from);
		applyMicros += user + system;
	}
	globalThis.gc?.();
	const choose = (tokens: readonly number[]): { id: bigint | undefined; overlap: number } => {
		const choice = scheduler.choose({ promptTokens: tokens.length, ...blockHashes(tokens, BLOCK_SIZE) }, slots);
		return {
			id: scheduler.slots.workerOf(choice?.slot ?? -1)?.workerId,
			overlap: (choice?.overlapBlocks ?? 0) * BLOCK_SIZE,
		};
	};
	const timed = (body: (tokens: readonly number[]) => unknown): number => {
		for (const prompt of prompts) body(prompt);
		const from = process.cpuUsage();
		for (let round = 0; round < ROUNDS; round++) for (const prompt of prompts) body(prompt);
		const { user, system } = process.cpuUsage(from);
		return (user + system) / (ROUNDS * PROMPTS);
	};
	const libraryMicros = timed(choose);
	const hashMicros = timed((tokens) => blockHashes(tokens, BLOCK_SIZE));
	const server = createServer((incoming, response) => {
		const parts: Buffer[] = [];
		incoming.on("data", (part: Buffer) => parts.push(part));
		incoming.on("end", () => {
			const { token_ids } = JSON.parse(Buffer.concat(parts).toString()) as { token_ids: number[] };
			const { id, overlap } = choose(token_ids);
			response.setHeader("content-type", "application/json");
			response.end(`{"worker_id":${id},"overlap":{"gpu":${overlap}}}`);
		});
	}).listen(0, "127.0.0.1");
	await once(server, "listening");
	const { port } = server.address() as { port: number };
	process.send?.({
		port,
		applyCpu: applyMicros / 1e6,
		rssBytes: residentBytes(process.pid) - before,
		indexBytes: scheduler.tree.bytes,
		libraryMicros,
		hashMicros,
	});
}

const agent = new Agent({ keepAlive: true, maxSockets: 8 });

function post(port: number, path: string, body: string): Promise<string> {
	return new Promise((resolve, reject) => {
		const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
		const sent = request({ host: "127.0.0.1", port, path, method: "POST", headers, agent }, (response) => {
			let text = "";
			response.setEncoding("utf8");
			response.on("data", (part: string) => {
				text += part;
			});
			response.on("end", () => {
				if (response.statusCode === 200 || response.statusCode === 201) resolve(text);
				else reject(new Error(`${path}: ${response.statusCode} ${text}`));
			});
		});
		sent.on("error", reject);
		sent.end(body);
	});
}

/** Asks all prompts, eight at a time. @returns choices per second, CPU per choice, and how much was found. */
async function ask(
	port: number,
	pid: number,
	asked: readonly (readonly number[])[] = prompts,
): Promise<{ perSecond: number; cpuMicros: number; overlap: number }> {
	const bodies = asked.map((token_ids) => JSON.stringify({ model_name: "m", token_ids }));
	let overlap = 0;
	const run = async (rounds: number): Promise<void> => {
		let at = 0;
		const worker = async (): Promise<void> => {
			while (at < rounds * PROMPTS) {
				const text = await post(port, "/select", bodies[at++ % PROMPTS] as string);
				overlap += Number(/"gpu":(\d+)/.exec(text)?.[1] ?? 0);
			}
		};
		await Promise.all(Array.from({ length: 8 }, worker));
	};
	await run(1);
	const [cpu, wall] = [cpuSeconds(pid), performance.now()];
	await run(ROUNDS);
	const count = ROUNDS * PROMPTS;
	return {
		perSecond: (count * 1000) / (performance.now() - wall),
		cpuMicros: ((cpuSeconds(pid) - cpu) * 1e6) / count,
		overlap: overlap / ((ROUNDS + 1) * PROMPTS),
	};
}

async function measureOurs(workers: number): Promise<Figures & { overlap: number }> {
	const execArgv = [...process.execArgv, "--expose-gc", "--max-old-space-size=8192"];
	const child = fork(fileURLToPath(import.meta.url), [String(BLOCKS), "", String(workers)], { execArgv });
	try {
		const [ready] = (await once(child, "message")) as [Omit<Figures, "who"> & { port: number }];
		const { perSecond, cpuMicros, overlap } = await ask(ready.port, child.pid as number);
		const { cpuMicros: shortCpuMicros } = await ask(ready.port, child.pid as number, SHORT);
		const { port: _port, ...own } = ready;
		const asked = { selectionsPerSecond: perSecond, selectionCpuMicros: cpuMicros, shortCpuMicros, overlap };
		return { ...own, ...asked, who: "ours", workers };
	} finally {
		child.kill();
	}
}

async function measurePeer(python: string, workers: number): Promise<Figures & { overlap: number }> {
	const port = await freePort();
	const args = ["-m", "dynamo.select_service", "--port", String(port), "--threads", "1"];
	const child = new Child(python, args, { env: { DYN_LOG: "error" } });
	const engines: EngineSocket[] = [];
	try {
		const healthy = async (): Promise<boolean> => {
			try {
				return (await fetch(`http://127.0.0.1:${port}/health`)).ok;
			} catch {
				return false;
			}
		};
		await until("the service is up", healthy, { child, timeoutMs: 60_000 });
		for (let id = 1; id <= workers; id++) {
			const endpoint = `tcp://127.0.0.1:${await freePort()}`;
			engines.push(await EngineSocket.open({ endpoint, topic: "" }));
			const worker = { worker_id: id, model_name: "m", endpoint: `http://127.0.0.1:1${id}`, block_size: BLOCK_SIZE };
			const more = { max_num_batched_tokens: 8192, kv_events_endpoints: { "0": endpoint } };
			await post(port, "/workers", JSON.stringify({ ...worker, ...more }));
		}
		// Subscriptions are on their way for a moment.
		await new Promise((resolve) => setTimeout(resolve, 3000));
		const before = { cpu: cpuSeconds(child.pid), rss: residentBytes(child.pid) };
		const held = async (n: number): Promise<boolean> => {
			const scores = await post(port, "/overlap_scores", JSON.stringify({ model_name: "m", token_ids: chainOf(n) }));
			return scores.includes(`"device_blocks":${CHAIN / BLOCK_SIZE}`);
		};
		for (let n = 0; n < chains; n++) {
			(engines[n % workers] as EngineSocket).publish([storedOf(n)]);
			if (n % 250 === 249) await until("the blocks have arrived", () => held(n), { child });
		}
		await until("all blocks have arrived", () => held(chains - 1), { child });
		const applyCpu = cpuSeconds(child.pid) - before.cpu;
		const rssBytes = residentBytes(child.pid) - before.rss;
		const { perSecond, cpuMicros, overlap } = await ask(port, child.pid);
		const { cpuMicros: shortCpuMicros } = await ask(port, child.pid, SHORT);
		const asked = { selectionsPerSecond: perSecond, selectionCpuMicros: cpuMicros, shortCpuMicros, overlap };
		return { ...asked, who: "dynamo.select_service", workers, applyCpu, rssBytes };
	} finally {
		for (const engine of engines) await engine.close();
		await child.stop(5000);
	}
}

if (process.send !== undefined && process.argv[4] !== undefined) {
	await serveOurs(Number(process.argv[4]));
} else {
	const python = findRealDynamo().path;
	const rows: Record<string, string | number>[] = [];
	for (const workers of COUNTS) {
		for (const measure of [measureOurs, ...(python ? [(n: number) => measurePeer(python, n)] : [])]) {
			const figures = await measure(workers);
			const blocks = (chains * CHAIN) / BLOCK_SIZE;
			rows.push({
				workers,
				router: figures.who,
				"choices/s over HTTP": figures.selectionsPerSecond.toFixed(0),
				"CPU per choice over HTTP (µs), of it for a prompt of one token": `${figures.selectionCpuMicros.toFixed(0)}, ${figures.shortCpuMicros.toFixed(0)}`,
				"library alone (µs), of it hashing": figures.libraryMicros
					? `${figures.libraryMicros.toFixed(0)}, ${figures.hashMicros?.toFixed(0)}`
					: "",
				"blocks taken in per CPU second": (blocks / figures.applyCpu).toFixed(0),
				"memory per block (bytes), of it the index": `${(figures.rssBytes / blocks).toFixed(0)}${figures.indexBytes ? `, ${(figures.indexBytes / blocks).toFixed(0)}` : ""}`,
				"cached tokens found": figures.overlap.toFixed(0),
			});
		}
	}
	report(`choices by cache and load, ${BLOCKS} blocks`, rows);
	agent.destroy();
}
