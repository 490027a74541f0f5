// SPDX-License-Identifier: Apache-2.0
import { join } from "node:path";
import { DynamoError } from "@dynamo-ts/protocols/internal";
import { http, openStream } from "@dynamo-ts/testing/internal";
import { Tokenizer } from "@dynamo-ts/tokenizers";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { refuse, sendAll } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack, TINY_MODEL } from "./test-support/stack.js";

let hello: number[];
let stack: Stack;

beforeAll(async () => {
	hello = await (await Tokenizer.fromFile(join(TINY_MODEL, "tokenizer.json"))).encode(" Hello world is Paris");
});
beforeEach(async () => {
	stack = await startStack();
});
afterEach(() => stack.close());

const REQUESTS = "dynamo_frontend_requests_total";
const FAILURES = "dynamo_frontend_failures_total";

/** Error, status and texts; how it is counted. */
const TABLE = [
	[
		"an invalid argument with a public text",
		() =>
			new DynamoError("InvalidArgument", "inside", {
				publicMessage: "`max_tokens` is required",
				code: "c",
				param: "p",
			}),
		400,
		"`max_tokens` is required",
		"Bad Request",
		"invalid_request_error",
		"validation",
		"InvalidRequest",
		"request.invalid_argument",
	],
	[
		"an invalid argument without one",
		() => new DynamoError("InvalidArgument", "inside"),
		400,
		"Invalid request",
		"Bad Request",
		"invalid_request_error",
		"validation",
		"InvalidRequest",
		"request.invalid_argument",
	],
	[
		"overload",
		() => new DynamoError("WorkerOverloaded", "inside"),
		529,
		"Service temporarily overloaded",
		"Overloaded",
		"service_unavailable",
		"overload",
		"CapacityExhausted",
		"capacity.worker_overloaded",
	],
	[
		"a lost connection",
		() => new DynamoError("Disconnected", "inside"),
		503,
		"Service temporarily unavailable",
		"Service Unavailable",
		"service_unavailable",
		"unavailable",
		"Unavailable",
		"transport.disconnected",
	],
	[
		"a worker's own failure",
		() => new DynamoError("Internal", "stack trace", { publicMessage: "stack trace" }),
		500,
		"Internal server error",
		"Internal Server Error",
		"internal_server_error",
		"internal",
		"Internal",
		"runtime.unclassified",
	],
	[
		"a deadline",
		() => new DynamoError("ResponseTimeout", "inside"),
		504,
		"Request deadline exceeded",
		"Gateway Timeout",
		"timeout_error",
		"internal",
		"DeadlineExceeded",
		"backend.response_timeout",
	],
	[
		"something that is not implemented",
		() => new DynamoError("NotImplemented", "inside", { publicMessage: "no beams" }),
		501,
		"no beams",
		"Not Implemented",
		"not_implemented_error",
		"not_implemented",
		"NotImplemented",
		"runtime.not_implemented",
	],
] as const;

describe.each(TABLE)("%s", (_name, error, status, message, phrase, streamType, errorType, errorClass, reason) => {
	it.each([false, true])("before the first token: a plain answer (stream: %s)", async (stream) => {
		await stack.worker({ script: refuse(error) });
		const answer = await http(stack.chat, { body: chatBody({ stream }) });
		expect(answer.status).toBe(status);
		expect(answer.headers["content-type"]).toBe("application/json");
		expect(answer.json).toMatchObject({ message, type: phrase, code: status, error: { message } });
		expect(answer.body).not.toContain("inside");
		const page = await stack.metrics();
		const labels = { request_type: stream ? "stream" : "unary", error_type: errorType, status: "error", model: MODEL };
		expect(page.sum(REQUESTS, labels)).toBe(1);
		expect(page.value(FAILURES, { class: errorClass, reason })).toBe(1);
	});

	it("after the first token: an error event, then [DONE]", async () => {
		await stack.worker({
			script: (call) => {
				call.tokens(hello.slice(0, 3));
				setTimeout(() => call.fail(error()), 20);
			},
		});
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat", expectError: true });
		const summary = await stream.finished();
		expect(summary.error).toMatchObject({ message, type: streamType, code: status });
		expect(summary.choices[0]?.contentChunks).toBe(3);
		expect((await stack.metrics()).sum(REQUESTS, { error_type: errorType, status: "error" })).toBe(1);
	});
});

