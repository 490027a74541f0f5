// SPDX-License-Identifier: Apache-2.0
// The workers of examples/ behind our frontend and, where it is installed, the real one.
import {
	Fleet,
	findRealDynamo,
	type HttpChild,
	http,
	listsModel,
	openStream,
	scrape,
	startRealFrontend,
	testModel,
	titled,
	until,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const hf = testModel("hf");
const modelPath = hf.path;
const peer = findRealDynamo();
const frontends = [
	["our frontend", hf.missing],
	["the real frontend", hf.missing || peer.missing],
] as const;

describe.each(frontends)("%s", (name, missing) => {
	let fleet: Fleet;
	let frontend: HttpChild;
	let text: WorkerChild;
	let tokens: WorkerChild;

	beforeAll(async () => {
		if (missing) return;
		fleet = new Fleet();
		[text, tokens] = await Promise.all([
			fleet.example("text-worker.ts"),
			fleet.example("tokens-worker.ts", [modelPath, "counter"]),
		]);
		if (name === "our frontend") frontend = await fleet.frontend("parrot");
		else {
			frontend = await startRealFrontend(peer.path, fleet.env, "parrot");
			fleet.children.push(frontend.child);
		}
		await until("counter is listed", () => listsModel(frontend.url, "counter"), { child: frontend.child });
	});
	afterAll(async () => {
		if (!missing) await fleet.stop();
	});

	const chat = (model: string, more: object = {}) => ({
		model,
		messages: [{ role: "user", content: "Polly wants a cracker" }],
		...more,
	});

	test.skipIf(missing)(titled("text in, text out: streamed, whole, as a completion, cut", missing), async () => {
		const url = `${frontend.url}/v1/chat/completions`;
		const stream = await openStream(url, chat("parrot", { stream: true }), { kind: "chat", model: "parrot" });
		const summary = await stream.finished();
		expect(summary.choices[0]).toMatchObject({ text: "Polly wants a cracker", finishReason: "stop" });
		const whole = await http(url, { body: chat("parrot") });
		expect(whole.json.choices).toMatchObject([
			{ message: { role: "assistant", content: "Polly wants a cracker" }, finish_reason: "stop" },
		]);
		const cut = await http(url, { body: chat("parrot", { max_tokens: 2 }) });
		expect(cut.json.choices).toMatchObject([{ message: { content: "Polly wants " }, finish_reason: "length" }]);
		const completion = await http(`${frontend.url}/v1/completions`, {
			body: { model: "parrot", prompt: "pieces of eight" },
		});
		expect(completion.json.choices).toMatchObject([{ text: "pieces of eight", finish_reason: "stop" }]);
		expect((await scrape(text.system)).value("dynamo_component_parrot_words_total")).toBe(4 + 4 + 2 + 3);
	});

	test.skipIf(missing)(titled("tokens in, tokens out, no more than max_tokens", missing), async () => {
		const url = `${frontend.url}/v1/chat/completions`;
		const options = { stream: true, max_tokens: 12, stream_options: { include_usage: true } };
		const stream = await openStream(url, chat("counter", options), {
			kind: "chat",
			includeUsage: true,
			allowReplacementCharacter: true,
		});
		const summary = await stream.finished();
		expect(summary.choices[0]?.finishReason).toBe("length");
		expect(summary.usage).toMatchObject({ completion_tokens: 12 });
		const again = await http(url, { body: chat("counter", { max_tokens: 12 }) });
		expect(again.json.choices[0].message.content).toBe(summary.choices[0]?.text);
	});

	test.skipIf(missing)(titled("a client that leaves ends the generator", missing), async () => {
		const url = `${frontend.url}/v1/chat/completions`;
		const body = chat("counter", { stream: true, max_tokens: 4000, ignore_eos: true });
		const stream = await openStream(url, body, { kind: "chat", allowReplacementCharacter: true });
		await stream.events(3);
		stream.abort();
		await untilWorkerIdle(tokens);
		expect((await scrape(tokens.system)).sum("dynamo_component_cancellation_total")).toBe(1);
	});

	test.skipIf(missing)(titled("it is healthy, and leaves like any worker", missing), async () => {
		const health = await http(`${text.system}/health`);
		expect([health.status, health.json.endpoints]).toEqual([200, { generate: "ready" }]);
		text.child.kill("SIGTERM");
		expect(await text.child.exited).toEqual({ code: 0, signal: null });
		await until("the model is gone", async () => !(await listsModel(frontend.url, "parrot")));
	});
});
