// SPDX-License-Identifier: Apache-2.0
// Whether a worker takes whole requests, prompts, or answers; named as in Dynamo's launch scripts.
import { ENV } from "@dynamo-ts/protocols/internal";
import type { WorkerRole } from "@dynamo-ts/worker";
import { usageError } from "../cli-error.js";
import type { FlagSpec } from "./flag-spec.js";
import type { ParsedFlags } from "./parse-flags.js";

const GROUP = "disaggregated serving";

export const ROLE_FLAGS: readonly FlagSpec[] = [
	{
		flag: "disaggregation-mode",
		type: "string",
		choices: ["agg", "prefill", "decode"],
		default: "agg",
		group: GROUP,
		help: "What the worker does of a request: all (agg), the prompt (prefill), or the answer (decode).",
	},
	{
		flag: "is-prefill-worker",
		type: "boolean",
		default: false,
		group: GROUP,
		help: "The same as --disaggregation-mode prefill.",
	},
	{
		flag: "is-decode-worker",
		type: "boolean",
		default: false,
		group: GROUP,
		help: "The same as --disaggregation-mode decode.",
	},
];

/** How prompts get from prefill to decode workers. */
export const KV_TRANSFER_FLAGS: readonly FlagSpec[] = [
	{
		flag: "kv-transfer-port",
		env: ENV.DYN_KV_TRANSFER_PORT,
		type: "integer",
		min: 0,
		max: 65_535,
		group: GROUP,
		defaultText: `${ENV.VLLM_NIXL_SIDE_CHANNEL_PORT}, else any free port`,
		help: `Port at which a prefill worker gives its prompts to decode workers, on the host of ${ENV.DYN_TCP_RPC_HOST}.`,
	},
	{
		flag: "kv-transfer-timeout",
		env: ENV.DYN_KV_TRANSFER_TIMEOUT_SECS,
		type: "number",
		min: 0,
		max: 3600,
		default: 10,
		group: GROUP,
		help: "Longest time to fetch a prompt, in seconds; then the decode worker computes it.",
	},
	{
		flag: "kv-transfer-hold",
		env: ENV.DYN_KV_TRANSFER_HOLD_SECS,
		type: "number",
		min: 0,
		max: 3600,
		default: 60,
		group: GROUP,
		help: "Longest time that a prefill worker keeps a prompt for a decode worker, in seconds.",
	},
	{
		flag: "kv-transfer-transport",
		env: ENV.DYN_KV_TRANSFER_TRANSPORT,
		type: "string",
		choices: ["auto", "tcp"],
		default: "auto",
		group: GROUP,
		help: "auto: shared memory between workers of one machine, else TCP; tcp: TCP only.",
	},
];

const ROLE_OF_MODE = { agg: "aggregated", prefill: "prefill", decode: "decode" } as const;

/** The role that the flags name. @throws CliError where they contradict each other. */
export function workerRole(flags: ParsedFlags): WorkerRole {
	const roles = new Map<WorkerRole, string>();
	if (flags.boolean("is-prefill-worker")) roles.set("prefill", "--is-prefill-worker");
	if (flags.boolean("is-decode-worker")) roles.set("decode", "--is-decode-worker");
	const mode = flags.string("disaggregation-mode") as keyof typeof ROLE_OF_MODE;
	if (flags.source("disaggregation-mode") === "flag") roles.set(ROLE_OF_MODE[mode], `--disaggregation-mode ${mode}`);
	const [role, ...others] = roles.keys();
	if (others.length > 0)
		throw usageError(`${[...roles.values()].join(" and ")}: a worker has one role; give one of them`);
	return role ?? "aggregated";
}
