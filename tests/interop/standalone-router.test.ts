// SPDX-License-Identifier: Apache-2.0
// The real standalone router and ours side by side before the same real workers: the same questions, the same answers.
// And frontends without an index that ask the other kind's.
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { blockHashes, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import { DistributedRuntime } from "@dynamo-ts/runtime/internal";
import {
	Child,
	CollectingSink,
	fileDiscoveryEnv,
	findRealDynamo,
	scrape,
	sendPrompt,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { afterAll, test as base, beforeAll, expect } from "vitest";

const peer = findRealDynamo();
const hf = testModel("hf");
const missing = peer.missing || hf.missing;
const test = missing ? base.skip : base;
const MODEL = "kv-model";
const BLOCK_SIZE = 16;
const folder = mkdtempSync(join(tmpdir(), "dynamo-router-"));
const env = fileDiscoveryEnv(folder);
const children: Child[] = [];
let runtime: DistributedRuntime;
/** Instance ids of the two routers. */
let real: bigint;
let ours: bigint;
let workers: bigint[];

const instancesOf = async (component: string, endpoint: string): Promise<bigint[]> =>
	(await runtime.discovery.list("v1/instances")).flatMap((record) =>
		record.type === "Endpoint" && record.component === component && record.endpoint === endpoint
			? [record.instance_id]
			: [],
	);

beforeAll(async () => {
	if (missing) return;
	runtime = await DistributedRuntime.create({ discoveryBackend: "file", fileKvRoot: folder, systemPort: -1 });
	const args = ["--num-workers", "2", "--block-size", String(BLOCK_SIZE), "--speedup-ratio", "1000"];
	const mockers = startRealMocker(peer.path, env, hf.path, MODEL, args);
	children.push(mockers);
	const found = async (): Promise<boolean> => (await instancesOf("backend", "generate")).length === 2;
	await until("the workers", found, { timeoutMs: 60_000, child: mockers });
	workers = await instancesOf("backend", "generate");
	const routerArgs = ["--endpoint", "dynamo.backend.generate", "--serve-indexer"];
	const started = async (child: Child): Promise<bigint> => {
		children.push(child);
		const known = [real, ours];
		let id: bigint | undefined;
		await until(
			"the router",
			async () => {
				const ready = await instancesOf("router", "get_overlap_scores");
				id = ready.find((one) => !known.includes(one));
				return id !== undefined;
			},
			{ timeoutMs: 60_000, child },
		);
		return id as bigint;
	};
	real = await started(
		new Child(peer.path, ["-m", "dynamo.router", ...routerArgs, "--router-block-size", "16"], { env }),
	);
	ours = await started(startDynamo(["router", ...routerArgs], { env }));
}, 180_000);

afterAll(async () => {
	await runtime?.shutdown();
	await Promise.all(children.map((child) => child.stop(5000)));
	rmSync(folder, { recursive: true, force: true });
});

/** Asks one instance. @returns the items of its answer. */
async function ask(id: bigint, component: string, endpoint: string, payload: unknown): Promise<unknown[]> {
	const client = await runtime.namespace("dynamo").component(component).endpoint(endpoint).client();
	try {
		const instances = await client.waitForInstances(5000);
		const instance = instances.find(({ instance_id }) => instance_id === id) as EndpointRecord;
		const sink = new CollectingSink();
		client.send(instance, { id: randomUUID(), payload }, sink, { firstResponseTimeoutMs: 10_000 });
		await sink.done;
		if (sink.error !== undefined) throw sink.error;
		return sink.items;
	} finally {
		client.close();
	}
}

/** Ids of no special meaning, different for each prompt. */
const promptOf = (number: number, length = 100): number[] =>
	Array.from({ length }, (_, i) => 1000 + ((number * 7919 + i * 104_729) % 40_000));

interface Item {
	readonly data: {
		readonly completion_usage?: { readonly prompt_tokens_details: { readonly cached_tokens: number } };
		readonly routing_data?: {
			readonly worker_id?: { readonly decode_worker_id: bigint };
			readonly timing?: Record<string, number>;
		};
	};
}

const generate = async (id: bigint, prompt: readonly number[], routing?: unknown): Promise<Item[]> => {
	const body = { token_ids: prompt, stop_conditions: { max_tokens: 2, ignore_eos: true }, routing };
	return (await ask(id, "router", "generate", { ...body, sampling_options: {}, output_options: {} })) as Item[];
};

/** Hits in one order, whatever the peer's. */
const sorted = (item: unknown): unknown => {
	const { device, lower_tier } = (item as { TieredScores: { device: { scores: [unknown, number][] }; lower_tier: [] } })
		.TieredScores;
	return {
		scores: device.scores.map(([rank, n]) => [rank, n]).sort((a, b) => Number(a[1]) - Number(b[1])),
		lower_tier,
	};
};

test(titled("both give the same scores and the same best worker, and pass requests on alike", missing), async () => {
	// The first worker holds 3 blocks of each prompt, the second all 6: one of them is the best.
	for (let p = 0; p < 4; p++) {
		await generate(p % 2 === 0 ? real : ours, promptOf(p, 50), { backend_instance_id: workers[0] });
		await generate(p % 2 === 0 ? ours : real, promptOf(p), { backend_instance_id: workers[1] });
	}
	const scores = async (id: bigint, p: number): Promise<unknown> =>
		(await ask(id, "router", "get_overlap_scores", { token_ids: promptOf(p) }))[0];
	const complete = async (id: bigint): Promise<boolean> => {
		const answer = (await scores(id, 3)) as { data: { workers: { device_blocks: number }[] } };
		return answer.data.workers.reduce((sum, { device_blocks }) => sum + device_blocks, 0) === 9;
	};
	await until("both have heard of all blocks", async () => (await complete(real)) && (await complete(ours)));
	for (let p = 0; p < 5; p++) {
		expect(await scores(ours, p)).toEqual(await scores(real, p));
		const query = { model_name: MODEL, block_hashes: blockHashes(promptOf(p), BLOCK_SIZE).tokensHashes };
		const indexOf = async (id: bigint): Promise<unknown> =>
			sorted((await ask(id, "backend", "kv_indexer_query", query))[0]);
		expect(await indexOf(ours)).toEqual(await indexOf(real));
	}
	for (let p = 0; p < 4; p++) {
		const best = await Promise.all([real, ours].map((id) => ask(id, "router", "best_worker_id", promptOf(p))));
		expect(best).toEqual([[{ data: workers[1] }], [{ data: workers[1] }]]);
		for (const id of [real, ours]) {
			const items = await generate(id, promptOf(p));
			const first = items[0]!.data;
			expect(first.routing_data?.worker_id).toMatchObject({ decode_worker_id: workers[1], decode_dp_rank: 0 });
			expect(first.completion_usage?.prompt_tokens_details.cached_tokens).toBe(96);
			const timing = items.at(-1)!.data.routing_data?.timing;
			expect(timing?.kv_hit_rate).toBeCloseTo(6 / 7, 10);
			expect(Object.keys(timing ?? {})).toHaveLength(7);
		}
	}
	const shape = async (id: bigint): Promise<string[][]> =>
		(await generate(id, promptOf(9))).map(({ data }) =>
			Object.keys(data)
				.filter((key) => key !== "index")
				.sort(),
		);
	expect(await shape(ours)).toEqual(await shape(real));
}, 120_000);

/** Sends prompts until each is known, then again. @returns who answered each; the second time with all blocks cached. */
async function placed(url: string, prompts: readonly number[], index: () => Promise<bigint>): Promise<bigint[]> {
	const holders: bigint[] = [];
	for (let round = 0; round < 3; round++) {
		for (const [i, p] of prompts.entries()) {
			const { worker, cached } = await sendPrompt(url, MODEL, promptOf(p));
			if (round > 0) expect({ worker, cached }).toEqual({ worker: holders[i], cached: 96 });
			else holders.push(worker);
			const asked = { model_name: MODEL, block_hashes: blockHashes(promptOf(p), BLOCK_SIZE).tokensHashes };
			await until("the index has the prompt", async () => {
				const [item] = await ask(await index(), "backend", "kv_indexer_query", asked);
				return JSON.stringify(sorted(item), (_key, value) =>
					typeof value === "bigint" ? String(value) : value,
				).includes(",6]");
			});
		}
	}
	return holders;
}

const PROMPTS = [20, 21, 22, 23, 24, 25];
const FAILURES = "dynamo_component_router_remote_indexer_query_failures_total";
const stopServing = async (id: bigint, child: Child): Promise<void> => {
	await child.stop(5000);
	const gone = async (): Promise<boolean> => !(await instancesOf("backend", "kv_indexer_query")).includes(id);
	await until("the index is no longer there", gone, { timeoutMs: 40_000 });
};
let holders: bigint[];

test(titled("our frontend without an index of its own asks both routers, the real one too", missing), async () => {
	const frontend = await startOwnHttp("frontend", ["--router-mode", "kv", "--use-remote-indexer"], env, MODEL);
	children.push(frontend.child);
	// The real one's events come as soon as ours, or the next question waits for them.
	holders = await placed(frontend.url, PROMPTS, async () => real);
	expect(new Set(holders).size).toBe(2);
	const page = await scrape(frontend.url);
	expect(page.select(FAILURES)).toMatchObject([{ value: 0 }]);
	// Ours is away: now each answer is the real one's.
	await stopServing(ours, children[2] as Child);
	expect(await placed(frontend.url, PROMPTS, async () => real)).toEqual(holders);
	expect((await scrape(frontend.url)).sum(FAILURES)).toBe(0);
}, 120_000);

test(titled("a real frontend without an index of its own asks our router, then our frontend", missing), async () => {
	await stopServing(real, children[1] as Child);
	const router = startDynamo(["router", "--endpoint", "dynamo.backend.generate", "--serve-indexer"], { env });
	children.push(router);
	const index = async (): Promise<bigint> => {
		let [id] = await instancesOf("backend", "kv_indexer_query");
		await until("an index is there", async () => {
			[id] = await instancesOf("backend", "kv_indexer_query");
			return id !== undefined;
		});
		return id as bigint;
	};
	const served = await index();
	const asking = await startRealFrontend(peer.path, env, MODEL, ["--router-mode", "kv", "--use-remote-indexer"]);
	children.push(asking.child);
	expect(await placed(asking.url, PROMPTS, index)).toEqual(holders);
	await stopServing(served, router);
	const frontend = await startOwnHttp("frontend", ["--router-mode", "kv", "--serve-indexer"], env, MODEL);
	children.push(frontend.child);
	expect(await placed(asking.url, PROMPTS, index)).toEqual(holders);
}, 120_000);
