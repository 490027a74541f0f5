// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import { ADVERTISED_ROUTER_FLAGS } from "./advertised-flags.js";
import { SERVE_DISAGG_FLAGS } from "./disagg-flags.js";
import type { CommandSpec, FlagSpec } from "./flag-spec.js";
import { DASHBOARD_FLAG, httpFlags, ROUTER_MODE_FLAG } from "./frontend-flags.js";
import { AIS_FLAGS } from "./missing-flags.js";
import { placeFlags } from "./place-flags.js";
import { KV_TRANSFER_FLAGS, ROLE_FLAGS } from "./role-flags.js";
import { RUNTIME_FLAGS } from "./runtime-flags.js";

const MODEL_ARGUMENT = {
	name: "MODEL",
	required: false,
	help: `A folder (config.json, safetensors, tokenizer.json), a .gguf file, a Hugging Face id (org/name, or org/name/file.gguf), or an alias (smollm2-135m, the default). The variable ${ENV.DYN_MODEL} stands in for it.`,
} as const;

/** How names and the place in the deployment are given; shared by everything that serves a model. */
const NAME_FLAGS: readonly FlagSpec[] = [
	{
		flag: "model-name",
		aliases: ["served-model-name"],
		env: ENV.DYN_MODEL_NAME,
		type: "string",
		defaultText: "from MODEL",
		help: "Name of the model in the API.",
	},
	...placeFlags("Where the model is served. Two models need two components."),
];

/** How the engine runs a model. */
const ENGINE_FLAGS: readonly FlagSpec[] = [
	{
		flag: "quantization",
		env: ENV.DYN_QUANTIZATION,
		type: "string",
		choices: ["auto", "none", "int8", "int4"],
		default: "auto",
		group: "engine options",
		help: "How the matrices are held: auto by the machine (docs/engine.md), as stored, int8 or float32; none: float32. On cuda both hold float16.",
	},
	{
		flag: "device",
		env: ENV.DYN_DEVICE,
		type: "string",
		choices: ["auto", "cpu", "cuda"],
		default: "auto",
		group: "engine options",
		help: `Where the model runs. auto takes cuda where a trial shows that it can be used (${ENV.ORT_LIB_DIR} names the folder of ONNX Runtime with its CUDA provider), else cpu.`,
	},
	{
		flag: "gpu-memory-utilization",
		env: ENV.DYN_GPU_MEMORY_UTILIZATION,
		type: "number",
		min: 0,
		max: 1,
		default: 0.9,
		group: "engine options",
		help: "Share of a CUDA device's memory that may be used: weights, steps, and the KV cache with all the rest.",
	},
	{
		flag: "enforce-eager",
		type: "boolean",
		default: false,
		group: "engine options",
		help: "On cuda: steps are not captured as CUDA graphs.",
	},
	{
		flag: "max-model-len",
		env: ENV.DYN_MAX_MODEL_LEN,
		type: "integer",
		min: 1,
		group: "engine options",
		defaultText: "the model's own, or what fits in memory",
		help: "Longest prompt and answer together, in tokens.",
	},
	{
		flag: "max-num-seqs",
		env: ENV.DYN_MAX_NUM_SEQS,
		type: "integer",
		min: 1,
		max: 1024,
		group: "engine options",
		defaultText: "32, on cuda 64, or what fits in memory",
		help: "Most sequences in one step.",
	},
	{
		flag: "max-num-batched-tokens",
		env: ENV.DYN_MAX_NUM_BATCHED_TOKENS,
		type: "integer",
		min: 1,
		group: "engine options",
		defaultText: "128, on cuda 2048, or as many as --max-num-seqs",
		help: "Most tokens in one step, prompts included.",
	},
	{
		flag: "kv-cache-memory",
		env: ENV.DYN_KV_CACHE_MEMORY,
		type: "number",
		metavar: "GIB",
		group: "engine options",
		defaultText: "what the machine has beside the weights",
		help: "Memory for keys and values, in GiB: of running sequences and of what is kept for prompts to come.",
	},
	{
		flag: "kv-cache-dtype",
		env: ENV.DYN_KV_CACHE_DTYPE,
		type: "string",
		choices: ["auto", "fp32", "fp16", "int8"],
		default: "auto",
		group: "engine options",
		help: "How keys and values are held. auto: the fastest (fp32); int8: a quarter of the memory.",
	},
	{
		flag: "enable-prefix-caching",
		env: ENV.DYN_ENABLE_PREFIX_CACHING,
		type: "boolean",
		default: true,
		group: "engine options",
		help: "Keep blocks of finished requests for prompts that start alike.",
	},
	{
		flag: "speculative",
		env: ENV.DYN_SPECULATIVE,
		type: "string",
		choices: ["none", "ngram"],
		default: "none",
		group: "engine options",
		help: "Guess tokens and check several in one step; the text stays the same. ngram: what followed the last tokens before, for answers that repeat their prompt (code, extraction, summaries).",
	},
	{
		flag: "speculative-tokens",
		env: ENV.DYN_SPECULATIVE_TOKENS,
		type: "integer",
		min: 1,
		max: 64,
		default: 8,
		group: "engine options",
		help: "Most tokens guessed per sequence and step.",
	},
	{
		flag: "speculative-config",
		type: "string",
		metavar: "JSON",
		group: "engine options",
		help: 'The same in vLLM\'s form: {"method":"ngram","num_speculative_tokens":8}; wins over the two above.',
	},
	{
		flag: "block-size",
		env: ENV.DYN_BLOCK_SIZE,
		type: "integer",
		min: 1,
		max: 1024,
		group: "engine options",
		defaultText: "16, on cuda 64 to 256 by the model's heads",
		help: "Tokens per KV block.",
	},
	{
		flag: "num-threads",
		env: ENV.DYN_NUM_THREADS,
		type: "integer",
		min: 1,
		max: 1024,
		group: "engine options",
		defaultText: "by the number of cores",
		help: "Threads that compute one step.",
	},
];

