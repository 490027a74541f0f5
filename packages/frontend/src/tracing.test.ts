// SPDX-License-Identifier: Apache-2.0
// The spans of a request, from the HTTP server to the workers, in one process and for every outcome.
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { RuntimeConfig, Span } from "@dynamo-ts/runtime";
import { afterEach, describe, expect, it } from "vitest";
import type { FrontendConfig } from "./config.js";
import { refuse, type Script, sendAll } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack | undefined;
const spans: Span[] = [];

afterEach(async () => {
	await stack?.close();
	stack = undefined;
	spans.length = 0;
});

async function start(config: Partial<FrontendConfig> = {}, more: Partial<RuntimeConfig> = {}): Promise<Stack> {
	stack = await startStack(config, {
		spanSink: { end: (span) => spans.push(span) },
		log: { filter: "info", format: "readable", ansi: false, localTime: false },
		...more,
	});
	return stack;
}

const TRACE = "aa000000000000000000000000000001";
const CALLER = "bb00000000000001";
const HEADERS = {
	"content-type": "application/json",
	"x-request-id": "req-1",
	traceparent: `00-${TRACE}-${CALLER}-01`,
};

function post(url: string, body: unknown, headers: Record<string, string> = HEADERS, signal?: AbortSignal) {
	return fetch(url, { method: "POST", headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) });
}

/** Waits until all spans of a trace have ended: that of the exchange is the last one of the frontend. */
async function ended(names: readonly string[]): Promise<Span[]> {
	await expect.poll(() => spans.map(({ name }) => name).sort()).toEqual([...names].sort());
	return spans;
}

/** Names with indentation, as a viewer shows them; every span but the first has its parent among the others. */
function tree(all: readonly Span[]): string[] {
	const lines: string[] = [];
	const show = (parent: string | undefined, depth: number): void => {
		const children = all.filter(({ parentId }) => parentId === parent).sort((a, b) => a.startedAt - b.startedAt);
		for (const span of children) {
			lines.push(`${"  ".repeat(depth)}${span.name} ${span.kind}`);
			show(span.spanId, depth + 1);
		}
	};
	const ids = new Set(all.map(({ spanId }) => spanId));
	for (const root of new Set(all.map(({ parentId }) => parentId).filter((id) => id === undefined || !ids.has(id)))) {
		show(root, 0);
	}
	return lines;
}

const named = (name: string) => spans.find((span) => span.name === name) as Span;
const TEXT = sendAll([5, 6], "stop");
const LEG = ["http-request", "router.route_request", "handle_payload"];

