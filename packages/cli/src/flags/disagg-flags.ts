// SPDX-License-Identifier: Apache-2.0
// Flags of a frontend before prefill and decode workers, named as Dynamo's.
import { ENV } from "@dynamo-ts/protocols/internal";
import type { FlagSpec } from "./flag-spec.js";

const GROUP = "disaggregated serving";

/** Of `dynamo serve`. */
export const SERVE_DISAGG_FLAGS: readonly FlagSpec[] = [
	{
		flag: "disagg",
		type: "boolean",
		default: false,
		group: GROUP,
		help: "Prefill workers compute prompts, the --num-workers generate answers.",
	},
	{
		flag: "num-prefill-workers",
		type: "integer",
		min: 1,
		max: 256,
		default: 1,
		group: GROUP,
		help: "Prefill workers of --disagg.",
	},
];

export const DISAGG_FLAGS: readonly FlagSpec[] = [
	{
		flag: "enforce-disagg",
		env: ENV.DYN_ENFORCE_DISAGG,
		type: "boolean",
		default: false,
		group: GROUP,
		help: "When no prefill worker computes a prompt, the request fails; otherwise the decode worker computes it.",
	},
	{
		flag: "router-conditional-disagg",
		env: ENV.DYN_ROUTER_CONDITIONAL_DISAGG,
		type: "boolean",
		default: false,
		group: GROUP,
		help: "kv: prompts that are short, or that a decode worker has mostly cached, go to no prefill worker.",
	},
	{
		flag: "router-conditional-disagg-config",
		env: ENV.DYN_ROUTER_CONDITIONAL_DISAGG_CONFIG,
		type: "string",
		metavar: "JSON",
		group: GROUP,
		help: "Its settings: policy, eff_isl_threshold, eff_isl_ratio_threshold, prefill_busy_threshold, decode_busy_threshold.",
	},
];
