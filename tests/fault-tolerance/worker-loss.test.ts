// SPDX-License-Identifier: Apache-2.0
// A worker process dies or hangs while requests are under way.
import {
	Fleet,
	type HttpChild,
	http,
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
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterEach, test as base, describe, expect } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const modelPath = hf.path;
const MODEL = "mock";

describe.each(PLANES)("one of two workers, over $name", (plane) => {
	const why = missing || plane.missing;
	const test = base.skipIf(why);
	let fleet: Fleet;
	let frontend: HttpChild;
	let workers: [WorkerChild, WorkerChild];
	let leaks: LeakCheck;

	/** Starts two workers and a frontend. */
	async function start(args: readonly string[] = [], env: Record<string, string> = {}): Promise<void> {
		fleet = await Fleet.over(plane, { ...LEAK_PROBE_ENV, ...env });
		const mocker = () => fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "1"]);
		workers = await Promise.all([mocker(), mocker()]);
		frontend = await fleet.frontend(MODEL, args);
		leaks = await LeakCheck.begin([
			{ name: "frontend", child: frontend.child, url: frontend.url },
			{ name: "worker", child: workers[1].child, url: workers[1].system },
		]);
	}
	afterEach(async () => {
		await fleet?.stop();
	});

	const body = (i: number, maxTokens: number) => ({
		model: MODEL,
		messages: [{ role: "user", content: `Tell me story number ${i}.` }],
		max_tokens: maxTokens,
		stream: true,
	});

	test(titled(
		"killed under load: what had not begun is served by the other, what had ends with an error event",
		why,
	), async () => {
		await start();
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
		await leaks.end();
		const page = await scrape(frontend.url);
		expect(page.sum("dynamo_frontend_requests_total", { status: "error" })).toBe(failed.length);
		expect(page.sum("dynamo_frontend_requests_total", { status: "success" })).toBe(outcomes.length - failed.length);
	}, 90_000);

	/** Streams in turn on both workers, each begun. */
	async function openBoth(count: number, expectError: "either" | boolean): Promise<SseStream[]> {
		const streams: SseStream[] = [];
		for (let i = 0; i < count; i++) {
			const expected = { kind: "chat", model: MODEL, expectError, allowReplacementCharacter: true } as const;
			streams.push(await openStream(`${frontend.url}/v1/chat/completions`, body(i, 200), expected));
		}
		await Promise.all(streams.map((stream) => stream.events(2)));
		return streams;
	}
	const silence = { DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS: "2", DYN_TCP_REQUEST_TIMEOUT: "1" };

	test(titled(
		"that falls silent: its streams end in time with an error event, the other's do not notice",
		why,
	), async () => {
		await start([], silence);
		const streams = await openBoth(6, "either");
		workers[0].child.kill("SIGSTOP");
		const ends = await Promise.all(streams.map((stream) => stream.finished()));
		const failed = ends.filter(({ error }) => error !== undefined);
		expect(failed).toHaveLength(3);
		for (const { error, done } of failed) {
			expect(error).toEqual({ message: "Request deadline exceeded", type: "timeout_error", code: 504 });
			expect(done).toBe(true);
		}
		// What it does not acknowledge goes to the other one.
		for (let i = 0; i < 4; i++) {
			const answer = await http(`${frontend.url}/v1/chat/completions`, { body: { ...body(i, 5), stream: false } });
			expect(answer.status).toBe(200);
		}
		await leaks.end();
		workers[0].child.kill("SIGCONT");
		await untilWorkerIdle(workers[0]);
	}, 90_000);

	test(titled("that falls silent, with migration on: nobody notices", why), async () => {
		await start(["--migration-limit", "1"], silence);
		const streams = await openBoth(6, false);
		workers[0].child.kill("SIGSTOP");
		for (const stream of streams) expect((await stream.finished()).choices[0]?.finishReason).toBe("length");
		await leaks.end();
		workers[0].child.kill("SIGCONT");
		await untilWorkerIdle(workers[0]);
	}, 90_000);
});
