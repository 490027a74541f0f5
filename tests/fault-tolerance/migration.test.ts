// SPDX-License-Identifier: Apache-2.0
// Workers are killed while they stream, and the frontend may move streams (--migration-limit).
import {
	Fleet,
	type HttpChild,
	inflightOf,
	LEAK_PROBE_ENV,
	LeakCheck,
	openStream,
	PLANES,
	type SseStream,
	type StreamSummary,
	scrape,
	testModel,
	titled,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const hf = testModel("hf");
const gguf = testModel("gguf");
const missing = hf.missing;
const missingGguf = gguf.missing;
const modelPath = hf.path;
const MIGRATIONS = "dynamo_frontend_model_migration_total";
const OUTCOMES = "dynamo_frontend_model_migration_duration_seconds_count";

let fleet: Fleet;
afterEach(async () => {
	await fleet?.stop();
});

const probed = (name: string, { child, system }: WorkerChild) => ({ name, child, url: system });

function open(frontend: HttpChild, model: string, maxTokens: number, more: object = {}): Promise<SseStream> {
	const body = {
		model,
		messages: [{ role: "user", content: "Tell me a story." }],
		max_tokens: maxTokens,
		temperature: 0,
		ignore_eos: true,
		stream: true,
		stream_options: { include_usage: true },
		...more,
	};
	const expected = { kind: "chat", model, includeUsage: true, allowReplacementCharacter: true } as const;
	return openStream(`${frontend.url}/v1/chat/completions`, body, expected);
}

describe.each(PLANES)("kill -9 of one of two workers, and of its successor, over $name", (plane) => {
	const why = missing || plane.missing;
	const MODEL = "mock";
	const REQUESTS = 1000;
	const TOKENS = 30;

	test.skipIf(why)(
		titled("0 of 1,000 requests fail, none is short, nothing is left behind", why),
		async () => {
			fleet = await Fleet.over(plane, LEAK_PROBE_ENV);
			const start = () => fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "1"]);
			const workers = await Promise.all([start(), start()]);
			const frontend = await fleet.frontend(MODEL, ["--migration-limit", "3"]);
			const leaks = await LeakCheck.begin([
				{ name: "frontend", child: frontend.child, url: frontend.url },
				...workers.map((worker, i) => probed(`worker ${i}`, worker)),
			]);
			const summaries: StreamSummary[] = [];
			let started = 0;
			const lane = async (): Promise<void> => {
				while (started++ < REQUESTS) {
					const stream = await open(frontend, MODEL, TOKENS);
					expect(stream.status).toBe(200);
					summaries.push(await stream.finished());
				}
			};
			const load = Promise.all(Array.from({ length: 24 }, lane));
			const kill = async (worker: WorkerChild, after: number): Promise<void> => {
				await until("it is time", () => summaries.length >= after);
				await until("it has work", async () => (await inflightOf(worker)) > 0);
				worker.child.kill("SIGKILL");
				await worker.child.exited;
			};
			await kill(workers[0], 100);
			const successor = await start();
			await kill(successor, 300);
			await load;

			expect(summaries).toHaveLength(REQUESTS);
			for (const { usage, choices } of summaries) {
				expect(usage?.completion_tokens).toBe(TOKENS);
				expect(choices[0]?.finishReason).toBe("length");
			}
			const page = await scrape(frontend.url);
			expect(page.sum("dynamo_frontend_requests_total", { status: "error" })).toBe(0);
			expect(page.sum("dynamo_frontend_requests_total", { status: "success" })).toBe(REQUESTS);
			expect(page.sum(MIGRATIONS, { migration_type: "ongoing_request" })).toBeGreaterThan(0);
			expect(page.sum(OUTCOMES, { outcome: "success" })).toBe(page.sum(MIGRATIONS));
			await leaks.end();
		},
		120_000,
	);
});

/** Runs a stream undisturbed, then again with its worker killed in the middle. */
async function compare(frontend: HttpChild, workers: WorkerChild[], model: string, tokens: number): Promise<void> {
	const whole = await (await open(frontend, model, tokens)).finished();
	const stream = await open(frontend, model, tokens);
	await stream.events(Math.floor(tokens / 3));
	const busy = await Promise.all(workers.map(inflightOf));
	const victim = workers[busy.indexOf(1)] as WorkerChild;
	victim.child.kill("SIGKILL");
	const moved = await stream.finished();
	expect(moved.choices[0]?.text).toBe(whole.choices[0]?.text);
	expect(moved.choices[0]?.finishReason).toBe(whole.choices[0]?.finishReason);
	expect({ ...moved.usage, prompt_tokens_details: 0 }).toEqual({ ...whole.usage, prompt_tokens_details: 0 });
	const page = await scrape(frontend.url);
	expect(page.sum(MIGRATIONS, { migration_type: "ongoing_request", model })).toBe(1);
	expect(page.value(OUTCOMES, { outcome: "success", model })).toBe(1);
}

describe("a stream that was moved is byte for byte the one that was not", () => {
	beforeEach(() => {
		fleet = new Fleet();
	});

	test.skipIf(missing)(
		titled("tokens that follow from their place", missing),
		async () => {
			const start = () => fleet.example("tokens-worker.ts", [modelPath, "counter"]);
			const workers = await Promise.all([start(), start()]);
			const frontend = await fleet.frontend("counter", ["--migration-limit", "1"]);
			await compare(frontend, workers, "counter", 200);
		},
		60_000,
	);

	test.skipIf(missingGguf)(
		titled("a real model at temperature 0", missingGguf),
		async () => {
			const path = gguf.path;
			const start = () => fleet.worker(path, "smol");
			const workers = [await start(), await start()];
			const frontend = await fleet.frontend("smol", ["--migration-limit", "1"]);
			await compare(frontend, workers, "smol", 60);
		},
		120_000,
	);
});
