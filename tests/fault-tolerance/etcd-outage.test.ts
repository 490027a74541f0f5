// SPDX-License-Identifier: Apache-2.0
// A frontend and simulated workers under load while etcd is killed, stands still, comes back empty or drops leases.
import {
	EtcdServer,
	Fleet,
	findEtcd,
	findNatsServer,
	type HttpChild,
	http,
	LEAK_PROBE_ENV,
	LeakCheck,
	NatsServer,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, type ExpectStatic, test } from "vitest";

const MODEL = "mock";
const TTL_SECONDS = 3;
const hf = testModel("hf");
const etcd = findEtcd();
const nats = findNatsServer();
const missing = hf.missing || etcd.missing;
const modelPath = hf.path;

interface World {
	readonly etcd: EtcdServer;
	readonly frontend: HttpChild;
	readonly workers: readonly WorkerChild[];
	readonly leaks: LeakCheck;
	stop(): Promise<void>;
}

/** Starts a frontend and two workers that find each other through an etcd of their own. */
async function startWorld(plane: string): Promise<World> {
	const server = await EtcdServer.start();
	const broker = plane === "nats" ? await NatsServer.start() : undefined;
	const fleet = new Fleet({
		...LEAK_PROBE_ENV,
		DYN_DISCOVERY_BACKEND: "etcd",
		ETCD_ENDPOINTS: server.url,
		ETCD_LEASE_TTL: String(TTL_SECONDS),
		DYN_REQUEST_PLANE: plane,
		...(broker === undefined ? {} : { NATS_SERVER: broker.url }),
	});
	const stop = async () => {
		await fleet.stop();
		await broker?.stop();
		await server.stop();
	};
	try {
		const worker = () => fleet.mocker(modelPath, MODEL, ["--speedup-ratio", "20"]);
		const workers = await Promise.all([worker(), worker()]);
		const frontend = await fleet.frontend(MODEL);
		await until("both workers are seen", async () => (await instancesSeen(frontend)) === 2);
		const leaks = await LeakCheck.begin([
			{ name: "frontend", child: frontend.child, url: frontend.url },
			...workers.map(({ child, system }, i) => ({ name: `worker ${i}`, child, url: system })),
		]);
		return { etcd: server, frontend, workers, leaks, stop };
	} catch (error) {
		await stop();
		throw error;
	}
}

const instancesSeen = async (frontend: HttpChild): Promise<number> =>
	(await http(`${frontend.url}/health`)).json.instances.filter(
		(instance: { endpoint: string }) => instance.endpoint === "generate",
	).length;

const keysOf = (server: EtcdServer): string[] =>
	server
		.etcdctl("get", "--prefix", "v1/", "--keys-only")
		.split("\n")
		.filter((key) => /^v1\/(?:instances|mdc)\/.*\/generate\//.test(key))
		.sort();

/** Two of each worker. On a busy machine a process may be late for its lease, and has to put its keys again. */
async function allKeys(server: EtcdServer): Promise<string[]> {
	let keys: string[] = [];
	await until("all keys are in etcd", () => {
		keys = keysOf(server);
		return keys.length === 4;
	});
	return keys;
}

/** Requests from four lanes, one after the other in each, while `during` runs. Every answer must be whole. */
async function underLoad(expect: ExpectStatic, world: World, during: () => Promise<void>): Promise<void> {
	let running = true;
	let served = 0;
	const failed: string[] = [];
	const lane = async (): Promise<void> => {
		while (running) {
			const answer = await http(`${world.frontend.url}/v1/chat/completions`, {
				body: { model: MODEL, messages: [{ role: "user", content: "Hi" }], max_tokens: 16, stream: true },
			});
			const whole = answer.body.endsWith("data: [DONE]\n\n") && !/^event: error|^data: {"error"/m.test(answer.body);
			if (answer.status === 200 && whole) served++;
			else failed.push(`${answer.status} ${answer.body.slice(-500)}`);
			await new Promise((resolve) => setTimeout(resolve, 20));
		}
	};
	const lanes = Promise.all([lane(), lane(), lane(), lane()]);
	try {
		await during();
	} finally {
		running = false;
	}
	await lanes;
	console.info(`${served} requests served, ${failed.length} failed`);
	expect(failed).toEqual([]);
	expect(served).toBeGreaterThan(0);
}

/** No process ended or was started anew, and nothing is left under way. */
async function allAsBefore(expect: ExpectStatic, { frontend, workers, leaks }: World): Promise<void> {
	for (const { child } of [frontend, ...workers]) expect(child.ended).toBeUndefined();
	await untilFrontendIdle(frontend);
	for (const worker of workers) await untilWorkerIdle(worker);
	// After a failed call etcd's library asks for what comes next over new connections, while watches that run stay on
	// theirs: the watches of up to three buckets, one connection before, may then have one each.
	await leaks.end({ connections: 2 });
}

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

for (const plane of ["tcp", "nats"]) {
	const why = missing || (plane === "nats" ? nats.missing : "");
	describe.skipIf(why)(titled(`etcd outages, requests over ${plane}`, why), () => {
		let world: World;
		beforeAll(async () => {
			world = await startWorld(plane);
		}, 120_000);
		afterAll(() => world?.stop());

		for (const way of ["killed", "stopped"]) {
			test(`${way} for three times the lease's time to live, then back: no request fails`, async ({ expect }) => {
				const before = await allKeys(world.etcd);
				await underLoad(expect, world, async () => {
					if (way === "killed") await world.etcd.kill();
					else world.etcd.child.kill("SIGSTOP");
					await pause(3000 * TTL_SECONDS);
					const since = performance.now();
					if (way === "killed") await world.etcd.restart();
					else world.etcd.child.kill("SIGCONT");
					await until("all keys are in etcd", () => keysOf(world.etcd).join() === before.join());
					console.info(`${way}: keys there ${Math.round(performance.now() - since)} ms after etcd`);
					// Whatever is told late is told within this.
					await pause(2000);
				});
				expect(await instancesSeen(world.frontend)).toBe(2);
				await allAsBefore(expect, world);
			}, 120_000);
		}

		test("a lease revoked by hand: its keys come back, no request fails", async ({ expect }) => {
			const before = await allKeys(world.etcd);
			const id = before[0]?.split("/").at(-1) as string;
			await underLoad(expect, world, async () => {
				world.etcd.etcdctl("lease", "revoke", id);
				await until("all keys are in etcd", () => keysOf(world.etcd).join() === before.join());
				await until("both are seen", async () => (await instancesSeen(world.frontend)) === 2);
			});
			await allAsBefore(expect, world);
		}, 120_000);

		test("back with an empty data folder: everything is there again, no request fails", async ({ expect }) => {
			const before = await allKeys(world.etcd);
			await underLoad(expect, world, async () => {
				await world.etcd.kill();
				await world.etcd.restart({ empty: true });
				const since = performance.now();
				await until("all keys are in etcd", () => keysOf(world.etcd).join() === before.join());
				console.info(`emptied: keys back ${Math.round(performance.now() - since)} ms after etcd`);
				// Beyond the time for which a frontend keeps what is missing.
				await pause(12_000);
			});
			expect(await instancesSeen(world.frontend)).toBe(2);
			await allAsBefore(expect, world);
			// The frontend's watches follow the new store.
			world.workers[0]?.child.kill("SIGTERM");
			await until("it left", async () => (await instancesSeen(world.frontend)) === 1);
		}, 120_000);
	});
}
