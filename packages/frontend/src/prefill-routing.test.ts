// SPDX-License-Identifier: Apache-2.0
// Requests that take two workers: one for the prompt, one for the answer.
import { readFile } from "node:fs/promises";
import { DynamoError, type PreprocessedRequest } from "@dynamo-ts/protocols/internal";
import { KvPolicy } from "@dynamo-ts/router";
import type { RuntimeConfig } from "@dynamo-ts/runtime";
import { http, openStream } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { FrontendConfig } from "./config.js";
import { type Script, type ScriptedCall, type ScriptedWorker, sendAll } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

const IDS = [70, 71, 72];
const BYPASS = "x-bypass-remote-prefill";

let stack: Stack | undefined;
afterEach(async () => {
	await stack?.close();
	stack = undefined;
	vi.restoreAllMocks();
});

const gone = (): DynamoError => new DynamoError("Disconnected", "the worker is gone");

const usage = (cached_tokens: number) => ({
	prompt_tokens: 1,
	completion_tokens: 1,
	total_tokens: 2,
	prompt_tokens_details: { audio_tokens: null, cached_tokens },
});

/** What a prefill worker answers with when all is well. */
const prefilled: Script = (call) => {
	const of = call.body.token_ids.length;
	call.send({ token_ids: [99], disaggregated_params: { handle: 2n ** 60n, of }, completion_usage: usage(16) });
	call.finish("length").end();
};

interface Pair {
	readonly prefill: ScriptedWorker[];
	readonly decode: ScriptedWorker[];
}

const bodies = (workers: readonly ScriptedWorker[]): PreprocessedRequest[] =>
	workers.flatMap(({ calls }) => calls.map(({ body }) => body));

function prefillWorker(script: Script, more: { namespace?: string; port?: number } = {}) {
	const endpoint = more.port === undefined ? {} : { disaggregated_endpoint: meeting(more.port) };
	return (stack as Stack).worker({
		script,
		alone: true,
		component: "prefill",
		...(more.namespace === undefined ? {} : { namespace: more.namespace }),
		card: {
			worker_type: "prefill",
			needs: [["decode"]],
			model_type: "",
			runtime_config: { max_num_batched_tokens: 512, ...endpoint },
		},
	});
}

const meeting = (port: number) => ({ bootstrap_host: "127.0.0.1", bootstrap_port: port });

function decodeWorker(script: Script, namespace?: string) {
	return (stack as Stack).worker({
		script,
		alone: true,
		...(namespace === undefined ? {} : { namespace }),
		card: { worker_type: "decode", needs: [["prefill"]] },
	});
}

/** Ports make prefill workers meet decode workers. */
async function start(
	prefill: Script[],
	decode: Script[],
	config: Partial<FrontendConfig> = {},
	ports: number[] = [],
	runtime: Partial<RuntimeConfig> = {},
): Promise<Pair> {
	stack = await startStack(config, runtime);
	const pair: Pair = { prefill: [], decode: [] };
	for (const [i, script] of prefill.entries()) {
		const port = ports[i];
		pair.prefill.push(await prefillWorker(script, port === undefined ? {} : { port }));
	}
	for (const script of decode) pair.decode.push(await decodeWorker(script));
	await stack.frontend.waitForModel(MODEL, 5000);
	// Which of several takes the first request is up to the order of discovery.
	await expect.poll(() => liveWorkers()).toEqual([prefill.length, decode.length]);
	return pair;
}

async function liveWorkers(): Promise<number[]> {
	const { json } = await http(`${stack?.url}/v1/models/${MODEL}/ready`);
	const types = json.namespaces.dynamo.worker_types;
	return [types.prefill?.workers, types.decode?.workers];
}

const chat = (more: Record<string, unknown> = {}, headers: Record<string, string> = {}) =>
	http((stack as Stack).chat, { body: chatBody(more), headers });

/** Worker ids have more digits than JSON numbers of JavaScript. */
const idsOf = (body: string): Record<string, string> =>
	Object.fromEntries([...body.matchAll(/"(\w+_worker_id)":(\d+)/g)].map(([, name, id]) => [name, id]));

