// SPDX-License-Identifier: Apache-2.0
// Many requests at once before one simulated prefill worker that meets decode workers, and a frontend that makes them wait for
// their turn (`--router-queue-threshold`).
import {
	Fleet,
	freePort,
	type HttpChild,
	http,
	scrape,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const hf = testModel("hf");
const MODEL = "queued";
const REQUESTS = 12;

describe.skipIf(hf.missing)(titled("a prefill worker with more than it can compute", hf.missing), () => {
	let fleet: Fleet;
	let frontend: HttpChild;
	let workers: WorkerChild[];

	beforeAll(async () => {
		fleet = new Fleet();
		// A prompt takes some tenths of a second.
		const common = ["--block-size", "16", "--speedup-ratio", "0.2", "--max-num-batched-tokens", "512"];
		const ports = ["--bootstrap-ports", String(await freePort())];
		workers = await Promise.all([
			fleet.mocker(hf.path, MODEL, [...common, "--disaggregation-mode", "prefill", ...ports]),
			fleet.mocker(hf.path, MODEL, [...common, "--disaggregation-mode", "decode"]),
			fleet.mocker(hf.path, MODEL, [...common, "--disaggregation-mode", "decode"]),
		]);
		frontend = await fleet.frontend(MODEL, ["--router-mode", "kv", "--router-queue-threshold", "0.5"]);
	}, 60_000);
	afterAll(() => fleet?.stop());

	const ask = (i: number, signal?: AbortSignal) =>
		http(`${frontend.url}/v1/chat/completions`, {
			body: {
				model: MODEL,
				messages: [{ role: "user", content: `${i} ${"What is known of it, and by whom? ".repeat(50)}` }],
				max_tokens: 4,
				ignore_eos: true,
			},
			...(signal === undefined ? {} : { signal }),
		});
	const waiting = async () => (await scrape(frontend.url)).sum("dynamo_frontend_router_queue_pending_requests");
	const untilAsked = (count: number) =>
		until(`${count} prompts have asked for a worker`, async () => {
			const page = await scrape(frontend.url);
			return page.sum("dynamo_frontend_router_admission_received_total", { worker_type: "prefill" }) === count;
		});

	test("all are served in turn, those that leave are forgotten, and nothing is left", async () => {
		const abort = new AbortController();
		const answers = Array.from({ length: REQUESTS }, (_, i) => ask(i));
		await until("some wait", async () => (await waiting()) > 2);
		await untilAsked(REQUESTS);
		const left = Array.from({ length: 3 }, (_, i) => ask(100 + i, abort.signal).catch(() => "left"));
		await untilAsked(REQUESTS + 3);
		abort.abort();
		for (const answer of await Promise.all(answers)) {
			expect(answer.status, answer.body).toBe(200);
			expect(answer.json.usage.completion_tokens).toBe(4);
		}
		expect(await Promise.all(left)).toEqual(["left", "left", "left"]);
		expect(await waiting()).toBe(0);
		await untilFrontendIdle(frontend);
		for (const worker of workers) await untilWorkerIdle(worker);
		const [prefill] = workers as [WorkerChild];
		const page = await scrape(prefill.system);
		const computed = page.sum("dynamo_component_requests_total", { dynamo_endpoint: "generate" });
		expect(computed).toBeGreaterThanOrEqual(REQUESTS);
		// Those that left stood behind all others.
		expect(computed).toBeLessThan(REQUESTS + 3);
	}, 60_000);
});
