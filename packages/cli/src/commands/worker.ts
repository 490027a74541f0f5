// SPDX-License-Identifier: Apache-2.0
import { mkdir } from "node:fs/promises";
import { advertisedRouting } from "../advertised-routing.js";
import { EXIT } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import { createEngine, defaultNumThreads, startEngine } from "../engine-options.js";
import { WORKER_COMMAND } from "../flags/model-flags.js";
import { workerRole } from "../flags/role-flags.js";
import { checkPlanes, setRuntimeVariables } from "../flags/runtime-flags.js";
import { modelNames } from "../model-names.js";
import { cacheDirs } from "../models/cache-dirs.js";
import { resolveModel } from "../models/resolve-model.js";
import { startRuntime } from "../start-runtime.js";

/** `dynamo worker`: one engine on the runtime. */
export const command: Command = { spec: WORKER_COMMAND, run };

async function run({ flags, console, lifecycle }: CommandContext): Promise<number> {
	checkPlanes("worker", flags);
	const role = workerRole(flags);
	if (flags.string("discovery-backend") === "mem") {
		console.note("dynamo worker: mem discovery is within one process, so no frontend will ever find this worker");
	}
	const env: NodeJS.ProcessEnv = { ...flags.env };
	setRuntimeVariables(flags, env);
	const model = await lifecycle.breakable(
		resolveModel(flags.positionals[0] ?? flags.string("model"), {
			env,
			console,
			signal: lifecycle.signal,
		}),
	);
	const routerConfig = await advertisedRouting(env);
	const names = await modelNames(flags, model, role);
	const caches = cacheDirs(env);
	await mkdir(caches.graphs, { recursive: true });
	const engine = await createEngine(flags, model, caches.graphs, console, defaultNumThreads());
	lifecycle.onStop(() => engine.close());
	const { KvEventTap } = await import("@dynamo-ts/engine");
	const kvEventTap = KvEventTap.attach(engine);
	const engineStart = startEngine(engine);
	engineStart.catch(() => {});
	const { findModelFiles, kvTransferConfigFromEnv, parseKvEventsConfig, startWorker } = await import(
		"@dynamo-ts/worker"
	);
	const kvEventsConfig = flags.string("kv-events-config");
	const kvEvents = kvEventsConfig === undefined ? undefined : parseKvEventsConfig(kvEventsConfig);
	const kvTransfer = kvTransferConfigFromEnv(env);
	const files = findModelFiles(model, caches.cards);
	files.catch(() => {});
	const runtime = await startRuntime(lifecycle, env);
	const worker = await startWorker(runtime, {
		engine,
		engineStart,
		files,
		modelName: names.modelName,
		sourcePath: model.sourcePath,
		role,
		kvTransfer,
		endpoint: names.endpoint,
		routerConfig,
		samplingDefaults: model.samplingDefaults,
		toolCallParser: flags.string("tool-call-parser"),
		reasoningParser: flags.string("reasoning-parser"),
		kvEventTap,
		kvEvents,
	});
	lifecycle.onStop(() => worker.close());
	lifecycle.onStop(async () => void (await worker.drain()));
	void worker.failed.then((error) => {
		console.note(`dynamo worker: the engine died (${error.message}); start the worker again`);
		lifecycle.stop(EXIT.failure);
	});
	lifecycle.markReady();
	console.out(`the worker serves ${names.modelName}\n`);
	return lifecycle.ended;
}
