// SPDX-License-Identifier: Apache-2.0
// Frontend and workers in one process, joined by mem discovery: what `serve` runs, and `chat` when no server is there.
import { mkdir } from "node:fs/promises";
import type { EngineInfo } from "@dynamo-ts/engine";
import { ENV } from "@dynamo-ts/protocols/internal";
import type { WorkerRole } from "@dynamo-ts/worker";
import { EXIT } from "./cli-error.js";
import type { CommandContext } from "./command.js";
import { createEngine, defaultNumThreads, startEngine } from "./engine-options.js";
import type { ParsedFlags } from "./flags/parse-flags.js";
import { modelNames } from "./model-names.js";
import { cacheDirs } from "./models/cache-dirs.js";
import { resolveModel } from "./models/resolve-model.js";
import { explainPort, startRuntime } from "./start-runtime.js";

/** From a registered worker to a model that can be called: tokenizer and template are loaded in between. */
const MODEL_TIMEOUT_MS = 60_000;

/** A server that answers. */
export interface ServingStack {
	/** `http://host:port`. */
	readonly address: string;
	readonly modelName: string;
	readonly info: EngineInfo;
}

export interface ServingStackOptions {
	/** MODEL as the user gave it; undefined: the default model. */
	readonly model: string | undefined;
	readonly host: string;
	/** 0: any free port. */
	readonly port: number;
	/** Overrides of the environment. */
	readonly env?: NodeJS.ProcessEnv;
}

/**
 * Starts everything; its end is added to the lifecycle's stop steps. The flags are those of `serve`, apart from what
 * the options say.
 * @throws CliError, DynamoError, errors of the engine; what was started is stopped by the lifecycle.
 */
export async function startServingStack(context: CommandContext, options: ServingStackOptions): Promise<ServingStack> {
	const { flags, console, lifecycle } = context;
	const env: NodeJS.ProcessEnv = { ...flags.env, ...options.env, [ENV.DYN_DISCOVERY_BACKEND]: "mem" };
	env[ENV.DYN_HTTP_HOST] = options.host;
	env[ENV.DYN_HTTP_PORT] = String(options.port);
	const caches = cacheDirs(env);
	env[ENV.DYN_MODEL_CACHE_DIR] ??= caches.fetchedCards;

	const model = await lifecycle.breakable(resolveModel(options.model, { env, console, signal: lifecycle.signal }));
	const roles = workerRoles(flags);
	const numWorkers = roles.length;
	await mkdir(caches.graphs, { recursive: true });

	// The engine's thread reads weights while this one loads the HTTP server.
	const { KvEventTap } = await import("@dynamo-ts/engine");
	const engines = [];
	for (const [i, role] of roles.entries()) {
		const engine = await createEngine(flags, model, caches.graphs, console, defaultNumThreads(numWorkers));
		lifecycle.onStop(() => engine.close());
		const kvEventTap = KvEventTap.attach(engine);
		const started = startEngine(engine);
		started.catch(() => {});
		engines.push({ engine, kvEventTap, started, role });
		// The first one writes the graph that the others only read.
		if (i === 0 && numWorkers > 1) await started;
	}

	const { findModelFiles, kvTransferConfigFromEnv, preloadTokenizer, startWorker } = await import("@dynamo-ts/worker");
	const kvTransfer = kvTransferConfigFromEnv(env);
	const names = await modelNames(flags, model);
	const files = findModelFiles(model, caches.cards);
	files.catch(() => {});
	const { frontendConfigFromEnv, startFrontend } = await import("@dynamo-ts/frontend");
	const runtime = await startRuntime(lifecycle, env, { discoveryBackend: "mem" });
	// Every model of this process, whatever its namespace.
	const config = { ...frontendConfigFromEnv(env), namespace: undefined };
	const frontend = await startFrontend(runtime, config).catch((error: unknown) => {
		throw explainPort(error, config.port, "--http-port", ENV.DYN_HTTP_PORT);
	});
	// While the engine's thread is still busy with the weights.
	await preloadTokenizer(await files);
	const workers = await Promise.all(
		engines.map(async ({ engine, kvEventTap, started, role }, i) => {
			// Each worker is an instance of its own; the system port belongs to the first runtime.
			const own = i === 0 ? runtime : await startRuntime(lifecycle, env, { discoveryBackend: "mem", systemPort: -1 });
			const worker = await startWorker(own, {
				engine,
				engineStart: started,
				kvEventTap,
				files,
				modelName: names.modelName,
				sourcePath: model.sourcePath,
				role,
				kvTransfer,
				// Workers of different roles are no neighbours.
				endpoint: role === "prefill" ? { ...names.endpoint, component: "prefill" } : names.endpoint,
				samplingDefaults: model.samplingDefaults,
			});
			lifecycle.onStop(() => worker.close());
			void worker.failed.then((error) => {
				console.note(`dynamo: the engine died (${error.message}); start it again`);
				lifecycle.stop(EXIT.failure);
			});
			return worker;
		}),
	);
	// The frontend goes first: its streams need the workers to the end.
	lifecycle.onStop(async () => {
		// It lets streams run on; the workers' time limit holds for them here too.
		const limit = new Promise((resolve) => setTimeout(resolve, runtime.config.shutdownTimeoutMs).unref());
		await Promise.race([frontend.drain(), limit]);
		await frontend.close();
	});
	await frontend.waitForModel(names.modelName, MODEL_TIMEOUT_MS);
	return { address: frontend.address, modelName: names.modelName, info: workers[0]!.info };
}

/** What each worker does; the first one is that of the process's own runtime. */
function workerRoles(flags: ParsedFlags): WorkerRole[] {
	const workers = flags.number("num-workers") ?? 1;
	if (flags.boolean("disagg") !== true) return Array<WorkerRole>(workers).fill("aggregated");
	const prefill = flags.number("num-prefill-workers") ?? 1;
	return [...Array<WorkerRole>(workers).fill("decode"), ...Array<WorkerRole>(prefill).fill("prefill")];
}
