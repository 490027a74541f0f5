// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	type Child,
	fileDiscoveryEnv,
	freePort,
	type HttpChild,
	http,
	openStream,
	parsePrometheus,
	startDynamo,
	startOwnHttp,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const gguf = testModel("gguf");
const missing = gguf.missing;
const modelPath = gguf.path;
const question = [{ role: "user" as const, content: "What is the capital of France?" }];

describe.skipIf(missing)(titled("dynamo serve with the default model", missing), () => {
	let server: HttpChild;

	beforeAll(async () => {
		server = await startOwnHttp("serve", ["--model-name", "smol"], {}, "smol");
	}, 120_000);
	afterAll(async () => {
		await server?.child.stop();
	});

	test("knows the capital of France, unary and streamed", async () => {
		const body = { model: "smol", messages: question, temperature: 0, max_tokens: 32 };
		const unary = await http(`${server.url}/v1/chat/completions`, { body });
		expect(unary.status).toBe(200);
		const text: string = unary.json.choices[0].message.content;
		expect(text).toContain("Paris");
		expect(unary.json.choices[0].finish_reason).toBe("stop");
		const stream = await openStream(
			`${server.url}/v1/chat/completions`,
			{ ...body, stream: true, stream_options: { include_usage: true } },
			{ kind: "chat", model: "smol", includeUsage: true },
		);
		const summary = await stream.finished();
		expect(summary.choices[0]?.text).toBe(text);
		expect(summary.usage?.prompt_tokens).toBe(unary.json.usage.prompt_tokens);
		expect(summary.usage?.completion_tokens).toBe(unary.json.usage.completion_tokens);
	});

	test("the same prompt gives the same text whatever its batch mates are", async () => {
		const ask = async (content: string, more: Record<string, unknown>) => {
			const answer = await http(`${server.url}/v1/chat/completions`, {
				body: { model: "smol", messages: [{ role: "user", content }], max_tokens: 48, ignore_eos: true, ...more },
			});
			expect(answer.status).toBe(200);
			return answer.json.choices[0].message.content as string;
		};
		const prompts = [
			"Name three fruits.",
			"Write a haiku about the sea.",
			"What is 2 + 2?",
			`Sum up: ${"long text ".repeat(90)}`,
		];
		const settings = [
			{ temperature: 0 },
			{ temperature: 0.8, seed: 7 },
			{ temperature: 1, seed: 11, top_p: 0.9, top_k: 40 },
		];
		const jobs = prompts.flatMap((prompt) => settings.map((more) => ({ prompt, more })));
		const alone: string[] = [];
		for (const { prompt, more } of jobs) alone.push(await ask(prompt, more));
		const together = await Promise.all(jobs.map(({ prompt, more }) => ask(prompt, more)));
		expect(together).toEqual(alone);
	}, 120_000);

	test("the OpenAI SDK streams, and raises its own classes of errors", async () => {
		const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
		let text = "";
		const stream = await client.chat.completions.create({
			model: "smol",
			messages: question,
			temperature: 0,
			max_tokens: 16,
			stream: true,
		});
		for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
		expect(text).toContain("Paris");
		await expect(client.chat.completions.create({ model: "nope", messages: question })).rejects.toBeInstanceOf(
			OpenAI.NotFoundError,
		);
		await expect(
			client.chat.completions.create({ model: "smol", messages: question, temperature: 3 }),
		).rejects.toBeInstanceOf(OpenAI.BadRequestError);
		const tooLong = client.chat.completions.create({
			model: "smol",
			messages: [{ role: "user", content: "word ".repeat(9000) }],
		});
		await expect(tooLong).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
	});

	test("Ctrl-C ends it cleanly, also in the middle of a stream", async () => {
		const stream = await openStream(
			`${server.url}/v1/chat/completions`,
			{ model: "smol", messages: question, max_tokens: 100, ignore_eos: true, stream: true },
			{ kind: "chat", model: "smol" },
		);
		await stream.events(3);
		server.child.kill("SIGINT");
		await stream.finished();
		expect((await server.child.exited).code).toBe(0);
	});
});

describe.skipIf(missing)(titled("a worker and a frontend as processes of their own", missing), () => {
	const folder = mkdtempSync(join(tmpdir(), "dynamo-e2e-"));
	let worker: Child;
	let frontend: HttpChild;
	let system: string;

	beforeAll(async () => {
		const env = fileDiscoveryEnv(folder);
		const port = await freePort();
		system = `http://127.0.0.1:${port}`;
		worker = startDynamo(["worker", "--model", modelPath, "--model-name", "smol"], {
			env: { ...env, DYN_SYSTEM_PORT: String(port) },
		});
		frontend = await startOwnHttp("frontend", [], env, "smol");
	}, 120_000);
	afterAll(async () => {
		await Promise.all([worker?.stop(), frontend?.child.stop()]);
		rmSync(folder, { recursive: true, force: true });
	});

	test("/live and /metrics answer while a long prompt is prefilled", async () => {
		let prefilling = true;
		const request = http(`${frontend.url}/v1/chat/completions`, {
			body: { model: "smol", messages: [{ role: "user", content: "time ".repeat(1500) }], max_tokens: 1 },
		}).finally(() => {
			prefilling = false;
		});
		await until("the worker has the request", async () => {
			return parsePrometheus((await http(`${system}/metrics`)).body).sum("dynamo_component_inflight_requests") === 1;
		});
		let answered = 0;
		for (let round = 0; round < 5; round++) {
			expect((await http(`${system}/live`)).status).toBe(200);
			expect((await http(`${system}/metrics`)).status).toBe(200);
			if (prefilling) answered++;
		}
		const answer = await request;
		expect(answer.status).toBe(200);
		expect(answer.json.usage.prompt_tokens).toBeGreaterThan(1500);
		expect(answered).toBe(5);
	}, 60_000);

	test.each([
		["while it waits or is prefilled, streamed", true, "time ".repeat(1500), 0],
		["while it waits or is prefilled, unary", false, "time ".repeat(1500), 0],
		["while it decodes", true, "Count to one thousand.", 3],
	])("a client that leaves %s frees the sequence", async (_phase, stream, content, events) => {
		const inflight = async () =>
			parsePrometheus((await http(`${system}/metrics`)).body).sum("dynamo_component_inflight_requests");
		const controller = new AbortController();
		const body = {
			model: "smol",
			messages: [{ role: "user", content }],
			max_tokens: 2000,
			ignore_eos: true,
			stream,
		};
		if (events > 0) {
			const opened = await openStream(`${frontend.url}/v1/chat/completions`, body, { kind: "chat", model: "smol" });
			await opened.events(events);
			expect(await inflight()).toBe(1);
			opened.abort();
		} else {
			const left = http(`${frontend.url}/v1/chat/completions`, { body, signal: controller.signal });
			left.catch(() => {});
			await until("the worker has the request", async () => (await inflight()) === 1);
			controller.abort();
			await expect(left).rejects.toThrow();
		}
		await until("nothing is in flight", async () => (await inflight()) === 0);
	});

	test("a worker that is killed: the model goes, and a new worker brings it back", async () => {
		worker.kill("SIGKILL");
		await worker.exited;
		const env = fileDiscoveryEnv(folder);
		worker = startDynamo(["worker", "--model", modelPath, "--model-name", "smol"], { env });
		await until(
			"a request is served again",
			async () => {
				const answer = await http(`${frontend.url}/v1/chat/completions`, {
					body: { model: "smol", messages: question, max_tokens: 4 },
				});
				return answer.status === 200;
			},
			{ timeoutMs: 40_000, child: worker },
		);
	}, 60_000);
});
