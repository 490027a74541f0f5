// SPDX-License-Identifier: Apache-2.0
// Requests over NATS: the NATS server dies and comes back, stays away, takes only small messages.
import {
	Fleet,
	findNatsServer,
	type HttpChild,
	http,
	LEAK_PROBE_ENV,
	LeakCheck,
	NatsServer,
	openStream,
	type SseStream,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";

const hf = testModel("hf");
const program = findNatsServer();
const missing = hf.missing || program.missing;
const modelPath = hf.path;
const MODEL = "mock";

let nats: NatsServer | undefined;
let fleet: Fleet | undefined;
afterEach(async () => {
	await fleet?.stop();
	await nats?.stop();
	fleet = undefined;
	nats = undefined;
});

interface World {
	readonly nats: NatsServer;
	readonly fleet: Fleet;
	readonly workers: WorkerChild[];
	readonly frontend: HttpChild;
	readonly leaks: LeakCheck;
}

async function start(options: { workers: number; config?: string; env?: Record<string, string> }): Promise<World> {
	nats = await NatsServer.start(options.config === undefined ? {} : { config: options.config });
	const started = new Fleet({ ...LEAK_PROBE_ENV, DYN_REQUEST_PLANE: "nats", NATS_SERVER: nats.url, ...options.env });
	fleet = started;
	const workers = await Promise.all(
		Array.from({ length: options.workers }, () => started.mocker(modelPath, MODEL, ["--speedup-ratio", "4"])),
	);
	const frontend = await started.frontend(MODEL);
	await until("every worker is seen", async () => {
		const { instances } = (await http(`${frontend.url}/health`)).json as { instances: { endpoint: string }[] };
		return instances.filter(({ endpoint }) => endpoint === "generate").length === options.workers;
	});
	const leaks = await LeakCheck.begin([
		{ name: "frontend", child: frontend.child, url: frontend.url },
		...workers.map(({ child, system }, i) => ({ name: `worker ${i}`, child, url: system })),
	]);
	return { nats, fleet: started, workers, frontend, leaks };
}

const body = (maxTokens: number, prompt = "Count as far as you can.") => ({
	model: MODEL,
	messages: [{ role: "user", content: prompt }],
	max_tokens: maxTokens,
	ignore_eos: true,
	stream: true,
	stream_options: { include_usage: true },
});
const open = (frontend: HttpChild, maxTokens: number): Promise<SseStream> =>
	openStream(`${frontend.url}/v1/chat/completions`, body(maxTokens), {
		kind: "chat",
		model: MODEL,
		includeUsage: true,
		allowReplacementCharacter: true,
	});

/** All processes are those that were started, and nothing is left under way in them. */
async function untilQuiet({ frontend, workers, leaks }: World): Promise<void> {
	for (const child of [frontend.child, ...workers.map((worker) => worker.child)]) expect(child.ended).toBeUndefined();
	await untilFrontendIdle(frontend);
	for (const worker of workers) await untilWorkerIdle(worker);
	await leaks.end();
}

describe.skipIf(missing)(titled("over NATS", missing), () => {
	test("NATS killed and restarted under load, twice: no request fails, no process ends", async () => {
		const world = await start({ workers: 2 });
		const { frontend } = world;
		const running: Promise<void>[] = [];
		const failures: unknown[] = [];
		let loading = true;
		let served = 0;
		const one = async () => {
			try {
				const summary = await (await open(frontend, 20)).finished();
				expect(summary.usage?.completion_tokens).toBe(20);
				served++;
			} catch (error) {
				failures.push(error);
			}
		};
		const load = (async () => {
			while (loading) {
				running.push(one());
				await new Promise((resolve) => setTimeout(resolve, 50));
			}
			await Promise.all(running);
		})();
		for (let round = 1; round <= 2; round++) {
			const before = served;
			await until("requests are served", () => served >= before + 20);
			await world.nats.kill();
			await until("the frontend has noticed", () => countOf(frontend, "connection to NATS lost") === round);
			const asked = running.length;
			await until("requests came meanwhile", () => running.length >= asked + 10);
			await world.nats.restart();
			await until("the frontend is back", () => countOf(frontend, "connected to NATS again") === round);
		}
		const after = served;
		await until("requests are served again", () => served >= after + 40);
		loading = false;
		await load;
		expect(failures).toEqual([]);
		expect(served).toBe(running.length);
		await untilQuiet(world);
	}, 120_000);

	test("streams that stand go on without NATS", async () => {
		const world = await start({ workers: 1 });
		const stream = await open(world.frontend, 400);
		await stream.events(4);
		await world.nats.kill();
		const summary = await stream.finished();
		expect(summary.usage?.completion_tokens).toBe(400);
		await world.nats.restart();
		expect((await (await open(world.frontend, 5)).finished()).usage?.completion_tokens).toBe(5);
		await untilQuiet(world);
	}, 60_000);

	test("NATS stays away: 503 within the request's time, and all is well when it is back", async () => {
		const world = await start({ workers: 1, env: { DYN_NATS_REQUEST_TIMEOUT_SECS: "0.5" } });
		const { frontend } = world;
		await world.nats.kill();
		await until("the frontend has noticed", () => countOf(frontend, "connection to NATS lost") === 1);
		const answer = await http(`${frontend.url}/v1/chat/completions`, { body: body(5) });
		expect(answer.status, answer.body).toBe(503);
		await world.nats.restart();
		await until("both are back", () =>
			[frontend.child, (world.workers[0] as WorkerChild).child].every((child) =>
				child.output.includes("connected to NATS again"),
			),
		);
		expect((await (await open(frontend, 5)).finished()).usage?.completion_tokens).toBe(5);
		await untilQuiet(world);
	}, 60_000);

	test("a prompt beyond the server's max_payload is a 413 that names both numbers and what to change", async () => {
		const world = await start({ workers: 1, config: "max_payload: 8192" });
		const answer = await http(`${world.frontend.url}/v1/chat/completions`, {
			body: { ...body(5, "word ".repeat(5000)), stream: false, stream_options: undefined },
		});
		expect(answer.status).toBe(413);
		expect(answer.json.error.message).toMatch(/\d{5} bytes.*8192.*max_payload.*DYN_REQUEST_PLANE/);
		expect((await (await open(world.frontend, 5)).finished()).usage?.completion_tokens).toBe(5);
		await untilQuiet(world);
	}, 60_000);

	test("namespaces do not meet: the same component in two of them, each asked for its own model", async () => {
		const world = await start({ workers: 1 });
		const other = await world.fleet.mocker(modelPath, "other", ["--endpoint", "dyn://elsewhere.backend.generate"]);
		const ask = async (model: string) =>
			(
				await http(`${world.frontend.url}/v1/chat/completions`, {
					body: { ...body(3), model, stream: false, stream_options: undefined },
				})
			).status;
		await until("the other model is served", async () => (await ask("other")) === 200);
		for (let i = 0; i < 5; i++) expect(await ask(MODEL)).toBe(200);
		const received = (worker: WorkerChild) => worker.child.output.match(/request received/g)?.length ?? 0;
		expect(received(world.workers[0] as WorkerChild)).toBe(5);
		expect(received(other)).toBe(1);
	}, 60_000);
});

function countOf(frontend: HttpChild, text: string): number {
	return frontend.child.output.split(text).length - 1;
}
