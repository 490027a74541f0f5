// SPDX-License-Identifier: Apache-2.0
// A router as a process of its own before scripted workers: what it passes on, and what it does when a worker is lost,
// fails, is given up or does not fit.
import { type ScriptedCall, type ScriptedWorker, startScriptedWorker } from "@dynamo-ts/frontend/internal";
import { blockHashes, DynamoError, type ModelDeploymentCard } from "@dynamo-ts/protocols/internal";
import { StandaloneRouter, type StandaloneRouterOptions } from "@dynamo-ts/router";
import type { ActiveRequest, DistributedRuntime, Span } from "@dynamo-ts/runtime";
import { CollectingSink, until } from "@dynamo-ts/testing/internal";
import { KvEventPublisher } from "@dynamo-ts/worker";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ENDPOINT, OneProcess, TINY_FOLDER } from "./one-process.js";

const PROMPT = Array.from({ length: 100 }, (_, i) => 1000 + i);
let world: OneProcess;

beforeEach(() => {
	world = new OneProcess();
});
afterEach(() => world.end());

const TEXT = (call: ScriptedCall): void => call.tokens([5, 6]).finish("stop").end();

async function startWorker(script = TEXT, blockSize = 16): Promise<ScriptedWorker & { runtime: DistributedRuntime }> {
	const runtime = await world.runtime();
	const card = { kv_cache_block_size: blockSize };
	return { ...(await startScriptedWorker(runtime, { model: "m", folder: TINY_FOLDER, script, card })), runtime };
}

async function startRouter(options: Partial<StandaloneRouterOptions> = {}): Promise<StandaloneRouter> {
	const router = await StandaloneRouter.start(await world.runtime(), { endpoint: ENDPOINT, ...options });
	world.onEnd(() => router.close());
	return router;
}

/** Sends a request to an endpoint of the router, or of its component. */
async function send(
	endpoint: string,
	payload: unknown,
	component = "router",
): Promise<{ sink: CollectingSink; call: ActiveRequest }> {
	const client = await (await world.runtime()).namespace("dynamo").component(component).endpoint(endpoint).client();
	const [instance] = await client.waitForInstances(5000);
	const sink = new CollectingSink();
	return { sink, call: client.send(instance!, { id: crypto.randomUUID(), payload }, sink) };
}

async function ask(endpoint: string, payload: unknown, component?: string): Promise<unknown> {
	const { sink } = await send(endpoint, payload, component);
	await sink.done;
	if (sink.error !== undefined) throw sink.error;
	expect(sink.items).toHaveLength(1);
	return sink.items[0];
}

const body = (more: Record<string, unknown> = {}): Record<string, unknown> => ({
	token_ids: PROMPT,
	stop_conditions: { max_tokens: 2 },
	sampling_options: {},
	output_options: {},
	...more,
});

/** A worker that says what it holds, and takes part in the selection. */
async function holdPrompt(worker: { runtime: DistributedRuntime }, blocks: number): Promise<KvEventPublisher> {
	const publisher = await KvEventPublisher.open(worker.runtime, { endpoint: ENDPOINT, blockSize: 16 });
	world.onEnd(() => publisher.close());
	const { tokensHashes, sequenceHashes } = blockHashes(PROMPT, 16);
	const held = tokensHashes.slice(0, blocks).map((tokensHash, i) => ({ tokensHash, blockHash: sequenceHashes[i]! }));
	publisher.publishChanges([{ data: { type: "stored", parentHash: undefined, blocks: held } }]);
	return publisher;
}