describe("an answered request", () => {
	it.each([true, false])("has one trace from the client to the worker (stream: %s)", async (stream) => {
		const { chat, worker } = await start();
		const { instance_id: instanceId } = (await worker({ script: TEXT })).record;
		await (await post(chat, chatBody({ stream, max_tokens: 9, temperature: 0.5 }))).text();
		const all = await ended(LEG);
		expect(tree(all)).toEqual(["http-request internal", "  router.route_request client", "    handle_payload server"]);
		for (const span of all) expect(span).toMatchObject({ traceId: TRACE, xRequestId: "req-1", failure: undefined });
		const http = named("http-request");
		const requestId = http.fields.request_id;
		expect(http.parentId).toBe(CALLER);
		expect(http.fields).toMatchObject({
			method: "POST",
			uri: "/v1/chat/completions",
			version: "HTTP/1.1",
			trace_id: TRACE,
			parent_id: CALLER,
			trace_flags: "01",
			x_request_id: "req-1",
			model: MODEL,
			output_tokens: "2",
			image_count: "0",
			decode_worker_id: instanceId.toString(),
			prefill_worker_id: instanceId.toString(),
			"request.outcome": "success",
		});
		expect(http.fields.ttft_ms).toMatch(/^\d+\.\d\d$/);
		expect(http.attributes).toMatchObject({
			"gen_ai.system": "dynamo",
			"llm.request.type": "chat",
			"gen_ai.request.model": MODEL,
			"gen_ai.request.max_tokens": 9,
			"gen_ai.request.temperature": 0.5,
			"gen_ai.usage.completion_tokens": 2,
			"gen_ai.completion.0.finish_reason": "stop",
		});
		expect(Object.keys(http.attributes ?? {}).filter((key) => key.endsWith(".content"))).toEqual([]);
		expect(http.events.map(({ name }) => name).sort()).toEqual(
			["Selected worker", "http response sent", "request completed", "request received"].sort(),
		);
		expect(named("router.route_request").fields).toEqual({
			request_id: requestId,
			router_mode: "RoundRobin",
			worker_id: instanceId.toString(),
			"request.attempt": "0",
			"migration.is_retry": false,
			"migration.tokens_completed": "0",
			"request.outcome": "success",
		});
		expect(named("handle_payload").fields).toMatchObject({
			trace_id: TRACE,
			parent_id: named("router.route_request").spanId,
			trace_flags: "01",
			x_request_id: "req-1",
			request_id: requestId,
			component: expect.any(String),
			endpoint: "generate",
			instance_id: instanceId.toString(),
		});
	});

	it("of the completions API has two spans more", async () => {
		const { completions, worker } = await start();
		await worker({ script: TEXT });
		await (await post(completions, { model: MODEL, prompt: "a" })).text();
		await ended([...LEG, "completions", "completions_single"]);
		expect(tree(spans)).toEqual([
			"http-request internal",
			"  completions internal",
			"    completions_single internal",
			"      router.route_request client",
			"        handle_payload server",
		]);
	});

	it("with content carries prompt and answer", async () => {
		const { chat, worker } = await start({ traceContent: true });
		await worker({ script: TEXT });
		const answer = (await (await post(chat, chatBody())).json()) as { choices: { message: { content: string } }[] };
		await ended(LEG);
		expect(named("http-request").attributes).toMatchObject({
			"gen_ai.prompt.0.role": "user",
			"gen_ai.prompt.0.content": "Hi",
			"gen_ai.completion.0.role": "assistant",
			"gen_ai.completion.0.content": answer.choices[0]?.message.content,
		});
	});

	it("begins a trace of its own without a parent, or with one that is none", async () => {
		const { chat, worker } = await start();
		await worker({ script: TEXT });
		for (const traceparent of [undefined, "00-zz-1-01", `00-${"0".repeat(32)}-${CALLER}-01`]) {
			spans.length = 0;
			const headers = { "content-type": "application/json", ...(traceparent === undefined ? {} : { traceparent }) };
			await (await post(chat, chatBody(), headers)).text();
			await ended(LEG);
			const http = named("http-request");
			expect(http.parentId).toBeUndefined();
			expect(http.fields).not.toHaveProperty("trace_id");
			expect(new Set(spans.map(({ traceId }) => traceId)).size).toBe(1);
		}
	});

	it("is not recorded anywhere when the caller does not record it", async () => {
		const { chat, worker } = await start();
		const { calls } = await worker({ script: TEXT });
		await (await post(chat, chatBody(), { ...HEADERS, traceparent: `00-${TRACE}-${CALLER}-00` })).text();
		await (await post(chat, chatBody())).text();
		await ended(LEG);
		const sent = calls.map(({ request }) => request.headers.traceparent);
		expect(sent[0]).toMatch(new RegExp(`^00-${TRACE}-[0-9a-f]{16}-00$`));
		expect(sent[1]).toMatch(/-01$/);
	});
});

describe("a request that is refused", () => {
	it.each([
		["400", chatBody({ temperature: 9 }), 400, MODEL],
		["404", chatBody({ model: "other" }), 404, "unknown_model"],
	])("with %s has one span, with an error", async (_name, body, status, model) => {
		const { chat, worker } = await start();
		await worker({ script: TEXT });
		expect((await post(chat, body)).status).toBe(status);
		await ended(["http-request"]);
		const http = named("http-request");
		expect(http).toMatchObject({ traceId: TRACE, failure: "" });
		expect(http.fields).toMatchObject({ "request.outcome": "error", model });
		expect(http.events.map(({ name, level }) => [name, level]).sort()).toEqual([
			["http response sent", "error"],
			["request completed", "error"],
			["request received", "info"],
		]);
	});

	it("by the worker has its error in all spans", async () => {
		const { chat, worker } = await start();
		await worker({
			script: refuse(() => new DynamoError("InvalidArgument", "not this", { publicMessage: "not this" })),
		});
		expect((await post(chat, chatBody())).status).toBe(400);
		await ended(LEG);
		expect(named("handle_payload")).toMatchObject({ failure: "not this", traceId: TRACE });
		expect(named("router.route_request")).toMatchObject({ failure: "invalid_argument" });
		expect(named("router.route_request").fields["request.outcome"]).toBe("error");
		expect(named("http-request").fields["request.outcome"]).toBe("error");
	});

	it.each<[string, Script]>([
		["says so in its last item", (call) => call.tokens([5]).finish({ error: "broken" }).end()],
		["ends without a word", (call) => call.end()],
	])("by a worker that %s, was no success of the attempt either", async (_how, script) => {
		const { chat, worker } = await start();
		await worker({ script });
		expect((await post(chat, chatBody())).status).toBe(500);
		await ended(LEG);
		const route = named("router.route_request");
		expect(route.failure).toMatch(/./);
		expect(route.fields["request.outcome"]).toBe("error");
		expect(route.fields).not.toHaveProperty("cancellation.signal");
		expect(named("http-request").fields["request.outcome"]).toBe("error");
	});
});