describe("a model of prefill and decode workers", () => {
	it("can be called while both are there, and is not listed otherwise", async () => {
		stack = await startStack();
		const { url } = stack;
		const listed = async () => (await http(`${url}/v1/models`)).json.data.map(({ id }: { id: string }) => id);
		const gauge = async () => (await (stack as Stack).metrics()).value("dynamo_frontend_model_ready");
		await decodeWorker(sendAll(IDS));
		await expect.poll(async () => (await chat()).status).toBe(503);
		const refused = await chat();
		expect(refused.json.message).toContain("Model `tiny` is not ready to serve requests yet.");
		expect(await listed()).toEqual([]);
		const first = await prefillWorker(prefilled);
		await stack.frontend.waitForModel(MODEL, 5000);
		expect([await listed(), await gauge(), (await chat()).status]).toEqual([[MODEL], 1, 200]);
		const ready = (await http(`${url}/v1/models/${MODEL}/ready`)).json;
		expect(ready.namespaces.dynamo.worker_types).toEqual({
			decode: { workers: 1, needs: [["prefill"]] },
			prefill: { workers: 1, needs: [["decode"]] },
		});
		await first.leave();
		await expect.poll(gauge).toBe(0);
		expect([await listed(), (await chat()).status]).toEqual([[], 503]);
		expect((await http(`${url}/v1/models/${MODEL}/ready`)).json.namespaces.dynamo).toMatchObject({
			ready: false,
			missing_worker_types: ["prefill"],
		});
	});

	it("is nothing that can be called while there are prefill workers alone", async () => {
		stack = await startStack();
		await prefillWorker(prefilled);
		const { url } = stack;
		await expect.poll(async () => (await http(`${url}/v1/models/${MODEL}/ready`)).status).toBe(503);
		expect((await chat()).status).toBe(404);
	});

	it("uses the prefill workers of the namespace that the decode worker is in", async () => {
		stack = await startStack();
		const pairs: Record<string, Pair> = {};
		for (const namespace of ["a", "b"]) {
			pairs[namespace] = {
				prefill: [await prefillWorker(prefilled, { namespace })],
				decode: [await decodeWorker(sendAll(IDS), namespace)],
			};
		}
		const idle = await decodeWorker(sendAll(IDS), "c");
		const { url } = stack;
		await expect
			.poll(async () => {
				const { namespaces } = (await http(`${url}/v1/models/${MODEL}/ready`)).json;
				return [namespaces?.a?.ready, namespaces?.b?.ready, namespaces?.c?.present];
			})
			.toEqual([true, true, ["decode"]]);
		for (let i = 0; i < 4; i++) expect((await chat()).status).toBe(200);
		for (const { prefill, decode } of Object.values(pairs)) {
			expect([prefill[0]?.calls.length, decode[0]?.calls.length]).toEqual([2, 2]);
			expect(bodies(decode)[0]?.routing.prefill_worker_id).toBe(prefill[0]?.record.instance_id);
		}
		expect(idle.calls).toHaveLength(0);
	});
});

