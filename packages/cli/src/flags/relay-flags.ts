// SPDX-License-Identifier: Apache-2.0
import type { CommandSpec } from "./flag-spec.js";
import { placeFlags } from "./place-flags.js";
import { RUNTIME_FLAGS } from "./runtime-flags.js";

/** Flags of `dynamo kv-events-relay`. */
export const KV_EVENTS_RELAY_COMMAND: CommandSpec = {
	name: "kv-events-relay",
	summary: "Tells routers what the KV cache of an engine holds that publishes it in vLLM's format over ZeroMQ.",
	flags: [
		{
			flag: "engine-endpoint",
			type: "string",
			metavar: "tcp://HOST:PORT",
			help: "Where the engine publishes its events (endpoint of vLLM's --kv-events-config).",
		},
		{
			flag: "replay-endpoint",
			type: "string",
			metavar: "tcp://HOST:PORT",
			help: "Where it sends again what was missed (replay_endpoint). Without it routers forget the engine's blocks whenever an event is lost.",
		},
		{
			flag: "topic",
			type: "string",
			defaultText: "any",
			help: "Topic of the engine's events.",
		},
		...placeFlags("The endpoint whose worker the engine is."),
		{
			flag: "worker-id",
			type: "string",
			metavar: "ID",
			defaultText: "the only worker of the endpoint",
			help: "The worker's instance id, decimal.",
		},
		{
			flag: "dp-rank",
			type: "integer",
			min: 0,
			max: 65_535,
			default: 0,
			help: "The engine's data-parallel rank.",
		},
		{
			flag: "block-size",
			type: "integer",
			min: 1,
			max: 1024,
			defaultText: "the model card's",
			help: "Tokens per block of the engine; refused where the model card says otherwise.",
		},
		...RUNTIME_FLAGS,
	],
	epilog: [
		"example:",
		"  dynamo kv-events-relay --engine-endpoint tcp://127.0.0.1:5557 --replay-endpoint tcp://127.0.0.1:5558",
	],
};
