// SPDX-License-Identifier: Apache-2.0
// A worker process dies or hangs while requests are under way.
import {
	Fleet,
	type HttpChild,
	openStream,
	type StreamSummary,
	scrape,
	testModel,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const hf = testModel("hf");
const missing = "missing" in hf ? hf.missing : "";
const title = (text: string) => (missing ? `${text} [skipped: ${missing}]` : text);
const modelPath = "path" in hf ? hf.path : "";
const MODEL = "mock";

describe.skipIf(missing)(title("one of two workers"), () => {
	let fleet: Fleet;
	let frontend: HttpChild;
	let workers: [WorkerChild, WorkerChild];

	beforeEach(async () => {
		fleet = new Fleet();
		const start = () => fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "1"]);
		workers = await Promise.all([start(), start()]);
		frontend = await fleet.frontend(MODEL);
	});
	afterEach(async () => {
		await fleet.stop();
	});

	const body = (i: number, maxTokens: number) => ({
		model: MODEL,
		messages: [{ role: "user", content: `Tell me story number ${i}.` }],
		max_tokens: maxTokens,
		stream: true,
	});

	test("killed under load: what had not begun is served by the other, what had ends with an error event", async () => {
		const url = `${frontend.url}/v1/chat/completions`;
		const outcomes: StreamSummary[] = [];
		let killed = false;
		let started = 0;
		let afterwards = 0;
		const lane = async (): Promise<void> => {
			while (afterwards < 200) {
				if (killed) afterwards++;
				const i = started++;
				const stream = await openStream(url, body(i, 40), {
					kind: "chat",
					model: MODEL,
					expectError: "either",
					allowReplacementCharacter: true,
				});
				expect(stream.status).toBe(200);
				outcomes.push(await stream.finished());
			}
		};
		const load = Promise.all(Array.from({ length: 24 }, lane));
		await until("the load runs", () => outcomes.length >= 24);
		workers[0].child.kill("SIGKILL");
		await workers[0].child.exited;
		killed = true;
		await load;

		const failed = outcomes.filter(({ error }) => error !== undefined);
		expect(failed.length).toBeLessThanOrEqual(24);
		for (const summary of failed) {
			expect(summary.error).toEqual({
				message: "Service temporarily unavailable",
				type: "service_unavailable",
				code: 503,
			});
			expect(summary.done).toBe(true);
			// Nothing fails that had shown nothing.
			expect(summary.choices[0]?.contentChunks ?? 0).toBeGreaterThan(0);
		}
		await untilFrontendIdle(frontend);
		await untilWorkerIdle(workers[1]);
		const page = await scrape(frontend.url);
		expect(page.sum("dynamo_frontend_requests_total", { status: "error" })).toBe(failed.length);
		expect(page.sum("dynamo_frontend_requests_total", { status: "success" })).toBe(outcomes.length - failed.length);
	}, 60_000);
});