describe("prefill first, then decode", () => {
	it("sends both what Dynamo sends, and shows the decode worker's tokens alone", async () => {
		const { prefill, decode } = await start([prefilled], [sendAll(IDS)]);
		const answer = await chat({
			max_tokens: 3,
			temperature: 0.5,
			min_tokens: 2,
			stop: ["x"],
			nvext: { annotations: ["a", BYPASS] },
		});
		expect([answer.status, answer.json.usage.completion_tokens]).toEqual([200, 3]);
		const [first] = bodies(prefill) as [PreprocessedRequest];
		const [second] = bodies(decode) as [PreprocessedRequest];
		const id = prefill[0]?.record.instance_id;
		const { prefill_result, router_config_override, ...rest } = second;
		expect(first).toEqual({
			...rest,
			router_config_override: null,
			stop_conditions: { ...second.stop_conditions, max_tokens: 1, min_tokens: 1 },
		});
		expect(second).toMatchObject({ stop_conditions: { max_tokens: 3, min_tokens: 2 }, annotations: ["a"] });
		expect(second.routing).toEqual({ prefill_worker_id: id });
		expect(prefill_result).toEqual({
			disaggregated_params: { handle: 2n ** 60n, of: first.token_ids.length },
			prompt_tokens_details: usage(16).prompt_tokens_details,
		});
		expect(router_config_override).toEqual({
			overlap_score_credit: 0,
			prefill_load_scale: null,
			router_temperature: null,
			assume_kv_reuse: false,
			track_prefill_tokens: false,
			shared_cache_multiplier: null,
		});
		const ids = [...prefill, ...decode].map(({ calls }) => calls[0]?.request.id);
		expect(ids[0]).toBe(ids[1]);
		expect(answer.json.id).toBe(`chatcmpl-${ids[0]}`);
	});

	it("streams, with a leg of its own for each prompt, and shows the stages as they are gone through", async () => {
		const waiting: ScriptedCall[] = [];
		const { decode } = await start([(call) => void waiting.push(call)], [(call) => void waiting.push(call)]);
		const body = { model: MODEL, prompt: [[1, 2], [3]], max_tokens: 3, stream: true };
		const stages = async () =>
			(await (stack as Stack).metrics())
				.select("dynamo_frontend_stage_requests")
				.filter(({ value }) => value > 0)
				.map(({ labels }) => [labels.phase, labels.stage]);
		const answer = http((stack as Stack).completions, { body });
		await expect.poll(() => waiting.length).toBe(2);
		expect(await stages()).toEqual([["prefill", "dispatch"]]);
		for (const call of waiting.splice(0)) prefilled(call);
		await expect.poll(() => waiting.length).toBe(2);
		expect(await stages()).toEqual([["decode", "dispatch"]]);
		for (const call of waiting.splice(0)) sendAll(IDS)(call);
		const text = (await answer).body;
		expect(text.trimEnd().endsWith("data: [DONE]")).toBe(true);
		expect(decode[0]?.calls.map(({ request }) => request.id.slice(-2))).toEqual(["-0", "-1"]);
	});

	it("takes what the prefill worker says when that is the end already", async () => {
		const script: Script = (call) => {
			call.send({ token_ids: [70], disaggregated_params: "dummy" });
			call.finish("stop").end();
		};
		const { decode, prefill } = await start([script], [sendAll(IDS)]);
		const answer = await chat({ nvext: { extra_fields: ["worker_id"] } });
		expect(answer.json.choices[0].finish_reason).toBe("stop");
		expect(answer.json.usage.completion_tokens).toBe(1);
		expect(decode[0]?.calls).toHaveLength(0);
		expect(idsOf(answer.body)).toEqual({ prefill_worker_id: String(prefill[0]?.record.instance_id) });
	});

	it("gives the log-probabilities of the prompt, which only the prefill worker knows", async () => {
		const list = [null, { "70": { logprob: -1, rank: 1, decoded_token: "a" } }];
		const script: Script = (call) => {
			call.send({ token_ids: [70], disaggregated_params: "dummy", engine_data: { prompt_logprobs: list } });
			call.finish("length").end();
		};
		await start([script], [sendAll(IDS)]);
		const answer = await chat({ prompt_logprobs: 1 });
		expect(answer.json.choices[0].prompt_logprobs ?? answer.json.prompt_logprobs).toEqual(list);
	});

	it.each([
		["before it took the request", (call: ScriptedCall) => call.fail(gone())],
		[
			"after its token",
			(call: ScriptedCall) => void call.send({ token_ids: [9], disaggregated_params: 1 }).fail(gone()),
		],
	])("goes on at another prefill worker when one is lost %s", async (_when, lost) => {
		const { prefill, decode } = await start([lost, lost, prefilled], [sendAll(IDS)], { enforceDisagg: true });
		for (let i = 0; i < 3; i++) expect((await chat()).json.usage.completion_tokens).toBe(3);
		const winner = prefill[2]?.record.instance_id;
		for (const { routing, prefill_result } of bodies(decode)) {
			expect(routing.prefill_worker_id).toBe(winner);
			expect(prefill_result).toMatchObject({ disaggregated_params: { handle: 2n ** 60n } });
		}
	});

	it.each([
		["lost", (call: ScriptedCall) => call.fail(gone())],
		["failing", (call: ScriptedCall) => void call.finish({ error: "out of memory" }).end()],
		["none, as they return nothing to go on with", sendAll([9])],
		["not working", (call: ScriptedCall) => call.fail(new DynamoError("Unknown", "broken"))],
	])("leaves the prompt to the decode worker when all prefill workers are %s", async (_what, script) => {
		const { decode } = await start([script, script], [sendAll(IDS)]);
		const answer = await chat({ max_tokens: 3, nvext: { extra_fields: ["worker_id", "timing"] } });
		expect([answer.status, answer.json.usage?.completion_tokens]).toEqual([200, 3]);
		const [body] = bodies(decode) as [PreprocessedRequest];
		expect(body).toMatchObject({ annotations: [BYPASS], router_config_override: null, routing: {} });
		expect(body).not.toHaveProperty("prefill_result");
		const id = String(decode[0]?.record.instance_id);
		expect(idsOf(answer.body)).toEqual({ prefill_worker_id: id, decode_worker_id: id });
		expect(answer.json.nvext.timing).not.toHaveProperty("kv_transfer_estimated_latency_ms");
	});

	it("does not, with --enforce-disagg: 503 when they are lost, the failure itself otherwise", async () => {
		let script: Script = (call) => call.fail(gone());
		const { decode } = await start([(call) => script(call)], [sendAll(IDS)], { enforceDisagg: true });
		const lost = await chat();
		expect([lost.status, lost.json.type]).toEqual([503, "Service Unavailable"]);
		expect((await chat()).status, "while it is put aside").toBe(503);
		expect(decode[0]?.calls).toHaveLength(0);
		await stack?.close();
		script = (call) => call.fail(new DynamoError("Internal", "broken"));
		await start([(call) => script(call)], [sendAll(IDS)], { enforceDisagg: true });
		expect((await chat()).status).toBe(500);
	});

	it.each([
		["InvalidArgument", 400],
		["WorkerOverloaded", 529],
	] as const)("ends with the prefill worker's %s", async (errorClass, status) => {
		const { decode } = await start([(call) => call.fail(new DynamoError(errorClass, "no"))], [sendAll(IDS)]);
		expect((await chat()).status).toBe(status);
		expect(decode[0]?.calls).toHaveLength(0);
	});
});

