// SPDX-License-Identifier: Apache-2.0
// What routers know when events are lost, when either side starts anew, and when a worker is gone without a word.
import { createServer } from "node:net";
import type { Frontend } from "@dynamo-ts/frontend";
import { blockHashes, type DiscoveryRecord, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import { KvEventSubscriber, KvPolicy } from "@dynamo-ts/router";
import { RadixTree } from "@dynamo-ts/router/internal";
import type { DistributedRuntime, EventPlane } from "@dynamo-ts/runtime";
import { until } from "@dynamo-ts/testing/internal";
import type { WorkerHandle } from "@dynamo-ts/worker";
import { afterEach, beforeEach, expect, test } from "vitest";
import { BLOCK_SIZE, ENDPOINT, OneProcess } from "./one-process.js";

let world: OneProcess;

beforeEach(() => {
	world = new OneProcess();
});
afterEach(() => world.end());

const startRuntime = (): Promise<DistributedRuntime> => world.runtime({ events: { plane: "zmq", host: "127.0.0.1" } });

const startWorker = async (modelName = "m", component = ENDPOINT.component): Promise<WorkerHandle> =>
	world.mocker(await startRuntime(), 96, modelName, component);

const openFrontend = async (routerMode: "kv" | "round-robin"): Promise<Frontend> =>
	world.frontend(await startRuntime(), routerMode);

/** The runtime, but that some of what it hears of events never arrives. */
function lossy(runtime: DistributedRuntime, isLost: () => boolean): DistributedRuntime {
	const plane: EventPlane = {
		transport: runtime.events.transport,
		createPublisher: (scope, topic) => runtime.events.createPublisher(scope, topic),
		subscribe: (scope, topic, listener) =>
			runtime.events.subscribe(scope, topic, {
				...listener,
				onEvent: (envelope) => {
					if (!isLost()) listener.onEvent(envelope);
				},
			}),
		close: async () => {},
	};
	return new Proxy(runtime, {
		get(target, name) {
			if (name === "events") return plane;
			const value: unknown = Reflect.get(target, name, target);
			return typeof value === "function" ? value.bind(target) : value;
		},
	});
}

/** What workers tell when they are asked for everything. */
class Told {
	readonly trees = new Map<bigint, RadixTree>();

	static async ask(workers: number): Promise<Told> {
		const told = new Told();
		const subscriber = await KvEventSubscriber.open(await startRuntime(), ENDPOINT, {
			onReset: ({ workerId }) => void told.trees.set(workerId, new RadixTree()),
			onWorkerGone: ({ workerId }) => void told.trees.delete(workerId),
			onEvent: ({ workerId, data, storageTier }) => void told.trees.get(workerId)?.apply(0, storageTier, data),
		});
		const complete = (): boolean => {
			const known = subscriber.workers();
			return known.length === workers && known.every(({ inSync }) => inSync);
		};
		await until("the workers' answers", complete);
		await subscriber.close();
		return told;
	}

	/** A policy knows the same of every worker and prompt. */
	equals(policy: KvPolicy, prompts: readonly (readonly number[])[]): boolean {
		const { slots, tree } = policy.scheduler;
		return [...this.trees].every(([workerId, own]) => {
			const slot = slots.find(workerId, 0) ?? -1;
			if (tree.blocksOf(slot) !== own.blocksOf(0)) return false;
			return prompts.every((prompt) => {
				const { tokensHashes } = blockHashes(prompt, BLOCK_SIZE);
				return (tree.find(tokensHashes).device[slot] ?? 0) === (own.find(tokensHashes).device[0] ?? 0);
			});
		});
	}
}

test("a tenth of all events lost: the index is the workers' again, also after either side started anew", async () => {
	const workers = [await startWorker(), await startWorker(), await startWorker()];
	const frontend = await openFrontend("round-robin");
	await frontend.waitForModel("m", 10_000);
	let state = 7;
	const random = (): number => {
		state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
		return state / 2 ** 32;
	};
	const groups = Array.from({ length: 6 }, () => Array.from({ length: 96 }, () => Math.floor(random() * 300)));
	const prompts: number[][] = [];
	const send = async (count: number): Promise<void> => {
		for (let n = 0; n < count; n++) {
			const begin = groups[Math.floor(random() * groups.length)] as number[];
			const prompt = [...begin, ...Array.from({ length: 40 }, () => Math.floor(random() * 300))];
			prompts.push(prompt);
			const answer = await fetch(`${frontend.address}/v1/completions`, {
				method: "POST",
				headers: { "content-type": "application/json" },
				body: JSON.stringify({ model: "m", prompt, max_tokens: 20, ignore_eos: true }),
			});
			expect(answer.status, await answer.text()).toBe(200);
		}
	};
	let lost = 0;
	const isLost = (): boolean => {
		const gone = random() < 0.1;
		if (gone) lost++;
		return gone;
	};
	const openPolicy = async (): Promise<KvPolicy> => {
		const policy = new KvPolicy({ blockSize: BLOCK_SIZE, firstRank: 0, rankCount: 1, publishEvents: true });
		world.onEnd(() => policy.close());
		await policy.open(lossy(await startRuntime(), isLost), ENDPOINT);
		return policy;
	};
	const first = await openPolicy();
	await send(90);
	expect(lost).toBeGreaterThan(5);
	const before = await Told.ask(3);
	for (const tree of before.trees.values()) expect(tree.blocksOf(0)).toBeGreaterThan(40);
	await until("the index is the workers'", () => before.equals(first, prompts), { timeoutMs: 10_000 });

	// A router that starts now knows as much, and a worker that starts anew holds nothing.
	const second = await openPolicy();
	await until("the late index is the workers'", () => before.equals(second, prompts), { timeoutMs: 10_000 });
	const [left] = workers as [WorkerHandle];
	await left.close();
	await startWorker();
	await send(60);
	const after = await Told.ask(3);
	expect([...after.trees.keys()]).not.toEqual([...before.trees.keys()]);
	await until("both indices are the workers'", () => after.equals(first, prompts) && after.equals(second, prompts), {
		timeoutMs: 10_000,
	});
	for (const policy of [first, second]) {
		const { slots, tree } = policy.scheduler;
		const gone = [...before.trees.keys()].filter((id) => !after.trees.has(id));
		expect(gone).toHaveLength(1);
		for (const id of gone) expect(tree.blocksOf(slots.find(id, 0) ?? -1)).toBe(0);
	}
}, 60_000);

test("a frontend that starts with the router mode kv lists all models, though a dead worker's records are left", async () => {
	const models = ["one", "two", "three", "four", "five"];
	for (const name of models) await startWorker(name, name);
	// A process that takes connections and says nothing, under the records of a worker.
	const silent = createServer(() => {}).listen(0, "127.0.0.1");
	world.onEnd(() => silent.close());
	await new Promise((resolve) => silent.once("listening", resolve));
	const { port } = silent.address() as { port: number };
	const runtime = await startRuntime();
	const dead = 12_345n;
	const redirected = (record: EndpointRecord): EndpointRecord => ({
		...record,
		instance_id: dead,
		transport: { tcp: (record.transport as { tcp: string }).tcp.replace(/^[^/]+/, `127.0.0.1:${port}`) },
	});
	const ghosts: DiscoveryRecord[] = [];
	for (const bucket of ["v1/instances", "v1/mdc", "v1/event_sources"] as const) {
		for (const record of await runtime.discovery.list(bucket)) {
			if (record.type === "Endpoint" && record.component === "three") ghosts.push(redirected(record));
			if (record.type === "Model" && record.component === "three") ghosts.push({ ...record, instance_id: dead });
			if (record.type === "EventSource" && record.scope.kind === "endpoint") {
				if (record.scope.endpoint.component !== "three") continue;
				const { recovery_target: target } = record.metadata;
				const metadata = {
					...record.metadata,
					publisher_id: dead,
					worker: { worker_id: dead, dp_rank: 0 },
					...(target === undefined ? {} : { recovery_target: redirected({ type: "Endpoint", ...target }) }),
				};
				ghosts.push({ ...record, publisher_id: dead, metadata });
			}
		}
	}
	expect(ghosts.length).toBeGreaterThanOrEqual(4);
	for (const ghost of ghosts) await runtime.discovery.put(ghost);
	const frontend = await openFrontend("kv");
	const listed = async (): Promise<boolean> => {
		const answer = await fetch(`${frontend.address}/v1/models`);
		const { data } = (await answer.json()) as { data: { id: string }[] };
		return models.every((name) => data.some(({ id }) => id === name));
	};
	// A question to a worker may take ten seconds: waiting for its answer would take longer than this.
	await until("all models are listed", listed, { timeoutMs: 8000 });
	for (const model of models) {
		const answer = await fetch(`${frontend.address}/v1/completions`, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify({ model, prompt: [5, 6, 7], max_tokens: 2 }),
		});
		if (model !== "three") expect(answer.status, await answer.text()).toBe(200);
	}
}, 60_000);
