// SPDX-License-Identifier: Apache-2.0
// Clients that leave: whatever the request was at, its work ends and its blocks are free; and a worker with limits.
import {
	Fleet,
	type HttpChild,
	http,
	inflightOf,
	LEAK_PROBE_ENV,
	LeakCheck,
	openStream,
	PLANES,
	scrape,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, test as base, beforeAll, describe, expect } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const modelPath = hf.path;
const MODEL = "mock";

const chat = (content: string, more: object = {}) => ({
	model: MODEL,
	messages: [{ role: "user", content }],
	max_tokens: 4000,
	ignore_eos: true,
	...more,
});
const LONG_PROMPT = "word ".repeat(3000);

describe.each(PLANES)("a client that leaves, over $name", (plane) => {
	const why = missing || plane.missing;
	const test = base.skipIf(why);
	let fleet: Fleet;
	let frontend: HttpChild;
	let worker: WorkerChild;
	let leaks: LeakCheck;
	let cancelled = 0;

	beforeAll(async () => {
		if (why) return;
		fleet = await Fleet.over(plane, LEAK_PROBE_ENV);
		// Slow enough that each phase can be met: one sequence at a time, a prefill of many steps.
		const args = ["--max-num-seqs", "1", "--max-num-batched-tokens", "64", "--speedup-ratio", "0.2"];
		worker = await fleet.mocker(modelPath, MODEL, args);
		frontend = await fleet.frontend(MODEL);
		leaks = await LeakCheck.begin([
			{ name: "frontend", child: frontend.child, url: frontend.url },
			{ name: "worker", child: worker.child, url: worker.system },
		]);
	});
	afterAll(async () => {
		await fleet?.stop();
	});

	const value = async (name: string) => (await scrape(worker.system)).sum(`dynamo_component_${name}`);
	const url = () => `${frontend.url}/v1/chat/completions`;

	/** The worker has no work, its cache nothing in use, and both sides counted the cancellation. */
	async function expectFreed(requestType: "stream" | "unary"): Promise<void> {
		await untilWorkerIdle(worker);
		await untilFrontendIdle(frontend);
		for (const name of ["engine_running_requests", "engine_waiting_requests", "kvstats_active_blocks"]) {
			await until(`${name} is 0`, async () => (await value(name)) === 0, { child: worker.child });
		}
		cancelled++;
		expect(await value("cancellation_total")).toBe(cancelled);
		const page = await scrape(frontend.url);
		expect(page.sum("dynamo_frontend_model_cancellation_total")).toBe(cancelled);
		expect(page.sum("dynamo_frontend_disconnected_clients")).toBe(cancelled);
		expect(page.sum("dynamo_frontend_model_cancellation_total", { request_type: requestType })).toBeGreaterThan(0);
	}

	test(titled("in the middle of decoding", why), async () => {
		const stream = await openStream(url(), chat("Hi", { stream: true }), {
			kind: "chat",
			allowReplacementCharacter: true,
		});
		await stream.events(3);
		stream.abort();
		await expectFreed("stream");
	});

	test(titled("during the prefill", why), async () => {
		const leave = new AbortController();
		const answer = http(url(), { body: chat(LONG_PROMPT, { stream: true }), signal: leave.signal });
		answer.catch(() => {});
		await until("it is being prefilled", async () => (await value("engine_running_requests")) === 1);
		leave.abort();
		await expectFreed("stream");
	});

	test(titled("while its answer in one piece is being made", why), async () => {
		const leave = new AbortController();
		const answer = http(url(), { body: chat("Hi"), signal: leave.signal });
		answer.catch(() => {});
		await until("it is being decoded", async () => (await value("engine_running_requests")) === 1);
		leave.abort();
		await expectFreed("unary");
	});

	test(titled("while it is queued; the one that runs notices nothing", why), async () => {
		const running = await openStream(
			url(),
			chat("Hi", { stream: true, max_tokens: 60, stream_options: { include_usage: true } }),
			{
				kind: "chat",
				includeUsage: true,
				allowReplacementCharacter: true,
			},
		);
		await running.events(2);
		const leave = new AbortController();
		const queued = http(url(), { body: chat("Ho"), signal: leave.signal });
		queued.catch(() => {});
		await until("it is queued", async () => (await value("engine_waiting_requests")) === 1);
		leave.abort();
		await until("it is gone", async () => (await value("engine_waiting_requests")) === 0);
		expect((await running.finished()).usage?.completion_tokens).toBe(60);
		await expectFreed("unary");
	});

	test(titled("nothing of it all is left", why), async () => {
		await leaks.end();
	}, 60_000);
});

describe("a worker with limits", () => {
	base.skipIf(missing)(
		titled("one request runs, one waits, the others are refused at once with 529", missing),
		async () => {
			const fleet = new Fleet();
			try {
				const limits = { DYN_ENGINE_REQUEST_LIMIT: "1", DYN_DYNAMO_REQUEST_QUEUE_LIMIT: "1" };
				const worker = await fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "0.5"], limits);
				const frontend = await fleet.frontend(MODEL);
				const url = `${frontend.url}/v1/chat/completions`;
				const first = http(url, { body: chat("Hi", { max_tokens: 150 }) });
				await until("one runs", async () => (await inflightOf(worker)) === 1);
				const second = http(url, { body: chat("Hi", { max_tokens: 5 }) });
				await until("one waits", async () => (await scrape(worker.system)).sum("dynamo_request_queue") === 1);
				for (const stream of [false, true]) {
					const answer = await http(url, { body: chat("Hi", { stream }) });
					expect(answer.status).toBe(529);
					expect(answer.statusMessage).toBe("<none>");
					expect(answer.json).toMatchObject({
						message: "Service temporarily overloaded",
						type: "Overloaded",
						code: 529,
					});
					expect(answer.headers["retry-after"]).toBe("1");
				}
				expect((await Promise.all([first, second])).map(({ status }) => status)).toEqual([200, 200]);
				const page = await scrape(worker.system);
				expect(page.value("dynamo_rejection_request_total")).toBe(2);
				expect(page.value("dynamo_request_queue")).toBe(0);
				expect(page.value("dynamo_engine_request")).toBe(0);
				const failures = { class: "CapacityExhausted", reason: "capacity.worker_overloaded" };
				expect((await scrape(frontend.url)).value("dynamo_frontend_failures_total", failures)).toBe(2);
			} finally {
				await fleet.stop();
			}
		},
	);
});