describe("a decode worker that is lost", () => {
	/** Loses the first request after so many tokens. */
	const lossy = (tokens: number): Script => {
		let lost = false;
		return (call) => {
			if (lost) {
				const done = call.body.generated_tokens ?? 0;
				sendAll(IDS.slice(done))(call);
				return;
			}
			lost = true;
			call.tokens(IDS.slice(0, tokens));
			setTimeout(() => call.fail(gone()), 5);
		};
	};

	it.each([0, 2])("after %i tokens: the rest is prefilled again, and goes on at another", async (tokens) => {
		const script = lossy(tokens);
		const { prefill, decode } = await start([prefilled], [script, script], { migrationLimit: 2 });
		const answer = await chat({ max_tokens: 3 });
		expect([answer.status, answer.json.usage?.completion_tokens]).toEqual([200, 3]);
		const [first, again] = bodies(prefill) as [PreprocessedRequest, PreprocessedRequest];
		expect(again.token_ids).toEqual([...first.token_ids, ...IDS.slice(0, tokens)]);
		expect(bodies(decode).map(({ stop_conditions }) => stop_conditions.max_tokens)).toEqual([3, 3 - tokens]);
		const last = decode
			.flatMap(({ calls }) => calls)
			.find(({ body }) => body.token_ids.length === again.token_ids.length);
		expect(last?.body.prefill_result).toMatchObject({ disaggregated_params: { of: again.token_ids.length } });
		expect(answer.json.usage.prompt_tokens_details ?? null).toBe(null);
	});

	it("before it took the request: another gets what was prefilled", async () => {
		let refused = false;
		const script: Script = (call) => {
			if (refused) sendAll(IDS)(call);
			else {
				refused = true;
				call.fail(new DynamoError("WorkerUnavailable", "leaving"));
			}
		};
		const { prefill, decode } = await start([prefilled], [script, script]);
		expect((await chat()).json.usage.completion_tokens).toBe(3);
		expect([bodies(prefill).length, bodies(decode).length]).toEqual([1, 2]);
	});

	it("without migration: the stream ends with an error, as everywhere", async () => {
		await start([prefilled], [lossy(2)]);
		const body = chatBody({ stream: true });
		const expected = { kind: "chat", includeUsage: false, expectError: true } as const;
		const stream = await openStream((stack as Stack).chat, body, expected);
		expect((await stream.finished()).error).toBeDefined();
	});
});

