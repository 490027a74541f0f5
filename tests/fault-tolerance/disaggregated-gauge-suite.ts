// SPDX-License-Identifier: Apache-2.0
// Whatever becomes of a request to a prefill and a decode worker, all gauges of frontend and workers are at 0 afterwards.
import { Fleet, freePort, type Plane, testModel, titled, until, type WorkerChild } from "@dynamo-ts/testing/internal";
import { afterAll, afterEach, test as base, beforeAll, describe, expect } from "vitest";
import {
	chat,
	crowd,
	ENGINE_QUEUE,
	kill,
	longPrompt,
	MODEL,
	ROUTER_QUEUE_GAUGES,
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

/** How requests come to a prefill and a decode worker. */
export interface Way {
	readonly name: string;
	/** Prefill and decode worker have the request at once. */
	readonly meet: boolean;
	/** Streams of decode workers that are lost go on elsewhere. */
	readonly moves: boolean;
}

/** Declares the tests. */
export function gaugesAfterHandedOver(plane: Plane, way: Way): void {
	const why = hf.missing || plane.missing;
	const name = `all gauges are at 0 after requests to prefill and decode workers, ${way.name}, over ${plane.name}`;
	describe(titled(name, why), () => declare(why, plane, way));
}

function declare(why: string, plane: Plane, { meet, moves }: Way): void {
	const test = base.skipIf(why);
	let scene: Scene;
	let prefills: WorkerChild[];
	let decodes: WorkerChild[];

	const start = async (role: "prefill" | "decode"): Promise<WorkerChild> => {
		const ports = meet && role === "prefill" ? ["--bootstrap-ports", String(await freePort())] : [];
		const own = [...SLOW_MOCKER, "--disaggregation-mode", role, ...ports];
		return scene.addWorker(role, await scene.fleet.mocker(hf.path, MODEL, own, WORKER_LIMITS));
	};

	beforeAll(async () => {
		if (why) return;
		scene = new Scene(await Fleet.over(plane));
		[prefills, decodes] = await Promise.all([
			Promise.all([start("prefill"), start("prefill")]),
			Promise.all([start("decode"), start("decode")]),
		]);
		await scene.addFrontend("frontend", ["--router-mode", "kv", ...(moves ? ["--migration-limit", "3"] : [])], [MODEL]);
		scene.use("frontend");
	}, 60_000);
	afterAll(() => scene?.fleet.stop());
	afterEach(async () => {
		if (!why) await scene.watch.settled();
	});

	test("answers, and requests that are refused", async () => {
		expect((await scene.ask(chat("Hi", { max_tokens: 5 }))).status).toBe(200);
		const two = await Promise.all([1, 2].map(() => scene.stream({ max_tokens: 20 })));
		for (const stream of two) expect((await stream.finished()).choices[0]?.finishReason).toBe("length");
		await scene.watch.settled();
		await refused(scene);
	});

	test("clients that leave during the prefill, and in the middle of their answer", async () => {
		for (const stream of [false, true]) {
			await scene.leaveWhen(async () => (await sumOver(prefills, RUNNING)) === 1, chat(longPrompt(), { stream }));
			await scene.watch.settled();
		}
		(await scene.stream()).abort();
		await scene.leaveWhen(async () => (await sumOver(decodes, RUNNING)) === 1, chat("Hi"));
	});

	test("clients that leave while their requests wait for either worker", async () => {
		const leave = new AbortController();
		const long = [1, 2].map(() => scene.ask(chat(longPrompt()), undefined, leave.signal).catch(() => {}));
		await until("both prefill workers have work", async () => (await sumOver(prefills, RUNNING)) === 2);
		await scene.leaveWhen(async () => (await sumOver(prefills, WAITING)) === 1, chat(longPrompt()));
		leave.abort();
		await Promise.all(long);
		await scene.watch.settled();
		const streams = [await scene.stream(), await scene.stream()];
		await scene.leaveWhen(async () => (await sumOver(decodes, WAITING)) === 1, chat("Ho"));
		for (const stream of streams) stream.abort();
	});

	test("more than there is room for: some wait, some are refused, some leave", async () => {
		await crowd(scene, ENGINE_QUEUE);
	});

	test("prefill workers killed in the prefill, one of two, then the last one", async () => {
		for (let i = 0; i < 2; i++) {
			const answer = scene.ask(chat(longPrompt(1000), { max_tokens: 5 }));
			const victim = await scene.busy(prefills);
			await scene.watch.look();
			await kill(victim);
			prefills = prefills.filter((worker) => worker !== victim);
			expect((await answer).status).toBe(200);
			await scene.watch.settled();
		}
		prefills = [await start("prefill")];
	}, 60_000);

	test("decode workers killed in the middle of an answer, one of two, then the last one", async () => {
		for (const last of [false, true]) {
			const stream = await scene.stream({ max_tokens: 100 }, "either");
			const victim = await scene.busy(decodes);
			await kill(victim);
			decodes = decodes.filter((worker) => worker !== victim);
			expect((await stream.finished()).error === undefined).toBe(moves && !last);
			await scene.watch.settled();
		}
		// Whether the frontend has heard from discovery that the model is gone, or not yet.
		expect([404, 503]).toContain((await scene.ask(chat("Hi"))).status);
	}, 60_000);

	test("each gauge was seen up in between", () => {
		expect(scene.watch.neverUp.filter((name) => !SELDOM.includes(name) && !ROUTER_QUEUE_GAUGES.includes(name))).toEqual(
			[],
		);
	});
}
