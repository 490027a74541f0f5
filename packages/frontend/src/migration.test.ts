// SPDX-License-Identifier: Apache-2.0
// Streams whose worker is lost and that go on at another one.
import { join } from "node:path";
import { DynamoError, type PreprocessedRequest } from "@dynamo-ts/protocols/internal";
import { http, openStream, type StreamSummary } from "@dynamo-ts/testing/internal";
import { Tokenizer } from "@dynamo-ts/tokenizers";
import fc from "fast-check";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import type { FrontendConfig } from "./config.js";
import { Continuation } from "./migration.js";
import type { Script, ScriptedCall, ScriptedWorker } from "./scripted-worker.js";
import { chatBody, type Stack, startStack, TINY_MODEL } from "./test-support/stack.js";

const MIGRATIONS = "dynamo_frontend_model_migration_total";
const OUTCOMES = "dynamo_frontend_model_migration_duration_seconds_count";

let tokenizer: Tokenizer;
let stack: Stack;
let workers: ScriptedWorker[];
/** Bodies in the order in which workers got them. */
let bodies: PreprocessedRequest[];

beforeAll(async () => {
	tokenizer = await Tokenizer.fromFile(join(TINY_MODEL, "tokenizer.json"));
});
afterEach(() => stack.close());

const gone = (): DynamoError => new DynamoError("Disconnected", "the worker is gone");

/**
 * Workers that all generate the same tokens: which one is next follows from how many are behind the prompt. At each
 * of the cuts (tokens of the answer so far) the worker that is there is lost.
 */
function generator(all: readonly number[], cuts: number[], error = gone, extra: object = {}): Script {
	let promptTokens: number | undefined;
	return (call) => {
		bodies.push(call.body);
		promptTokens ??= call.body.token_ids.length;
		const done = call.body.token_ids.length - promptTokens;
		expect(call.body.token_ids.slice(promptTokens)).toEqual(all.slice(0, done));
		const cut = cuts.shift();
		const end = cut ?? all.length;
		for (let i = done; i < end; i++) {
			call.send({
				token_ids: [all[i] as number],
				log_probs: [-0.5],
				...extra,
				...(i === done
					? {
							completion_usage: {
								prompt_tokens: call.body.token_ids.length,
								completion_tokens: 1,
								total_tokens: call.body.token_ids.length + 1,
								prompt_tokens_details: { audio_tokens: null, cached_tokens: done === 0 ? 3 : 7 },
							},
						}
					: {}),
			});
		}
		if (cut === undefined) call.finish("length").end();
		else fail(call, error, end > done);
	};
}

function fail(call: ScriptedCall, error: () => DynamoError, begun: boolean): void {
	if (begun) setTimeout(() => call.fail(error()), 5);
	else call.fail(error());
}

async function start(script: Script, config: Partial<FrontendConfig> = {}, count = 2): Promise<void> {
	bodies = [];
	stack = await startStack({ migrationLimit: 3, ...config }, { inhibitedDurationMs: 0 });
	workers = [];
	for (let i = 0; i < count; i++) workers.push(await stack.worker({ script }));
}

async function stream(more: Record<string, unknown>, expectError: boolean | "either" = false): Promise<StreamSummary> {
	const body = chatBody({ stream: true, stream_options: { include_usage: true }, ...more });
	const logprobs = more.logprobs === true;
	const expected = { kind: "chat", includeUsage: expectError !== true, expectError, logprobs } as const;
	return (await openStream(stack.chat, body, expected)).finished();
}

