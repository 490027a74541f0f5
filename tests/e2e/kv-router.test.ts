// SPDX-License-Identifier: Apache-2.0
// Our frontend in the router mode kv before our mockers, in one process: the holder of a prefix gets the request.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Frontend, startFrontend } from "@dynamo-ts/frontend";
import { KvEventSubscriber } from "@dynamo-ts/router";
import { createMemStore, DistributedRuntime, type MemStore } from "@dynamo-ts/runtime";
import { PROJECT_ROOT, until } from "@dynamo-ts/testing/internal";
import { startMocker } from "@dynamo-ts/worker";
import { afterEach, expect, it } from "vitest";

const ENDPOINT = { namespace: "dynamo", component: "backend", name: "generate" };
const FOLDER = join(PROJECT_ROOT, "packages/frontend/fixtures/tiny-model");
const FILES = {
	config: join(FOLDER, "config.json"),
	tokenizer: join(FOLDER, "tokenizer.json"),
	tokenizerConfig: join(FOLDER, "tokenizer_config.json"),
	generationConfig: join(FOLDER, "generation_config.json"),
	chatTemplate: undefined,
	extra: [],
};
const ends: (() => Promise<unknown> | unknown)[] = [];

afterEach(async () => {
	for (const end of ends.splice(0).reverse()) await end();
});

async function startRuntime(memStore: MemStore): Promise<DistributedRuntime> {
	const runtime = await DistributedRuntime.create({
		discoveryBackend: "mem",
		memStore,
		systemPort: -1,
		shutdownTimeoutMs: 1000,
		log: { filter: process.env.DYN_LOG ?? "off", format: "readable", ansi: false, localTime: false },
	});
	ends.push(() => runtime.shutdown());
	return runtime;
}

async function startOurFrontend(memStore: MemStore): Promise<Frontend> {
	const folder = mkdtempSync(join(tmpdir(), "dynamo-kv-router-"));
	ends.push(() => rmSync(folder, { recursive: true, force: true }));
	const frontend = await startFrontend(await startRuntime(memStore), {
		host: "127.0.0.1",
		port: 0,
		modelCacheDir: folder,
		namespace: undefined,
		routerMode: "kv",
	});
	ends.push(() => frontend.close());
	await frontend.waitForModel("m", 10_000);
	return frontend;
}

/** Sends a prompt. @returns who answered, and how many of its tokens were cached there. */
async function send(frontend: Frontend, prompt: readonly number[]): Promise<{ worker: string; cached: number }> {
	const answer = await fetch(`${frontend.address}/v1/completions`, {
		method: "POST",
		headers: { "content-type": "application/json" },
		body: JSON.stringify({ model: "m", prompt, max_tokens: 2, nvext: { extra_fields: ["worker_id"] } }),
	});
	const text = await answer.text();
	expect(answer.status, text).toBe(200);
	// Ids have 64 bits.
	const worker = /"decode_worker_id":(\d+)/.exec(text)?.[1] ?? "";
	return { worker, cached: JSON.parse(text).usage.prompt_tokens_details?.cached_tokens ?? 0 };
}

it("the holder of a prefix gets the request, from a frontend that came later too", async () => {
	const memStore = createMemStore();
	for (let i = 0; i < 4; i++) {
		const worker = await startMocker(await startRuntime(memStore), {
			files: FILES,
			modelName: "m",
			sourcePath: FOLDER,
			endpoint: ENDPOINT,
			engine: { blockSize: 16, numGpuBlocks: 1024, speedupRatio: 0, maxModelLen: 4096 },
		});
		ends.push(() => worker.close());
	}
	const frontend = await startOurFrontend(memStore);
	const stored = new Set<bigint>();
	const witness = await KvEventSubscriber.open(await startRuntime(memStore), ENDPOINT, {
		onReset: () => {},
		onWorkerGone: () => {},
		onEvent: ({ data }) => {
			if (data.type === "stored") for (const { tokensHash } of data.blocks) stored.add(tokensHash);
		},
	});
	ends.push(() => witness.close());

	let state = 1;
	const token = (): number => {
		state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
		return Math.floor((state / 2 ** 32) * 300);
	};
	const prompts = Array.from({ length: 12 }, () => Array.from({ length: 160 }, token));
	const holders: string[] = [];
	for (const [p, prompt] of prompts.entries()) {
		const { worker, cached } = await send(frontend, prompt);
		expect(worker).not.toBe("");
		expect(cached).toBe(0);
		holders.push(worker);
		await until("the events of the prompt", () => stored.size >= (p + 1) * 10);
	}
	expect(new Set(holders).size).toBeGreaterThan(1);
	for (let round = 0; round < 3; round++) {
		for (const [p, prompt] of prompts.entries()) {
			// The last token is always computed, so the last block does not count.
			expect(await send(frontend, prompt)).toEqual({ worker: holders[p], cached: 144 });
		}
	}
	const late = await startOurFrontend(memStore);
	for (const [p, prompt] of prompts.entries()) {
		expect(await send(late, prompt)).toEqual({ worker: holders[p], cached: 144 });
	}
}, 60_000);
