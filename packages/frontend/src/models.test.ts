// SPDX-License-Identifier: Apache-2.0

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { CheckedFile, ModelDeploymentCard } from "@dynamo-ts/protocols/internal";
import { http } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { folderCard, sendAll, startScriptedWorker } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack, TINY_MODEL } from "./test-support/stack.js";

const IDS = [70, 71];
let stack: Stack;

beforeEach(async () => {
	stack = await startStack();
});
afterEach(() => stack.close());

async function listed(): Promise<string[]> {
	const { json } = await http(`${stack.url}/v1/models`);
	return json.data.map(({ id }: { id: string }) => id);
}

describe("before any model", () => {
	it("the inference routes are switched off: 404 without a body, whatever is sent", async () => {
		for (const url of [stack.chat, stack.completions]) {
			for (const body of [chatBody(), "{"]) {
				const answer = await http(url, { body, headers: { "content-type": "application/json" } });
				expect([answer.status, answer.body, answer.headers["content-type"]]).toEqual([404, "", undefined]);
			}
		}
		expect((await stack.metrics()).sum("dynamo_frontend_requests_total")).toBe(0);
	});

	it("the frontend is healthy all the same", async () => {
		const health = await http(`${stack.url}/health`);
		expect([health.status, health.body]).toEqual([200, '{"status":"healthy","endpoints":[],"instances":[]}']);
		expect((await http(`${stack.url}/live`)).body).toBe('{"status":"live","message":"Service is live"}');
		expect(await listed()).toEqual([]);
	});
});

