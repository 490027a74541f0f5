// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Annotated, DiscoveryRecord, DynamoError, LLMEngineOutput } from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime, type EndpointClient, type MemStore } from "@dynamo-ts/runtime";
import { until } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { startMocker } from "./mocker.js";
import { findModelFiles, type ModelFiles } from "./model-files.js";
import { ScriptedEngine } from "./test-support/scripted-engine.js";
import { startWorker, type WorkerHandle, type WorkerOptions } from "./worker.js";

let folder: string;
let files: ModelFiles;
let store: MemStore;
let runtime: DistributedRuntime;
let others: DistributedRuntime[];

async function createRuntime(): Promise<DistributedRuntime> {
	const log = { filter: "off", format: "readable", ansi: false, localTime: false } as const;
	return DistributedRuntime.create({ discoveryBackend: "mem", memStore: store, systemPort: -1, log });
}

beforeEach(async () => {
	folder = mkdtempSync(join(tmpdir(), "worker-test-"));
	writeFileSync(join(folder, "config.json"), "{}");
	writeFileSync(join(folder, "tokenizer.json"), JSON.stringify({ model: { vocab: { a: 0, b: 1, c: 2 } } }));
	files = await findModelFiles({ kind: "folder", path: folder }, "unused");
	store = createMemStore();
	runtime = await createRuntime();
	others = [];
});
afterEach(async () => {
	for (const each of [runtime, ...others]) await each.shutdown();
	rmSync(folder, { recursive: true, force: true });
});

function start(engine: ScriptedEngine, overrides: Partial<WorkerOptions> = {}, on = runtime): Promise<WorkerHandle> {
	return startWorker(on, { engine, files, modelName: "m", sourcePath: folder, ...overrides });
}

function clientOf(on = runtime, component = "backend"): Promise<EndpointClient> {
	return on.namespace("dynamo").component(component).endpoint("generate").client();
}

interface Answer {
	readonly items: LLMEngineOutput[];
	readonly done: Promise<DynamoError | undefined>;
}

function send(client: EndpointClient, payload: unknown): Answer {
	const items: LLMEngineOutput[] = [];
	const done = new Promise<DynamoError | undefined>((resolve) => {
		client.send(
			client.instances()[0]!,
			{ id: "r", payload },
			{
				onItem: (item: Annotated<unknown>) => void items.push(item.data as LLMEngineOutput),
				onEnd: () => resolve(undefined),
				onError: resolve,
			},
		);
	});
	return { items, done };
}

/** The records of models and of the endpoints that serve them. */
function served(): DiscoveryRecord[] {
	return [...store.records.values()].filter(
		(record) => record.type === "Model" || (record.type === "Endpoint" && record.endpoint === "generate"),
	);
}

test("registers card and instance, and serves", async () => {
	const engine = new ScriptedEngine();
	const worker = await start(engine);
	const records = served();
	expect(records.map(({ type }) => type).sort()).toEqual(["Endpoint", "Model"]);
	expect(new Set(records.map((record) => "instance_id" in record && record.instance_id))).toEqual(
		new Set([runtime.instanceId]),
	);
	expect(runtime.health.ready).toBe(true);

	const client = await clientOf();
	const answer = send(client, { token_ids: [1], stop_conditions: { max_tokens: 2 } });
	await until("the engine has the request", () => engine.requests.length === 1);
	expect(worker.inflight).toBe(1);
	engine.emit({ tokenIds: [5] });
	engine.emit({ tokenIds: [6], finishReason: "length" });
	expect(await answer.done).toBeUndefined();
	expect(answer.items.map(({ token_ids }) => token_ids)).toEqual([[5], [6]]);
	await until("no request is under way", () => worker.inflight === 0);
});

