// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers with real engines on a tiny model, and a frontend that a test writes by hand between them.
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createEngineThread, type Engine, type EngineThreadOptions } from "@dynamo-ts/engine";
import { makeTinyLlama, writeTinyFolder } from "@dynamo-ts/engine/internal";
import type { Annotated, DynamoError, LLMEngineOutput } from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime, type EndpointClient, type MemStore } from "@dynamo-ts/runtime";
import { until } from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, expect } from "vitest";
import type { KvTransferConfig } from "../kv-transfer/kv-transfer.js";
import { findModelFiles } from "../model-files.js";
import { startWorker, type WorkerHandle } from "../worker.js";
import type { WorkerRole } from "../worker-role.js";

const CONFIG: KvTransferConfig = { port: 0, timeoutMs: 5000, holdMs: 60_000, sharedMemory: true };
const root = mkdtempSync(join(tmpdir(), "kv-transfer-"));
let store: MemStore = createMemStore();
/** What is to be closed, the last first. */
export const open: { close(): Promise<void> }[] = [];

afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Workers that are started from now on meet only each other. */
export function newStore(): void {
	store = createMemStore();
}

/** Closes what is open. */
export async function closeAll(): Promise<void> {
	for (const one of open.splice(0).reverse()) await one.close();
}

/** A tiny model whose weights a seed fixes. */
function modelFolder(seed: number): string {
	const folder = join(root, `model-${seed}`);
	if (existsSync(folder)) return folder;
	writeTinyFolder(folder, makeTinyLlama({}, seed));
	const vocab = Object.fromEntries(Array.from({ length: 200 }, (_, id) => [`t${id}`, id]));
	const tokenizer = { version: "1.0", model: { type: "BPE", vocab, merges: [] }, added_tokens: [], decoder: null };
	writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
	return folder;
}

export interface Node {
	readonly engine: Engine;
	readonly worker: WorkerHandle;
	readonly client: EndpointClient;
	/** The sum of a counter over its labels that contain `text`. */
	metric(name: string, text?: string): Promise<number>;
	/** Values by labels. */
	samples(name: string): Promise<ReadonlyMap<string, number>>;
}

export async function start(
	role: WorkerRole,
	config: Partial<KvTransferConfig> = {},
	engineOptions: Partial<EngineThreadOptions> = {},
	component = role === "prefill" ? "prefill" : "backend",
	seed = 11,
): Promise<Node> {
	const folder = modelFolder(seed);
	const files = await findModelFiles({ kind: "folder", path: folder }, "unused");
	const log = { filter: "off", format: "readable", ansi: false, localTime: false } as const;
	const runtime = await DistributedRuntime.create({ discoveryBackend: "mem", memStore: store, systemPort: -1, log });
	open.push({ close: () => runtime.shutdown() });
	const engine = createEngineThread({
		model: folder,
		cacheDir: join(root, "cache"),
		quantization: "none",
		maxModelLen: 128,
		maxNumSeqs: 8,
		blockSize: 8,
		...engineOptions,
	});
	const worker = await startWorker(runtime, {
		engine,
		files,
		modelName: "m",
		sourcePath: folder,
		role,
		endpoint: { namespace: "dynamo", component, name: "generate" },
		kvTransfer: { ...CONFIG, ...config },
	});
	open.push(worker);
	const client = await runtime.namespace("dynamo").component(component).endpoint("generate").client();
	const samples = async (name: string): Promise<Map<string, number>> => {
		const lines = (await runtime.metrics.scrape()).split("\n");
		const found = lines.filter((line) => line.startsWith(`dynamo_component_${name}{`));
		const at = (line: string) => line.lastIndexOf(" ");
		return new Map(found.map((line) => [line.slice(0, at(line)), Number(line.slice(at(line) + 1))]));
	};
	return {
		engine,
		worker,
		client,
		async metric(name, text = "") {
			let sum = 0;
			for (const [labels, value] of await samples(name)) if (labels.includes(text)) sum += value;
			return sum;
		},
		samples,
	};
}

export interface Answer {
	readonly items: LLMEngineOutput[];
	readonly error: DynamoError | undefined;
	readonly tokens: number[];
}

