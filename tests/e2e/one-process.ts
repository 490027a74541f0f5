// SPDX-License-Identifier: Apache-2.0
// Workers, routers and frontends that find each other in the memory of the test's own process. Each has a runtime of its own, as
// processes have.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Frontend, type FrontendConfig, startFrontend } from "@dynamo-ts/frontend";
import { createMemStore, DistributedRuntime, type MemStore, type RuntimeConfig } from "@dynamo-ts/runtime";
import { PROJECT_ROOT } from "@dynamo-ts/testing/internal";
import { startMocker, type WorkerHandle } from "@dynamo-ts/worker";

/** A tokenizer of few words and what goes with it; there are no weights. */
export const TINY_FOLDER = join(PROJECT_ROOT, "packages/frontend/fixtures/tiny-model");
export const ENDPOINT = { namespace: "dynamo", component: "backend", name: "generate" };
export const BLOCK_SIZE = 16;

export class OneProcess {
	readonly #memStore: MemStore = createMemStore();
	readonly #ends: (() => Promise<unknown> | unknown)[] = [];

	/** Ends everything that was started, the last first. */
	async end(): Promise<void> {
		for (const end of this.#ends.splice(0).reverse()) await end();
	}

	/** Something else to be ended in its turn. */
	onEnd(end: () => Promise<unknown> | unknown): void {
		this.#ends.push(end);
	}

	async runtime(config: Partial<RuntimeConfig> = {}): Promise<DistributedRuntime> {
		const runtime = await DistributedRuntime.create({
			discoveryBackend: "mem",
			memStore: this.#memStore,
			systemPort: -1,
			shutdownTimeoutMs: 1000,
			log: { filter: process.env.DYN_LOG ?? "off", format: "readable", ansi: false, localTime: false },
			...config,
		});
		this.onEnd(() => runtime.shutdown());
		return runtime;
	}

	/** A simulated worker that takes no time. */
	async mocker(
		runtime: DistributedRuntime,
		numGpuBlocks: number,
		modelName: string,
		component: string,
	): Promise<WorkerHandle> {
		const worker = await startMocker(runtime, {
			files: {
				config: join(TINY_FOLDER, "config.json"),
				tokenizer: join(TINY_FOLDER, "tokenizer.json"),
				tokenizerConfig: join(TINY_FOLDER, "tokenizer_config.json"),
				generationConfig: join(TINY_FOLDER, "generation_config.json"),
				chatTemplate: undefined,
				extra: [],
			},
			modelName,
			sourcePath: TINY_FOLDER,
			endpoint: { ...ENDPOINT, component },
			engine: { blockSize: BLOCK_SIZE, numGpuBlocks, speedupRatio: 0, maxModelLen: 4096 },
		});
		this.onEnd(() => worker.close());
		return worker;
	}

	async frontend(
		runtime: DistributedRuntime,
		routerMode: "kv" | "round-robin",
		more: Partial<FrontendConfig> = {},
	): Promise<Frontend> {
		const folder = mkdtempSync(join(tmpdir(), "dynamo-one-process-"));
		this.onEnd(() => rmSync(folder, { recursive: true, force: true }));
		const frontend = await startFrontend(runtime, {
			host: "127.0.0.1",
			port: 0,
			modelCacheDir: folder,
			namespace: undefined,
			routerMode,
			...more,
		});
		this.onEnd(() => frontend.close());
		return frontend;
	}
}
