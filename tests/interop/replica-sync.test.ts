// SPDX-License-Identifier: Apache-2.0
// A real frontend and one of ours before the same workers tell each other their requests and sessions.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	type Child,
	fileDiscoveryEnv,
	findNatsServer,
	findRealDynamo,
	type HttpChild,
	NatsServer,
	parsePrometheus,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { afterAll, test as base, beforeAll, describe, expect } from "vitest";

const peer = findRealDynamo();
const hf = testModel("hf");
const missing = peer.missing || hf.missing;
const MODEL = "replicas";
const BLOCK_SIZE = 16;
const planes: [plane: "zmq" | "nats", why: string][] = [
	["zmq", titled("", missing)],
	["nats", titled("", missing || findNatsServer().missing)],
];

let prompts = 0;
/** Ids of no special meaning, another prompt each time. */
function prompt(): number[] {
	prompts++;
	return Array.from({ length: 4 * BLOCK_SIZE }, (_, i) => 1000 + ((prompts * 7919 + i * 104_729) % 40_000));
}

function complete(url: string, maxTokens: number, session?: string, signal?: AbortSignal): Promise<Response> {
	return fetch(`${url}/v1/completions`, {
		method: "POST",
		headers: {
			"content-type": "application/json",
			...(session === undefined ? {} : { "x-dynamo-session-id": session }),
		},
		body: JSON.stringify({
			model: MODEL,
			prompt: prompt(),
			max_tokens: maxTokens,
			ignore_eos: true,
			stream: true,
			nvext: { extra_fields: ["worker_id"] },
		}),
		signal: signal ?? AbortSignal.timeout(30_000),
	});
}

/** Blocks that a frontend believes to be in use at all workers. */
async function blocksSeenBy(url: string): Promise<number> {
	const page = parsePrometheus(await (await fetch(`${url}/metrics`)).text());
	return page.sum("dynamo_frontend_worker_active_decode_blocks");
}

async function workerOf(url: string, session: string): Promise<string> {
	const text = await (await complete(url, 2, session)).text();
	return /"decode_worker_id":(\d+)/.exec(text)?.[1] ?? `none in ${text}`;
}

describe.each(planes)("over %s%s", (plane, why) => {
	const test = why ? base.skip : base;
	const folder = mkdtempSync(join(tmpdir(), "dynamo-replicas-"));
	const children: Child[] = [];
	let server: NatsServer | undefined;
	let real: HttpChild;
	let own: HttpChild;

	beforeAll(async () => {
		if (why) return;
		if (plane === "nats") server = await NatsServer.start();
		const env: Record<string, string> = { ...fileDiscoveryEnv(folder), DYN_EVENT_PLANE: plane };
		if (server !== undefined) env.NATS_SERVER = server.url;
		const mocker = ["mocker", "--model-path", hf.path, "--model-name", MODEL, "--block-size", String(BLOCK_SIZE)];
		children.push(startDynamo([...mocker, "--num-workers", "2", "--speedup-ratio", "1"], { env }));
		const args = ["--router-mode", "kv", "--router-replica-sync", "--router-session-affinity-ttl-secs", "60"];
		[real, own] = await Promise.all([
			startRealFrontend(peer.path, env, MODEL, args),
			startOwnHttp("frontend", args, env, MODEL),
		]);
		children.push(real.child, own.child);
		await until("both frontends have both workers", async () => {
			const seen = await Promise.all([real, own].map(({ url }) => workersOf(url)));
			return seen.every((count) => count === 2);
		});
	}, 120_000);

	afterAll(async () => {
		await Promise.all(children.map((child) => child.stop(5000)));
		await server?.stop();
		rmSync(folder, { recursive: true, force: true });
	});

	test.each(["real", "own"] as const)(
		"a request at the %s frontend is load at the other one, until it ends",
		async (kind) => {
			const [here, there] = kind === "real" ? [real.url, own.url] : [own.url, real.url];
			const abort = new AbortController();
			// A request may be over before the other frontend listens: another one then.
			await until("the other frontend counts its blocks", async () => {
				const answer = await complete(here, 2000, undefined, abort.signal);
				void answer.text().catch(() => {});
				for (let i = 0; i < 20; i++) {
					if ((await blocksSeenBy(there)) >= 4) return true;
					await new Promise((resolve) => setTimeout(resolve, 50));
				}
				return false;
			});
			abort.abort();
			await until("nothing is left of it", async () => (await blocksSeenBy(there)) === 0);
			expect(await blocksSeenBy(here)).toBe(0);
		},
		60_000,
	);

	test.each(["real", "own"] as const)(
		"sessions that the %s frontend bound go to the same worker through the other",
		async (kind) => {
			const [here, there] = kind === "real" ? [real.url, own.url] : [own.url, real.url];
			for (let i = 0; i < 6; i++) {
				const session = `${kind}-${i}`;
				const worker = await workerOf(here, session);
				expect(worker).toMatch(/^\d+$/);
				// Told without acknowledgement: a moment passes before the other one knows.
				await new Promise((resolve) => setTimeout(resolve, 100));
				for (let n = 0; n < 3; n++) expect(await workerOf(there, session), session).toBe(worker);
			}
		},
		60_000,
	);
});

async function workersOf(url: string): Promise<number> {
	const page = parsePrometheus(await (await fetch(`${url}/metrics`)).text());
	return page.select("dynamo_component_router_worker_registered").length;
}
