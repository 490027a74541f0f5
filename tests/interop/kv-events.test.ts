// SPDX-License-Identifier: Apache-2.0
// KV events between real and our own processes: a real router before our workers, our subscriber before real workers.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { blockHashes, type RouterEvent } from "@dynamo-ts/protocols/internal";
import { KvEventSubscriber } from "@dynamo-ts/router";
import { DistributedRuntime } from "@dynamo-ts/runtime/internal";
import {
	type Child,
	fileDiscoveryEnv,
	findNatsServer,
	findRealDynamo,
	freePort,
	type HttpChild,
	NatsServer,
	type Placement,
	sendPrompt,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
	testModel,
	titled,
	until,
	writeTinyModel,
} from "@dynamo-ts/testing/internal";
import { relayKvEvents } from "@dynamo-ts/worker";
import { afterAll, test as base, beforeAll, describe, expect } from "vitest";
import { eventsHeard } from "./cluster.js";

const peer = findRealDynamo();
const nats = findNatsServer();
const hf = testModel("hf");
const missing = peer.missing || hf.missing;
const python = peer.path;
const modelPath = hf.path;
const BLOCK_SIZE = 16;
const MODEL = "kv-model";
const ENDPOINT = { namespace: "dynamo", component: "backend", name: "generate" };
const RELAYED = { namespace: "dynamo", component: "relayed", name: "generate" };
const MOCKER_ARGS = ["--block-size", String(BLOCK_SIZE), "--speedup-ratio", "1000"];

const natsMissing = missing || nats.missing;
/** Each plane, with simulated engines and with real ones, and why it is skipped. */
const ownWorkers: [plane: "zmq" | "nats", workers: "mockers" | "engines", why: string][] = [
	["zmq", "mockers", titled("", missing)],
	["nats", "mockers", titled("", natsMissing)],
	["zmq", "engines", titled("", missing)],
];
/** Each plane, and why it is skipped. */
const planes: [plane: "zmq" | "nats", why: string][] = [
	["zmq", titled("", missing)],
	["nats", titled("", natsMissing)],
];

interface Network {
	/** What processes must be told. */
	readonly env: Record<string, string>;
	stop(): Promise<void>;
}

async function startNetwork(plane: "zmq" | "nats"): Promise<Network> {
	if (plane === "zmq") return { env: { DYN_EVENT_PLANE: plane }, stop: async () => {} };
	const server = await NatsServer.start();
	return { env: { DYN_EVENT_PLANE: plane, NATS_SERVER: server.url }, stop: () => server.stop() };
}

/** Ids of no special meaning, different for each prompt. */
function promptOf(number: number, length: number): number[] {
	return Array.from({ length }, (_, i) => 1000 + ((number * 7919 + i * 104_729) % 40_000));
}

describe.each(ownWorkers)("over %s, a real kv router before our %s%s", (plane, workers, why) => {
	const test = why ? base.skip : base;
	let network: Network;
	const folder = mkdtempSync(join(tmpdir(), "dynamo-kv-"));
	const children: Child[] = [];
	let env: Record<string, string>;
	let frontend: HttpChild;
	let ids: bigint[];

	beforeAll(async () => {
		if (why) return;
		network = await startNetwork(plane);
		env = { ...fileDiscoveryEnv(folder), ...network.env };
		if (workers === "mockers") {
			const args = ["mocker", "--model-path", modelPath, "--model-name", MODEL, "--num-workers", "2", ...MOCKER_ARGS];
			const mockers = startDynamo(args, { env });
			children.push(mockers);
			await mockers.waitForOutput(/simulated workers serve/);
		} else {
			const model = writeTinyModel(join(folder, "tiny"), modelPath);
			const args = ["worker", "--model", model, "--model-name", MODEL, "--block-size", String(BLOCK_SIZE)];
			const engines = [1, 2].map(() => startDynamo(args, { env }));
			children.push(...engines);
			await Promise.all(engines.map((engine) => engine.waitForOutput(/the worker serves /, 60_000)));
		}
		frontend = await startRealFrontend(python, env, MODEL, ["--router-mode", "kv"]);
		children.push(frontend.child);
		const runtime = await DistributedRuntime.create({ discoveryBackend: "file", fileKvRoot: folder, systemPort: -1 });
		ids = (await runtime.discovery.list("v1/instances")).flatMap((record) =>
			record.type === "Endpoint" && record.endpoint === "generate" ? [record.instance_id] : [],
		);
		await runtime.shutdown();
	}, 120_000);

	afterAll(async () => {
		await Promise.all(children.map((child) => child.stop(5000)));
		await network?.stop();
		rmSync(folder, { recursive: true, force: true });
	});

	/** Each worker gets a prompt of its own, 8 blocks and a bit, of which the frontend then has heard. */
	const plant = async (first: number): Promise<void> => {
		for (const [i, id] of ids.entries()) {
			const before = await eventsHeard(frontend.url);
			const planted = await sendPrompt(frontend.url, MODEL, promptOf(first + i, 8 * BLOCK_SIZE + 5), {
				"x-dynamo-worker-instance-id": String(id),
			});
			expect(planted).toEqual({ worker: id, cached: 0 });
			await until("the router has heard of the blocks", async () => (await eventsHeard(frontend.url)) > before);
		}
	};
	/** Prompts that begin like those: who answers, and how much of them was there. */
	const ask = async (url: string, first: number, rounds: number): Promise<void> => {
		for (let round = 0; round < rounds; round++) {
			for (const [i, id] of ids.entries()) {
				const prompt = [...promptOf(first + i, 8 * BLOCK_SIZE), ...promptOf(1000 + 17 * round + i, 24)];
				expect(await sendPrompt(url, MODEL, prompt)).toEqual({ worker: id, cached: 8 * BLOCK_SIZE });
			}
		}
	};

	test("the holder of a prefix gets the request", async () => {
		expect(ids).toHaveLength(2);
		await plant(1);
		await ask(frontend.url, 1, 10);
	});

	test("a router that starts later asks the workers what they hold", async () => {
		await plant(11);
		const late = await startRealFrontend(python, env, MODEL, ["--router-mode", "kv"]);
		children.push(late.child);
		await ask(late.url, 11, 10);
		expect(late.child.output).not.toMatch(/ERROR/);
	}, 120_000);
});