describe("generate", () => {
	test("the worker's items come through, with who made them and how long it took", async () => {
		const worker = await startWorker();
		await startRouter();
		const { sink } = await send("generate", body({ annotations: [], extra: { of: "mine" } }));
		await sink.done;
		expect(sink.error).toBeUndefined();
		const { instance_id: id } = worker.record;
		const ids = { prefill_worker_id: id, prefill_dp_rank: 0, decode_worker_id: id, decode_dp_rank: 0 };
		expect(sink.items).toEqual([
			{ data: { token_ids: [5], routing_data: { worker_id: ids } } },
			{ data: { token_ids: [6] } },
			{
				data: {
					token_ids: [],
					finish_reason: "stop",
					routing_data: {
						timing: {
							request_received_ms: expect.any(Number),
							prefill_wait_time_ms: expect.any(Number),
							prefill_time_ms: expect.any(Number),
							ttft_ms: expect.any(Number),
							total_time_ms: expect.any(Number),
							kv_hit_rate: 0,
							router_queue_depth: 0,
						},
					},
				},
			},
		]);
		expect(worker.calls[0]!.body).toMatchObject({ model: "unknown", token_ids: PROMPT, extra: { of: "mine" } });
	});

	test("a worker that is lost before it said anything is replaced by another one; afterwards it is an error", async () => {
		const lost = (call: ScriptedCall): void => call.fail(new DynamoError("Disconnected", "gone"));
		const begun = (call: ScriptedCall): void => {
			call.tokens([5]);
			lost(call);
		};
		const scripts = [lost, TEXT];
		const play = (call: ScriptedCall): void => (scripts.shift() ?? begun)(call);
		await startWorker(play);
		await startWorker(play);
		await startRouter();
		const moved = await send("generate", body());
		await moved.sink.done;
		expect(moved.sink.error).toBeUndefined();
		expect(moved.sink.items).toHaveLength(3);
		const broken = await send("generate", body());
		await broken.sink.done;
		expect(broken.sink.items).toHaveLength(1);
		expect(broken.sink.error?.errorClass).toBe("Disconnected");
	});

	test("a client that goes away takes the request with it, a stop goes through", async () => {
		const worker = await startWorker((call) => {
			call.tokens([5]);
			void call.cancelled.then((kind) => {
				if (kind === "stop") call.finish("cancelled").end();
			});
		});
		await startRouter();
		const stopped = await send("generate", body());
		const killed = await send("generate", body());
		await until("both have begun", () => stopped.sink.items.length === 1 && killed.sink.items.length === 1);
		stopped.call.stop();
		await stopped.sink.done;
		expect(stopped.sink.error).toBeUndefined();
		killed.call.kill();
		await killed.sink.done;
		const kinds = await Promise.all(worker.calls.map(({ cancelled }) => cancelled));
		expect(kinds.sort()).toEqual([expect.stringMatching(/kill|disconnect/), "stop"]);
	});

	test("a worker that says in its last item that it failed has not succeeded, whatever its part is", async () => {
		const script = (call: ScriptedCall): void => call.tokens([5]).finish({ error: "broken" }).end();
		const card: Partial<ModelDeploymentCard> = { worker_type: "prefill", needs: [["decode"]], model_type: "" };
		await startScriptedWorker(await world.runtime(), { model: "m", folder: TINY_FOLDER, script, card });
		const spans: Span[] = [];
		const runtime = await world.runtime({ spanSink: { end: (span) => spans.push(span) } });
		const router = await StandaloneRouter.start(runtime, { endpoint: ENDPOINT });
		world.onEnd(() => router.close());
		const { sink } = await send("generate", body());
		await sink.done;
		expect(sink.items.at(-1)).toMatchObject({ data: { finish_reason: { error: "broken" } } });
		await until("the attempt is over", () => spans.some(({ name }) => name === "handle_payload"));
		const route = spans.find(({ name }) => name === "kv_router.route_request");
		expect(route?.failure).toMatch(/./);
		expect(route?.fields).toMatchObject({ phase: "Prefill", "request.outcome": "error" });
	});

	test("hints: a pinned worker, one that is not there, and the question who would answer", async () => {
		await startWorker();
		const second = await startWorker();
		await startRouter();
		const { instance_id: id } = second.record;
		for (let i = 0; i < 6; i++) {
			const { sink } = await send("generate", body({ routing: { backend_instance_id: id } }));
			await sink.done;
			expect(sink.error).toBeUndefined();
		}
		expect(second.calls).toHaveLength(6);
		await expect(ask("generate", body({ routing: { backend_instance_id: 5n } }))).rejects.toThrow(/no worker 5/);
		const where = await ask(
			"generate",
			body({ annotations: ["query_instance_id:"], routing: { decode_worker_id: id } }),
		);
		expect(where).toMatchObject({ data: { token_ids: [], routing_data: { token_ids: PROMPT } } });
		expect(where).toMatchObject({ data: { routing_data: { worker_id: { decode_worker_id: id } } } });
		expect(second.calls).toHaveLength(6);
	});

	test("what is no request is refused, and nobody there is said", async () => {
		await startRouter();
		await expect(ask("generate", body())).rejects.toThrow(/no worker of dynamo\.backend\.generate/);
		await startWorker();
		await expect(ask("generate", [1, 2])).rejects.toThrow(/must be a map/);
		await expect(ask("generate", {})).rejects.toThrow(/token_ids/);
		await expect(ask("generate", body({ token_ids: [-1] }))).rejects.toThrow(/token 0/);
		await expect(ask("generate", body({ routing: { dp_rank: "x" } }))).rejects.toThrow(/dp_rank/);
		const { sink } = await send("generate", body());
		await sink.done;
		expect(sink.items).toHaveLength(3);
	});
});