describe("answers that break the protocol", () => {
	it.each([
		["a stream without any item", () => {}],
		["an item without token_ids", (send: (item: unknown) => void) => send({ text: "x" })],
		["a choice that nobody asked for", (send: (item: unknown) => void) => send({ token_ids: [70], index: 7 })],
		["an unknown finish reason", (send: (item: unknown) => void) => send({ token_ids: [70], finish_reason: "bored" })],
		[
			"a finish reason error",
			(send: (item: unknown) => void) => send({ token_ids: [], finish_reason: { error: "x" } }),
		],
	])("%s: 500", async (_name, play) => {
		await stack.worker({
			script: (call) => {
				play((data) => call.response.send({ data }));
				call.end();
			},
		});
		const answer = await http(stack.chat, { body: chatBody() });
		expect(answer.status).toBe(500);
		expect(answer.json).toMatchObject({ message: "Internal server error", details: { backend_status: 500 } });
	});

	it("events without data are skipped", async () => {
		await stack.worker({
			script: (call) => {
				call.response.send({ event: "note", comment: ["hello"] });
				sendAll(hello)(call);
			},
		});
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		expect((await stream.finished()).choices[0]?.text).toBe(" Hello world is Paris");
	});
});

describe("instances that fail", () => {
	it("nothing streamed yet: another one is asked, and the failed one is left alone", async () => {
		const bad = await stack.worker({ script: refuse(() => new DynamoError("WorkerUnavailable", "going")) });
		const good = await stack.worker({ script: sendAll(hello) });
		for (let i = 0; i < 6; i++) {
			const answer = await http(stack.chat, { body: chatBody() });
			expect(answer.status).toBe(200);
		}
		expect(good.calls).toHaveLength(6);
		expect(bad.calls).toHaveLength(1);
	});

	it("an instance without a listener is passed over", async () => {
		await stack.worker({ script: sendAll(hello) });
		const runtime = await stack.join();
		const { record } = await stack.worker({ script: sendAll(hello) });
		const dead = { ...record, instance_id: runtime.instanceId };
		await runtime.discovery.put({
			type: "Endpoint",
			namespace: "dynamo",
			component: "backend",
			endpoint: "generate",
			instance_id: runtime.instanceId,
			transport: { tcp: `127.0.0.1:9/${runtime.instanceId.toString(16)}/dynamo/backend/generate` },
		});
		await runtime.discovery.put(dead);
		for (let i = 0; i < 6; i++) expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
	});

	it("after the first token nothing is tried again", async () => {
		const script = (call: Parameters<ReturnType<typeof sendAll>>[0]): void => {
			call.tokens(hello.slice(0, 2));
			setTimeout(() => call.fail(new DynamoError("Disconnected", "gone")), 10);
		};
		const a = await stack.worker({ script });
		const b = await stack.worker({ script });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat", expectError: true });
		expect((await stream.finished()).error?.code).toBe(503);
		expect(a.calls.length + b.calls.length).toBe(1);
	});

	it("the only one: 503, then not listed and not ready, until the pause is over", async () => {
		await stack.close();
		stack = await startStack({}, { inhibitedDurationMs: 300 });
		const worker = await stack.worker({ script: refuse(() => new DynamoError("WorkerUnavailable", "going")) });
		const first = await http(stack.chat, { body: chatBody() });
		expect(first.json).toMatchObject({ message: "Service temporarily unavailable", code: 503 });
		const second = await http(stack.chat, { body: chatBody() });
		expect(second.json.message).toBe(
			"Model `tiny` is not ready to serve requests yet. The deployment may still be starting up or is not fully " +
				"provisioned. Please retry shortly.",
		);
		expect((await http(`${stack.url}/v1/models`)).json.data).toEqual([]);
		expect((await stack.metrics()).value("dynamo_frontend_model_ready")).toBe(0);
		expect(worker.calls).toHaveLength(1);
		await stack.frontend.waitForModel(MODEL, 5000);
		await http(stack.chat, { body: chatBody() });
		expect(worker.calls).toHaveLength(2);
	});

	it("bad requests do not count against an instance", async () => {
		const worker = await stack.worker({
			script: refuse(() => new DynamoError("InvalidArgument", "no", { publicMessage: "no" })),
		});
		for (let i = 0; i < 5; i++) expect((await http(stack.chat, { body: chatBody() })).status).toBe(400);
		expect(worker.calls).toHaveLength(5);
	});

	it("one error of its own after the other: left alone while there is another, then it gets a new chance", async () => {
		await stack.close();
		stack = await startStack({}, { inhibitedDurationMs: 1500 });
		let well = false;
		const ill = await stack.worker({
			script: (call) => (well ? sendAll(hello)(call) : call.fail(new DynamoError("Internal", "a bug"))),
		});
		const good = await stack.worker({ script: sendAll(hello) });
		const ask = async () => (await http(stack.chat, { body: chatBody() })).status;
		for (let i = 0; i < 20; i++) await ask();
		expect(ill.calls).toHaveLength(5);
		expect(good.calls).toHaveLength(15);
		well = true;
		await expect.poll(async () => (await ask()) === 200 && ill.calls.length > 5, { timeout: 5000 }).toBe(true);
	});

	it("the only one is not left alone for errors of its own", async () => {
		const worker = await stack.worker({ script: refuse(() => new DynamoError("Internal", "a bug")) });
		for (let i = 0; i < 8; i++) expect((await http(stack.chat, { body: chatBody() })).status).toBe(500);
		expect(worker.calls).toHaveLength(8);
	});

	it("a full instance answers 529, with another status where that is set, and stays in use", async () => {
		await stack.close();
		stack = await startStack({ overloadStatusCode: 503 });
		const worker = await stack.worker({ script: refuse(() => new DynamoError("WorkerOverloaded", "full")) });
		for (let i = 0; i < 3; i++) {
			const answer = await http(stack.chat, { body: chatBody() });
			expect(answer.json).toMatchObject({ message: "Service temporarily overloaded", type: "Overloaded", code: 503 });
			expect(answer.headers["retry-after"]).toBe("1");
		}
		expect(worker.calls).toHaveLength(3);
		expect((await stack.metrics()).sum("dynamo_frontend_model_rejection_total")).toBe(3);
	});

	it("a worker that says nothing: a typed error in time, others undisturbed", async () => {
		await stack.close();
		stack = await startStack({ backendStreamTimeoutMs: 100 });
		const silent = await stack.worker({ script: () => {} });
		const answer = await http(stack.chat, { body: chatBody() });
		expect(answer.status).toBe(504);
		expect(answer.json).toMatchObject({ message: "Request deadline exceeded", code: 504 });
		expect(silent.calls).toHaveLength(1);
		await stack.worker({ script: sendAll(hello) });
		for (let i = 0; i < 3; i++) expect((await http(stack.chat, { body: chatBody() })).status).toBe(200);
		expect((await stack.metrics()).value(FAILURES, { reason: "backend.response_timeout" })).toBe(1);
	});

	it("a worker that took a stream and says nothing: an error event", async () => {
		await stack.close();
		stack = await startStack({ backendStreamTimeoutMs: 100 });
		await stack.worker({ script: () => {} });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat", expectError: true });
		expect(stream.status).toBe(200);
		const summary = await stream.finished();
		expect(summary.error).toEqual({ message: "Request deadline exceeded", type: "timeout_error", code: 504 });
		expect(summary.events).toBe(2);
	});

	it("headers do not wait for the first token", async () => {
		const worker = await stack.worker({ script: () => {} });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		expect(stream.status).toBe(200);
		(await worker.call(0)).tokens(hello).finish("stop").end();
		expect((await stream.finished()).choices[0]?.contentChunks).toBe(hello.length);
	});

	it("while errors are waited for, an early one is a plain answer", async () => {
		await stack.close();
		stack = await startStack({ preCommitErrorPeekMs: 60_000 });
		const error = { error_type: "Disconnected" as const, message: "inside" };
		const worker = await stack.worker({
			script: ({ response }) => setTimeout(() => response.send({ event: "error", error }), 20),
		});
		const answer = await http(stack.chat, { body: chatBody({ stream: true }) });
		expect(answer.status).toBe(503);
		expect(worker.calls).toHaveLength(1);
	});

	it("an error in the same packet as the first tokens does not take them back", async () => {
		await stack.worker({ script: (call) => call.tokens(hello.slice(0, 2)).finish({ error: "inside" }).end() });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat", expectError: true });
		const summary = await stream.finished();
		expect(summary.error).toEqual({ message: "Internal server error", type: "internal_server_error", code: 500 });
		expect(summary.choices[0]?.contentChunks).toBe(2);
	});

	it("a worker that falls silent in the middle: an error event", async () => {
		await stack.close();
		stack = await startStack({ backendStreamTimeoutMs: 100 });
		await stack.worker({ script: (call) => call.tokens(hello) });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat", expectError: true });
		expect((await stream.finished()).error).toEqual({
			message: "Request deadline exceeded",
			type: "timeout_error",
			code: 504,
		});
	});
});