test("its health check request works", async () => {
	const engine = new ScriptedEngine();
	let payload: unknown;
	const endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate");
	const serve = endpoint.serve.bind(endpoint);
	endpoint.serve = (handler, options) => {
		payload = options?.healthCheckPayload;
		return serve(handler, options);
	};
	await start(engine);
	const answer = send(await clientOf(), payload);
	await until("the engine has the request", () => engine.requests.length === 1);
	engine.emit({ tokenIds: [5], finishReason: "length" });
	expect(await answer.done).toBeUndefined();
});

test("drain leaves discovery at once and waits for what is under way", async () => {
	const engine = new ScriptedEngine();
	const worker = await start(engine);
	const client = await clientOf();
	const answer = send(client, { token_ids: [1] });
	await until("the engine has the request", () => engine.requests.length === 1);
	let drained: boolean | undefined;
	const draining = worker.drain(10_000).then((result) => {
		drained = result;
	});
	await until("the worker has left discovery", () => served().length === 0);
	expect(runtime.health.ready).toBe(false);
	expect(drained).toBeUndefined();
	engine.emit({ tokenIds: [5], finishReason: "length" });
	await draining;
	expect(drained).toBe(true);
	expect(await answer.done).toBeUndefined();
	await worker.close();
	expect(engine.closed).toBe(true);
});

test("close answers what is under way with an error that lets it go elsewhere", async () => {
	const engine = new ScriptedEngine();
	const worker = await start(engine);
	const answer = send(await clientOf(), { token_ids: [1] });
	await until("the engine has the request", () => engine.requests.length === 1);
	await worker.close();
	expect((await answer.done)?.reason).toBe("backend.engine_shutdown");
	expect(store.records.size).toBe(0);
});

test("an engine that dies takes the worker out of discovery", async () => {
	const engine = new ScriptedEngine();
	const worker = await start(engine);
	engine.fail(new Error("out of memory"));
	expect((await worker.failed).message).toBe("out of memory");
	expect(store.records.size).toBe(0);
	expect(runtime.health.ready).toBe(false);
});

test("an engine that does not start leaves nothing behind", async () => {
	const engine = new ScriptedEngine();
	engine.startError = new Error("no such model");
	await expect(start(engine)).rejects.toThrow("no such model");
	expect(engine.closed).toBe(true);
	expect(store.records.size).toBe(0);
});

test("an engine that was started already is not started again", async () => {
	const engine = new ScriptedEngine();
	const engineStart = engine.start();
	engine.started = false;
	await start(engine, { engineStart });
	expect(engine.started).toBe(false);
});

describe("a second worker", () => {
	async function second(
		overrides: Partial<WorkerOptions>,
	): Promise<{ engine: ScriptedEngine; started: Promise<unknown> }> {
		await start(new ScriptedEngine());
		const other = await createRuntime();
		others.push(other);
		const engine = new ScriptedEngine();
		return { engine, started: start(engine, overrides, other) };
	}

	test("of the same model joins", async () => {
		await (await second({})).started;
		expect(served()).toHaveLength(4);
	});

	test("of another model on the same endpoint is refused, with the way out", async () => {
		const { engine, started } = await second({ modelName: "Other Model" });
		await expect(started).rejects.toThrow(
			/serves the model m already.*--endpoint dyn:\/\/dynamo\.other_model\.generate/,
		);
		expect(engine.closed).toBe(true);
		expect(served()).toHaveLength(2);
	});

	test("of another model on a component of its own joins", async () => {
		const endpoint = { namespace: "dynamo", component: "other", name: "generate" };
		await (await second({ modelName: "other", endpoint })).started;
		expect(served()).toHaveLength(4);
	});
});

