// SPDX-License-Identifier: Apache-2.0
import { ENV, METRIC_PREFIXES } from "@dynamo-ts/protocols/internal";
import { DISAGG_FLAGS } from "./disagg-flags.js";
import type { CommandSpec, FlagSpec } from "./flag-spec.js";
import { KV_ROUTER_FLAGS } from "./kv-router-flags.js";
import { AIS_FLAGS, MISSING_ROUTER_FLAGS, OTHER_FRONTEND_FLAGS, TLS_FLAGS } from "./missing-flags.js";
import { ROUTER_QUEUE_FLAGS, SESSION_FLAGS } from "./router-queue-flags.js";
import { RUNTIME_FLAGS } from "./runtime-flags.js";

/** Where the HTTP server listens; `serve` has other defaults. */
export function httpFlags(host: string): readonly FlagSpec[] {
	return [
		{
			flag: "http-host",
			aliases: ["host"],
			env: ENV.DYN_HTTP_HOST,
			type: "string",
			default: host,
			help: "Address that the HTTP server listens on.",
		},
		{
			flag: "http-port",
			aliases: ["port"],
			env: ENV.DYN_HTTP_PORT,
			type: "integer",
			min: 0,
			max: 65535,
			default: 8000,
			help: "Port of the HTTP server; 0 for any free one.",
		},
	];
}

/** How workers are chosen; the choices are `ROUTER_MODES` of the router package. */
export const ROUTER_MODE_FLAG: FlagSpec = {
	flag: "router-mode",
	env: ENV.DYN_ROUTER_MODE,
	type: "string",
	choices: ["round-robin", "random", "power-of-two", "kv", "direct", "least-loaded", "device-aware-weighted"],
	default: "round-robin",
	group: "router options",
	help: "How a worker is chosen for a request; kv: by what it has cached and how much it has to do; direct: the request names it.",
};

const MIN_WORKERS_FLAG: FlagSpec = {
	flag: "router-min-initial-workers",
	env: ENV.DYN_ROUTER_MIN_INITIAL_WORKERS,
	type: "integer",
	min: 0,
	max: 0xffff_ffff,
	default: 0,
	group: "router options",
	help: "A model is listed and can be called once it has had so many workers at a time.",
};

const MIGRATION_FLAGS: readonly FlagSpec[] = [
	{
		flag: "migration-limit",
		env: ENV.DYN_MIGRATION_LIMIT,
		type: "integer",
		min: 0,
		max: 0xffff_ffff,
		default: 0,
		help: "Most times that a stream whose worker was lost goes on at another one; 0: it ends with an error.",
	},
	{
		flag: "migration-max-seq-len",
		env: ENV.DYN_MIGRATION_MAX_SEQ_LEN,
		type: "integer",
		metavar: "TOKENS",
		min: 0,
		max: 0xffff_ffff,
		defaultText: "no limit",
		help: "Prompt and output together beyond which a stream is no longer moved; bounds the memory for it.",
	},
];

export const DASHBOARD_FLAG: FlagSpec = {
	flag: "dashboard",
	env: ENV.DYN_DASHBOARD,
	type: "boolean",
	default: true,
	help: "Serve a page that shows models, workers and their load, at /dashboard.",
};