describe("a stream whose worker is lost", () => {
	it("goes on at another one: no token twice, none missing, usage counted once", async () => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		await start(generator(ids, [2]));
		const summary = await stream({ max_tokens: ids.length, min_tokens: 3, nvext: { extra_fields: ["worker_id"] } });
		expect(summary.choices[0]).toMatchObject({ text: " Hello world is Paris", finishReason: "length" });
		const [first, second] = bodies as [PreprocessedRequest, PreprocessedRequest];
		expect(second.token_ids).toEqual([...first.token_ids, ...ids.slice(0, 2)]);
		expect(second.stop_conditions).toEqual({
			...first.stop_conditions,
			max_tokens: ids.length - 2,
			min_tokens: 1,
		});
		expect({ ...second, token_ids: 0, stop_conditions: 0 }).toEqual({
			...first,
			token_ids: 0,
			stop_conditions: 0,
			generated_tokens: 2,
		});
		expect(summary.usage).toEqual({
			prompt_tokens: first.token_ids.length,
			completion_tokens: ids.length,
			total_tokens: first.token_ids.length + ids.length,
			prompt_tokens_details: { cached_tokens: 3 },
		});
		const ids_ = workers.flatMap(({ calls }) => calls.map(({ request }) => request.id));
		expect(new Set(ids_).size).toBe(1);
		const page = await stack.metrics();
		expect(page.sum(MIGRATIONS, { migration_type: "ongoing_request", model: "tiny" })).toBe(1);
		expect(page.value(OUTCOMES, { migration_type: "ongoing_request", outcome: "success" })).toBe(1);
		expect(page.value("dynamo_frontend_model_migration_limit")).toBe(3);
		expect(page.sum("dynamo_frontend_requests_total", { status: "success" })).toBe(1);
	});

	it("an answer in one piece as well", async () => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		await start(generator(ids, [3]));
		const answer = await http(stack.chat, { body: chatBody({ max_tokens: ids.length }) });
		expect(answer.json).toMatchObject({
			choices: [{ message: { content: " Hello world is Paris" }, finish_reason: "length" }],
			usage: { prompt_tokens: bodies[0]?.token_ids.length, completion_tokens: ids.length },
		});
	});

	it("whatever is cut where: the text is the same", async () => {
		// Characters of several tokens, and stop strings that begin before a cut and end after it.
		const text = " Hello 👋🏽 world \u00e9\u4e16\u754c is Paris";
		const ids = await tokenizer.encode(text);
		const cuts: number[] = [];
		let script: Script = generator(ids, cuts);
		await start((call) => script(call), { migrationLimit: 4 }, 5);
		await fc.assert(
			fc.asyncProperty(
				fc.array(fc.integer({ min: 0, max: ids.length - 1 }), { maxLength: 4 }),
				fc.constantFrom(undefined, "world", " Par", "is Paris"),
				async (places, stop) => {
					cuts.splice(0, cuts.length, ...places.sort((a, b) => a - b));
					script = generator(ids, cuts);
					const summary = await stream({
						max_tokens: ids.length,
						logprobs: true,
						...(stop === undefined ? {} : { stop: [stop] }),
					});
					const whole = stop === undefined ? text : text.slice(0, text.indexOf(stop));
					expect(summary.choices[0]?.text).toBe(whole);
					expect(summary.choices[0]?.finishReason).toBe(stop === undefined ? "length" : "stop");
					if (stop === undefined) expect(summary.choices[0]?.logprobs).toHaveLength(ids.length);
				},
			),
			{ numRuns: 60 },
		);
	});

	it.each([
		["Disconnected", undefined],
		["CannotConnect", undefined],
		["ConnectionTimeout", undefined],
		["WorkerOverloaded", undefined],
		["ResponseTimeout", undefined],
		["Unavailable", "backend.engine_shutdown"],
		["Disconnected", "backend.stream_incomplete"],
	] as const)("%s %s moves it", async (errorClass, reason) => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		const error = () => new DynamoError(errorClass, "x", reason === undefined ? {} : { reason });
		await start(generator(ids, [2], error));
		expect((await stream({ max_tokens: ids.length })).choices[0]?.text).toBe(" Hello world is Paris");
	});

	it.each(["InvalidArgument", "Internal", "Unknown", "BackendProtocol", "Cancelled"] as const)(
		"%s does not",
		async (errorClass) => {
			const ids = await tokenizer.encode(" Hello world is Paris");
			await start(generator(ids, [2], () => new DynamoError(errorClass, "x")));
			expect((await stream({ max_tokens: ids.length }, true)).error).toBeDefined();
			expect(bodies).toHaveLength(1);
			expect((await stack.metrics()).sum(MIGRATIONS)).toBe(0);
		},
	);

	it.each([
		["several choices", { n: 2, temperature: 1 }],
		["guided decoding", { guided_regex: "[a-z]+" }],
		["seeded sampling", { seed: 7, temperature: 0.7 }],
	])("%s: refused with an error in the stream, and counted", async (_name, more) => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		await start(generator(ids, [2]));
		const summary = await stream({ max_tokens: ids.length, ...more }, true);
		expect(summary.error).toEqual({
			message: "Service temporarily unavailable",
			type: "service_unavailable",
			code: 503,
		});
		expect(bodies).toHaveLength(1);
		const page = await stack.metrics();
		expect(page.sum(MIGRATIONS, { migration_type: "ongoing_request" })).toBe(1);
		expect(page.value(OUTCOMES, { migration_type: "ongoing_request", outcome: "failure" })).toBe(1);
	});

	it("a seed has no say at temperature 0", async () => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		await start(generator(ids, [2]));
		const summary = await stream({ max_tokens: ids.length, seed: 7, temperature: 0 });
		expect(summary.choices[0]?.text).toBe(" Hello world is Paris");
	});

	it("no further than the limit", async () => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		await start(generator(ids, [1, 2, 3]), { migrationLimit: 2 }, 4);
		const summary = await stream({ max_tokens: ids.length }, true);
		expect(summary.error?.code).toBe(503);
		expect(bodies).toHaveLength(3);
		const page = await stack.metrics();
		expect(page.sum(MIGRATIONS, { migration_type: "ongoing_request" })).toBe(3);
		expect(page.value(OUTCOMES, { outcome: "success" })).toBe(2);
		expect(page.value(OUTCOMES, { outcome: "failure" })).toBe(1);
	});

	it("not when it has grown too long", async () => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		await start(generator(ids, [2]), { migrationMaxSeqLen: 3 });
		expect((await stream({ max_tokens: ids.length }, true)).error?.code).toBe(503);
		expect(bodies).toHaveLength(1);
	});

	it("ends with length when only the word of its end was lost", async () => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		await start(generator(ids, [ids.length]));
		const summary = await stream({ max_tokens: ids.length });
		expect(summary.choices[0]).toMatchObject({ text: " Hello world is Paris", finishReason: "length" });
		expect(bodies).toHaveLength(1);
	});

	it("the client leaves while it is being moved: nothing remains", async () => {
		const ids = await tokenizer.encode(" Hello world is Paris");
		let moved: (call: ScriptedCall) => void = () => {};
		const second = new Promise<ScriptedCall>((resolve) => {
			moved = resolve;
		});
		const script = generator(ids, [2]);
		await start((call) => (bodies.length === 0 ? script(call) : moved(call)));
		const open = await openStream(stack.chat, chatBody({ stream: true, max_tokens: 9 }), {
			kind: "chat",
			expectError: "either",
		});
		const call = await second;
		open.abort();
		expect(await call.cancelled).toMatch(/kill|disconnect/);
		await expect.poll(async () => (await stack.metrics()).value(OUTCOMES, { outcome: "cancelled" })).toBe(1);
	});
});