describe.each(planes)("over %s, our kv router before real workers%s", (plane, why) => {
	const test = why ? base.skip : base;
	let network: Network;
	const folder = mkdtempSync(join(tmpdir(), "dynamo-kv-"));
	const children: Child[] = [];
	let env: Record<string, string>;

	beforeAll(async () => {
		if (why) return;
		network = await startNetwork(plane);
		env = { ...fileDiscoveryEnv(folder), ...network.env };
		children.push(startRealMocker(python, env, modelPath, MODEL, ["--num-workers", "2", ...MOCKER_ARGS]));
	});

	afterAll(async () => {
		await Promise.all(children.map((child) => child.stop(5000)));
		await network?.stop();
		rmSync(folder, { recursive: true, force: true });
	});

	const startRouter = async (): Promise<HttpChild> => {
		const router = await startOwnHttp("frontend", ["--router-mode", "kv"], env, MODEL);
		children.push(router.child);
		return router;
	};

	test("the holder of a prefix gets the request, from a router that starts later too", async () => {
		const { url } = await startRouter();
		const holders: bigint[] = [];
		for (let p = 0; p < 8; p++) {
			const before = await eventsHeard(url);
			const { worker, cached } = await sendPrompt(url, MODEL, promptOf(p, 8 * BLOCK_SIZE + 5));
			expect(cached).toBe(0);
			holders.push(worker);
			await until("the router has heard of the blocks", async () => (await eventsHeard(url)) > before);
		}
		const ask = async (router: string, round: number): Promise<void> => {
			for (const [p, worker] of holders.entries()) {
				const prompt = [...promptOf(p, 8 * BLOCK_SIZE), ...promptOf(1000 + 17 * round + p, 24)];
				expect(await sendPrompt(router, MODEL, prompt)).toEqual({ worker, cached: 8 * BLOCK_SIZE });
			}
		};
		for (let round = 0; round < 3; round++) await ask(url, round);
		const late = await startRouter();
		for (let round = 3; round < 6; round++) await ask(late.url, round);
		expect(late.child.output).not.toMatch(/ERROR/);
	}, 120_000);
});

