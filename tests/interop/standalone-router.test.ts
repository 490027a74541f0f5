// SPDX-License-Identifier: Apache-2.0
// The real standalone router and ours side by side before the same real workers: the same questions, the same answers.
// And a real frontend that asks our router's index instead of having one.
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { blockHashes, type EndpointRecord, parseJson } from "@dynamo-ts/protocols/internal";
import { DistributedRuntime } from "@dynamo-ts/runtime/internal";
import {
	Child,
	CollectingSink,
	fileDiscoveryEnv,
	findRealDynamo,
	startDynamo,
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

test(titled("a real frontend without an index of its own asks ours", missing), async () => {
	const [index] = (await instancesOf("backend", "kv_indexer_query")).filter((id) => id === real);
	expect(index).toBe(real);
	// Only ours is left to be asked.
	const realRouter = children[1] as Child;
	await realRouter.stop(5000);
	const gone = async (): Promise<boolean> => !(await instancesOf("backend", "kv_indexer_query")).includes(real);
	await until("the real router has left", gone, { timeoutMs: 40_000 });
	const frontend = await startRealFrontend(peer.path, env, MODEL, ["--router-mode", "kv", "--use-remote-indexer"]);
	children.push(frontend.child);
	const holders: unknown[] = [];
	for (let round = 0; round < 3; round++) {
		for (let p = 20; p < 26; p++) {
			const response = await fetch(`${frontend.url}/v1/completions`, {
				method: "POST",
				headers: { "content-type": "application/json" },
				body: JSON.stringify({
					model: MODEL,
					prompt: promptOf(p),
					max_tokens: 2,
					ignore_eos: true,
					nvext: { extra_fields: ["worker_id"] },
				}),
			});
			const answer = parseJson(await response.text()) as {
				nvext: { worker_id: { decode_worker_id: bigint } };
				usage: { prompt_tokens_details?: { cached_tokens?: number } };
			};
			const worker = BigInt(answer.nvext.worker_id.decode_worker_id);
			const cached = answer.usage.prompt_tokens_details?.cached_tokens ?? 0;
			if (round > 0) expect({ worker, cached }).toEqual({ worker: holders[p - 20], cached: 96 });
			else holders.push(worker);
			const asked = { model_name: MODEL, block_hashes: blockHashes(promptOf(p), BLOCK_SIZE).tokensHashes };
			await until("our index has the prompt", async () => {
				const [item] = await ask(ours, "backend", "kv_indexer_query", asked);
				return JSON.stringify(sorted(item), (_key, value) =>
					typeof value === "bigint" ? String(value) : value,
				).includes(",6]");
			});
		}
	}
}, 120_000);
