// SPDX-License-Identifier: Apache-2.0
// Requests that prefill and decode worker have at once, those that need no prefill worker, and what is told of all.
import { readFile } from "node:fs/promises";
import { DynamoError, type PreprocessedRequest } from "@dynamo-ts/protocols/internal";
import { KvPolicy } from "@dynamo-ts/router";
import { http } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { FrontendConfig } from "./config.js";
import { type Script, type ScriptedCall, type ScriptedWorker, sendAll } from "./scripted-worker.js";
import {
	BYPASS,
	bodies,
	chat,
	closeStack,
	gone,
	IDS,
	idsOf,
	prefilled,
	stack,
	start,
	usage,
} from "./test-support/pair.js";
import { chatBody, MODEL, type Stack } from "./test-support/stack.js";

afterEach(async () => {
	await closeStack();
	vi.restoreAllMocks();
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

	it("asks workers that refuse the id of a request that they have not dropped yet", async () => {
		const slow = (script: Script): Script => {
			const active = new Set<string>();
			return (call) => {
				const { id } = call.request;
				if (active.has(id)) {
					call.fail(new DynamoError("Unknown", `request ${id} is already active`));
					return;
				}
				// It is never done with one that it was told to drop.
				active.add(id);
				script(call);
			};
		};
		let lost = 0;
		const losing = slow((call) => void (lost++ === 0 ? undefined : setTimeout(() => call.fail(gone()), 5)));
		let failures = 0;
		const decodeScript = slow((call) => {
			if (call.body.annotations.includes(BYPASS)) sendAll(IDS)(call);
			else if (failures++ === 0) call.fail(new DynamoError("Unknown", "nobody came to the meeting"));
		});
		const config = { routerMode: "kv" } as const;
		const { prefill, decode } = await start([losing], [decodeScript], config, [1], { inhibitedDurationMs: 0 });
		const begun = vi.spyOn(KvPolicy.prototype, "onStart");
		const answer = await chat();
		const told = begun.mock.calls.map(([, , { requestId }]) => requestId);
		begun.mockRestore();
		expect([answer.status, answer.json.usage?.completion_tokens]).toEqual([200, 3]);
		for (const [worker] of [prefill, decode]) {
			const ids = worker?.calls.map(({ request }) => request.id) ?? [];
			expect(ids.length).toBeGreaterThan(1);
			expect(new Set(ids).size).toBe(ids.length);
		}
		// Workers tell routers by these ids what becomes of requests.
		const known = [prefill, decode].flatMap(([worker]) => worker?.calls.map(({ request }) => request.id) ?? []);
		expect(told.sort()).toEqual(known.sort());
	});

	it("does not take the only decode worker for lost when it tells of the loss of the prefill worker first", async () => {
		const prefillCalls: ScriptedCall[] = [];
		const decodeScript: Script = (call) => {
			if (call.body.annotations.includes(BYPASS)) {
				sendAll(IDS)(call);
				return;
			}
			// The connection to the prefill worker broke; that of the prefill worker to us is about to.
			call.fail(gone());
			for (const one of prefillCalls.splice(0)) setTimeout(() => one.fail(gone()), 5);
		};
		const { decode } = await start([(call) => void prefillCalls.push(call)], [decodeScript], { routerMode: "kv" }, [1]);
		const answer = await chat();
		expect([answer.status, answer.json.usage?.completion_tokens]).toEqual([200, 3]);
		expect(bodies(decode).at(-1)?.annotations).toContain(BYPASS);
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

	it("tries once more when the decode worker fails although the prompt was computed", async () => {
		const fail: Script = (call) => setTimeout(() => call.finish({ error: "the sender is gone" }).end(), 20);
		let failures = 0;
		const once: Script = (call) => (failures++ === 0 ? fail(call) : sendAll(IDS)(call));
		const first = await start([prefilled], [once], {}, [1]);
		expect((await chat()).json.usage.completion_tokens).toBe(3);
		expect(bodies(first.prefill)).toHaveLength(2);
		await closeStack();
		const second = await start([prefilled], [fail], {}, [1]);
		expect((await chat()).status).toBe(500);
		expect(bodies(second.decode)).toHaveLength(2);
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

	it("asks the index of another process, where the frontend has none", async () => {
		const { prefill, decode } = await start([prefilled], [sendAll(IDS), sendAll(IDS)], {
			routerMode: "kv",
			kvRouter: { ...kvRouter, useKvEvents: true, useRemoteIndexer: true },
			conditionalDisagg: settings,
		});
		const [holder, other] = decode as [ScriptedWorker, ScriptedWorker];
		expect((await complete()).status).toBe(200);
		expect(bodies(prefill), "nobody to ask: the prompt counts as new").toHaveLength(1);
		const worker = { worker_id: holder.record.instance_id, dp_rank: 0 };
		const scores = { device: { scores: [[worker, 4]], frequencies: [] }, lower_tier: [] };
		const runtime = await (stack as Stack).join();
		const served = await runtime
			.namespace("dynamo")
			.component("backend")
			.endpoint("kv_indexer_query")
			.serve((_request, response) => {
				response.send({ TieredScores: scores } as never);
				response.end();
			});
		const before = holder.calls.length;
		await expect
			.poll(async () => {
				await complete();
				return bodies([holder]).at(-1)?.annotations;
			})
			.toEqual([BYPASS]);
		const [asked, elsewhere] = [holder.calls.length, other.calls.length];
		for (let i = 0; i < 3; i++) expect((await complete()).status).toBe(200);
		expect([holder.calls.length, other.calls.length]).toEqual([asked + 3, elsewhere]);
		expect(asked).toBeGreaterThan(before);
		await served.stop();
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
		await closeStack();
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
		expect(page.sum("dynamo_component_router_kv_transfer_estimated_latency_seconds_count")).toBe(1);
		const labels = page
			.select("dynamo_frontend_worker_last_time_to_first_token_seconds")
			.map((sample) => sample.labels);
		expect(labels).toEqual([
			{ dp_rank: "0", worker_id: String(prefill[0]?.record.instance_id), worker_type: "prefill" },
		]);
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
