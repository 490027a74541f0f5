// SPDX-License-Identifier: Apache-2.0
// Flags of waiting, sessions and what routers tell each other, named as Dynamo's frontend names them.
import { ENV } from "@dynamo-ts/protocols/internal";
import type { FlagSpec } from "./flag-spec.js";

const GROUP = "router options";

/** Sessions; only where clients name them. */
export const SESSION_FLAGS: readonly FlagSpec[] = [
	{
		flag: "router-session-affinity-ttl-secs",
		env: ENV.DYN_ROUTER_SESSION_AFFINITY_TTL_SECS,
		type: "string",
		metavar: "SECONDS",
		group: GROUP,
		help: "In every mode: requests with the same X-Dynamo-Session-ID go to the same worker, until the session was idle for so long. Default: they do not.",
	},
	{
		flag: "router-session-affinity-mode",
		env: ENV.DYN_ROUTER_SESSION_AFFINITY_MODE,
		type: "string",
		choices: ["hard", "soft"],
		default: "hard",
		group: GROUP,
		help: "When the session's worker is too full: 529 (hard), or another one (soft).",
	},
];

export const ROUTER_QUEUE_FLAGS: readonly FlagSpec[] = [
	{
		flag: "router-queue-threshold",
		env: ENV.DYN_ROUTER_QUEUE_THRESHOLD,
		type: "string",
		metavar: "MULTIPLE",
		group: GROUP,
		help: "kv: requests wait while every worker has more prompt tokens to compute than this multiple of its max_num_batched_tokens. Default: none waits.",
	},
	{
		flag: "router-queue-policy",
		env: ENV.DYN_ROUTER_QUEUE_POLICY,
		type: "string",
		choices: ["fcfs", "wspt"],
		default: "fcfs",
		group: GROUP,
		help: "kv: who is first among those that wait: who came first, or who has the shortest prompt.",
	},
	{
		flag: "router-cache-wait-ms",
		env: ENV.DYN_ROUTER_CACHE_WAIT_MS,
		type: "number",
		default: 10,
		metavar: "MS",
		group: GROUP,
		help: "kv: so long a request waits at most for a worker that has 256 tokens or more of its prompt cached than the one with the least to do. 0: not at all.",
	},
	{
		flag: "router-policy-config",
		env: ENV.DYN_ROUTER_POLICY_CONFIG,
		type: "string",
		metavar: "FILE",
		group: GROUP,
		help: "kv: YAML file with classes of requests that wait; replaces the two above.",
	},
	{
		flag: "router-replica-sync",
		env: ENV.DYN_ROUTER_REPLICA_SYNC,
		type: "boolean",
		default: false,
		group: GROUP,
		help: "kv: tell other routers of the same workers which requests they have, and hear it from them.",
	},
	{
		flag: "router-track-output-blocks",
		aliases: ["track-output-blocks"],
		env: ENV.DYN_ROUTER_TRACK_OUTPUT_BLOCKS,
		type: "boolean",
		default: false,
		group: GROUP,
		help: "kv: count the blocks that requests generate, too.",
	},
	{
		flag: "router-predicted-ttl-secs",
		env: ENV.DYN_ROUTER_PREDICTED_TTL_SECS,
		type: "string",
		metavar: "SECONDS",
		group: GROUP,
		help: "kv with KV events: believe for so long that a prompt's blocks are where it went, before the worker says so. Default: not at all.",
	},
	{
		flag: "use-remote-indexer",
		env: ENV.DYN_USE_REMOTE_INDEXER,
		type: "boolean",
		default: false,
		group: GROUP,
		help: "kv: keep no index of what workers have cached, but ask the process with --serve-indexer beside the workers.",
	},
	{
		flag: "serve-indexer",
		env: ENV.DYN_SERVE_INDEXER,
		type: "boolean",
		default: false,
		group: GROUP,
		help: "kv: let others with --use-remote-indexer ask the index.",
	},
	{
		flag: "router-approximate-cache-policy",
		env: ENV.DYN_ROUTER_APPROXIMATE_CACHE_POLICY,
		type: "string",
		choices: ["ttl", "lru"],
		default: "ttl",
		group: GROUP,
		help: "kv without KV events: forget blocks after --router-ttl-secs, or those unused for longest when the worker has no more room.",
	},
	{
		flag: "router-event-threads",
		env: ENV.DYN_ROUTER_EVENT_THREADS,
		type: "integer",
		min: 1,
		default: 4,
		group: GROUP,
		help: "Threads that apply KV events.",
		status: { kind: "ignored", why: "one thread applies them all" },
	},
];
