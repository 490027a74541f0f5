// SPDX-License-Identifier: Apache-2.0
// Routers and frontends that keep no index of their own (`--use-remote-indexer`) and those that they ask
// (`--serve-indexer`), before our mockers, in one process.
import type { Frontend, FrontendConfig } from "@dynamo-ts/frontend";
import { startScriptedWorker } from "@dynamo-ts/frontend/internal";
import { blockHashes, KV_INDEXER_QUERY_ENDPOINT } from "@dynamo-ts/protocols/internal";
import { DEFAULT_KV_ROUTER_OPTIONS, type KvRouterOptions, StandaloneRouter } from "@dynamo-ts/router";
import type { DistributedRuntime, EndpointHandler } from "@dynamo-ts/runtime";
import { CollectingSink, http, type Placement, scrape, sendPrompt, until } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, expect, test } from "vitest";
import { BLOCK_SIZE, ENDPOINT, OneProcess, TINY_FOLDER } from "./one-process.js";

const FAILURES = "dynamo_component_router_remote_indexer_query_failures_total";
const WRITE_FAILURES = "dynamo_component_router_remote_indexer_write_failures_total";
let world: OneProcess;

beforeEach(() => {
	world = new OneProcess();
});
afterEach(() => world.end());

async function startFrontend(kv: Partial<KvRouterOptions>, more: Partial<FrontendConfig> = {}): Promise<Frontend> {
	const kvRouter = { ...DEFAULT_KV_ROUTER_OPTIONS, ...kv };
	const frontend = await world.frontend(await world.runtime(), "kv", { kvRouter, ...more });
	await frontend.waitForModel("m", 10_000);
	return frontend;
}

async function startRouter(kv: Partial<KvRouterOptions>, namespace = "dynamo"): Promise<StandaloneRouter> {
	const router = await StandaloneRouter.start(await world.runtime(), { endpoint: ENDPOINT, namespace, kv });
	world.onEnd(() => router.close());
	return router;
}

/** Different prompts share no block. */
const promptOf = (number: number): number[] =>
	Array.from({ length: 160 }, (_, i) => (number * 7919 + i * 104_729 + 13) % 300);

const send = ({ address }: Frontend, prompt: readonly number[]): Promise<Placement> => sendPrompt(address, "m", prompt);

/** Asks an endpoint. @returns its first item. */
async function ask<T>(
	runtime: DistributedRuntime,
	component: string,
	endpoint: string,
	payload: unknown,
	namespace = ENDPOINT.namespace,
): Promise<T> {
	const client = await runtime.namespace(namespace).component(component).endpoint(endpoint).client();
	const [instance] = await client.waitForInstances(5000);
	const sink = new CollectingSink();
	client.send(instance!, { id: crypto.randomUUID(), payload }, sink);
	await sink.done;
	client.close();
	if (sink.error !== undefined) throw sink.error;
	return sink.items[0] as T;
}

/** What an index answers about blocks: of each worker how many it has, or why there is no answer. */
interface Scores {
	readonly TieredScores?: { readonly device: { readonly scores: readonly [unknown, number][] } };
	readonly Error?: unknown;
}
const askIndex = (runtime: DistributedRuntime, model: string, hashes: readonly bigint[]): Promise<Scores> =>
	ask(runtime, ENDPOINT.component, KV_INDEXER_QUERY_ENDPOINT, { model_name: model, block_hashes: hashes });

/** The index that is served has as many blocks of the prompt at some worker. */
async function untilServed(runtime: DistributedRuntime, prompt: readonly number[], blocks: number): Promise<void> {
	const { tokensHashes } = blockHashes(prompt, BLOCK_SIZE);
	await until("the index has the prompt", async () => {
		const { TieredScores } = await askIndex(runtime, "m", tokensHashes);
		return TieredScores?.device.scores.some(([, held]) => held === blocks) ?? false;
	});
}

const counted = async ({ address }: Frontend, name: string): Promise<number> => (await scrape(address)).sum(name);

test.each(["router", "frontend"])(
	"the holder of a prefix gets the request; a %s serves the index",
	async (server) => {
		const runtime = await world.runtime();
		for (let i = 0; i < 3; i++) await world.mocker(await world.runtime(), 1024, "m", ENDPOINT.component);
		if (server === "router") await startRouter({ serveIndexer: true });
		else await startFrontend({ serveIndexer: true });
		const asking = await startFrontend({ useRemoteIndexer: true });
		await startRouter({ useRemoteIndexer: true }, "elsewhere");
		const holders: bigint[] = [];
		for (let p = 0; p < 6; p++) {
			holders.push((await send(asking, promptOf(p))).worker);
			await untilServed(runtime, promptOf(p), 10);
		}
		expect(new Set(holders).size).toBeGreaterThan(1);
		for (let p = 0; p < 6; p++) {
			// The last token is always computed, so the last block does not count.
			expect(await send(asking, promptOf(p))).toEqual({ worker: holders[p], cached: 144 });
		}
		expect(await counted(asking, FAILURES)).toBe(0);
		// The same through a router that asks, too.
		const askRouter = <T>(endpoint: string, payload: unknown): Promise<T> =>
			ask(runtime, "router", endpoint, payload, "elsewhere");
		for (let p = 0; p < 6; p++) {
			expect(await askRouter("best_worker_id", promptOf(p))).toEqual({ data: holders[p] });
		}
		const { data } = await askRouter<{ data: { workers: { worker_id: bigint; device_blocks: number }[] } }>(
			"get_overlap_scores",
			{ token_ids: promptOf(0) },
		);
		const holding = data.workers.filter(({ device_blocks }) => device_blocks === 10);
		expect(holding.map(({ worker_id }) => worker_id)).toEqual([holders[0]]);
		expect(data.workers).toHaveLength(3);
	},
	60_000,
);

