// SPDX-License-Identifier: Apache-2.0
import { request as httpRequest } from "node:http";
import { connect } from "node:net";
import { http, validateStream } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { sendAll } from "./scripted-worker.js";
import { startFrontend } from "./server.js";
import { chatBody, MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack;
beforeEach(async () => {
	stack = await startStack({ bodyLimitBytes: 1024 * 1024 });
});
afterEach(() => stack.close());

const JSON_TYPE = { "content-type": "application/json" };

describe("request ids", () => {
	it("x-request-id is echoed on every route, but only when it was sent, and reaches the worker", async () => {
		const worker = await stack.worker({ script: sendAll([70]) });
		const headers = { "x-request-id": "any thing/1" };
		for (const [path, options] of [
			["/v1/models", {}],
			["/health", {}],
			["/live", {}],
			["/metrics", {}],
			["/nope", {}],
			["/v1/chat/completions", { body: chatBody() }],
			["/v1/chat/completions", { body: chatBody({ stream: true }) }],
			["/v1/chat/completions", { body: chatBody({ model: "nope" }) }],
		] as const) {
			const answer = await http(stack.url + path, { ...options, headers });
			expect(answer.headers["x-request-id"], path).toBe("any thing/1");
			expect((await http(stack.url + path, options)).headers["x-request-id"], path).toBeUndefined();
		}
		expect(worker.calls[0]?.request.headers["x-request-id"]).toBe("any thing/1");
	});

	it("x-dynamo-request-id becomes the id when it is a UUID", async () => {
		await stack.worker({ script: sendAll([70]) });
		const uuid = "0b6a3f0e-0f3c-4b61-8a3f-2f9d2a0c1b11";
		for (const id of [uuid, uuid.toUpperCase(), uuid.replaceAll("-", ""), `{${uuid}}`]) {
			const answer = await http(stack.chat, { body: chatBody(), headers: { "x-dynamo-request-id": id } });
			expect(answer.json.id).toBe(`chatcmpl-${id}`);
		}
		const other = await http(stack.chat, { body: chatBody(), headers: { "x-dynamo-request-id": "abc" } });
		expect(other.json.id).toMatch(/^chatcmpl-[0-9a-f-]{36}$/);
	});
});

describe("bodies", () => {
	it("larger than the limit: 413, announced or not", async () => {
		await stack.worker({ script: sendAll([70]) });
		const large = JSON.stringify(chatBody({ messages: [{ role: "user", content: "x".repeat(1024 * 1024) }] }));
		const announced = await http(stack.chat, { body: large, headers: JSON_TYPE });
		const chunked = await new Promise<{ status: number; body: string }>((resolve, reject) => {
			const request = httpRequest(stack.chat, { method: "POST", headers: JSON_TYPE, agent: false }, (response) => {
				let body = "";
				response.on("data", (chunk) => {
					body += chunk;
				});
				response.on("end", () => resolve({ status: response.statusCode ?? 0, body }));
			});
			request.on("error", reject);
			request.write(large.slice(0, 1000));
			request.end(large.slice(1000));
		});
		for (const { status, body } of [announced, chunked]) {
			expect(status).toBe(413);
			expect(JSON.parse(body)).toMatchObject({
				message: "Request body exceeds the limit of 1 MB set by DYN_HTTP_BODY_LIMIT_MB",
				type: "Payload Too Large",
				code: 413,
			});
		}
		const page = await stack.metrics();
		expect(page.sum("dynamo_frontend_requests_started_total")).toBe(0);
		expect(page.value("dynamo_frontend_failures_total", { class: "PayloadTooLarge" })).toBe(2);
	});

	it("that cannot be read are failures, not requests", async () => {
		await stack.worker({ script: sendAll([70]) });
		await http(stack.chat, { body: "{", headers: JSON_TYPE });
		await http(stack.chat, { body: chatBody({ temperature: "warm" }) });
		await http(stack.chat, { body: chatBody({ temperature: 3 }) });
		await http(stack.chat, { body: chatBody({ model: "nope", stream: true, temperature: 3 }) });
		const page = await stack.metrics();
		expect(page.sum("dynamo_frontend_requests_started_total")).toBe(2);
		const counted = { error_type: "validation", status: "error", endpoint: "chat_completions" };
		expect(page.sum("dynamo_frontend_requests_total", { ...counted, model: MODEL, request_type: "unary" })).toBe(1);
		expect(
			page.sum("dynamo_frontend_requests_total", { ...counted, model: "unknown_model", request_type: "stream" }),
		).toBe(1);
		expect(page.value("dynamo_frontend_failures_total", { class: "InvalidRequest", reason: "request.invalid" })).toBe(
			4,
		);
	});

	it("a prompt that does not fit the context: 400 before any worker is asked", async () => {
		const worker = await stack.worker({ script: sendAll([70]) });
		const messages = [{ role: "user", content: "é".repeat(200) }];
		const answer = await http(stack.chat, { body: chatBody({ messages, max_tokens: 5, stream: true }) });
		expect(answer.status).toBe(400);
		expect(answer.json.error).toMatchObject({
			type: "invalid_request_error",
			code: "context_length_exceeded",
			param: "messages",
		});
		expect(answer.json.message).toMatch(
			/^This model's maximum context length is 256 tokens\. However, your messages resulted in \d+ tokens \(\d+ with the 5 requested for the completion\)\. Please reduce the length of the messages\.$/,
		);
		const prompt = Array.from({ length: 256 }, () => 70);
		const completion = await http(stack.completions, { body: { model: MODEL, prompt } });
		expect(completion.json.error.code).toBe("context_length_exceeded");
		expect(completion.json.message).toContain("at least 1 more is needed");
		const fits = await http(stack.completions, { body: { model: MODEL, prompt: prompt.slice(1) } });
		expect(fits.status).toBe(200);
		expect(worker.calls).toHaveLength(1);
	});
});

describe("old and pipelined connections", () => {
	/** Sends raw bytes and reads until the other side closes. */
	function raw(bytes: string): Promise<string> {
		return new Promise((resolve, reject) => {
			const socket = connect(stack.frontend.port, "127.0.0.1", () => socket.write(bytes));
			let text = "";
			socket.setEncoding("utf8");
			socket.on("data", (chunk) => {
				text += chunk;
			});
			socket.on("close", () => resolve(text));
			socket.on("error", reject);
		});
	}
	const post = (version: string, more = ""): string => {
		const body = JSON.stringify(chatBody({ stream: true }));
		return `POST /v1/chat/completions HTTP/${version}\r\nhost: x\r\n${more}content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
	};

	it("a stream over HTTP/1.0 has no chunk framing", async () => {
		await stack.worker({ script: sendAll([70, 71]) });
		const [head, body] = (await raw(post("1.0"))).split(/\r\n\r\n/, 2) as [string, string];
		expect(head).not.toMatch(/transfer-encoding/i);
		validateStream(body, { kind: "chat" });
	});

	it("two requests at once on one connection are answered one after the other", async () => {
		const worker = await stack.worker({
			// The first request's answer is the slower one.
			script: (call) => (worker.calls.length === 1 ? setTimeout(() => sendAll([70])(call), 50) : sendAll([71])(call)),
		});
		const text = await raw(post("1.1") + post("1.1", "connection: close\r\n"));
		const answers = text.split(/(?=HTTP\/1\.1 200)/);
		expect(answers).toHaveLength(2);
		const ids = answers.map((answer) => /chatcmpl-([0-9a-f-]+)/.exec(answer)?.[1]);
		expect(ids).toEqual(worker.calls.map(({ request }) => request.id));
		for (const answer of answers) expect(answer).toMatch(/data: \[DONE\]\n\n\r\n0\r\n\r\n$/);
	});

	it("what follows a request that was to be the last does not take its answer away", async () => {
		await stack.worker({ script: (call) => setTimeout(() => sendAll([70])(call), 20) });
		const text = await raw(post("1.1", "connection: close\r\n") + post("1.1"));
		expect(text).toMatch(/^HTTP\/1\.1 200 /);
		expect(text).toMatch(/data: \[DONE\]\n\n\r\n0\r\n\r\n$/);
	});

	it("garbage during a stream ends the connection and is not answered within the stream", async () => {
		const worker = await stack.worker({ script: (call) => call.tokens([70]) });
		const socket = connect(stack.frontend.port, "127.0.0.1", () => socket.write(post("1.1")));
		let text = "";
		socket.setEncoding("utf8").on("data", (chunk) => {
			if (text === "") socket.write("what is this\r\n\r\n");
			text += chunk;
		});
		await new Promise((resolve) => socket.on("close", resolve));
		expect(text.match(/HTTP\/1\.1/g)).toHaveLength(1);
		expect(await (await worker.call(0)).cancelled).toBe("kill");
	});

	it.each([
		["no HTTP at all", "hello\r\n\r\n", 400],
		["a header without a name", "GET /live HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n", 400],
		["a negative length", "POST /live HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400],
		["headers without end", `GET /live HTTP/1.1\r\nx: ${"a".repeat(300_000)}\r\n\r\n`, 431],
		["100 kB of headers", `GET /live HTTP/1.1\r\nconnection: close\r\nx: ${"a".repeat(100_000)}\r\n\r\n`, 200],
		["no host", "GET /live HTTP/1.1\r\nconnection: close\r\n\r\n", 200],
	])("%s: %d", async (_name, bytes, status) => {
		const text = await raw(bytes);
		expect(text).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
		if (status >= 400) expect(text).toMatch(/\r\n\r\n$/);
	});

	it.each([
		["é", "two bytes"],
		["你好", "three bytes each"],
		["a, b", "a comma"],
	])("x-request-id %s comes back byte for byte (%s)", async (id) => {
		await stack.worker({ script: sendAll([70]) });
		for (const request of [
			post("1.1", `connection: close\r\nx-request-id: ${id}\r\n`),
			`GET /nope HTTP/1.1\r\nconnection: close\r\nx-request-id: ${id}\r\n\r\n`,
			`GET /v1/chat/completions HTTP/1.1\r\nconnection: close\r\nx-request-id: ${id}\r\n\r\n`,
		]) {
			expect(await raw(request)).toContain(`\r\nx-request-id: ${id}\r\n`);
		}
	});

	it("the first of two x-request-ids counts", async () => {
		const text = await raw("GET /live HTTP/1.1\r\nconnection: close\r\nx-request-id: a\r\nx-request-id: b\r\n\r\n");
		expect(text).toContain("\r\nx-request-id: a\r\n");
	});

	describe("Expect: 100-continue", () => {
		const head = (type: string, length: number, expectation = "100-continue"): string =>
			`POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: ${type}\r\nexpect: ${expectation}\r\ncontent-length: ${length}\r\n\r\n`;

		it("is answered before the body, and the connection goes on", async () => {
			await stack.worker({ script: sendAll([70]) });
			const body = JSON.stringify(chatBody());
			const socket = connect(stack.frontend.port, "127.0.0.1", () =>
				socket.write(head("application/json", body.length)),
			);
			let text = "";
			socket.setEncoding("utf8").on("data", (chunk) => {
				text += chunk;
				if (text === "HTTP/1.1 100 Continue\r\n\r\n") socket.write(body);
				else if (/chat\.completion/.test(text) && !/Service is live/.test(text)) {
					socket.write("GET /live HTTP/1.1\r\nconnection: close\r\n\r\n");
				}
			});
			await new Promise((resolve) => socket.on("close", resolve));
			expect(text).toMatch(/^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 OK\r\n/);
			expect(text).toContain("Service is live");
		});

		it("a refusal comes instead of it, and closes the connection", async () => {
			await stack.worker({ script: sendAll([70]) });
			expect(await raw(head("text/plain", 10))).toMatch(/^HTTP\/1\.1 415 /);
			expect(await raw(head("application/json", 100_000_000))).toMatch(/^HTTP\/1\.1 413 /);
		});

		it("another expectation is ignored", async () => {
			await stack.worker({ script: sendAll([70]) });
			const body = JSON.stringify(chatBody());
			const request = head("application/json", body.length, "something").replace("\r\n", "\r\nconnection: close\r\n");
			expect(await raw(request + body)).toMatch(/^HTTP\/1\.1 200 /);
		});
	});
});

describe("routes", () => {
	it("HEAD answers with headers alone", async () => {
		for (const path of ["/health", "/live", "/metrics", "/v1/models"]) {
			const answer = await http(stack.url + path, { method: "HEAD" });
			expect([path, answer.status, answer.body]).toEqual([path, 200, ""]);
			expect(Number(answer.headers["content-length"])).toBeGreaterThan(0);
		}
	});

	it("a wrong method: 405 with the right ones, 404 where the route is switched off, and no CORS", async () => {
		const expectAnswers = async (table: readonly (readonly [string, string, number, string])[]): Promise<void> => {
			for (const [method, path, status, allow] of table) {
				const answer = await http(stack.url + path, { method, headers: { origin: "http://x.example" } });
				expect([path, answer.status, answer.headers.allow, answer.body]).toEqual([path, status, allow, ""]);
				expect(answer.headers["access-control-allow-origin"]).toBeUndefined();
			}
		};
		await expectAnswers([
			["GET", "/v1/chat/completions", 404, "POST"],
			["POST", "/metrics", 405, "GET,HEAD"],
			["DELETE", "/v1/models", 405, "GET,HEAD"],
			["PUT", "/v1/models/x", 405, "GET,HEAD"],
			["PUT", "/v1/classify", 404, "POST"],
			["POST", "/v1/realtime", 404, "GET,HEAD"],
		]);
		await stack.worker({ script: sendAll([70]) });
		await expectAnswers([
			["GET", "/v1/chat/completions", 405, "POST"],
			["OPTIONS", "/v1/completions", 405, "POST"],
			["GET", "/v1/classify", 404, "POST"],
		]);
	});

	it.each([
		["application/json; charset=utf-8", 200],
		["APPLICATION/JSON", 200],
		["application/vnd.api+json", 200],
		["application/json;;=", 200],
		["text/json", 415],
		["application/jsonx", 415],
		["application/+json", 415],
		["application/json, text/plain", 415],
		["/", 415],
		["", 415],
	])("content type %j: %d", async (type, status) => {
		await stack.worker({ script: sendAll([70]) });
		const answer = await http(stack.chat, {
			method: "POST",
			headers: { "content-type": type },
			body: JSON.stringify(chatBody()),
		});
		expect(answer.status).toBe(status);
		if (status === 415) expect(answer.json.message).toBe("Expected request with Content-Type application/json");
	});

	it("a model id that cannot be decoded is not found", async () => {
		const answer = await http(`${stack.url}/v1/models/%`);
		expect([answer.status, answer.json.message]).toEqual([404, "Model not found"]);
	});

	it("can be moved; the old paths are gone", async () => {
		await stack.close();
		stack = await startStack({
			paths: {
				chat: "/chat",
				completions: "/v1/completions",
				models: "/m/list",
				health: "/h",
				live: "/live",
				metrics: "/metrics",
			},
		});
		await stack.worker({ script: sendAll([70]) });
		expect((await http(`${stack.url}/chat`, { body: chatBody() })).status).toBe(200);
		expect((await http(`${stack.url}/m/list/${MODEL}`)).status).toBe(200);
		expect((await http(`${stack.url}/h`)).status).toBe(200);
		const old = await http(`${stack.url}/v1/chat/completions`, { body: chatBody() });
		expect(old.json).toMatchObject({ message: "Route not found: POST /v1/chat/completions", code: 404 });
	});

	it("a path that cannot be decoded is not found", async () => {
		expect((await http(`${stack.url}/v1/models/%zz`)).status).toBe(404);
	});

	it("a taken port: one line that says what to do", async () => {
		const runtime = await stack.join();
		const again = startFrontend(runtime, { host: "127.0.0.1", port: stack.frontend.port });
		await expect(again).rejects.toThrow(
			`cannot listen on 127.0.0.1:${stack.frontend.port}: the port is in use. Choose another port with --http-port or DYN_HTTP_PORT (0: any free one)`,
		);
	});
});

describe("metrics", () => {
	it("the page has Dynamo's type, both registries, and the numbers of what happened", async () => {
		await stack.worker({ script: sendAll([70, 71, 72]) });
		for (let i = 0; i < 3; i++) await http(stack.chat, { body: chatBody({ stream: i === 0 }) });
		const raw = await http(`${stack.url}/metrics`);
		expect(raw.headers["content-type"]).toBe("text/plain; charset=utf-8");
		const page = await stack.metrics();
		const frontend = (name: string, labels = {}) => page.sum(`dynamo_frontend_${name}`, labels);
		expect(frontend("requests_started_total", { request_type: "unary" })).toBe(2);
		expect(
			frontend("requests_total", { request_type: "stream", status: "success", error_type: "", model: MODEL }),
		).toBe(1);
		expect(frontend("output_tokens_total")).toBe(9);
		expect(frontend("time_to_first_token_seconds_count")).toBe(3);
		expect(frontend("inter_token_latency_seconds_count")).toBe(6);
		expect(frontend("output_sequence_tokens_sum")).toBe(9);
		expect(frontend("input_sequence_tokens_count")).toBe(3);
		expect(frontend("request_duration_seconds_count")).toBe(3);
		expect(frontend("detokenize_token_count")).toBe(9);
		expect(frontend("tokenizer_latency_ms_count", { operation: "tokenize" })).toBe(3);
		expect(frontend("stage_duration_seconds_count", { stage: "transport_roundtrip" })).toBe(3);
		expect(page.families.get("dynamo_frontend_time_to_first_token_seconds")?.type).toBe("histogram");
		expect(page.families.has("dynamo_component_uptime_seconds")).toBe(true);
	});

	it("an idle page shows no series of requests", async () => {
		const page = await stack.metrics();
		expect([...page.families.keys()].filter((name) => name.startsWith("dynamo_frontend_"))).toEqual([
			"dynamo_frontend_detokenize_token_count",
			"dynamo_frontend_detokenize_total_us",
			"dynamo_frontend_disconnected_clients",
			"dynamo_frontend_event_loop_delay_seconds",
			"dynamo_frontend_event_loop_stall_total",
			"dynamo_frontend_template_seconds",
			"dynamo_frontend_tokenize_seconds",
			"dynamo_frontend_tokenizer_cache_hits_total",
			"dynamo_frontend_tokenizer_cache_misses_total",
		]);
	});

	it("the prefix can be changed, for the families that follow it", async () => {
		await stack.close();
		stack = await startStack({ metricsPrefix: "my-svc" });
		await stack.worker({ script: sendAll([70]) });
		await http(stack.chat, { body: chatBody() });
		const page = await stack.metrics();
		expect(page.sum("my_svc_requests_total")).toBe(1);
		expect(page.value("dynamo_frontend_tokenize_seconds_count")).toBe(1);
	});
});
