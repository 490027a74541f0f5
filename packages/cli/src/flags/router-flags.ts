// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import type { CommandSpec } from "./flag-spec.js";
import { KV_ROUTER_FLAGS } from "./kv-router-flags.js";
import { AIS_FLAGS, MISSING_ROUTER_FLAGS } from "./missing-flags.js";
import { ROUTER_QUEUE_FLAGS } from "./router-queue-flags.js";
import { RUNTIME_FLAGS } from "./runtime-flags.js";

/** Flags of a frontend's routing that a router without HTTP has no use for; Dynamo's does not take them either. */
const FRONTEND_ONLY: ReadonlySet<string> = new Set([
	"active-decode-blocks-threshold",
	"active-prefill-tokens-threshold",
	"active-prefill-tokens-threshold-frac",
]);

/** Flags of `dynamo router`, named as Dynamo's `dynamo.router` names them. */
export const ROUTER_COMMAND: CommandSpec = {
	name: "router",
	summary: "Routes requests of other processes to workers by cache and load.",
	flags: [
		{
			flag: "endpoint",
			env: ENV.DYN_ROUTER_ENDPOINT,
			type: "string",
			metavar: "NAMESPACE.COMPONENT.ENDPOINT",
			help: "The workers' endpoint, for example dynamo.backend.generate or, for prefill workers, dynamo.prefill.generate.",
		},
		{
			flag: "namespace",
			env: ENV.DYN_NAMESPACE,
			type: "string",
			defaultText: "the workers'",
			help: "Namespace in which the router registers, as NAMESPACE.router.generate.",
		},
		{
			flag: "router-block-size",
			aliases: ["block-size"],
			env: ENV.DYN_ROUTER_BLOCK_SIZE,
			type: "integer",
			min: 1,
			max: 65_536,
			metavar: "TOKENS",
			defaultText: "the model card's",
			help: "Tokens of a block; workers whose model card says otherwise are refused.",
		},
		...[...KV_ROUTER_FLAGS, ...ROUTER_QUEUE_FLAGS, ...MISSING_ROUTER_FLAGS].filter(
			({ flag }) => !FRONTEND_ONLY.has(flag),
		),
		...AIS_FLAGS,
		...RUNTIME_FLAGS,
	],
	epilog: ["example:", "  dynamo router --endpoint dynamo.backend.generate"],
};