describe("a client that leaves", () => {
	it.each(["prefill", "decode"] as const)("while its request is at the %s worker: that one is told", async (phase) => {
		const hang: Script = (call) => void call.send({ token_ids: [70] });
		const { prefill, decode } = await start([phase === "prefill" ? hang : prefilled], [hang], { routerMode: "kv" });
		const abort = new AbortController();
		const request = fetch((stack as Stack).chat, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify(chatBody({ stream: true })),
			signal: abort.signal,
		});
		request.catch(() => {});
		const worker = (phase === "prefill" ? prefill : decode)[0] as ScriptedWorker;
		const call = await worker.call(0);
		abort.abort();
		expect(await call.cancelled).toBe("kill");
		expect(decode[0]?.calls.length).toBe(phase === "prefill" ? 0 : 1);
	});
});

describe("pins", () => {
	it("send the prompt to the worker that the client names, by nvext or header", async () => {
		const { prefill, decode } = await start([prefilled, prefilled], [sendAll(IDS), sendAll(IDS)]);
		const [, wanted] = prefill as [ScriptedWorker, ScriptedWorker];
		const [, target] = decode as [ScriptedWorker, ScriptedWorker];
		const id = wanted.record.instance_id;
		for (let i = 0; i < 2; i++) {
			expect((await chat({}, { "x-dynamo-prefill-instance-id": String(id) })).status).toBe(200);
			const body = JSON.stringify(chatBody({ nvext: { prefill_worker_id: 1, decode_worker_id: 2 } }))
				.replace('"prefill_worker_id":1', `"prefill_worker_id":${id}`)
				.replace('"decode_worker_id":2', `"decode_worker_id":${target.record.instance_id}`);
			const answer = await http((stack as Stack).chat, { body, headers: { "content-type": "application/json" } });
			expect(answer.status).toBe(200);
		}
		expect(prefill.map(({ calls }) => calls.length)).toEqual([0, 4]);
		expect(target.calls.length).toBeGreaterThanOrEqual(2);
		const unknown = await chat({}, { "x-dynamo-prefill-instance-id": "12345" });
		expect([unknown.status, unknown.json.message]).toEqual([400, "Invalid request"]);
		const decodeId = String(target.record.instance_id);
		expect((await chat({}, { "x-dynamo-prefill-instance-id": decodeId })).status, "no prefill worker").toBe(400);
	});

	it("leave the prompt to any prefill worker when they name the decode worker alone", async () => {
		const { prefill, decode } = await start([prefilled], [sendAll(IDS), sendAll(IDS)]);
		const id = decode[1]?.record.instance_id;
		for (let i = 0; i < 2; i++) {
			expect((await chat({}, { "x-dynamo-worker-instance-id": String(id) })).status).toBe(200);
		}
		expect([prefill[0]?.calls.length, decode[0]?.calls.length, decode[1]?.calls.length]).toEqual([2, 0, 2]);
		expect(bodies(prefill)[0]?.routing.decode_worker_id).toBe(id);
	});

	it("are required for both in the mode direct", async () => {
		const { prefill, decode } = await start([prefilled], [sendAll(IDS)], { routerMode: "direct" });
		const both = {
			"x-dynamo-worker-instance-id": String(decode[0]?.record.instance_id),
			"x-dynamo-prefill-instance-id": String(prefill[0]?.record.instance_id),
		};
		expect((await chat({}, both)).status).toBe(200);
		const { "x-dynamo-prefill-instance-id": _, ...decodeOnly } = both;
		expect((await chat({}, decodeOnly)).status).toBe(400);
		const { "x-dynamo-worker-instance-id": __, ...prefillOnly } = both;
		expect((await chat({}, prefillOnly)).status).toBe(400);
		expect([bodies(prefill).length, bodies(decode).length]).toEqual([1, 1]);
	});
});