describe("what is asked beside", () => {
	test("the holder of a prefix is the best worker, and the scores say why", async () => {
		const first = await startWorker();
		const second = await startWorker();
		await holdPrompt(first, 2);
		await holdPrompt(second, 5);
		await startRouter();
		const [a, b] = [first.record.instance_id, second.record.instance_id];
		expect(await ask("best_worker_id", PROMPT)).toEqual({ data: b });
		const row = (worker_id: bigint, device_blocks: number): Record<string, unknown> => ({
			worker_id,
			dp_rank: 0,
			device_blocks,
			host_pinned_blocks: device_blocks,
			disk_blocks: device_blocks,
			host_pinned_extension_blocks: 0,
			disk_extension_blocks: 0,
			shared_beyond_device_blocks: null,
		});
		const shared_cache = { enabled: false, total_hit_blocks: 0, ranges: [], error: null };
		const rows = [row(a, 2), row(b, 5)].sort((one, other) =>
			(one.worker_id as bigint) < (other.worker_id as bigint) ? -1 : 1,
		);
		const answer = { data: { block_size: 16, num_blocks: 6, workers: rows, shared_cache } };
		expect(await ask("get_overlap_scores", { token_ids: PROMPT })).toEqual(answer);
		const other = { data: { ...answer.data, workers: rows.map(({ worker_id }) => row(worker_id as bigint, 0)) } };
		expect(await ask("get_overlap_scores", { token_ids: PROMPT, lora_name: "x" })).toEqual(other);
		const image = [{ mm_objects: [{ mm_hash: 5n, offsets: [[0, 3]] }] }];
		expect(await ask("get_overlap_scores", { token_ids: PROMPT, block_mm_infos: image })).toEqual(other);
		await expect(ask("best_worker_id", { token_ids: PROMPT })).rejects.toThrow(/array of token ids/);
		await expect(ask("get_overlap_scores", {})).rejects.toThrow(/missing field `token_ids`/);
		const { sink } = await send("generate", body());
		await sink.done;
		expect(second.calls).toHaveLength(1);
		expect(sink.items.at(-1)).toMatchObject({ data: { routing_data: { timing: { kv_hit_rate: 5 / 7 } } } });
	});

	test("the index, for routers that have none", async () => {
		const worker = await startWorker();
		await holdPrompt(worker, 3);
		await startRouter({ kv: { serveIndexer: true } });
		const { tokensHashes } = blockHashes(PROMPT, 16);
		const query = (more: Record<string, unknown>): Promise<unknown> =>
			ask("kv_indexer_query", { model_name: "m", block_hashes: tokensHashes, ...more }, "backend");
		const hits = [[{ worker_id: worker.record.instance_id, dp_rank: 0 }, 3]];
		const scores = { TieredScores: { device: { scores: hits, frequencies: [] }, lower_tier: [] } };
		expect(await query({})).toEqual(scores);
		expect(await query({ device_only: true })).toEqual(scores);
		expect(await query({ model_name: "other" })).toEqual({ Error: "this index is of m, not of other" });
		expect(await query({ block_hashes: 7 })).toEqual({ Error: expect.stringContaining("block_hashes") });
	});

	test("an index that lives on decisions is told of others' decisions", async () => {
		const worker = await startWorker();
		await startRouter({ kv: { serveIndexer: true, useKvEvents: false } });
		const { tokensHashes, sequenceHashes } = blockHashes(PROMPT, 16);
		const decision = (workerId: bigint): Promise<unknown> =>
			ask(
				"kv_indexer_record_routing_decision",
				{
					model_name: "m",
					worker: { worker_id: workerId, dp_rank: 0 },
					local_hashes: tokensHashes,
					sequence_hashes: sequenceHashes,
				},
				"backend",
			);
		expect(await decision(worker.record.instance_id)).toBe("Recorded");
		expect(await decision(5n)).toEqual({ Error: "there is no worker 5" });
		const asked = { model_name: "m", block_hashes: tokensHashes };
		expect(await ask("kv_indexer_query", asked, "backend")).toMatchObject({
			TieredScores: { device: { scores: [[{ worker_id: worker.record.instance_id }, 6]] } },
		});
	});
});

describe("blocks of another size", () => {
	test("a router that counts otherwise than all workers does not start, and names both sizes", async () => {
		await startWorker(TEXT, 32);
		const start = StandaloneRouter.start(await world.runtime(), { endpoint: ENDPOINT, blockSize: 16 });
		await expect(start).rejects.toThrow(/blocks of 32 tokens.*blocks of 16/);
	});

	test("a worker that comes later with other blocks gets nothing", async () => {
		const first = await startWorker();
		await startRouter();
		const other = await startWorker(TEXT, 32);
		for (let i = 0; i < 6; i++) {
			const { sink } = await send("generate", body());
			await sink.done;
			expect(sink.error).toBeUndefined();
		}
		expect([first.calls.length, other.calls.length]).toEqual([6, 0]);
		await expect(ask("generate", body({ routing: { backend_instance_id: other.record.instance_id } }))).rejects.toThrow(
			/no worker/,
		);
	});
});
