// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { createMemStore, DistributedRuntime, type RuntimeConfig } from "@dynamo-ts/runtime";
import { type PromPage, parsePrometheus } from "@dynamo-ts/testing/internal";
import { expect } from "vitest";
import type { FrontendConfig } from "../config.js";
import { type ScriptedWorker, type ScriptedWorkerOptions, startScriptedWorker } from "../scripted-worker.js";
import { type Frontend, startFrontend } from "../server.js";

export const TINY_MODEL = fileURLToPath(new URL("../../fixtures/tiny-model", import.meta.url));
export const MODEL = "tiny";

/** A frontend and its workers in one process, without sockets between them. */
export interface Stack {
	readonly frontend: Frontend;
	readonly url: string;
	readonly chat: string;
	readonly completions: string;
	/** The frontend's runtime. */
	readonly runtime: DistributedRuntime;
	/** Starts a worker with a runtime of its own; resolves when its model can be called, or at once when it is `alone`. */
	worker(
		options: Partial<ScriptedWorkerOptions> & Pick<ScriptedWorkerOptions, "script"> & { readonly alone?: boolean },
	): Promise<ScriptedWorker>;
	/** Another runtime in the same discovery. */
	join(): Promise<DistributedRuntime>;
	metrics(): Promise<PromPage>;
	/** Checks that nothing is left of any request: gauges at 0, no requests at workers. Then ends everything. */
	close(): Promise<void>;
}

const RUNTIME: Partial<RuntimeConfig> = {
	discoveryBackend: "mem",
	systemPort: -1,
	shutdownTimeoutMs: 1000,
	log: { filter: process.env.DYN_LOG ?? "off", format: "readable", ansi: false, localTime: false },
};

/** Gauges of requests under way. */
const GAUGES = ["inflight_requests", "active_requests", "queued_requests", "stage_requests"];

export async function startStack(
	config: Partial<FrontendConfig> = {},
	runtimeConfig: Partial<RuntimeConfig> = {},
): Promise<Stack> {
	const memStore = createMemStore();
	const folder = await mkdtemp(join(tmpdir(), "dynamo-frontend-"));
	const runtimes: DistributedRuntime[] = [];
	const workers: ScriptedWorker[] = [];
	const join_ = async (): Promise<DistributedRuntime> => {
		const runtime = await DistributedRuntime.create({ ...RUNTIME, ...runtimeConfig, memStore });
		runtimes.push(runtime);
		return runtime;
	};
	const runtime = await join_();
	const frontend = await startFrontend(runtime, {
		host: "127.0.0.1",
		port: 0,
		modelCacheDir: join(folder, "cache"),
		namespace: undefined,
		...config,
	});
	const url = frontend.address;
	const metrics = async (): Promise<PromPage> => {
		const answer = await fetch(`${url}/metrics`);
		return parsePrometheus(await answer.text());
	};
	return {
		frontend,
		url,
		chat: `${url}/v1/chat/completions`,
		completions: `${url}/v1/completions`,
		runtime,
		metrics,
		join: join_,
		worker: async (options) => {
			const model = options.model ?? MODEL;
			const worker = await startScriptedWorker(await join_(), { folder: TINY_MODEL, ...options, model });
			workers.push(worker);
			if (options.withoutCard !== true && options.alone !== true) await frontend.waitForModel(model, 5000);
			return worker;
		},
		close: async () => {
			try {
				await settle(() => frontend.inflight);
				if (await alive(url)) {
					const page = await metrics();
					for (const name of GAUGES) {
						for (const sample of page.select(`dynamo_frontend_${name}`)) {
							expect(sample.value, `${name} ${JSON.stringify(sample.labels)}`).toBe(0);
						}
					}
					const started = page.sum("dynamo_frontend_requests_started_total");
					expect(page.sum("dynamo_frontend_requests_total")).toBe(started);
				}
				for (const worker of workers) await settle(() => worker.served.inflight);
			} finally {
				await frontend.close();
				for (const each of runtimes.reverse()) await each.shutdown();
				await rm(folder, { recursive: true, force: true });
			}
		},
	};
}

/** Waits until a count is 0. Works in hooks too, where expect.poll does not. */
async function settle(count: () => number): Promise<void> {
	const until = Date.now() + 5000;
	while (count() > 0 && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 5));
	expect(count()).toBe(0);
}

async function alive(url: string): Promise<boolean> {
	try {
		const answer = await fetch(`${url}/live`);
		return answer.status === 200;
	} catch {
		return false;
	}
}

/** A minimal chat request. */
export function chatBody(more: Record<string, unknown> = {}): Record<string, unknown> {
	return { model: MODEL, messages: [{ role: "user", content: "Hi" }], ...more };
}