describe("prefill and decode at once", () => {
	it("tells both where they meet", async () => {
		const order: string[] = [];
		const waiting: ScriptedCall[] = [];
		const { prefill, decode } = await start(
			[
				(call) => {
					order.push("prefill");
					waiting.push(call);
				},
			],
			[
				(call) => {
					order.push("decode");
					sendAll(IDS)(call);
				},
			],
			{},
			[18_900],
		);
		expect((await chat()).json.usage.completion_tokens).toBe(3);
		expect(order).toEqual(["prefill", "decode"]);
		const [first] = bodies(prefill) as [PreprocessedRequest];
		const [second] = bodies(decode) as [PreprocessedRequest];
		expect(second).not.toHaveProperty("prefill_result");
		expect(second.bootstrap_info).toEqual(first.bootstrap_info);
		expect(first.bootstrap_info).toMatchObject({ bootstrap_host: "127.0.0.1", bootstrap_port: 18_900 });
		expect(first.bootstrap_info?.handoff_id).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
		expect((first.bootstrap_info?.bootstrap_room as bigint) < 2n ** 63n).toBe(true);
		expect([first.stop_conditions.max_tokens, first.router_config_override]).toEqual([1, null]);
		expect(second.router_config_override).toMatchObject({ assume_kv_reuse: false });
		expect(prefill[0]?.calls[0]?.request.id).toBe(decode[0]?.calls[0]?.request.id);
		for (const call of waiting) prefilled(call);
	});

	it.each(["power-of-two", "least-loaded"] as const)("is not the way of the mode %s", async (routerMode) => {
		const { decode } = await start([prefilled], [sendAll(IDS)], { routerMode }, [18_900]);
		expect((await chat()).status).toBe(200);
		expect(bodies(decode)[0]).toHaveProperty("prefill_result");
		expect(bodies(decode)[0]).not.toHaveProperty("bootstrap_info");
	});

	it("arranges another meeting when the prefill worker is lost, and at last leaves the prompt to the decode worker", async () => {
		const decodeScript: Script = (call) => {
			if (call.body.annotations.includes(BYPASS)) sendAll(IDS)(call);
		};
		const lost: Script = (call) => setTimeout(() => call.fail(gone()), 5);
		const { prefill, decode } = await start([lost, lost], [decodeScript], { routerMode: "kv" }, [1, 2]);
		expect((await chat()).json.usage.completion_tokens).toBe(3);
		const met = bodies(decode).map(({ bootstrap_info }) => bootstrap_info?.bootstrap_port);
		expect([met.slice(0, 2).sort(), met.at(-1)]).toEqual([[1, 2], undefined]);
		expect(bodies(prefill)).toHaveLength(2);
		const calls = decode[0]?.calls ?? [];
		for (const call of calls.slice(0, -1)) expect(await call.cancelled).toBe("kill");
	});

	it("forgives a prefill worker that is lost when the answer has begun", async () => {
		const held: ScriptedCall[] = [];
		const { prefill } = await start(
			[(call) => void held.push(call)],
			[(call) => void held.push(call.tokens([70]))],
			{},
			[1],
		);
		const answer = chat();
		await expect.poll(() => held.length).toBe(2);
		const [first, second] = held as [ScriptedCall, ScriptedCall];
		// Its first token is on the way in the same turn as the request's arrival.
		await (stack as Stack).metrics();
		first.fail(gone());
		await expect.poll(() => prefill[0]?.served.inflight).toBe(0);
		second.tokens([71, 72]).finish("length").end();
		expect((await answer).json.usage.completion_tokens).toBe(3);
	});

	it.each([
		["fails", (call: ScriptedCall) => call.fail(new DynamoError("Unknown", "nobody came to the meeting"))],
		["ends its answer", (call: ScriptedCall) => call.finish({ error: "nobody came" }).end()],
	])("tries again when the decode worker %s for want of the prefill worker", async (_how, fail) => {
		let failures = 0;
		const decodeScript: Script = (call) => {
			if (failures++ === 0) fail(call);
			else sendAll(IDS)(call);
		};
		const { prefill } = await start([() => {}, () => {}], [decodeScript], {}, [1, 2]);
		expect((await chat()).json.usage.completion_tokens).toBe(3);
		const [first] = prefill.flatMap(({ calls }) => calls) as [ScriptedCall];
		expect(await first.cancelled).toBe("kill");
	});
});

