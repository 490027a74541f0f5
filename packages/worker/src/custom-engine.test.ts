// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DynamoError, type LLMEngineOutput } from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime } from "@dynamo-ts/runtime";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type CustomModel, type CustomModelOptions, serveModel } from "./custom-engine.js";

let folder: string;
let runtime: DistributedRuntime;

beforeEach(async () => {
	folder = mkdtempSync(join(tmpdir(), "custom-engine-"));
	writeFileSync(join(folder, "config.json"), "{}");
	writeFileSync(join(folder, "tokenizer.json"), JSON.stringify({ model: { vocab: { a: 0, b: 1 } } }));
	const log = { filter: "off", format: "readable", ansi: false, localTime: false } as const;
	runtime = await DistributedRuntime.create({
		discoveryBackend: "mem",
		memStore: createMemStore(),
		systemPort: -1,
		log,
	});
});
afterEach(async () => {
	await runtime.shutdown();
	rmSync(folder, { recursive: true, force: true });
});

interface Call {
	readonly items: LLMEngineOutput[];
	/** The error that it ended with; undefined: none. */
	readonly done: Promise<DynamoError | undefined>;
	kill(): void;
	stop(): void;
}

async function call(model: CustomModel, payload: unknown): Promise<Call> {
	const [namespace, component, name] = model.address.replace("dyn://", "").split(".") as [string, string, string];
	const client = await runtime.namespace(namespace).component(component).endpoint(name).client();
	const items: LLMEngineOutput[] = [];
	let sent: { kill(): void; stop(): void } | undefined;
	const done = new Promise<DynamoError | undefined>((resolve) => {
		sent = client.send(
			client.instances()[0]!,
			{ id: "r", payload },
			{
				onItem: (item) => void items.push(item.data as LLMEngineOutput),
				onEnd: () => resolve(undefined),
				onError: resolve,
			},
		);
	});
	return { items, done, kill: () => sent?.kill(), stop: () => sent?.stop() };
}

type TokensOptions = Extract<CustomModelOptions, { input: "tokens" }>;

function tokens(generate: TokensOptions["generate"], more: Partial<TokensOptions> = {}): Promise<CustomModel> {
	return serveModel(runtime, { modelName: "My Model", input: "tokens", modelPath: folder, generate, ...more });
}

const request = (more: object = {}) => ({ token_ids: [1, 1], stop_conditions: { max_tokens: 5 }, ...more });