describe("a client that leaves", () => {
	const CANCELLED = { status: "error", error_type: "cancelled" };

	async function expectCancelled(requestType: string): Promise<void> {
		await expect
			.poll(async () => (await stack.metrics()).sum(REQUESTS, { ...CANCELLED, request_type: requestType }))
			.toBe(1);
		const page = await stack.metrics();
		expect(page.value("dynamo_frontend_disconnected_clients")).toBe(1);
		expect(page.sum("dynamo_frontend_model_cancellation_total", { request_type: requestType })).toBe(1);
	}

	it("before the first token of a stream", async () => {
		const worker = await stack.worker({ script: () => {} });
		const controller = new AbortController();
		const answer = http(stack.chat, { body: chatBody({ stream: true }), signal: controller.signal });
		const call = await worker.call(0);
		controller.abort();
		await expect(answer).rejects.toThrow();
		expect(await call.cancelled).toBe("kill");
		await expectCancelled("stream");
	});

	it("in the middle of a stream", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens(hello) });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		await stream.events(3);
		stream.abort();
		expect(await (await worker.call(0)).cancelled).toBe("kill");
		await expectCancelled("stream");
		expect((await stack.metrics()).value("dynamo_frontend_output_tokens_total")).toBe(hello.length);
	});

	it("while an answer in one piece is being made", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens(hello) });
		const controller = new AbortController();
		const answer = http(stack.chat, { body: chatBody(), signal: controller.signal });
		const call = await worker.call(0);
		controller.abort();
		await expect(answer).rejects.toThrow();
		expect(await call.cancelled).toBe("kill");
		await expectCancelled("unary");
	});

	it("one request's leaving does not touch another's text", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens(hello.slice(0, 2)) });
		const staying = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		const leaving = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		await Promise.all([staying.events(2), leaving.events(2)]);
		leaving.abort();
		const [first, second] = [await worker.call(0), await worker.call(1)];
		const gone = await Promise.race([first.cancelled.then(() => first), second.cancelled.then(() => second)]);
		const other = gone === first ? second : first;
		other.tokens(hello.slice(2)).finish("stop").end();
		expect((await staying.finished()).choices[0]?.text).toBe(" Hello world is Paris");
	});
});