test("the engine's numbers are on the metrics page", async () => {
	await start(new ScriptedEngine());
	let page = await runtime.metrics.scrape();
	const value = (name: string) => Number(new RegExp(`^${name}\\{[^}]*\\} (.*)$`, "m").exec(page)?.[1]);
	expect(value("dynamo_component_total_blocks")).toBe(56);
	expect(value("dynamo_component_gpu_cache_usage_percent")).toBe(0.25);
	expect(value("dynamo_component_kv_cache_hit_rate")).toBe(0.25);
	expect(value("dynamo_component_kvstats_active_blocks")).toBe(14);
	expect(value("dynamo_component_engine_running_requests")).toBe(2);
	expect(value("dynamo_component_engine_decode_tokens_total")).toBe(50);
	// Counters of the engine are totals: a second scrape adds nothing.
	page = await runtime.metrics.scrape();
	expect(value("dynamo_component_engine_decode_tokens_total")).toBe(50);
});

describe("the simulated worker", () => {
	test("generates as many tokens as asked for, and wants to be asked", async () => {
		const worker = await startMocker(runtime, {
			files,
			modelName: "m",
			sourcePath: folder,
			engine: { speedupRatio: 0 },
		});
		expect(worker.card.runtime_config).toMatchObject({ context_length: 0, total_kv_blocks: 16384 });
		expect(worker.card.context_length).toBe(0);
		const client = await clientOf();
		const answer = send(client, { token_ids: [1, 2], stop_conditions: { max_tokens: 5 } });
		expect(await answer.done).toBeUndefined();
		const tokens = answer.items.flatMap(({ token_ids }) => token_ids);
		expect(tokens).toHaveLength(5);
		expect(tokens.every((id) => id < 3)).toBe(true);
		expect(answer.items.at(-1)?.finish_reason).toBe("length");

		const refused = await send(client, { token_ids: [1] }).done;
		expect(refused?.errorClass).toMatch(/^Invalid/);
		expect(refused?.publicMessage ?? refused?.message).toContain("is required by the mocker worker");
		await worker.close();
	});

	test("of the prompt alone serves at the component prefill, and gives what Dynamo's mocker gives", async () => {
		const engine = { speedupRatio: 0 };
		const worker = await startMocker(runtime, { files, modelName: "m", sourcePath: folder, role: "prefill", engine });
		expect(worker.card).toMatchObject({ model_type: "", worker_type: "prefill", needs: [["decode"]] });
		const client = await clientOf(runtime, "prefill");
		const answer = send(client, { token_ids: [1, 2], stop_conditions: { max_tokens: 1 } });
		expect(await answer.done).toBeUndefined();
		expect(answer.items[0]).toMatchObject({ token_ids: [expect.any(Number)], disaggregated_params: "dummy" });
		const whole = send(client, { token_ids: [1, 2], stop_conditions: { max_tokens: 2 } });
		expect(await whole.done).toBeUndefined();
		expect(whole.items.some((item) => "disaggregated_params" in item)).toBe(false);
		await worker.close();
	});

	test("of the answer tells routers nothing of its cache, unless asked to", async () => {
		const sources = () => [...store.records.values()].filter(({ type }) => type === "EventSource").length;
		const options = { files, modelName: "m", sourcePath: folder, role: "decode", engine: { speedupRatio: 0 } } as const;
		const quiet = await startMocker(runtime, options);
		expect(quiet.card).toMatchObject({ worker_type: "decode", needs: [["prefill"]] });
		expect(quiet.card.runtime_config).toMatchObject({ enable_local_indexer: false });
		expect(sources()).toBe(0);
		await quiet.close();
		const other = await createRuntime();
		others.push(other);
		const told = await startMocker(other, { ...options, kvEvents: { enabled: true } });
		expect(told.card.runtime_config).toMatchObject({ enable_local_indexer: true });
		expect(sources()).toBe(1);
		await told.close();
	});

	test("with a limit the card shows it", async () => {
		const engine = { speedupRatio: 0, maxModelLen: 64 };
		const worker = await startMocker(runtime, { files, modelName: "m", sourcePath: folder, engine });
		expect(worker.card.runtime_config?.context_length).toBe(64);
		await worker.close();
	});
});