describe("a model", () => {
	it("is listed once it can be called, and gone with its last worker", async () => {
		const first = await stack.worker({ script: sendAll(IDS) });
		const second = await stack.worker({ script: sendAll(IDS) });
		expect(await listed()).toEqual([MODEL]);
		await first.leave();
		expect(await listed()).toEqual([MODEL]);
		expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
		await second.leave();
		expect(await listed()).toEqual([]);
		const answer = await http(stack.chat, { body: chatBody() });
		expect([answer.status, answer.body]).toEqual([404, ""]);
		expect((await stack.metrics()).value("dynamo_frontend_model_ready")).toBeUndefined();
	});

	it("is not listed without an instance, nor without a record; the first listing can be called", async () => {
		const runtime = await stack.join();
		const worker = await startScriptedWorker(runtime, {
			model: MODEL,
			folder: TINY_MODEL,
			script: sendAll(IDS),
			withoutCard: true,
		});
		expect(await listed()).toEqual([]);
		await worker.served.unregister();
		await runtime.discovery.put(worker.record);
		expect(await listed()).toEqual([]);
		const seen: number[] = [];
		const registering = worker.served.register();
		while (seen.length === 0) {
			if ((await listed()).includes(MODEL)) seen.push((await http(stack.chat, { body: chatBody() })).status);
		}
		await registering;
		expect(seen).toEqual([200]);
		await worker.leave();
	});

	it("is there once it had as many workers as are wanted at first, and stays with fewer", async () => {
		await stack.close();
		stack = await startStack({ minInitialWorkers: 2 });
		const first = await stack.worker({ script: sendAll(IDS), alone: true });
		await vi.waitFor(async () => expect((await http(`${stack.url}/health`)).json.instances).toHaveLength(1));
		expect(await listed()).toEqual([]);
		await stack.worker({ script: sendAll(IDS) });
		expect(await listed()).toEqual([MODEL]);
		await first.leave();
		expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
	});

	it("shows its window, its readiness and its workers", async () => {
		const worker = await stack.worker({ script: sendAll(IDS), model: "Acme/Tiny", card: { slug: "acme_tiny" } });
		const list = await http(`${stack.url}/v1/models`);
		expect(list.headers["content-type"]).toBe("application/json");
		expect(list.body.replace(/"created":\d+/, '"created":1')).toBe(
			'{"object":"list","data":[{"id":"Acme/Tiny","object":"model","created":1,"owned_by":"nvidia","context_window":256}]}',
		);
		for (const id of ["Acme/Tiny", "Acme%2FTiny"]) {
			expect((await http(`${stack.url}/v1/models/${id}`)).json).toMatchObject({ id: "Acme/Tiny", object: "model" });
			expect((await http(`${stack.url}/v1/models/${id}/ready`)).body).toBe(
				'{"model":"Acme/Tiny","ready":true,"namespaces":{"dynamo":{"ready":true,"worker_types":{"aggregated":' +
					'{"workers":1,"needs":[]}},"present":["aggregated"],"missing_worker_types":[]}}}',
			);
		}
		const { instance_id } = worker.served.record;
		const health = await http(`${stack.url}/health`);
		expect(health.body).toContain(`"instance_id":${instance_id}`);
		expect(health.json).toMatchObject({ status: "healthy", endpoints: ["dyn://dynamo.backend.generate"] });
		expect(Object.keys(health.json.instances[0]).slice(0, 5)).toEqual([
			"component",
			"endpoint",
			"namespace",
			"instance_id",
			"transport",
		]);
		const page = await stack.metrics();
		for (const [name, value] of [
			["ready", 1],
			["context_length", 256],
			["kv_cache_block_size", 16],
			["max_num_batched_tokens", 512],
			["max_num_seqs", 8],
			["migration_limit", 0],
			["total_kv_blocks", 100],
		] as const) {
			expect(page.value(`dynamo_frontend_model_${name}`, { model: "Acme/Tiny" })).toBe(value);
		}
	});

	it("that is not there: 404 in both forms, naming those that are", async () => {
		await stack.worker({ script: sendAll(IDS) });
		for (const answer of [
			await http(stack.chat, { body: chatBody({ model: "nope" }) }),
			await http(stack.chat, { body: chatBody({ model: "TINY", stream: true }) }),
			await http(`${stack.url}/v1/models/nope`),
			await http(`${stack.url}/v1/models/nope/ready`),
			await http(`${stack.url}/v1/models/a/b/c`),
		]) {
			expect(answer.status).toBe(404);
			expect(answer.json).toMatchObject({ message: "Model not found", type: "Not Found", code: 404 });
			expect(answer.json.error).toMatchObject({ code: "model_not_found", param: "model" });
			expect(answer.json.error.message).toContain("served: tiny");
		}
		const labels = { model: "unknown_model", error_type: "not_found" };
		expect((await stack.metrics()).sum("dynamo_frontend_requests_total", labels)).toBe(2);
	});

	it("has its aliases", async () => {
		await stack.worker({ script: sendAll(IDS), card: { aliases: ["small", "x/y"] } });
		expect(await listed()).toEqual(["small", MODEL, "x/y"]);
		const answer = await http(stack.chat, { body: chatBody({ model: "small" }) });
		expect(answer.json.model).toBe("small");
	});

	it("without Completions is not found there, with its name in the metrics", async () => {
		await stack.worker({ script: sendAll(IDS), card: { model_type: "Chat" } });
		await stack.worker({ script: sendAll(IDS), model: "other", component: "other" });
		const answer = await http(stack.completions, { body: { model: MODEL, prompt: "a" } });
		expect(answer.json.message).toBe("Model not found");
		const labels = { model: MODEL, endpoint: "completions", error_type: "not_found" };
		expect((await stack.metrics()).sum("dynamo_frontend_requests_total", labels)).toBe(1);
	});

	it("without a chat template: chat says what to do, completions work", async () => {
		const config = { checksum: "", path: "" };
		Object.assign(config, (await folderCard(MODEL, TINY_MODEL)).model_info?.hf_config_json);
		// A file that has no chat_template in it.
		await stack.worker({ script: sendAll(IDS), card: { prompt_formatter: { hf_tokenizer_config_json: config } } });
		const chat = await http(stack.chat, { body: chatBody() });
		expect(chat.status).toBe(400);
		expect(chat.json.message).toMatch(/no chat template.*\/v1\/completions/);
		expect((await http(stack.completions, { body: { model: MODEL, prompt: "a" } })).status).toBe(200);
	});
});