export interface Asked {
	readonly answer: Promise<Answer>;
	kill(): void;
}

export function ask(node: Node, payload: Record<string, unknown>): Asked {
	const items: LLMEngineOutput[] = [];
	let kill = () => {};
	const answer = new Promise<Answer>((resolve) => {
		const end = (error?: DynamoError) =>
			resolve({ items, error, tokens: items.filter(({ index }) => !index).flatMap(({ token_ids }) => token_ids) });
		const request = node.client.send(
			node.client.instances()[0]!,
			{ id: "same", payload },
			{
				onItem: (item: Annotated<unknown>) => void items.push(item.data as LLMEngineOutput),
				onEnd: () => end(),
				onError: end,
			},
		);
		kill = () => {
			request.kill();
			end();
		};
	});
	return { answer, kill: () => kill() };
}

/**
 * A worker that computes all of a request itself, for all tests of the file or block that calls this; those that are
 * started later do not meet it.
 * @returns its answer to a request.
 */
export function aggregatedWorker(): (request: Record<string, unknown>) => Promise<Answer> {
	let aggregated: Node;
	let kept: typeof open = [];
	beforeAll(async () => {
		newStore();
		aggregated = await start("aggregated", {}, {}, "whole");
		kept = open.splice(0);
	});
	afterAll(async () => {
		for (const one of kept.reverse()) await one.close();
	});
	return (request) => ask(aggregated, request).answer;
}

export const prompt = (length: number, seed = 1) => Array.from({ length }, (_, i) => (i * 37 + seed * 11) % 200);

export function payload(
	tokenIds: number[],
	maxTokens: number,
	more: Record<string, unknown> = {},
): Record<string, unknown> {
	return {
		token_ids: tokenIds,
		stop_conditions: { max_tokens: maxTokens, ignore_eos: true },
		sampling_options: { temperature: 0 },
		...more,
	};
}

/** The prefill leg as frontends send it. */
export async function prefill(node: Node, request: Record<string, unknown>): Promise<Record<string, unknown>> {
	const leg = {
		...request,
		stop_conditions: { ...(request.stop_conditions as object), max_tokens: 1 },
		routing: { prefill_worker_id: 1n },
	};
	const { items, error } = await ask(node, leg).answer;
	expect(error).toBeUndefined();
	expect(items).toHaveLength(1);
	expect(items[0]!.finish_reason).toBe("length");
	// As any frontend would carry it.
	const params = JSON.parse(JSON.stringify(items[0]!.disaggregated_params)) as Record<string, unknown>;
	return { disaggregated_params: params, prompt_tokens_details: items[0]!.completion_usage?.prompt_tokens_details };
}

export function withParams(result: Record<string, unknown>, changes: Record<string, unknown>): Record<string, unknown> {
	const { kv_transfer_params } = result.disaggregated_params as { kv_transfer_params: object };
	return { ...result, disaggregated_params: { kv_transfer_params: { ...kv_transfer_params, ...changes } } };
}

/** Nothing is left of what went before. */
export async function untilIdle(...nodes: Node[]): Promise<void> {
	for (const { engine } of nodes) {
		await until("nothing is left", () => {
			const { usedBlocks, heldBlocks, running, waiting } = engine.stats();
			return usedBlocks + heldBlocks + running + waiting === 0;
		});
	}
	// Another process that is killed may leave one behind.
	const own = new RegExp(`^dynamo-kv-\\d+-${process.pid}-`);
	const segments = () => readdirSync("/dev/shm").filter((name) => own.test(name));
	await until("no segment is left", () => segments().length === 0);
}

/** A peer that says nothing, or less than it should. */
export async function listen(onConnection: (socket: Socket) => void): Promise<number> {
	const sockets = new Set<Socket>();
	const server: Server = createServer((socket) => {
		sockets.add(socket);
		socket.on("error", () => {});
		onConnection(socket);
	});
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	open.push({
		close: async () => {
			for (const socket of sockets) socket.destroy();
			server.close();
		},
	});
	return (server.address() as { port: number }).port;
}
