// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	type Child,
	fileDiscoveryEnv,
	findRealDynamo,
	freePort,
	type HttpChild,
	http,
	listsModel,
	openStream,
	parsePrometheus,
	runStreamLoad,
	type SseStream,
	type StreamExpectations,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const peer = findRealDynamo();
const gguf = testModel("gguf");
const hf = testModel("hf");
const missing = peer.missing || gguf.missing || hf.missing;

/** A gauge's value, summed over its label sets. */
async function gauge(url: string, name: string): Promise<number> {
	return parsePrometheus((await http(`${url}/metrics`)).body).sum(name);
}

/** A chat stream that would go on for long; its client has read a few events. */
async function openLongStream(url: string, model: string, more: Partial<StreamExpectations> = {}): Promise<SseStream> {
	const stream = await openStream(
		`${url}/v1/chat/completions`,
		{
			model,
			messages: [{ role: "user", content: "Count to one thousand." }],
			max_tokens: 4000,
			ignore_eos: true,
			stream: true,
		},
		{ kind: "chat", model, allowReplacementCharacter: true, ...more },
	);
	await stream.events(4);
	return stream;
}

/** Leaves in the middle of a stream, and waits until the worker with that system server has nothing in flight. */
async function leaveMidStream(url: string, model: string, system: string): Promise<void> {
	const stream = await openLongStream(url, model);
	expect(await gauge(system, "dynamo_component_inflight_requests")).toBe(1);
	stream.abort();
	await until("no request is in flight", async () => (await gauge(system, "dynamo_component_inflight_requests")) === 0);
}

describe.skipIf(missing)(titled("real frontend before our worker", missing), () => {
	const python = peer.path;
	const folder = mkdtempSync(join(tmpdir(), "dynamo-interop-"));
	let worker: Child;
	let frontend: HttpChild;
	let system: string;

	beforeAll(async () => {
		const env = fileDiscoveryEnv(folder);
		const port = await freePort();
		system = `http://127.0.0.1:${port}`;
		const path = gguf.path;
		worker = startDynamo(["worker", "--model", path, "--model-name", "ours", "--max-num-seqs", "32"], {
			env: { ...env, DYN_SYSTEM_PORT: String(port) },
		});
		frontend = await startRealFrontend(python, env, "ours");
	}, 90_000);

	afterAll(async () => {
		await Promise.all([worker?.stop(), frontend?.child.stop()]);
		rmSync(folder, { recursive: true, force: true });
	});

	test("answers a question", async () => {
		const answer = await http(`${frontend.url}/v1/chat/completions`, {
			body: {
				model: "ours",
				messages: [{ role: "user", content: "What is the capital of France?" }],
				temperature: 0,
				max_tokens: 16,
			},
		});
		expect(answer.status).toBe(200);
		expect(answer.json.choices[0].message.content).toContain("Paris");
		expect(answer.json.choices[0].finish_reason).toBe("stop");
	});

	test("log-probabilities of answer and prompt, n and best_of come through", async () => {
		const base = { model: "ours", max_tokens: 8, temperature: 1, seed: 3 };
		const chat = await http(`${frontend.url}/v1/chat/completions`, {
			body: {
				...base,
				messages: [{ role: "user", content: "Hi" }],
				logprobs: true,
				top_logprobs: 2,
				prompt_logprobs: 1,
				n: 2,
			},
		});
		expect(chat.status).toBe(200);
		const { choices, usage } = chat.json;
		expect(choices).toHaveLength(2);
		const entries = choices.flatMap((choice: { logprobs: { content: unknown[] } }) => choice.logprobs.content);
		expect(entries).toHaveLength(usage.completion_tokens);
		for (const entry of entries) expect(entry.top_logprobs.length).toBeGreaterThanOrEqual(2);
		expect(chat.json.prompt_logprobs).toHaveLength(usage.prompt_tokens);
		expect(chat.json.prompt_logprobs[0]).toBeNull();
		const complete = async (more: Record<string, unknown>) => {
			const body = { ...base, prompt: "The capital of France is", logprobs: 0, ...more };
			const { status, json } = await http(`${frontend.url}/v1/completions`, { body });
			expect(status).toBe(200);
			return json.choices as { text: string; logprobs: { token_logprobs: number[] } }[];
		};
		const score = ({ logprobs: { token_logprobs: list } }: { logprobs: { token_logprobs: number[] } }): number =>
			list.reduce((sum, value) => sum + value, 0) / list.length;
		const all = await complete({ n: 4 });
		const best = await complete({ best_of: 4 });
		expect(best.map(({ text }) => text)).toEqual([all.reduce((a, b) => (score(b) > score(a) ? b : a)).text]);
	});

	test("96 streams of 32 tokens, 32 at a time: none failed, none short", async () => {
		const summaries = await runStreamLoad({
			url: frontend.url,
			model: "ours",
			streams: 96,
			concurrency: 32,
			maxTokens: 32,
			prompt: (stream) => `Name ${1 + (stream % 9)} fruits.`,
		});
		expect(summaries).toHaveLength(96);
		for (const summary of summaries) expect(summary.choices[0]?.finishReason).toBe("length");
	}, 600_000);

	test("a client that leaves aborts the worker's sequence", async () => {
		await leaveMidStream(frontend.url, "ours", system);
	});

	test("a worker that is told to end finishes its streams and leaves the folder", async () => {
		const stream = await openStream(
			`${frontend.url}/v1/chat/completions`,
			{
				model: "ours",
				messages: [{ role: "user", content: "Tell me a story." }],
				max_tokens: 60,
				ignore_eos: true,
				stream: true,
				stream_options: { include_usage: true },
			},
			{ kind: "chat", model: "ours", includeUsage: true },
		);
		await stream.events(4);
		worker.kill("SIGTERM");
		const summary = await stream.finished();
		expect(summary.usage?.completion_tokens).toBe(60);
		expect((await worker.exited).code).toBe(0);
		await until("the model is gone", async () => !(await listsModel(frontend.url, "ours")));
	}, 90_000);
});