describe("several workers", () => {
	it("round-robin is exact within one", async () => {
		const workers = [];
		for (let i = 0; i < 3; i++) workers.push(await stack.worker({ script: sendAll(IDS) }));
		for (let i = 0; i < 10; i++) expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
		expect(workers.map(({ calls }) => calls.length).sort()).toEqual([3, 3, 4]);
	});

	it("another card on the same endpoint gets nothing until the first is gone", async () => {
		const first = await stack.worker({ script: sendAll(IDS) });
		const other = await stack.worker({ script: sendAll(IDS), card: { kv_cache_block_size: 32 } });
		for (let i = 0; i < 4; i++) await http(stack.chat, { body: chatBody() });
		expect([first.calls.length, other.calls.length]).toEqual([4, 0]);
		await first.leave();
		await stack.frontend.waitForModel(MODEL, 5000);
		expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
		expect(other.calls).toHaveLength(1);
	});

	it("other components and namespaces share the traffic of one name", async () => {
		const a = await stack.worker({ script: sendAll(IDS) });
		const b = await stack.worker({ script: sendAll(IDS), component: "other" });
		const c = await stack.worker({ script: sendAll(IDS), namespace: "far", card: { kv_cache_block_size: 32 } });
		// The name is ready with the first of them.
		const workers = async () => {
			const { namespaces } = (await http(`${stack.url}/v1/models/${MODEL}/ready`)).json;
			return Object.values(namespaces as Record<string, { worker_types: Record<string, { workers: number }> }>)
				.flatMap(({ worker_types }) => Object.values(worker_types))
				.reduce((sum, type) => sum + type.workers, 0);
		};
		await expect.poll(workers, { timeout: 5000 }).toBe(3);
		for (let i = 0; i < 9; i++) expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
		expect([a, b, c].map(({ calls }) => calls.length)).toEqual([3, 3, 3]);
	});

	it("a namespace filter leaves the others out", async () => {
		await stack.close();
		stack = await startStack({ namespacePrefix: "prod" });
		await stack.worker({ script: sendAll(IDS), namespace: "prod-2", model: "in" });
		const runtime = await stack.join();
		await startScriptedWorker(runtime, { script: sendAll(IDS), folder: TINY_MODEL, namespace: "dev", model: "out" });
		expect(await listed()).toEqual(["in"]);
	});

	it("a client can ask for one of them", async () => {
		const workers = [await stack.worker({ script: sendAll(IDS) }), await stack.worker({ script: sendAll(IDS) })];
		const id = workers[1]?.served.record.instance_id as bigint;
		for (let i = 0; i < 3; i++) {
			await http(stack.chat, { body: chatBody(), headers: { "x-dynamo-worker-instance-id": id.toString() } });
		}
		const body = JSON.stringify(chatBody({ nvext: {} })).replace("{}", `{"backend_instance_id":${id}}`);
		await http(stack.chat, { body, headers: { "content-type": "application/json" } });
		expect(workers.map(({ calls }) => calls.length)).toEqual([0, 4]);
		const unknown = await http(stack.chat, { body: chatBody({ nvext: { backend_instance_id: 12345 } }) });
		expect([unknown.status, unknown.json.message]).toEqual([400, "Invalid request"]);
	});

	it("decode workers that need prefill workers are not offered", async () => {
		await stack.worker({ script: sendAll(IDS) });
		const runtime = await stack.join();
		await startScriptedWorker(runtime, {
			script: sendAll(IDS),
			folder: TINY_MODEL,
			model: "split",
			component: "decode",
			card: { worker_type: "decode", needs: [["prefill"]] },
		});
		await expect.poll(async () => (await http(`${stack.url}/v1/models/split/ready`)).status).toBe(503);
		expect((await http(`${stack.url}/v1/models/split/ready`)).json.namespaces.dynamo.missing_worker_types).toContain(
			"prefill",
		);
		expect(await listed()).toEqual([MODEL]);
	});
});

