// SPDX-License-Identifier: Apache-2.0
// Whatever becomes of a request to workers that do prefill and decode, all gauges of frontend and workers are at 0
// afterwards.
import { Fleet, type Plane, scrape, testModel, titled, type WorkerChild } from "@dynamo-ts/testing/internal";
import { afterAll, afterEach, test as base, beforeAll, describe, expect } from "vitest";
import {
	chat,
	crowd,
	ENGINE_QUEUE,
	FAILING,
	kill,
	longPrompt,
	MODEL,
	ROUTER_QUEUE,
	RUNNING,
	refused,
	Scene,
	SELDOM,
	SLOW_MOCKER,
	sumOver,
	WAITING,
	WORKER_LIMITS,
} from "./outcomes.js";

const hf = testModel("hf");
/** Requests wait in the router, and nothing is moved. */
export const HOLDS_BACK = "a router that holds requests back";
/** Requests wait at the workers, and go on elsewhere when these are lost. */
export const MOVES = "migration";
const FRONTENDS: Readonly<Record<string, readonly string[]>> = {
	[HOLDS_BACK]: ["--router-mode", "kv", "--router-queue-threshold", "0"],
	[MOVES]: ["--router-mode", "kv", "--migration-limit", "3"],
};

/**
 * Declares the tests.
 * @param names of the frontends, {@link HOLDS_BACK} or {@link MOVES}.
 * @param seldom gauges that need not be seen up, beside those that hardly can.
 */
export function gaugesAfterOutcomes(plane: Plane, names: readonly string[], seldom: readonly string[] = []): void {
	const why = hf.missing || plane.missing;
	describe(titled(`all gauges are at 0 after requests over ${plane.name}`, why), () =>
		declare(why, plane, names, seldom),
	);
}

function declare(why: string, plane: Plane, names: readonly string[], seldom: readonly string[]): void {
	const test = base.skipIf(why);
	let scene: Scene;
	let workers: WorkerChild[];

	const startWorker = async () =>
		scene.addWorker("worker", await scene.fleet.mocker(hf.path, MODEL, SLOW_MOCKER, WORKER_LIMITS));

	beforeAll(async () => {
		if (why) return;
		scene = new Scene(await Fleet.over(plane));
		[workers] = await Promise.all([Promise.all([startWorker(), startWorker()]), scene.addFailing(hf.path)]);
		await Promise.all(names.map((name) => scene.addFrontend(name, FRONTENDS[name] ?? [], [MODEL, FAILING])));
	}, 60_000);
	afterAll(() => scene?.fleet.stop());

	describe.each(names)("with %s", (name) => {
		beforeAll(() => {
			if (!why) scene.use(name);
		});
		afterAll(() => scene?.leave());
		afterEach(async () => {
			if (!why) await scene.watch.settled();
		});
		const running = () => sumOver(workers, RUNNING);
		const waiting = async () =>
			(await sumOver(workers, WAITING)) + (await scrape(scene.frontend.url)).sum(ROUTER_QUEUE);

		test("answers, whole and streamed", async () => {
			expect((await scene.ask(chat("Hi", { max_tokens: 5 }))).status).toBe(200);
			const two = await Promise.all([1, 2].map(() => scene.stream({ max_tokens: 20 })));
			for (const stream of two) expect((await stream.finished()).choices[0]?.finishReason).toBe("length");
		});

		test("requests that are refused", async () => {
			await refused(scene);
		});

		test("a worker that fails, at once and in the middle", async () => {
			for (const stream of [false, true]) {
				for (const max_tokens of [1, 10]) {
					const answer = await scene.ask(chat("Hi", { model: FAILING, stream, max_tokens }));
					expect(answer.status === 200 ? answer.body : `error ${answer.status}`).toMatch(/"error":\{|error 500/);
				}
			}
		});

		test("clients that leave in the middle of their answer", async () => {
			(await scene.stream()).abort();
			await scene.leaveWhen(async () => (await running()) === 1, chat("Hi"));
		});

		test("clients that leave during the prefill", async () => {
			for (const stream of [false, true]) {
				await scene.leaveWhen(async () => (await running()) === 1, chat(longPrompt(), { stream }));
				await scene.watch.settled();
			}
		});

		test("clients that leave while their requests wait", async () => {
			const streams = [await scene.stream(), await scene.stream()];
			for (const stream of [false, true]) {
				await scene.leaveWhen(async () => (await waiting()) === 1, chat(longPrompt(), { stream }));
			}
			for (const stream of streams) stream.abort();
		});

		test("more than there is room for: some wait, some are refused, some leave", async () => {
			await crowd(scene, name === HOLDS_BACK ? ROUTER_QUEUE : ENGINE_QUEUE);
		});

		test("workers killed, one in the prefill, one in the middle of an answer, then the last one", async () => {
			const moves = name === MOVES;
			const early = scene.ask(chat(longPrompt(1000), { max_tokens: 5 }));
			const victim = await scene.busy(workers);
			await scene.watch.look();
			await kill(victim);
			expect((await early).status).toBe(200);
			await scene.watch.settled();

			workers = [...workers.filter((worker) => worker !== victim), await startWorker()];
			const stream = await scene.stream({ max_tokens: 40 }, "either");
			const second = await scene.busy(workers);
			await kill(second);
			expect((await stream.finished()).error === undefined).toBe(moves);
			await scene.watch.settled();

			workers = workers.filter((worker) => worker !== second);
			const last = await scene.stream({ max_tokens: 1000 }, true);
			await kill(workers[0] as WorkerChild);
			expect((await last.finished()).error).toMatchObject({ code: 503 });
			await scene.watch.settled();
			workers = await Promise.all([startWorker(), startWorker()]);
		}, 60_000);
	});

	test("each gauge was seen up in between", () => {
		const never = scene.watch.neverUp.filter((name) => !SELDOM.includes(name) && !seldom.includes(name));
		expect(never).toEqual([]);
	});
}
