// SPDX-License-Identifier: Apache-2.0
// Processes that share a discovery folder while processes stall, die and come back, and the folder goes.
import { readdirSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
	Fleet,
	type HttpChild,
	http,
	LEAK_PROBE_ENV,
	LeakCheck,
	listsModel,
	testModel,
	titled,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { describe, test } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const modelPath = hf.path;
const MODEL = "mock";
const FAST = ["--speedup-ratio", "100"];

/** What processes of a fleet held before the fault. */
const leakChecks = new WeakMap<Fleet, LeakCheck>();

async function withFleet(run: (fleet: Fleet) => Promise<void>): Promise<void> {
	const fleet = new Fleet(LEAK_PROBE_ENV);
	try {
		await run(fleet);
		await leakChecks.get(fleet)?.end();
	} finally {
		await fleet.stop();
	}
}

const ask = (frontend: HttpChild) =>
	http(`${frontend.url}/v1/chat/completions`, {
		body: { model: MODEL, messages: [{ role: "user", content: "Hi" }], max_tokens: 4 },
	});
/** Records of workers; each has others beside, for what routers ask. */
const instances = (fleet: Fleet) =>
	readdirSync(join(fleet.folder, "v1/instances")).filter((name) => name.includes("generate"));
const instancesSeen = async (frontend: HttpChild): Promise<number> =>
	(await http(`${frontend.url}/health`)).json.instances.filter(
		({ endpoint }: { endpoint: string }) => endpoint === "generate",
	).length;

describe.skipIf(missing).concurrent(titled("file discovery between processes", missing), () => {
	test(
		"a worker that stood still for longer than its records live puts them again",
		({ expect }) =>
			withFleet(async (fleet) => {
				const [worker, frontend] = await start(fleet);
				worker.child.kill("SIGSTOP");
				await until("its records are reaped", () => instances(fleet).length === 0);
				await until("the frontend forgot it", async () => !(await listsModel(frontend.url, MODEL)));
				worker.child.kill("SIGCONT");
				await until("it is listed again", () => listsModel(frontend.url, MODEL), { child: worker.child });
				expect((await ask(frontend)).status).toBe(200);
			}),
		120_000,
	);

	test(
		"a frontend that stood still does not reap live records when it wakes",
		({ expect }) =>
			withFleet(async (fleet) => {
				const [, frontend] = await start(fleet);
				const before = instances(fleet);
				frontend.child.kill("SIGSTOP");
				const path = join(fleet.folder, "v1/instances", before[0] as string);
				const since = Date.now();
				await until("12 s of keep-alives", () => statSync(path).mtimeMs > since + 12_000);
				frontend.child.kill("SIGCONT");
				expect((await ask(frontend)).status).toBe(200);
				expect(instances(fleet)).toEqual(before);
			}),
		120_000,
	);

	test(
		"the folder is removed under running processes: all is put again and found",
		({ expect }) =>
			withFleet(async (fleet) => {
				const [, frontend] = await start(fleet);
				// A process may put something again in this very moment.
				rmSync(fleet.folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
				await until("the frontend forgot the worker", async () => (await instancesSeen(frontend)) === 0);
				await until("it found it again", () => listsModel(frontend.url, MODEL));
				expect((await ask(frontend)).status).toBe(200);
				// Also those that start now are found.
				await fleet.mocker(modelPath, MODEL, FAST);
				await until("both are seen", async () => (await instancesSeen(frontend)) === 2);
			}),
		120_000,
	);

	test(
		"the record of a killed worker does not cost the first request",
		({ expect }) =>
			withFleet(async (fleet) => {
				const [dead] = await Promise.all([fleet.mocker(modelPath, MODEL, FAST), fleet.mocker(modelPath, MODEL, FAST)]);
				dead.child.kill("SIGKILL");
				await dead.child.exited;
				// It lives on however long the frontend takes to start.
				const later = new Date(Date.now() + 600_000);
				for (const bucket of ["instances", "mdc"]) {
					const path = join(fleet.folder, "v1", bucket);
					for (const name of readdirSync(path)) utimesSync(join(path, name), later, later);
				}
				const frontend = await fleet.frontend(MODEL);
				expect(instances(fleet)).toHaveLength(2);
				for (let i = 0; i < 6; i++) expect((await ask(frontend)).status).toBe(200);
			}),
		120_000,
	);

	test(
		"records that are damaged, unreadable, foreign or of a wrong clock do no harm",
		({ expect }) =>
			withFleet(async (fleet) => {
				const [, frontend] = await start(fleet);
				const put = (bucket: string, name: string, text: string | Buffer, mtime = new Date()) => {
					const path = join(fleet.folder, "v1", bucket, name);
					writeFileSync(path, text);
					utimesSync(path, mtime, mtime);
				};
				for (const bucket of ["instances", "mdc", "event_channels", "event_sources"]) {
					put(bucket, "dynamo%2Fbackend%2Fgenerate%2F1", '{"type":"Endpoint","name');
					put(bucket, "dynamo%2Fbackend%2Fgenerate%2F2", Buffer.alloc(1000, 0xff));
					put(bucket, "dynamo%2Fbackend%2Fgenerate%2F3", "[".repeat(100_000));
					put(bucket, "dynamo%2Fbackend%2Fgenerate%2F4", '{"type":"Model","card_json":null}');
					put(bucket, "dynamo%2Fbackend%2Fgenerate%2F5", "{}", new Date(Date.now() + 3_600_000));
					put(bucket, "not a key %zz", "hello");
				}
				const extra = await fleet.mocker(modelPath, MODEL, FAST);
				await until("the new one is seen", async () => (await instancesSeen(frontend)) === 2);
				for (let i = 0; i < 4; i++) expect((await ask(frontend)).status).toBe(200);
				extra.child.kill("SIGTERM");
				expect((await extra.child.exited).code).toBe(0);
				await until("it is gone", async () => (await instancesSeen(frontend)) === 1);
				expect(frontend.child.output.match(/Failed to parse discovery record/g)?.length).toBeLessThan(30);
			}),
		120_000,
	);

	test(
		"workers come and go by every way under load, before two frontends: nothing fails",
		({ expect }) =>
			withFleet(async (fleet) => {
				const join = () => fleet.mocker(modelPath, MODEL, FAST);
				const stays = join();
				const workers: WorkerChild[] = await Promise.all([join(), join()]);
				await stays;
				const frontends = await Promise.all([fleet.frontend(MODEL), fleet.frontend(MODEL)]);
				await watch(fleet, frontends, [await stays]);
				let churning = true;
				let served = 0;
				const lane = async (frontend: HttpChild): Promise<void> => {
					while (churning) {
						const answer = await ask(frontend);
						// A unary answer has shown nothing, but the worker may have sent tokens before it was killed.
						if (answer.status !== 503 || answer.json.message !== "Service temporarily unavailable") {
							expect(answer.body).toContain("chat.completion");
						} else lost++;
						served++;
					}
				};
				let lost = 0;
				const load = Promise.all(frontends.flatMap((frontend) => Array.from({ length: 4 }, () => lane(frontend))));
				for (const signal of ["SIGTERM", "SIGKILL", "SIGINT", "SIGKILL"] as const) {
					const leaving = workers.shift() as WorkerChild;
					const goal = served + 50;
					await until("load", () => served >= goal);
					leaving.child.kill(signal);
					await leaving.child.exited;
					workers.push(await join());
				}
				churning = false;
				await load;
				expect(lost).toBeLessThanOrEqual(2 * 8);
			}),
		120_000,
	);
});

async function start(fleet: Fleet): Promise<[WorkerChild, HttpChild]> {
	const worker = await fleet.mocker(modelPath, MODEL, FAST);
	const frontend = await fleet.frontend(MODEL);
	await watch(fleet, [frontend], [worker]);
	return [worker, frontend];
}

/** Begins the leak check of a fleet's processes. */
async function watch(fleet: Fleet, frontends: readonly HttpChild[], workers: readonly WorkerChild[]): Promise<void> {
	const processes = [
		...frontends.map(({ child, url }, i) => ({ name: `frontend ${i}`, child, url })),
		...workers.map(({ child, system }, i) => ({ name: `worker ${i}`, child, url: system })),
	];
	leakChecks.set(fleet, await LeakCheck.begin(processes));
}