describe("model files", () => {
	/** Serves the tiny model over HTTP, and counts. */
	async function fileServer(answer: (name: string, bytes: Buffer) => { status: number; body: Buffer }) {
		const hits: string[] = [];
		const server = createServer((request, response) => {
			const name = (request.url ?? "").slice(1);
			hits.push(name);
			readFile(join(TINY_MODEL, name)).then((bytes) => {
				const { status, body } = answer(name, bytes);
				response.writeHead(status, { "content-type": "application/octet-stream" }).end(body);
			});
		});
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
		const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
		return { hits, base, close: () => server.close() };
	}

	/** The card with every file behind the URL. */
	async function remoteCard(base: string): Promise<Partial<ModelDeploymentCard>> {
		const card = await folderCard(MODEL, TINY_MODEL);
		const move = (slot: unknown): never =>
			Object.fromEntries(
				Object.entries(slot as Record<string, CheckedFile>).map(([kind, file]) => [
					kind,
					{ ...file, path: `${base}/${file.path.split("/").at(-1)}` },
				]),
			) as never;
		return {
			model_info: move(card.model_info),
			tokenizer: move(card.tokenizer),
			prompt_formatter: move(card.prompt_formatter),
			gen_config: move(card.gen_config),
		};
	}

	it("are fetched over HTTP once, by content", async () => {
		const files = await fileServer((_name, body) => ({ status: 200, body }));
		const worker = await stack.worker({ script: sendAll(IDS), card: await remoteCard(files.base) });
		expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
		expect(files.hits.sort()).toEqual([
			"config.json",
			"generation_config.json",
			"tokenizer.json",
			"tokenizer_config.json",
		]);
		await worker.leave();
		await stack.worker({ script: sendAll(IDS), card: await remoteCard(files.base) });
		expect(files.hits).toHaveLength(4);
		files.close();
	});

	it("are asked for again after a failure or a wrong content; until then the model is not listed", async () => {
		let tries = 0;
		const files = await fileServer((name, body) => {
			if (name !== "tokenizer.json") return { status: 200, body };
			tries++;
			if (tries === 1) return { status: 500, body: Buffer.from("no") };
			if (tries === 2) return { status: 200, body: Buffer.from("wrong") };
			if (tries === 3) return { status: 200, body: Buffer.concat([body, body]) };
			return { status: 200, body };
		});
		await stack.worker({ script: sendAll(IDS), card: await remoteCard(files.base) });
		expect(tries).toBe(4);
		expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
		files.close();
	});

	it("that are missing keep the model away, not the frontend", async () => {
		const runtime = await stack.join();
		const card = await folderCard(MODEL, TINY_MODEL);
		const file = (card.tokenizer as { hf_tokenizer_json: CheckedFile }).hf_tokenizer_json;
		const worker = await startScriptedWorker(runtime, {
			script: sendAll(IDS),
			folder: TINY_MODEL,
			model: MODEL,
			card: { tokenizer: { hf_tokenizer_json: { ...file, path: "/nowhere/tokenizer.json" } } },
		});
		await stack.worker({ script: sendAll(IDS), model: "good", component: "good" });
		expect(await listed()).toEqual(["good"]);
		await worker.leave();
	});

	it("are found by name in the model folder", async () => {
		await stack.close();
		stack = await startStack({ modelPath: TINY_MODEL });
		const card = await folderCard(MODEL, TINY_MODEL);
		const file = (card.tokenizer as { hf_tokenizer_json: CheckedFile }).hf_tokenizer_json;
		await stack.worker({
			script: sendAll(IDS),
			card: { tokenizer: { hf_tokenizer_json: { ...file, path: "hf://some/repo/tokenizer.json" } } },
		});
		expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
	});
});

describe("models that take text", () => {
	const chunk = (more: object) => ({
		id: "chatcmpl-w",
		object: "chat.completion.chunk",
		created: 5,
		model: MODEL,
		...more,
	});

	it("get the body as it came; their chunks are handed on, or folded", async () => {
		const worker = await stack.worker({
			card: { model_input: "Text", tokenizer: null, model_info: null, prompt_formatter: null, gen_config: null },
			script: (call) => {
				const first = { index: 0, delta: { role: "assistant", content: "Hel" }, finish_reason: null };
				call.response.send({ data: chunk({ choices: [first] }) });
				call.response.send({ data: chunk({ choices: [{ index: 0, delta: { content: "lo" }, finish_reason: null }] }) });
				call.response.send({ data: chunk({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] }) });
				call.end();
			},
		});
		const body = chatBody({ max_tokens: 3, metadata: { a: 1 } });
		const unary = await http(stack.chat, { body });
		expect(unary.json).toMatchObject({
			object: "chat.completion",
			choices: [{ index: 0, message: { content: "Hello", role: "assistant" }, finish_reason: "stop" }],
		});
		expect((await worker.call(0)).request.payload).toEqual(body);
		const { validateStream } = await import("@dynamo-ts/testing/internal");
		const stream = await http(stack.chat, { body: { ...body, stream: true } });
		expect(validateStream(stream.body, { kind: "chat", model: MODEL }).choices[0]?.text).toBe("Hello");
	});
});