const NUM_WORKERS: FlagSpec = {
	flag: "num-workers",
	env: ENV.DYN_NUM_WORKERS,
	type: "integer",
	min: 1,
	max: 256,
	default: 1,
	help: "Workers in this process, each with an engine of its own.",
};

/** Flags of vLLM workers in launch scripts that change nothing here. */
const VLLM_FLAGS: readonly FlagSpec[] = (
	[
		["string", "dtype", "the weights are held as --quantization says and computed in float32"],
		["boolean", "trust-remote-code", "code of a model is never run"],
		["string", "connector", "prompts are handed over by workers themselves"],
		["string", "load-format", "the format is read from the files"],
		["string", "tokenizer", "the tokenizer is the model's own"],
		["boolean", "disable-log-requests", "requests are logged by the frontend"],
		["boolean", "disable-log-stats", "/metrics has the numbers"],
	] as const
).map(([type, flag, why]) => ({
	type,
	flag,
	help: "Flag of vLLM workers.",
	group: "accepted from launch scripts of vLLM workers",
	status: { kind: "ignored", why },
}));

const PARALLEL_FLAGS: readonly FlagSpec[] = [
	{
		flag: "tensor-parallel-size",
		type: "integer",
		default: 1,
		help: "",
		status: { kind: "missing", why: "a model runs in one process; start more workers instead" },
	},
	{
		flag: "data-parallel-size",
		type: "integer",
		default: 1,
		help: "",
		status: { kind: "missing", why: "start more workers instead (--num-workers)" },
	},
];

const MODEL_FLAG: FlagSpec = {
	flag: "model",
	env: ENV.DYN_MODEL,
	type: "string",
	defaultText: "smollm2-135m",
	help: "The same as MODEL.",
};

/** Flags of `dynamo serve`. */
export const SERVE_COMMAND: CommandSpec = {
	name: "serve",
	summary: "Everything in one process: HTTP server and workers for one model; needs no etcd and no NATS.",
	positionals: [MODEL_ARGUMENT],
	flags: [
		...httpFlags("127.0.0.1"),
		MODEL_FLAG,
		...NAME_FLAGS,
		NUM_WORKERS,
		...ENGINE_FLAGS,
		ROUTER_MODE_FLAG,
		DASHBOARD_FLAG,
		...SERVE_DISAGG_FLAGS,
	],
	epilog: [
		"examples:",
		"  dynamo serve",
		"  dynamo serve ./my-model --http-port 9000 --model-name mine",
		"  dynamo serve ./my-model --disagg --num-prefill-workers 1 --num-workers 2",
	],
};

