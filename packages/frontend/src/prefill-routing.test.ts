// SPDX-License-Identifier: Apache-2.0
// Requests that take two workers, one for the prompt and one for the answer: who is asked, and what becomes of losses.
import { DynamoError, type PreprocessedRequest } from "@dynamo-ts/protocols/internal";
import { http, openStream } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, it, vi } from "vitest";
import { type Script, type ScriptedCall, type ScriptedWorker, sendAll } from "./scripted-worker.js";
import {
	BYPASS,
	bodies,
	chat,
	closeStack,
	decodeWorker,
	gone,
	IDS,
	idsOf,
	openStack,
	type Pair,
	prefilled,
	prefillWorker,
	stack,
	start,
	usage,
} from "./test-support/pair.js";
import { chatBody, MODEL, type Stack } from "./test-support/stack.js";

afterEach(async () => {
	await closeStack();
	vi.restoreAllMocks();
});

describe("a model of prefill and decode workers", () => {
	it("can be called while both are there, and is not listed otherwise", async () => {
		const stack = await openStack({ routerMode: "kv" });
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
		const stack = await openStack();
		await prefillWorker(prefilled);
		const { url } = stack;
		await expect.poll(async () => (await http(`${url}/v1/models/${MODEL}/ready`)).status).toBe(503);
		expect((await chat()).status).toBe(404);
	});

	it("uses the prefill workers of the namespace that the decode worker is in", async () => {
		const stack = await openStack();
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
		await closeStack();
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
