// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import { advertisedRouting } from "../advertised-routing.js";
import { usageError } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import { MOCKER_COMMAND } from "../flags/model-flags.js";
import type { ParsedFlags } from "../flags/parse-flags.js";
import { workerRole } from "../flags/role-flags.js";
import { checkPlanes, setRuntimeVariables } from "../flags/runtime-flags.js";
import { modelNames } from "../model-names.js";
import { cacheDirs } from "../models/cache-dirs.js";
import { resolveModel } from "../models/resolve-model.js";
import { startRuntime } from "../start-runtime.js";

/** `dynamo mocker`: workers with simulated engines, each an instance of its own. */
export const command: Command = { spec: MOCKER_COMMAND, run };

async function run({ flags, console, lifecycle }: CommandContext): Promise<number> {
	checkPlanes("mocker", flags);
	const role = workerRole(flags);
	const env: NodeJS.ProcessEnv = { ...flags.env };
	setRuntimeVariables(flags, env);
	const model = await lifecycle.breakable(
		resolveModel(flags.string("model-path"), {
			env,
			console,
			weights: false,
			signal: lifecycle.signal,
		}),
	);
	const routerConfig = await advertisedRouting(env);
	const names = await modelNames(flags, model, role);
	const { findModelFiles, startMocker } = await import("@dynamo-ts/worker");
	const files = await findModelFiles(model, cacheDirs(env).cards);
	const numWorkers = flags.number("num-workers") ?? 1;
	const eventPorts = portList(flags, "zmq-kv-events-ports", numWorkers);
	const replayPorts = portList(flags, "zmq-replay-ports", numWorkers);
	if (replayPorts !== undefined && eventPorts === undefined) {
		throw usageError("--zmq-replay-ports sends again what --zmq-kv-events-ports published: give both");
	}
	const bootstrapPorts = portList(flags, "bootstrap-ports", numWorkers);
	if (bootstrapPorts !== undefined && role !== "prefill") {
		throw usageError("--bootstrap-ports are where prefill workers wait for decode workers: give --is-prefill-worker");
	}
	const eventHost = env[ENV.DYN_EVENT_PLANE_BIND_HOST] || env[ENV.DYN_EVENT_PLANE_HOST] || "127.0.0.1";
	const startWorker = async (index: number): Promise<void> => {
		// One system port cannot serve several runtimes: it belongs to the first.
		const runtime = await startRuntime(lifecycle, env, index === 0 ? {} : { systemPort: -1 });
		const worker = await startMocker(runtime, {
			files,
			modelName: names.modelName,
			sourcePath: model.sourcePath,
			role,
			endpoint: names.endpoint,
			routerConfig,
			bootstrapPort: bootstrapPorts?.[index],
			kvEvents:
				eventPorts === undefined
					? undefined
					: {
							enabled: true,
							socket: {
								endpoint: zmqEndpoint(eventHost, eventPorts[index] as number),
								replayEndpoint:
									replayPorts === undefined ? undefined : zmqEndpoint(eventHost, replayPorts[index] as number),
								replayTopic: true,
							},
						},
			engine: {
				numGpuBlocks: flags.number("num-gpu-blocks-override"),
				blockSize: flags.number("block-size"),
				maxModelLen: flags.number("max-model-len"),
				maxNumSeqs: flags.number("max-num-seqs"),
				maxNumBatchedTokens: flags.number("max-num-batched-tokens"),
				enablePrefixCaching: flags.boolean("enable-prefix-caching"),
				enableChunkedPrefill: flags.boolean("enable-chunked-prefill"),
				preemptionMode: flags.string("preemption-mode") === "fifo" ? "fifo" : "lifo",
				speedupRatio: flags.number("speedup-ratio"),
				decodeSpeedupRatio: flags.number("decode-speedup-ratio"),
				startupTime: flags.number("startup-time"),
			},
		});
		lifecycle.onStop(() => worker.close());
		drains.push(() => worker.drain());
	};
	const drains: (() => Promise<boolean>)[] = [];
	await Promise.all(Array.from({ length: numWorkers }, (_, i) => startWorker(i)));
	// All at once: one after the other they would wait for each other's streams.
	lifecycle.onStop(async () => void (await Promise.all(drains.map((drain) => drain()))));
	lifecycle.markReady();
	console.out(
		`${numWorkers === 1 ? "the simulated worker serves" : `${numWorkers} simulated workers serve`} ${names.modelName}\n`,
	);
	return lifecycle.ended;
}

/** A list of ports, one per worker; undefined when the flag is absent. @throws CliError for anything else. */
function portList(flags: ParsedFlags, flag: string, numWorkers: number): number[] | undefined {
	const text = flags.string(flag);
	if (text === undefined) return undefined;
	const ports = text.split(",").map((part) => (/^\s*\d{1,5}\s*$/.test(part) ? Number(part) : 0));
	if (ports.some((port) => port < 1 || port > 65_535) || ports.length !== numWorkers) {
		throw usageError(
			`--${flag} ${text} is not valid: it must name ${numWorkers} port${numWorkers === 1 ? "" : "s, separated by commas"}, one per worker (--num-workers)`,
		);
	}
	return ports;
}

/** `tcp://host:port` to listen on. */
function zmqEndpoint(host: string, port: number): string {
	if (host === "0.0.0.0" || host === "::") return `tcp://*:${port}`;
	return `tcp://${host.includes(":") && !host.startsWith("[") ? `[${host}]` : host}:${port}`;
}