describe("the end of a frontend", () => {
	it("drains: running streams go on, probes and new requests get 503, then the port is free", async () => {
		await stack.worker({ script: (call) => call.tokens(hello.slice(0, 1)) }).then(() => {});
		await stack.close();
		stack = await startStack({ gracefulShutdownTimeoutMs: 10_000 });
		const worker = await stack.worker({ script: (call) => call.tokens(hello.slice(0, 1)) });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		await stream.events(1);
		const drained = stack.frontend.drain();
		const health = await http(`${stack.url}/health`);
		expect([health.status, health.body]).toEqual([
			503,
			'{"status":"not_ready","stage":"draining","message":"Service is not ready"}',
		]);
		const live = await http(`${stack.url}/live`);
		expect([live.status, live.body]).toEqual([503, '{"status":"shutting_down","message":"Service is shutting down"}']);
		for (const answer of [await http(`${stack.url}/v1/models`), await http(stack.chat, { body: chatBody() })]) {
			expect(answer.status).toBe(503);
			expect(answer.json).toMatchObject({ message: "Service is not ready", type: "Service Unavailable", code: 503 });
			expect(answer.headers["retry-after"]).toBe("1");
		}
		(await worker.call(0)).tokens(hello.slice(1)).finish("stop").end();
		expect((await stream.finished()).choices[0]?.text).toBe(" Hello world is Paris");
		await drained;
		await expect(http(`${stack.url}/live`)).rejects.toThrow();
	});

	it("a stream that outlives the time limit is not cut, but the listener is closed", async () => {
		await stack.close();
		stack = await startStack({ gracefulShutdownTimeoutMs: 20 });
		const worker = await stack.worker({ script: (call) => call.tokens(hello.slice(0, 1)) });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		await stream.events(1);
		const drained = stack.frontend.drain();
		await expect
			.poll(() =>
				http(`${stack.url}/live`).then(
					() => "open",
					() => "closed",
				),
			)
			.toBe("closed");
		(await worker.call(0)).tokens(hello.slice(1)).finish("stop").end();
		expect((await stream.finished()).choices[0]?.finishReason).toBe("stop");
		await drained;
	});

	it("close cuts what is under way", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens(hello) });
		const stream = await openStream(stack.chat, chatBody({ stream: true }), { kind: "chat" });
		await stream.events(1);
		const drained = stack.frontend.drain();
		await stack.frontend.close();
		await drained;
		await expect(stream.finished()).rejects.toThrow();
		await (await worker.call(0)).cancelled;
	});
});
