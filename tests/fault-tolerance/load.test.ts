// SPDX-License-Identifier: Apache-2.0
// Many streams at once, clients that do not read, too few file descriptors, and several processes on one host.
import { join } from "node:path";
import {
	Child,
	Fleet,
	freePort,
	type HttpChild,
	http,
	LEAK_PROBE_ENV,
	LeakCheck,
	listsModel,
	openStream,
	PLANES,
	PROJECT_ROOT,
	runStreamLoad,
	scrape,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
} from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const modelPath = hf.path;
const MODEL = "mock";

let fleet: Fleet;
beforeEach(() => {
	fleet = new Fleet();
});
afterEach(async () => {
	await fleet.stop();
});

const rss = async (url: string) => (await scrape(url)).sum("process_resident_memory_bytes");
const chat = (frontend: HttpChild, maxTokens: number) =>
	openStream(
		`${frontend.url}/v1/chat/completions`,
		{
			model: MODEL,
			messages: [{ role: "user", content: "Tell me everything." }],
			max_tokens: maxTokens,
			stream: true,
			stream_options: { include_usage: true },
		},
		{ kind: "chat", model: MODEL, includeUsage: true, allowReplacementCharacter: true },
	);

describe.skipIf(missing)(titled("load", missing), () => {
	test("500 streams at once: none lost, none short", async () => {
		const worker = await fleet.mocker(modelPath, MODEL, ["--max-num-seqs", "512"]);
		const frontend = await fleet.frontend(MODEL);
		const summaries = await runStreamLoad({
			url: frontend.url,
			model: MODEL,
			streams: 500,
			concurrency: 500,
			maxTokens: 16,
			randomTokens: true,
		});
		expect(summaries).toHaveLength(500);
		await untilFrontendIdle(frontend);
		await untilWorkerIdle(worker);
	}, 60_000);

	test.each(["frontend", "mocker"] as const)(
		"too few file descriptors in the %s: 529 at once and a line that says so",
		async (who) => {
			const limited = (args: readonly string[], env: Record<string, string>): Child => {
				const command = `ulimit -n 120 && exec "$0" "$@"`;
				const dynamo = join(PROJECT_ROOT, "bin", "dynamo");
				const child = new Child("sh", ["-c", command, process.execPath, dynamo, ...args], {
					env: { ...fleet.env, ...env },
				});
				fleet.children.push(child);
				return child;
			};
			const [httpPort, systemPort] = [await freePort(), await freePort()];
			const start = (name: string, args: readonly string[], env: Record<string, string>) =>
				name === who ? limited([name, ...args], env) : fleet.start([name, ...args], env);
			start("mocker", ["--model-path", modelPath, "--model-name", MODEL], { DYN_SYSTEM_PORT: String(systemPort) });
			const child = start("frontend", ["--http-port", String(httpPort)], {});
			const frontend = { child, url: `http://127.0.0.1:${httpPort}` };
			await until("the model is listed", () => listsModel(frontend.url, MODEL), { child });
			const ask = async () => {
				const body = { model: MODEL, messages: [{ role: "user", content: "Hi" }], max_tokens: 100 };
				return http(`${frontend.url}/v1/chat/completions`, { body }).catch(() => undefined);
			};
			const answers = await Promise.all(Array.from({ length: 150 }, ask));
			const statuses = new Set(answers.map((answer) => answer?.status));
			expect(statuses).toContain(200);
			expect(statuses).toContain(529);
			for (const status of statuses) expect([200, 529, undefined]).toContain(status);
			const limitedChild = fleet.children[who === "mocker" ? 0 : 1] as Child;
			expect(limitedChild.output).toMatch(
				/too few file descriptors: \d+ of 120 are open; requests are refused.*ulimit -n/,
			);
			await untilFrontendIdle(frontend);
			expect((await ask())?.status).toBe(200);
		},
		60_000,
	);
});

describe.each(PLANES)("clients that stop reading, over $name", (plane) => {
	const why = missing || plane.missing;

	test.skipIf(why)(
		titled("others are not held up, memory stays bounded, and they can go on", why),
		async () => {
			const tokens = 30_000;
			const fleet = await Fleet.over(plane, LEAK_PROBE_ENV);
			try {
				const worker = await fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "0"]);
				const frontend = await fleet.frontend(MODEL);
				const leaks = await LeakCheck.begin([
					{ name: "frontend", child: frontend.child, url: frontend.url },
					{ name: "worker", child: worker.child, url: worker.system },
				]);
				const before = { worker: await rss(worker.system), frontend: await rss(frontend.url) };
				const streams = await Promise.all(Array.from({ length: 6 }, () => chat(frontend, tokens)));
				for (const stream of streams) stream.pause();
				const other = await chat(frontend, 50);
				expect((await other.finished()).usage?.completion_tokens).toBe(50);
				// Each answer is an event stream of 6 MB. What nobody reads stays with the worker, up to its limit.
				await until("the engine is done", async () => {
					const page = await scrape(worker.system);
					return page.sum("dynamo_component_engine_decode_tokens_total") === 6 * tokens + 50;
				});
				expect((await rss(frontend.url)) - before.frontend).toBeLessThan(150e6);
				expect((await rss(worker.system)) - before.worker).toBeLessThan(150e6);
				for (const stream of streams) stream.resume();
				for (const stream of streams) expect((await stream.finished()).usage?.completion_tokens).toBe(tokens);
				await leaks.end();
			} finally {
				await fleet.stop();
			}
		},
		120_000,
	);
});

describe.skipIf(missing)(titled("one host", missing), () => {
	test("two workers and two frontends need nothing but ports of their own for HTTP", async () => {
		const workers = await Promise.all(
			[1, 2].map(async () => {
				const child = fleet.start(["mocker", "--model-path", modelPath, "--model-name", MODEL]);
				await child.waitForOutput(/simulated worker serves/);
				return child;
			}),
		);
		const frontends = await Promise.all([fleet.frontend(MODEL), fleet.frontend(MODEL)]);
		for (const frontend of frontends) {
			await until(
				"both workers are seen",
				async () =>
					(await http(`${frontend.url}/health`)).json.instances.filter(
						({ endpoint }: { endpoint: string }) => endpoint === "generate",
					).length === 2,
			);
			for (let i = 0; i < 4; i++) {
				expect((await (await chat(frontend, 4)).finished()).usage?.completion_tokens).toBe(4);
			}
		}
		for (const worker of workers) expect(worker.output.match(/request received/g)?.length).toBe(4);
	});
});