describe("before the first token", () => {
	it("a full worker's refusal moves the request while the limit lasts", async () => {
		const ids = await tokenizer.encode(" Hello world");
		await start(generator(ids, [0], () => new DynamoError("WorkerOverloaded", "full")));
		expect((await stream({ max_tokens: ids.length })).choices[0]?.text).toBe(" Hello world");
		const page = await stack.metrics();
		expect(page.sum(MIGRATIONS, { migration_type: "new_request" })).toBe(1);
	});

	it("a lost worker is counted without a limit too", async () => {
		const ids = await tokenizer.encode(" Hello world");
		await start(generator(ids, [0]), { migrationLimit: 0 });
		expect((await stream({ max_tokens: ids.length })).choices[0]?.text).toBe(" Hello world");
		const page = await stack.metrics();
		expect(page.sum(MIGRATIONS, { migration_type: "new_request" })).toBe(1);
		expect(page.value(OUTCOMES, { migration_type: "new_request", outcome: "success" })).toBe(1);
	});
});

describe("Continuation", () => {
	it("costs nothing of what was long ago: the log grows, and is given up beyond the limit", () => {
		const body = {
			token_ids: [1, 2, 3],
			sampling_options: {},
			stop_conditions: { max_tokens: null, min_tokens: null },
		} as unknown as PreprocessedRequest;
		const free = new Continuation(body, { limit: 1, maxSeqLen: undefined }, Number.POSITIVE_INFINITY);
		const bound = new Continuation(body, { limit: 1, maxSeqLen: 100 }, Number.POSITIVE_INFINITY);
		const ids = Array.from({ length: 1000 }, (_, i) => i);
		for (let i = 0; i < ids.length; i += 8) for (const each of [free, bound]) each.push(ids.slice(i, i + 8));
		expect(free.obstacle).toBeUndefined();
		expect(free.rest().token_ids).toEqual([1, 2, 3, ...ids]);
		expect(free.rest().stop_conditions).toEqual({ max_tokens: null, min_tokens: null });
		expect(bound.obstacle).toMatch(/max-seq-len/);
	});
});
