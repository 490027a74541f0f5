// SPDX-License-Identifier: Apache-2.0
// Variables of the system server, shutdown, the HTTP server, routers, workers and models.
import { commands, type EnvVariable, everywhere, frontend, OF_A_FLAG, routers, worker } from "./env-variable.js";

type Variables = Record<string, EnvVariable | typeof OF_A_FLAG>;

const SYSTEM_PATHS = "other paths";
const CANARY = "that silence, and the longest wait for the answer";

export const SYSTEM_SERVER_VARIABLES = {
	DYN_SYSTEM_PORT: everywhere(
		"-1",
		"port of `/health`, `/live`, `/metrics`, `/v1/metadata`; -1 for none, 0 for any free one; a frontend has them at its HTTP port",
	),
	DYN_SYSTEM_HOST: everywhere("0.0.0.0", "its address, and the host in the URLs of the model card's files"),
	DYN_SYSTEM_HEALTH_PATH: everywhere("`/health`", SYSTEM_PATHS),
	DYN_SYSTEM_LIVE_PATH: everywhere("`/live`", SYSTEM_PATHS),
	DYN_SYSTEM_STARTING_HEALTH_STATUS: everywhere("notready", "`ready`: healthy before an endpoint is"),
	DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS: everywhere(
		"[]",
		'JSON list of endpoints that must be ready, e.g. `["generate"]`',
	),
	DYN_HEALTH_CHECK_ENABLED: everywhere(
		"false",
		"a worker asks its own endpoint for a token: at the start, and after each silence; `/health` is 503 while it fails",
	),
	DYN_CANARY_WAIT_TIME: everywhere("10 s", CANARY),
	DYN_HEALTH_CHECK_REQUEST_TIMEOUT: everywhere("3 s", CANARY),
	DYN_HEALTH_CHECK_PAYLOAD: everywhere("the worker's", "another request to ask with: JSON, or @ and a file"),
} as const satisfies Variables;

export const SHUTDOWN_VARIABLES = {
	DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS: everywhere(
		"0.5 s",
		"after leaving discovery, requests are still taken for so long",
	),
	DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT: everywhere("30 s", "longest wait for streams under way"),
	DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS: everywhere("30 s", "the same; the one above wins"),
	DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS: frontend(
		"5 s",
		"the same in the frontend, before the listener closes; streams are not cut",
	),
} as const satisfies Variables;

const ROUTES = "other paths for the routes";

export const HTTP_VARIABLES = {
	DYN_HTTP_HOST: OF_A_FLAG,
	DYN_HTTP_PORT: OF_A_FLAG,
	DYN_HTTP_BODY_LIMIT_MB: frontend("45", "larger bodies are answered with 413"),
	DYN_HTTP_OVERLOAD_STATUS_CODE: frontend("529", "status when workers have no room"),
	DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS: frontend("0", "a comment line after so much silence of a stream; 0 for none"),
	DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS: frontend(
		"0",
		"how long after a worker took a stream its errors can still be plain answers with a status of their own; 0: they are error events at once",
	),
	DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS: frontend("none", "longest silence of a worker; then a 504 in the stream"),
	DYN_HTTP_LISTEN_BACKLOG: frontend(
		"65535",
		"connections that may wait to be taken; the system's own limit holds as well",
	),
	DYN_HTTP_SVC_CHAT_PATH: frontend("`/v1/chat/completions`", ROUTES),
	DYN_HTTP_SVC_CMP_PATH: frontend("`/v1/completions`", ROUTES),
	DYN_HTTP_SVC_MODELS_PATH: frontend("`/v1/models`", ROUTES),
	DYN_HTTP_SVC_HEALTH_PATH: frontend("`/health`", ROUTES),
	DYN_HTTP_SVC_LIVE_PATH: frontend("`/live`", ROUTES),
	DYN_HTTP_SVC_METRICS_PATH: frontend("`/metrics`", ROUTES),
	DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS: frontend("false", "drop unknown request fields instead of answering 400"),
	DYN_DISABLE_FRONTEND_NVEXT: frontend("false", "drop `nvext`"),
	DYN_ENABLE_FORCE_INCLUDE_USAGE: frontend("false", "every stream ends with a usage chunk"),
	DYN_DISABLE_FRONTEND_ADMIN_API: frontend("false", "no route `/busy_threshold`"),
	DYN_MODEL_CACHE_DIR: frontend("`~/.cache/dynamo-ts/mdc`", "files of model cards, by content"),
} as const satisfies Variables;

export const ROUTING_VARIABLES = {
	DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS: routers(
		"300 s",
		"mode `kv`: a request whose end is never told no longer counts after so long",
	),
	DYN_ENCODER_CUDA_TO_CPU_RATIO: frontend(
		"8",
		"mode `device-aware-weighted`: how much more a worker with an accelerator takes",
	),
} as const satisfies Variables;

const HUB_CACHE = "the hub's usual cache, used as it is";

export const MODEL_VARIABLES = {
	DYN_CACHE_DIR: commands("`~/.cache/dynamo-ts`", "models, prepared graphs"),
	ORT_LIB_DIR: commands("`ort-cuda` below `DYN_CACHE_DIR`", "ONNX Runtime with its CUDA provider ([gpu.md](gpu.md))"),
	HF_HOME: commands("`~/.cache/huggingface`", HUB_CACHE),
	HF_HUB_CACHE: commands("`hub` below `HF_HOME`", HUB_CACHE),
	HF_HUB_OFFLINE: commands("false", "nothing is asked of the hub, as in Hugging Face's own tools"),
	XDG_CACHE_HOME: commands("`~/.cache`", "the folder that these caches are in"),
	VLLM_NIXL_SIDE_CHANNEL_PORT: worker(
		"any",
		"port of a prefill worker where `DYN_KV_TRANSFER_PORT` does not say ([disaggregation.md](disaggregation.md))",
	),
} as const satisfies Variables;