/** Flags of `dynamo worker`. */
export const WORKER_COMMAND: CommandSpec = {
	name: "worker",
	summary: "Serves a model's tokens to frontends that find it through discovery.",
	positionals: [MODEL_ARGUMENT],
	flags: [
		{ ...MODEL_FLAG, aliases: ["model-path"] },
		...NAME_FLAGS,
		{
			flag: "tool-call-parser",
			aliases: ["dyn-tool-call-parser"],
			type: "string",
			help: "Parser of tool calls, told to frontends in the model's card.",
		},
		{
			flag: "reasoning-parser",
			aliases: ["dyn-reasoning-parser"],
			type: "string",
			help: "Parser of reasoning, told to frontends in the model's card.",
		},
		...ENGINE_FLAGS,
		{
			flag: "kv-events-config",
			type: "string",
			metavar: "JSON",
			help: 'What is told of the KV cache. Routers hear of it unless {"enable_kv_cache_events":false} (of a decode worker only with true); {"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558","topic":"","buffer_steps":10000,"hwm":100000,"max_queue_size":100000} publishes it in vLLM\'s format as well.',
		},
		...ADVERTISED_ROUTER_FLAGS,
		...RUNTIME_FLAGS,
		...ROLE_FLAGS,
		...KV_TRANSFER_FLAGS,
		...VLLM_FLAGS,
		...PARALLEL_FLAGS,
	],
	epilog: ["example:", "  dynamo worker Qwen/Qwen2.5-0.5B-Instruct --discovery-backend file"],
};

const MOCKER_MISSING: readonly FlagSpec[] = [
	...(
		[
			["string", "planner-profile-data"],
			["boolean", "ais-perf-model"],
			["string", "reasoning"],
			["string", "response-replay-trace-path"],
			["string", "extra-engine-args"],
			["boolean", "sglang-generate"],
			["string", "sglang-schedule-policy"],
			["string", "sglang-max-prefill-tokens"],
			["string", "sglang-chunked-prefill-size"],
			["string", "sglang-clip-max-new-tokens"],
			["string", "sglang-schedule-conservativeness"],
			["string", "trtllm-capacity-scheduler-policy"],
			["string", "kv-transfer-bandwidth"],
			["string", "kv-transfer-timing-mode"],
			["string", "num-host-blocks"],
			["string", "host-offload-d2h-bandwidth-gbps"],
			["string", "host-offload-h2d-bandwidth-gbps"],
		] as const
	).map(
		([type, flag]): FlagSpec => ({
			type,
			flag,
			help: "",
			status: { kind: "missing", why: "the simulated engine has no such part; leave it out" },
		}),
	),
	{
		flag: "engine-type",
		type: "string",
		choices: ["vllm", "sglang", "trtllm"],
		default: "vllm",
		help: "",
		status: { kind: "missing", why: "the simulated engine schedules like vllm" },
	},
];