describe("recorded requests of Dynamo's frontend", () => {
	const recorded = async (name: string): Promise<Record<string, unknown>> => {
		const url = new URL(`../fixtures/disagg/disagg-${name}.json`, import.meta.url);
		return JSON.parse(await readFile(url, "utf8")).body;
	};

	it.each([
		["nobootstrap", []],
		["bootstrap", [18_900]],
	])("have the same members as ours: %s", async (variant, ports) => {
		const { prefill, decode } = await start(
			[
				(call) =>
					void call
						.send({ token_ids: [9], disaggregated_params: "dummy", completion_usage: usage(0) })
						.finish("length")
						.end(),
			],
			[sendAll(IDS)],
			{},
			ports,
		);
		expect((await chat({ max_tokens: 3 })).status).toBe(200);
		for (const [i, body] of [...bodies(prefill), ...bodies(decode)].entries()) {
			const golden = await recorded(`${variant}.req${i + 1}`);
			expect(Object.keys(body)).toEqual(Object.keys(golden));
			const { model, token_ids, eos_token_ids, mdc_sum, routing, bootstrap_info: info } = body;
			const ofGolden = golden.bootstrap_info as Record<string, unknown> | undefined;
			if (info !== undefined) expect(Object.keys(info)).toEqual(Object.keys(ofGolden ?? {}));
			expect(body).toEqual({
				...golden,
				...{ model, token_ids, eos_token_ids, mdc_sum, routing },
				stop_conditions: { ...(golden.stop_conditions as object), stop_token_ids_hidden: eos_token_ids },
				...(info === undefined
					? {}
					: {
							bootstrap_info: { ...ofGolden, bootstrap_room: info.bootstrap_room, handoff_id: info.handoff_id },
						}),
			});
			expect(Object.keys(routing)).toEqual(Object.keys(golden.routing as object));
		}
	});
});

describe("conditional disaggregation", () => {
	const settings = {
		policy: "isl_bounding",
		effIslThreshold: 2048,
		effIslRatioThreshold: 0.7,
		prefillBusyThreshold: undefined,
		decodeBusyThreshold: undefined,
	} as const;
	const prompt = Array.from({ length: 64 }, (_, i) => 60 + (i % 30));
	const complete = () => http((stack as Stack).completions, { body: { model: MODEL, prompt, max_tokens: 3 } });
	const kvRouter = { useKvEvents: false } as unknown as FrontendConfig["kvRouter"];

	it("leaves a prompt that is mostly cached to the decode worker that has it", async () => {
		const { prefill, decode } = await start([prefilled], [sendAll(IDS), sendAll(IDS)], {
			routerMode: "kv",
			kvRouter,
			conditionalDisagg: settings,
		});
		for (let i = 0; i < 3; i++) expect((await complete()).status).toBe(200);
		expect(bodies(prefill)).toHaveLength(1);
		const holder = decode.find(({ calls }) => calls.length > 0) as ScriptedWorker;
		const [cold, ...warm] = bodies([holder]) as [PreprocessedRequest, PreprocessedRequest];
		expect([cold.annotations, warm.map(({ annotations }) => annotations)]).toEqual([[], [[BYPASS], [BYPASS]]]);
		expect(warm[0]).not.toHaveProperty("prefill_result");
		const pinned = { "x-dynamo-prefill-instance-id": String(prefill[0]?.record.instance_id) };
		const body = { model: MODEL, prompt, max_tokens: 3 };
		expect((await http((stack as Stack).completions, { body, headers: pinned })).status).toBe(200);
		expect(bodies(prefill), "one that is named is used").toHaveLength(2);
	});

	it("looks at the load of the prefill worker, and spares a busy decode worker", async () => {
		const held: ScriptedCall[] = [];
		const config = { routerMode: "kv", kvRouter } as const;
		const loaded = { ...settings, policy: "prefill_load", prefillBusyThreshold: 0.1 } as const;
		const { prefill } = await start([(call) => void held.push(call)], [sendAll(IDS)], {
			...config,
			conditionalDisagg: loaded,
		});
		const first = complete();
		await expect.poll(() => held.length).toBe(1);
		expect((await complete()).status).toBe(200);
		expect(bodies(prefill)).toHaveLength(1);
		for (const call of held) prefilled(call);
		expect((await first).status).toBe(200);
		await stack?.close();
		const spared = { ...settings, decodeBusyThreshold: 0.03 };
		const again = await start([prefilled], [sendAll(IDS)], { ...config, conditionalDisagg: spared });
		for (let i = 0; i < 2; i++) expect((await complete()).status).toBe(200);
		expect(bodies(again.prefill)).toHaveLength(2);
	});
});