it.each([
	[true, "stream_drop"],
	[false, "kill"],
])("a client that leaves (stream: %s) is no error", async (stream, signal) => {
	const { chat, worker } = await start();
	const scripted = await worker({ script: (call) => void call.tokens([5]) });
	const abort = new AbortController();
	const answer = post(chat, chatBody({ stream }), HEADERS, abort.signal).then((response) => response.text());
	await scripted.call(0);
	abort.abort();
	await answer.catch(() => {});
	await ended(LEG);
	expect(named("http-request")).toMatchObject({ failure: undefined });
	expect(named("http-request").fields["request.outcome"]).toBe("cancelled");
	expect(named("router.route_request").fields).toMatchObject({
		"request.outcome": "cancelled",
		"cancellation.signal": signal,
	});
	expect(named("handle_payload").events.map(({ name }) => name)).toContain("request cancellation received");
	expect(new Set(spans.map(({ traceId }) => traceId))).toEqual(new Set([TRACE]));
});

it("a stream that moves to another worker stays one trace, with a span for each attempt", async () => {
	const { chat, worker } = await start({ migrationLimit: 1 });
	const lose: Script = (call) => {
		call.tokens([5]);
		setImmediate(() => call.fail(new DynamoError("Disconnected", "gone")));
	};
	let calls = 0;
	const script: Script = (call) => (calls++ === 0 ? lose(call) : sendAll([6], "stop")(call));
	const ids = [await worker({ script }), await worker({ script })].map(({ record }) => record.instance_id.toString());
	await (await post(chat, chatBody({ stream: true, max_tokens: 5 }))).text();
	await ended(["http-request", ...["router.route_request", "handle_payload"].flatMap((name) => [name, name])]);
	expect(tree(spans)).toEqual([
		"http-request internal",
		"  router.route_request client",
		"    handle_payload server",
		"  router.route_request client",
		"    handle_payload server",
	]);
	const [first, second] = spans
		.filter(({ name }) => name === "router.route_request")
		.sort((a, b) => a.startedAt - b.startedAt) as [Span, Span];
	expect(first).toMatchObject({ failure: "disconnected" });
	expect(first.fields).toMatchObject({ "request.attempt": "0", "request.outcome": "error" });
	expect(second).toMatchObject({ failure: undefined });
	expect(second.fields).toMatchObject({
		"request.attempt": "1",
		"migration.is_retry": true,
		"migration.tokens_completed": "1",
		"request.outcome": "success",
	});
	expect([first.fields.worker_id, second.fields.worker_id].sort()).toEqual(ids.sort());
	const moved = named("http-request").events.find(({ name }) => name === "migration retry scheduled");
	expect(moved?.fields).toEqual({
		"migration.from_worker_id": first.fields.worker_id,
		"migration.reason": "transport.disconnected",
		"request.attempt": "1",
	});
	expect(named("http-request").fields["request.outcome"]).toBe("success");
});

it("the mode kv shows the parts of its choice", async () => {
	const { chat, worker } = await start({ routerMode: "kv" });
	const { record } = await worker({ script: TEXT });
	await (await post(chat, chatBody())).text();
	const parts = ["kv_router.compute_block_hashes", "kv_router.compute_seq_hashes", "kv_router.schedule"];
	const names = ["http-request", "kv_router.select_worker", ...parts, "kv_router.route_request", "handle_payload"];
	await expect
		.poll(() =>
			spans
				.filter(({ traceId }) => traceId === TRACE)
				.map(({ name }) => name)
				.sort(),
		)
		.toEqual(names.sort());
	const own = spans.filter(({ traceId }) => traceId === TRACE);
	expect(tree(own)).toEqual([
		"http-request internal",
		"  kv_router.select_worker internal",
		"    kv_router.compute_block_hashes internal",
		"    kv_router.compute_seq_hashes internal",
		"    kv_router.schedule internal",
		"  kv_router.route_request client",
		"    handle_payload server",
	]);
	expect(named("kv_router.route_request").fields).toEqual({
		request_id: named("http-request").fields.request_id,
		dp_rank: "0",
		overlap_blocks: "0",
		phase: "Aggregated",
		worker_id: record.instance_id.toString(),
		"request.attempt": "0",
		"migration.is_retry": false,
		"migration.tokens_completed": "0",
		"request.outcome": "success",
	});
});