/** Flags of `dynamo mocker`. */
export const MOCKER_COMMAND: CommandSpec = {
	name: "mocker",
	summary: "A worker with a simulated engine: real wire, real scheduling, invented tokens.",
	flags: [
		{
			flag: "model-path",
			aliases: ["model"],
			env: ENV.DYN_MODEL_PATH,
			type: "string",
			defaultText: "smollm2-135m",
			help: "Model whose tokenizer is used: folder, .gguf file, Hugging Face id or alias. Its weights are not read.",
		},
		...NAME_FLAGS,
		NUM_WORKERS,
		{
			flag: "zmq-kv-events-ports",
			type: "string",
			metavar: "PORT[,PORT...]",
			help: `Ports, one per worker, on which KV events are published in vLLM's format as well; on the host of ${ENV.DYN_EVENT_PLANE_BIND_HOST} or ${ENV.DYN_EVENT_PLANE_HOST}, else 127.0.0.1.`,
		},
		{
			flag: "bootstrap-ports",
			type: "string",
			metavar: "PORT[,PORT...]",
			help: `Ports, one per prefill worker, where decode workers wait for prompts, so that both have a request at once; on the host of ${ENV.DYN_TCP_RPC_HOST}.`,
		},
		{
			flag: "zmq-replay-ports",
			type: "string",
			metavar: "PORT[,PORT...]",
			help: "Ports, one per worker, at which events that were missed can be asked for again.",
		},
		{
			flag: "num-gpu-blocks-override",
			env: ENV.DYN_NUM_GPU_BLOCKS_OVERRIDE,
			type: "integer",
			min: 1,
			default: 16384,
			help: "Blocks of the simulated KV cache.",
		},
		{
			flag: "block-size",
			aliases: ["sglang-page-size"],
			env: ENV.DYN_BLOCK_SIZE,
			type: "integer",
			min: 1,
			default: 64,
			help: "Tokens per KV block.",
		},
		{
			flag: "max-model-len",
			env: ENV.DYN_MAX_MODEL_LEN,
			type: "integer",
			min: 1,
			help: "Longest prompt and answer together, in tokens. Without it there is no limit but the cache.",
		},
		{
			flag: "max-num-seqs",
			env: ENV.DYN_MAX_NUM_SEQS,
			type: "integer",
			min: 1,
			default: 256,
			help: "Most sequences in one step.",
		},
		{
			flag: "max-num-batched-tokens",
			env: ENV.DYN_MAX_NUM_BATCHED_TOKENS,
			type: "integer",
			min: 1,
			default: 8192,
			help: "Most tokens in one step.",
		},
		{
			flag: "enable-prefix-caching",
			env: ENV.DYN_ENABLE_PREFIX_CACHING,
			type: "boolean",
			default: true,
			help: "Keep blocks of finished requests for prompts that start alike.",
		},
		{
			flag: "enable-chunked-prefill",
			env: ENV.DYN_ENABLE_CHUNKED_PREFILL,
			type: "boolean",
			default: true,
			help: "Let a prompt be computed over several steps.",
		},
		{
			flag: "preemption-mode",
			type: "string",
			choices: ["lifo", "fifo"],
			default: "lifo",
			help: "Which request gives way when the cache is full: the newest (lifo) or the oldest (fifo).",
		},
		{
			flag: "speedup-ratio",
			env: ENV.DYN_SPEEDUP_RATIO,
			type: "number",
			min: 0,
			default: 1,
			help: "Simulated time runs so many times faster; 0: no delays.",
		},
		{
			flag: "decode-speedup-ratio",
			env: ENV.DYN_DECODE_SPEEDUP_RATIO,
			type: "number",
			min: 0,
			default: 1,
			help: "A further factor for decode steps alone.",
		},
		{
			flag: "startup-time",
			env: ENV.DYN_STARTUP_TIME,
			type: "number",
			min: 0,
			help: "Seconds until the engine is ready.",
		},
		...(
			[
				["gpu-memory-utilization", "the cache is sized by --num-gpu-blocks-override"],
				["mem-fraction-static", "the cache is sized by --num-gpu-blocks-override"],
				["free-gpu-memory-fraction", "the cache is sized by --num-gpu-blocks-override"],
				["kv-cache-dtype", "the simulated cache holds no data"],
				["kv-bytes-per-token", "the simulated cache holds no data"],
				["stagger-delay", "workers start at once"],
			] as const
		).map(
			([flag, why]): FlagSpec => ({
				flag,
				type: "string",
				help: "Flag of Dynamo's mocker.",
				group: "accepted without effect",
				status: { kind: "ignored", why },
			}),
		),
		...ADVERTISED_ROUTER_FLAGS,
		...RUNTIME_FLAGS,
		...ROLE_FLAGS,
		{
			flag: "data-parallel-size",
			type: "integer",
			default: 1,
			help: "",
			status: { kind: "missing", why: "start more workers instead (--num-workers)" },
		},
		...MOCKER_MISSING,
		...AIS_FLAGS,
	],
	epilog: ["example:", "  dynamo mocker --discovery-backend file --speedup-ratio 10 --num-workers 2"],
};