describe.skipIf(missing)(titled("our frontend before a real mocker", missing), () => {
	const python = peer.path;
	const folder = mkdtempSync(join(tmpdir(), "dynamo-interop-"));
	let mocker: Child;
	let frontend: HttpChild;
	let system: string;

	beforeAll(async () => {
		const env = fileDiscoveryEnv(folder);
		const port = await freePort();
		system = `http://127.0.0.1:${port}`;
		const path = hf.path;
		mocker = startRealMocker(python, { ...env, DYN_SYSTEM_PORT: String(port) }, path, "real", [
			"--speedup-ratio",
			"10",
		]);
		frontend = await startOwnHttp("frontend", [], env, "real");
	}, 90_000);

	afterAll(async () => {
		await Promise.all([mocker?.stop(), frontend?.child.stop()]);
		rmSync(folder, { recursive: true, force: true });
	});

	test("500 streams of 64 tokens, 32 at a time: none failed, none short", async () => {
		const summaries = await runStreamLoad({
			url: frontend.url,
			model: "real",
			streams: 500,
			concurrency: 32,
			maxTokens: 64,
			randomTokens: true,
		});
		expect(summaries).toHaveLength(500);
		for (const summary of summaries) expect(summary.choices[0]?.finishReason).toBe("length");
		expect(await gauge(frontend.url, "dynamo_frontend_inflight_requests")).toBe(0);
	}, 300_000);

	test("the worker's own error text reaches the client as a 400", async () => {
		const answer = await http(`${frontend.url}/v1/chat/completions`, {
			body: { model: "real", messages: [{ role: "user", content: "hi" }] },
		});
		expect(answer.status).toBe(400);
		expect(answer.json.message).toContain("is required by the mocker worker");
		expect(answer.json.error.message).toBe(answer.json.message);
	});

	test("a client that leaves aborts the worker's sequence", async () => {
		await leaveMidStream(frontend.url, "real", system);
	});

	test("a mocker that is killed fails its stream in the stream, and the model goes", async () => {
		const stream = await openLongStream(frontend.url, "real", { expectError: true });
		mocker.kill("SIGKILL");
		const summary = await stream.finished();
		expect(summary.error?.code).toBe(503);
		await until("the model is gone", async () => !(await listsModel(frontend.url, "real")), { timeoutMs: 30_000 });
	}, 60_000);
});
