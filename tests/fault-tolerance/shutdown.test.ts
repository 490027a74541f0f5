// SPDX-License-Identifier: Apache-2.0
// SIGTERM and Ctrl-C: to frontends and workers, with streams, before they are ready, and twice.
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import {
	Fleet,
	freePort,
	type HttpChild,
	http,
	inflightOf,
	LEAK_PROBE_ENV,
	LeakCheck,
	openStream,
	PLANES,
	type SseStream,
	testModel,
	titled,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterEach, test as base, beforeEach, describe, expect, vi } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const modelPath = hf.path;
const MODEL = "mock";
vi.setConfig({ testTimeout: 90_000 });
const STREAMS = 20;
const TOKENS = 300;

let fleet: Fleet;
afterEach(async () => {
	await fleet?.stop();
});

const body = { model: MODEL, messages: [{ role: "user", content: "Tell me a story." }], max_tokens: TOKENS };

/** Opens long streams, each with its first text there. */
async function longStreams(frontend: HttpChild, expectError = false): Promise<SseStream[]> {
	const streams = await Promise.all(
		Array.from({ length: STREAMS }, () =>
			openStream(
				`${frontend.url}/v1/chat/completions`,
				{ ...body, stream: true, stream_options: { include_usage: true } },
				{ kind: "chat", model: MODEL, includeUsage: !expectError, expectError, allowReplacementCharacter: true },
			),
		),
	);
	await Promise.all(streams.map((stream) => stream.events(2)));
	return streams;
}

async function expectWhole(streams: readonly SseStream[]): Promise<void> {
	for (const summary of await Promise.all(streams.map((stream) => stream.finished()))) {
		expect(summary.done).toBe(true);
		expect(summary.usage?.completion_tokens).toBe(TOKENS);
	}
}

const records = (bucket: string) => {
	const folder = join(fleet.folder, "v1", bucket);
	return existsSync(folder) ? readdirSync(folder).length : 0;
};

describe.each(PLANES)("SIGTERM with 20 long streams over $name", (plane) => {
	const why = missing || plane.missing;
	const test = base.skipIf(why);

	beforeEach(async () => {
		if (!why) fleet = await Fleet.over(plane, LEAK_PROBE_ENV);
	});

	test(titled("to the frontend: the streams end whole, new requests get 503, exit code 0", why), async () => {
		await fleet.mocker(modelPath, MODEL);
		const frontend = await fleet.frontend(MODEL);
		const streams = await longStreams(frontend);
		frontend.child.kill("SIGTERM");
		await until("the frontend drains", async () => (await http(`${frontend.url}/live`)).status === 503);
		const health = await http(`${frontend.url}/health`);
		expect(health.status).toBe(503);
		expect(health.json).toEqual({ status: "not_ready", stage: "draining", message: "Service is not ready" });
		const refused = await http(`${frontend.url}/v1/chat/completions`, { body });
		expect(refused.status).toBe(503);
		expect(refused.json).toMatchObject({ message: "Service is not ready", type: "Service Unavailable", code: 503 });
		await expectWhole(streams);
		expect(await frontend.child.exited).toEqual({ code: 0, signal: null });
	});

	test(
		titled("to the worker: the model goes at once, the streams end whole, exit code 0, no record left", why),
		async () => {
			const worker = await fleet.mocker(modelPath, MODEL);
			const frontend = await fleet.frontend(MODEL);
			const streams = await longStreams(frontend);
			worker.child.kill("SIGTERM");
			await until("the model is gone", async () => (await http(`${frontend.url}/v1/models`)).json.data.length === 0);
			expect(await inflightOf(worker)).toBe(STREAMS);
			expect((await http(`${worker.system}/health`)).status).toBe(503);
			expect((await http(`${worker.system}/live`)).status).toBe(200);
			expect((await http(`${frontend.url}/v1/chat/completions`, { body })).status).toBe(404);
			expect(records("instances") + records("mdc")).toBe(0);
			await expectWhole(streams);
			expect(await worker.child.exited).toEqual({ code: 0, signal: null });
		},
	);

	test(titled("to one of two workers under load: no request notices", why), async () => {
		const [leaving, staying] = await Promise.all([fleet.mocker(modelPath, MODEL), fleet.mocker(modelPath, MODEL)]);
		const frontend = await fleet.frontend(MODEL);
		const leaks = await LeakCheck.begin([
			{ name: "frontend", child: frontend.child, url: frontend.url },
			{ name: "worker", child: staying.child, url: staying.system },
		]);
		let left = false;
		let served = 0;
		const lane = async (): Promise<void> => {
			while (!left) {
				const answer = await http(`${frontend.url}/v1/chat/completions`, { body: { ...body, max_tokens: 8 } });
				expect(answer.status).toBe(200);
				expect(answer.json.usage.completion_tokens).toBe(8);
				served++;
			}
		};
		const load = Promise.all(Array.from({ length: 12 }, lane));
		await until("the load runs", () => served >= 12);
		leaving.child.kill("SIGTERM");
		expect((await leaving.child.exited).code).toBe(0);
		left = true;
		await load;
		await leaks.end();
	});

	test(
		titled("twice to the worker: it ends at once, the streams end with an error event, no record left", why),
		async () => {
			const worker = await fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "0.1"]);
			const frontend = await fleet.frontend(MODEL);
			const streams = await longStreams(frontend, true);
			worker.child.kill("SIGTERM");
			await until("the worker drains", async () => (await http(`${worker.system}/health`)).status === 503);
			worker.child.kill("SIGTERM");
			expect((await worker.child.exited).code).not.toBe(0);
			expect(records("instances") + records("mdc")).toBe(0);
			for (const stream of streams) expect((await stream.finished()).error?.code).toBe(503);
		},
	);

	test(titled("twice to the frontend: it ends at once, the worker drops the work", why), async () => {
		const worker = await fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "0.1"]);
		const leaks = await LeakCheck.begin([{ name: "worker", child: worker.child, url: worker.system }]);
		const frontend = await fleet.frontend(MODEL);
		const streams = await longStreams(frontend, true);
		frontend.child.kill("SIGTERM");
		await until("the frontend drains", async () => (await http(`${frontend.url}/live`)).status === 503);
		frontend.child.kill("SIGTERM");
		expect((await frontend.child.exited).code).not.toBe(0);
		for (const stream of streams) await expect(stream.finished()).rejects.toThrow();
		await leaks.end();
	});
});

describe("a signal before a process is ready", () => {
	const test = base.skipIf(missing);

	beforeEach(() => {
		fleet = new Fleet();
	});

	test.each(["SIGTERM", "SIGINT"] as const)(titled("%s while a simulated engine starts", missing), async (signal) => {
		const port = await freePort();
		const worker: WorkerChild = {
			child: fleet.start(["mocker", "--model-path", modelPath, "--startup-time", "600"], {
				DYN_SYSTEM_PORT: String(port),
			}),
			system: `http://127.0.0.1:${port}`,
		};
		await until(
			"the system server answers",
			async () => {
				const answer = await http(`${worker.system}/live`).catch(() => undefined);
				return answer?.status === 200 || answer?.status === 503;
			},
			{ child: worker.child },
		);
		worker.child.kill(signal);
		const { code, signal: by } = await worker.child.exited;
		expect(by).toBe(null);
		expect(code).toBe(signal === "SIGINT" ? 130 : 143);
		expect(records("instances") + records("mdc")).toBe(0);
		expect(worker.child.stderr).not.toMatch(/at .*\.js:\d+/);
	});
});