test("the endpoints go with the last model of the component", async () => {
	const runtime = await world.runtime();
	const [first, second] = [await world.runtime(), await world.runtime()];
	const options = { folder: TINY_FOLDER, script: () => {} };
	const one = await startScriptedWorker(first, { ...options, model: "m" });
	const other = await startScriptedWorker(second, { ...options, model: "n" });
	await startFrontend({ serveIndexer: true });
	const query = (model: string) => askIndex(runtime, model, [1n]);
	await until("both models are served", async () => (await query("n")).TieredScores !== undefined);
	expect((await query("m")).TieredScores?.device.scores).toEqual([]);
	await one.leave();
	await until("the first is gone", async () => (await query("m")).Error !== undefined);
	expect((await query("n")).TieredScores).toBeDefined();
	await other.leave();
	await until("nothing is served", async () =>
		(await runtime.discovery.list("v1/instances")).every(
			(record) => record.type !== "Endpoint" || record.endpoint !== KV_INDEXER_QUERY_ENDPOINT,
		),
	);
});

test("an index that lives on decisions is told of them", async () => {
	for (let i = 0; i < 3; i++) await world.mocker(await world.runtime(), 1024, "m", ENDPOINT.component);
	const runtime = await world.runtime();
	await startRouter({ serveIndexer: true, useKvEvents: false });
	const asking = await startFrontend({ useRemoteIndexer: true, useKvEvents: false });
	const holders: bigint[] = [];
	for (let p = 0; p < 4; p++) {
		holders.push((await send(asking, promptOf(p))).worker);
		await untilServed(runtime, promptOf(p), 10);
	}
	for (let p = 0; p < 4; p++) expect((await send(asking, promptOf(p))).worker).toBe(holders[p]);
	expect([await counted(asking, FAILURES), await counted(asking, WRITE_FAILURES)]).toEqual([0, 0]);
	// One that lives on events does not fit beside it.
	const other = await startFrontend({ useRemoteIndexer: true });
	await send(other, promptOf(0));
	expect(await counted(other, FAILURES)).toBe(1);
}, 60_000);

test("without anybody to ask requests go by load alone, and it is counted", async () => {
	await world.mocker(await world.runtime(), 1024, "m", ENDPOINT.component);
	const asking = await startFrontend({ useRemoteIndexer: true });
	for (let p = 0; p < 3; p++) await send(asking, promptOf(p));
	expect(await counted(asking, FAILURES)).toBe(3);
	// Less than a block is nothing to ask about.
	await send(asking, [1, 2, 3]);
	expect(await counted(asking, FAILURES)).toBe(3);
	await startRouter({ serveIndexer: true });
	await until("the index is found", async () => {
		const before = await counted(asking, FAILURES);
		await send(asking, promptOf(4));
		return (await counted(asking, FAILURES)) === before;
	});
});

const answer =
	(item: Record<string, unknown>): EndpointHandler =>
	(_request, response) => {
		response.send(item);
		response.end();
	};

test.each<[string, EndpointHandler]>([
	["answers nonsense", answer({ data: 7 })],
	["answers an error", answer({ Error: "broken" })],
	["ends at once", (_request, response) => response.end()],
	["is silent", () => {}],
])(
	"an index that %s holds up nothing for long",
	async (_how, handler) => {
		const runtime = await world.runtime();
		const worker = await startScriptedWorker(runtime, {
			folder: TINY_FOLDER,
			model: "m",
			script: (call) => call.tokens([5, 6]).finish("stop").end(),
		});
		const component = runtime.namespace("dynamo").component(ENDPOINT.component);
		let asked = 0;
		const served = await component.endpoint(KV_INDEXER_QUERY_ENDPOINT).serve((request, response) => {
			asked++;
			return handler(request, response);
		});
		world.onEnd(() => served.stop());
		const asking = await startFrontend({ useRemoteIndexer: true });
		// A client that leaves while the index is asked leaves nothing behind.
		const leaving = new AbortController();
		const left = http(`${asking.address}/v1/completions`, {
			body: { model: "m", prompt: promptOf(9), max_tokens: 2 },
			signal: leaving.signal,
		}).catch(() => {});
		await until("the index is asked", () => asked > 0);
		leaving.abort();
		await left;
		await Promise.all([0, 1, 2].map((p) => send(asking, promptOf(p))));
		expect(await counted(asking, FAILURES)).toBeGreaterThanOrEqual(3);
		expect(worker.calls.length).toBeGreaterThanOrEqual(3);
		await until("nothing is in flight", async () => (await counted(asking, "dynamo_frontend_inflight_requests")) === 0);
	},
	20_000,
);
