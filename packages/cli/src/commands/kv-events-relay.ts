// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type EndpointId, type ModelRecord } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import { CliError, EXIT, usageError } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import { KV_EVENTS_RELAY_COMMAND } from "../flags/relay-flags.js";
import { checkPlanes, setRuntimeVariables } from "../flags/runtime-flags.js";
import { startRuntime } from "../start-runtime.js";

/** `dynamo kv-events-relay`: KV events of an engine that speaks vLLM's format, told to routers. */
export const command: Command = { spec: KV_EVENTS_RELAY_COMMAND, run };

/** How long the worker's model may take to appear. */
const WORKER_TIMEOUT_MS = 60_000;

async function run({ flags, console, lifecycle }: CommandContext): Promise<number> {
	checkPlanes("kv-events-relay", flags);
	const engineEndpoint = flags.string("engine-endpoint");
	if (engineEndpoint === undefined) {
		throw usageError(
			"dynamo kv-events-relay needs --engine-endpoint tcp://HOST:PORT, where the engine publishes its events",
		);
	}
	const asked = workerIdOf(flags.string("worker-id"));
	const env: NodeJS.ProcessEnv = { ...flags.env };
	setRuntimeVariables(flags, env);
	const { parseEndpointAddress, relayKvEvents } = await import("@dynamo-ts/worker");
	const address = flags.string("endpoint") ?? `dyn://${flags.string("namespace") ?? "dynamo"}.backend.generate`;
	const endpoint = parseEndpointAddress(address);
	const runtime = await startRuntime(lifecycle, env);
	const model = await lifecycle.breakable(findWorker(runtime, endpoint, asked, address, lifecycle.signal));
	const cardSize = model.card_json.kv_cache_block_size;
	const blockSize = flags.number("block-size") ?? cardSize;
	if (blockSize !== cardSize) {
		throw new CliError(
			`--block-size ${blockSize} is not that of the model card: ${model.card_json.display_name} has blocks of ${cardSize} tokens, and routers hash prompts by these`,
			EXIT.usage,
		);
	}
	const relay = await relayKvEvents(runtime, {
		engineEndpoint,
		replayEndpoint: flags.string("replay-endpoint"),
		topic: flags.string("topic"),
		endpoint,
		workerId: model.instance_id,
		dpRank: flags.number("dp-rank"),
		blockSize,
	});
	lifecycle.onStop(() => relay.close());
	relay.failed.catch((error: unknown) => {
		console.note(`dynamo kv-events-relay: ${(error as Error).message}`);
		lifecycle.stop(EXIT.failure);
	});
	const watch = await runtime.discovery.watch("v1/mdc", (event) => {
		if (event.type !== "delete" || !event.key.endsWith(`/${model.instance_id.toString(16)}`)) return;
		console.note("dynamo kv-events-relay: the worker is gone; start the relay again with the next one");
		lifecycle.stop(EXIT.failure);
	});
	lifecycle.onStop(() => watch.close());
	lifecycle.markReady();
	console.out(`the relay tells routers of ${model.card_json.display_name} at worker ${model.instance_id}\n`);
	return lifecycle.ended;
}

/** Decimal, as routers and APIs show ids. @throws CliError. */
function workerIdOf(text: string | undefined): bigint | undefined {
	if (text === undefined) return undefined;
	if (!/^\d{1,20}$/.test(text) || BigInt(text) >= 1n << 64n) {
		throw usageError(`--worker-id ${text} is not valid: it must be the worker's instance id, a decimal number`);
	}
	return BigInt(text);
}

/** Waits for the worker's model. @throws CliError when none appears, or when it is not clear which one is meant. */
async function findWorker(
	runtime: DistributedRuntime,
	endpoint: EndpointId,
	asked: bigint | undefined,
	address: string,
	signal: AbortSignal,
): Promise<ModelRecord> {
	const until = performance.now() + WORKER_TIMEOUT_MS;
	const found = new Map<bigint, ModelRecord>();
	let changed: () => void = () => {};
	const watch = await runtime.discovery.watch("v1/mdc", (event) => {
		if (event.type === "delete" || event.record.type !== "Model") return;
		const { record } = event;
		if (record.namespace !== endpoint.namespace || record.component !== endpoint.component) return;
		if (record.endpoint !== endpoint.name || (record.model_suffix ?? "") !== "") return;
		if (asked !== undefined && record.instance_id !== asked) return;
		found.set(record.instance_id, record);
		changed();
	});
	try {
		while (found.size === 0) {
			const left = until - performance.now();
			if (signal.aborted) throw new DynamoError("Cancelled", "stopped while waiting for the worker");
			if (left <= 0) {
				const which = asked === undefined ? "no worker" : `worker ${asked}`;
				throw new CliError(`${which} serves ${address}: start it, or name its endpoint with --endpoint`, EXIT.failure);
			}
			await new Promise<void>((resolve) => {
				const done = (): void => {
					clearTimeout(timer);
					signal.removeEventListener("abort", done);
					resolve();
				};
				const timer = setTimeout(done, left);
				signal.addEventListener("abort", done, { once: true });
				changed = done;
			});
		}
	} finally {
		watch.close();
	}
	if (found.size > 1) {
		const ids = [...found.keys()].join(", ");
		throw usageError(`${found.size} workers serve ${address}: name the engine's with --worker-id (${ids})`);
	}
	return [...found.values()][0] as ModelRecord;
}