describe("what is told", () => {
	it("nvext says who did what, and what the router knew", async () => {
		const { prefill, decode } = await start([prefilled], [sendAll(IDS)], { routerMode: "kv" });
		const answer = await chat({ nvext: { extra_fields: ["worker_id", "timing"] } });
		expect(idsOf(answer.body)).toEqual({
			prefill_worker_id: String(prefill[0]?.record.instance_id),
			decode_worker_id: String(decode[0]?.record.instance_id),
		});
		expect(answer.json.nvext.worker_id).toMatchObject({ prefill_dp_rank: 0, decode_dp_rank: 0 });
		const { timing } = answer.json.nvext;
		expect([timing.kv_hit_rate, timing.router_queue_depth]).toEqual([0, 0]);
		expect(timing.kv_transfer_estimated_latency_ms).toBeGreaterThanOrEqual(0);
		const page = await (stack as Stack).metrics();
		const labels = page
			.select("dynamo_frontend_worker_last_time_to_first_token_seconds")
			.map((sample) => sample.labels);
		expect(labels).toMatchObject([{ worker_id: String(prefill[0]?.record.instance_id), worker_type: "prefill" }]);
	});

	it.each([
		["chat", false],
		["chat", true],
		["completions", false],
		["completions", true],
	] as const)(
		"to a query for workers (%s, stream %s): who would do it, and nothing is done",
		async (kind, streamed) => {
			const { prefill, decode } = await start([prefilled], [sendAll(IDS)], { routerMode: "kv" });
			const ids = {
				prefill_worker_id: String(prefill[0]?.record.instance_id),
				decode_worker_id: String(decode[0]?.record.instance_id),
			};
			const { chat: chatUrl, completions } = stack as Stack;
			const nvext = { annotations: ["query_instance_id:"] };
			const prompt = [70, 71];
			const body = kind === "chat" ? chatBody({ nvext }) : { model: MODEL, prompt, nvext };
			const answer = await http(kind === "chat" ? chatUrl : completions, { body: { ...body, stream: streamed } });
			expect([answer.status, idsOf(answer.body)]).toEqual([200, ids]);
			const json = streamed ? JSON.parse(answer.body.slice("data: ".length).split("\n", 1)[0] as string) : answer.json;
			const text = { index: 0, text: "" };
			const message = streamed ? { delta: { role: "assistant" } } : { message: { content: null, role: "assistant" } };
			expect(json.choices).toMatchObject([kind === "chat" ? { ...message, finish_reason: null } : text]);
			if (kind === "completions") expect(json.nvext.token_ids).toEqual(prompt);
			expect(json.nvext.worker_id).toMatchObject({ prefill_dp_rank: 0, decode_dp_rank: 0 });
			if (streamed) expect(answer.body.endsWith("data: [DONE]\n\n")).toBe(true);
			expect([bodies(prefill), bodies(decode)]).toEqual([[], []]);
		},
	);

	it("the router of each leg counts every request once, whatever becomes of it", async () => {
		const started = vi.spyOn(KvPolicy.prototype, "onStart");
		const ended = vi.spyOn(KvPolicy.prototype, "onEnd");
		let n = 0;
		const flaky: Script = (call) => (n++ % 3 === 0 ? call.fail(gone()) : prefilled(call));
		const dropping: Script = (call) => {
			call.tokens(IDS.slice(call.body.generated_tokens ?? 0));
			if (n++ % 4 === 0) setTimeout(() => call.fail(gone()), 2);
			else call.finish("length").end();
		};
		const config = { routerMode: "kv", migrationLimit: 3 } as const;
		await start([flaky, flaky], [dropping, dropping], config, [], { inhibitedDurationMs: 0 });
		await Promise.all(Array.from({ length: 20 }, () => chat({ max_tokens: 5 })));
		expect(started.mock.calls.length).toBeGreaterThan(40);
		await expect.poll(() => ended.mock.calls.length).toBe(started.mock.calls.length);
		const policies = new Set(started.mock.contexts as KvPolicy[]);
		expect([...policies].map(({ scheduler }) => scheduler.active.size)).toEqual([...policies].map(() => 0));
	});
});