describe.each(planes)("over %s, our subscriber before real workers%s", (plane, why) => {
	const test = why ? base.skip : base;
	let network: Network;
	const folder = mkdtempSync(join(tmpdir(), "dynamo-kv-"));
	const children: Child[] = [];
	let frontend: HttpChild;
	let runtime: DistributedRuntime;
	let enginePort: number;
	let replayPort: number;

	beforeAll(async () => {
		if (why) return;
		network = await startNetwork(plane);
		const env = { ...fileDiscoveryEnv(folder), ...network.env };
		[enginePort, replayPort] = [await freePort(), await freePort()];
		const engineSocket = ["--zmq-kv-events-ports", String(enginePort), "--zmq-replay-ports", String(replayPort)];
		for (const more of [[], engineSocket]) {
			const args = ["--num-gpu-blocks-override", "64", ...MOCKER_ARGS, ...more];
			children.push(startRealMocker(python, env, modelPath, MODEL, args));
		}
		frontend = await startRealFrontend(python, env, MODEL, ["--router-mode", "round-robin"]);
		children.push(frontend.child);
		runtime = await DistributedRuntime.create({
			discoveryBackend: "file",
			fileKvRoot: folder,
			systemPort: -1,
			events: { plane: plane === "nats" ? "nats" : "zmq", host: "127.0.0.1" },
			nats: { server: network.env.NATS_SERVER ?? "", tlsInsecure: false, startupTimeoutMs: 5000 },
		});
	}, 120_000);

	afterAll(async () => {
		await runtime?.shutdown();
		await Promise.all(children.map((child) => child.stop(5000)));
		await network?.stop();
		rmSync(folder, { recursive: true, force: true });
	});

	class View {
		readonly caches = new Map<bigint, Set<bigint>>();
		subscriber!: KvEventSubscriber;

		static async open(endpoint = ENDPOINT): Promise<View> {
			const view = new View();
			view.subscriber = await KvEventSubscriber.open(runtime, endpoint, {
				onReset: ({ workerId }) => void view.caches.set(workerId, new Set()),
				onWorkerGone: ({ workerId }) => void view.caches.delete(workerId),
				onEvent: (event: RouterEvent) => view.#apply(event),
			});
			return view;
		}

		#apply({ workerId, data }: RouterEvent): void {
			const cache = this.caches.get(workerId);
			if (data.type === "stored") for (const { blockHash } of data.blocks) cache?.add(blockHash);
			else if (data.type === "removed") for (const hash of data.blockHashes) cache?.delete(hash);
			else cache?.clear();
		}

		get inSync(): boolean {
			const workers = this.subscriber.workers();
			return workers.length === 2 && workers.every((worker) => worker.inSync);
		}

		/** Which workers hold all full blocks of a prompt. */
		holders(prompt: readonly number[]): bigint[] {
			const { sequenceHashes } = blockHashes(prompt, BLOCK_SIZE);
			return [...this.caches].filter(([, cache]) => sequenceHashes.every((hash) => cache.has(hash))).map(([id]) => id);
		}
	}

	test("what was followed live equals what the workers tell when asked, through evictions", async () => {
		const live = await View.open();
		await until("both workers", () => live.inSync);
		const prompts = Array.from({ length: 40 }, (_, i) => promptOf(i, 5 * BLOCK_SIZE + (i % BLOCK_SIZE) + 1));
		const answers: Placement[] = [];
		for (const prompt of prompts) answers.push(await sendPrompt(frontend.url, MODEL, prompt));
		await until("the last prompt's blocks", () => live.holders(prompts.at(-1)!).length > 0);
		expect(live.holders(prompts.at(-1)!)).toEqual([answers.at(-1)!.worker]);
		// 20 prompts of 5 blocks each have been through a cache of 64.
		expect(live.holders(prompts[0]!)).toEqual([]);
		const asked = await View.open();
		await until("the workers' answers", () => asked.inSync);
		await until("the two views are the same", () => {
			const same = [...live.caches].every(([id, cache]) => {
				const other = asked.caches.get(id);
				return other?.size === cache.size && [...cache].every((hash) => other.has(hash));
			});
			return same && asked.caches.size === 2;
		});
		for (const cache of live.caches.values()) expect(cache.size).toBeGreaterThan(20);

		// What the second worker's engine tells in vLLM's format, from its first batch on, comes to the same.
		const relay = await relayKvEvents(runtime, {
			engineEndpoint: `tcp://127.0.0.1:${enginePort}`,
			replayEndpoint: `tcp://127.0.0.1:${replayPort}`,
			endpoint: RELAYED,
			blockSize: BLOCK_SIZE,
		});
		const relayed = await View.open(RELAYED);
		const isSame = (): boolean => {
			const [cache] = relayed.caches.values();
			return (
				cache !== undefined &&
				cache.size > 20 &&
				[...live.caches.values()].some((own) => own.size === cache.size && [...own].every((hash) => cache.has(hash)))
			);
		};
		// What was told before a subscription stood is missed with the next event, so there may have to be another one.
		let same = false;
		for (let i = 100; i < 120 && !same; i += 2) {
			for (const j of [i, i + 1]) await sendPrompt(frontend.url, MODEL, promptOf(j, 5 * BLOCK_SIZE + 1));
			const within = { timeoutMs: 3000 };
			same = await until("the relayed view equals the engine's own", isSame, within).then(
				() => true,
				() => false,
			);
		}
		expect(same).toBe(true);
		expect(relay).toMatchObject({ lost: 0, refused: 0 });
		await relayed.subscriber.close();
		await relay.close();
		expect(live.subscriber.counts).toMatchObject({ malformed: 0, failures: 0 });
		await asked.subscriber.close();

		// A worker that is killed is forgotten.
		const before = live.caches.size;
		children[0]!.kill("SIGKILL");
		await until("the dead worker is forgotten", () => live.caches.size === before - 1, { timeoutMs: 40_000 });
		await live.subscriber.close();
	}, 120_000);
});