/** Flags of `dynamo frontend`. */
export const FRONTEND_COMMAND: CommandSpec = {
	name: "frontend",
	summary: "OpenAI-compatible HTTP server: finds workers through discovery, tokenizes, routes, streams.",
	flags: [
		...httpFlags("0.0.0.0"),
		{
			flag: "namespace",
			env: ENV.DYN_NAMESPACE,
			type: "string",
			help: "Serve only the models of this namespace. --namespace-prefix wins over it.",
		},
		{
			flag: "namespace-prefix",
			env: ENV.DYN_NAMESPACE_PREFIX,
			type: "string",
			help: "Serve only the models of namespaces that start so.",
		},
		{
			flag: "model-path",
			env: ENV.DYN_MODEL_PATH,
			type: "string",
			metavar: "FOLDER",
			help: "Folder with a model's files, for cards whose own paths do not exist on this machine.",
		},
		{
			flag: "model-name",
			env: ENV.DYN_MODEL_NAME,
			type: "string",
			help: "Name of the model.",
			status: { kind: "ignored", why: "models and their names come from the workers" },
		},
		{
			flag: "metrics-prefix",
			env: ENV.DYN_METRICS_PREFIX,
			type: "string",
			defaultText: METRIC_PREFIXES.frontend,
			help: "Replaces dynamo_frontend in the names of the request metrics.",
		},
		DASHBOARD_FLAG,
		{
			flag: "nim-metrics",
			env: ENV.DYN_NIM_METRICS,
			type: "boolean",
			default: true,
			help: "Show what happens under the names of NVIDIA NIM's metrics, too, for agents that were set up for it.",
		},
		{
			flag: "nim-python-metrics",
			env: ENV.DYN_NIM_PYTHON_METRICS,
			type: "boolean",
			default: true,
			help: "Among those, python_info and python_gc_*, filled with what this runtime has instead.",
		},
		{
			flag: "dump-config-to",
			env: ENV.DYN_DUMP_CONFIG_TO,
			type: "string",
			metavar: "FILE",
			help: "Write the settings in force to a file, as JSON.",
		},
		{
			flag: "interactive",
			short: "i",
			env: ENV.DYN_INTERACTIVE,
			type: "boolean",
			help: "",
			status: { kind: "missing", why: "run `dynamo chat --url http://HOST:PORT` beside the frontend" },
		},
		{
			flag: "kv-cache-block-size",
			env: ENV.DYN_KV_CACHE_BLOCK_SIZE,
			type: "integer",
			min: 1,
			help: "Tokens per KV block.",
			status: { kind: "ignored", why: "the block size comes from the model's card" },
		},
		{
			flag: "trust-remote-code",
			env: ENV.DYN_TRUST_REMOTE_CODE,
			type: "boolean",
			help: "Run a model's own tokenizer code.",
			status: { kind: "ignored", why: "code of a model is never run" },
		},
		{
			flag: "tokenizer",
			env: ENV.DYN_TOKENIZER,
			type: "string",
			choices: ["default", "fastokens", "basetenkenizer"],
			default: "default",
			help: "Tokenizer library.",
			status: { kind: "ignored", why: "there is one tokenizer, Hugging Face's" },
		},
		{
			flag: "tokenizer-fallback",
			env: ENV.DYN_TOKENIZER_FALLBACK,
			type: "boolean",
			default: true,
			help: "Fall back to the default tokenizer.",
			status: { kind: "ignored", why: "there is one tokenizer" },
		},
		{
			flag: "dyn-debug-perf",
			env: ENV.DYN_DEBUG_PERF,
			type: "boolean",
			help: "Time the preprocessing.",
			status: { kind: "ignored", why: "/metrics has the times of each stage" },
		},
		{
			flag: "dyn-preprocess-workers",
			env: ENV.DYN_PREPROCESS_WORKERS,
			type: "integer",
			min: 0,
			default: 0,
			help: "Processes for preprocessing.",
			status: { kind: "ignored", why: "tokenizing runs in native threads" },
		},
		...MIGRATION_FLAGS,
		ROUTER_MODE_FLAG,
		MIN_WORKERS_FLAG,
		...KV_ROUTER_FLAGS,
		...ROUTER_QUEUE_FLAGS,
		...SESSION_FLAGS,
		...DISAGG_FLAGS,
		...RUNTIME_FLAGS,
		...TLS_FLAGS,
		...MISSING_ROUTER_FLAGS,
		...OTHER_FRONTEND_FLAGS,
		...AIS_FLAGS,
	],
	epilog: ["example:", "  dynamo frontend --discovery-backend file --http-port 8000"],
};