describe("tokens", () => {
	test("ids one by one, several at once or as outputs; no more than max_tokens; the generator is ended", async () => {
		let ended = false;
		const model = await tokens(function* () {
			try {
				yield 1;
				yield [2, 3];
				yield { token_ids: [4], log_probs: [-1] };
				for (;;) yield [5, 6, 7];
			} finally {
				ended = true;
			}
		});
		const { items, done } = await call(model, request());
		expect(await done).toBeUndefined();
		expect(items).toEqual([
			{ token_ids: [1] },
			{ token_ids: [2, 3] },
			{ token_ids: [4], log_probs: [-1] },
			{ token_ids: [5] },
			{ token_ids: [], finish_reason: "length" },
		]);
		expect(ended).toBe(true);
		expect(model.inflight).toBe(0);
	});

	test("the end that the generator gives: its return value, stop without one", async () => {
		const reasons: unknown[] = [];
		for (const reason of [undefined, "content_filter"] as const) {
			const model = await tokens(async function* () {
				yield 1;
				return reason;
			});
			const { items, done } = await call(model, request());
			await done;
			reasons.push(items.at(-1)?.finish_reason);
			await model.close();
		}
		expect(reasons).toEqual(["stop", "content_filter"]);
	});

	test.each([
		[{ token_ids: "abc" }, /token_ids/, undefined],
		[{ token_ids: [1.5] }, /token_ids/, undefined],
		["text", /map/, undefined],
		[request({ token_ids: Array(10).fill(1) }), /maximum context length is 8 tokens/, "context_length_exceeded"],
	])("%j is refused", async (payload, message, code) => {
		// biome-ignore lint/correctness/useYield: it is never asked
		const generate = async function* () {
			throw new Error("not reached");
		};
		const model = await tokens(generate, { contextLength: 8 });
		const error = await (await call(model, payload)).done;
		expect(error).toMatchObject({ errorClass: "InvalidArgument", ...(code === undefined ? {} : { code }) });
		expect(error?.message).toMatch(message);
	});

	test("an exception fails the request and nothing else", async () => {
		const model = await tokens(async function* ({ token_ids }) {
			yield 1;
			if (token_ids.length === 2) throw new Error("a bug");
			if (token_ids.length === 3) throw new DynamoError("WorkerOverloaded", "full");
		});
		expect(await (await call(model, request())).done).toMatchObject({ errorClass: "Internal" });
		expect(await (await call(model, request({ token_ids: [1, 1, 1] }))).done).toMatchObject({
			errorClass: "WorkerOverloaded",
		});
		expect(await (await call(model, request({ token_ids: [1] }))).done).toBeUndefined();
	});

	test.each(["kill", "stop"] as const)("%s aborts the signal and ends the generator", async (how) => {
		let ended = false;
		const model = await tokens(async function* (_request, { signal }) {
			try {
				yield 1;
				await new Promise((_resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
			} finally {
				ended = true;
			}
		});
		const { items, done, kill, stop } = await call(model, request());
		await vi.waitFor(() => expect(items).toHaveLength(1));
		if (how === "kill") kill();
		else stop();
		const error = await done;
		if (how === "kill") expect(error).toMatchObject({ errorClass: "Cancelled" });
		else expect(error).toBeUndefined();
		await vi.waitFor(() => expect(ended).toBe(true));
		await vi.waitFor(() => expect(model.inflight).toBe(0));
	});
});

describe("text", () => {
	test("pieces become chunks with the role first and the reason last", async () => {
		const model = await serveModel(runtime, {
			modelName: "t",
			input: "text",
			async *generate(request) {
				yield String(request.messages?.[0]?.content);
				yield "";
				yield "!";
			},
		});
		const { items, done } = await call(model, { model: "t", messages: [{ role: "user", content: "Hi" }] });
		expect(await done).toBeUndefined();
		const choices = items.map((item) => (item as unknown as { choices: unknown[] }).choices[0]);
		expect(choices).toEqual([
			{ index: 0, delta: { content: "Hi", role: "assistant" }, finish_reason: null },
			{ index: 0, delta: { content: "!" }, finish_reason: null },
			{ index: 0, delta: {}, finish_reason: "stop" },
		]);
		const empty = await call(model, { model: "t" });
		expect(await empty.done).toMatchObject({ errorClass: "InvalidArgument" });
		expect(model.card).toMatchObject({ model_input: "Text", slug: "t" });
	});
});

test("a model that is refused leaves no files to be fetched", async () => {
	const log = { filter: "off", format: "readable", ansi: false, localTime: false } as const;
	const hosting = await DistributedRuntime.create({
		discoveryBackend: "mem",
		memStore: createMemStore(),
		systemHost: "127.0.0.1",
		systemPort: 0,
		log,
	});
	try {
		const serve = (modelName: string) =>
			serveModel(hosting, {
				modelName,
				endpoint: "dyn://n.c.generate",
				input: "tokens",
				modelPath: folder,
				generate: function* () {
					yield 1;
				},
			});
		await serve("first");
		const added = vi.spyOn(hosting.systemServer!, "addMetadataFile");
		await expect(serve("second")).rejects.toMatchObject({ errorClass: "Conflict" });
		const urls = added.mock.results.map(({ value }) => value as string);
		expect(urls.length).toBeGreaterThan(0);
		for (const url of urls) expect((await fetch(url)).status).toBe(404);
	} finally {
		await hosting.shutdown();
	}
});

test("a place of its own, and two models cannot share one", async () => {
	const generate = function* () {
		yield 1;
	};
	const model = await tokens(generate);
	expect(model.address).toMatch(/^dyn:\/\/dynamo\.my[-_]model\.generate$/);
	const other = tokens(generate, { modelName: "other", endpoint: model.address });
	await expect(other).rejects.toMatchObject({ errorClass: "Conflict" });
	await expect(tokens(generate, { modelName: "x", modelPath: join(folder, "no") })).rejects.toMatchObject({
		errorClass: "NotFound",
	});
	await model.close();
	expect(await runtime.discovery.list("v1/mdc")).toEqual([]);
	expect(await runtime.discovery.list("v1/instances")).toEqual([]);
});
