// SPDX-License-Identifier: Apache-2.0
// Flags of Dynamo's frontend and mocker that this version does not have, with their variables and defaults: asking
// for what is the default anyway is no error, everything else says so instead of being ignored.
import { ENV } from "@dynamo-ts/protocols/internal";
import type { BooleanFlag, FlagSpec, NumberFlag, StringFlag } from "./flag-spec.js";

type Row = Omit<StringFlag, "help"> | Omit<NumberFlag, "help"> | Omit<BooleanFlag, "help">;

function withReason(why: string, rows: readonly Row[]): FlagSpec[] {
	return rows.map((row) => ({ ...row, help: "", status: { kind: "missing", why } }) as FlagSpec);
}

/** Certificates of the HTTP listener. */
export const TLS_FLAGS: readonly FlagSpec[] = withReason(
	"the HTTP listener has no TLS yet; put a proxy that ends TLS in front",
	[
		{ flag: "tls-cert-path", env: ENV.DYN_TLS_CERT_PATH, type: "string" },
		{ flag: "tls-key-path", env: ENV.DYN_TLS_KEY_PATH, type: "string" },
		{ flag: "tls-client-ca-cert-path", env: ENV.DYN_TLS_CLIENT_CA_CERT_PATH, type: "string" },
	],
);

/** The rest of routing by cache and load. */
export const MISSING_ROUTER_FLAGS: readonly FlagSpec[] = withReason(
	"this part of routing is not there yet; leave it out",
	[
		{
			flag: "router-tracking-hash",
			env: ENV.DYN_ROUTER_TRACKING_HASH,
			type: "string",
			choices: ["public-xxh3-v1", "keyed-xxh3-v1"],
			default: "public-xxh3-v1",
		},
		{ flag: "router-tracking-key-file", env: ENV.DYN_ROUTER_TRACKING_KEY_FILE, type: "string" },
		{ flag: "router-tracking-key-id", env: ENV.DYN_ROUTER_TRACKING_KEY_ID, type: "string" },
		{
			flag: "router-prefill-load-model",
			env: ENV.DYN_ROUTER_PREFILL_LOAD_MODEL,
			type: "string",
			choices: ["none", "ais"],
			default: "none",
		},
		{ flag: "shared-cache-multiplier", env: ENV.DYN_SHARED_CACHE_MULTIPLIER, type: "string" },
		{
			flag: "shared-cache-type",
			env: ENV.DYN_SHARED_CACHE_TYPE,
			type: "string",
			choices: ["none", "hicache"],
			default: "none",
		},
	],
);

/** Performance models. */
export const AIS_FLAGS: readonly FlagSpec[] = withReason("there is no performance model to set up; leave it out", [
	{ flag: "ais-perf-config", type: "string" },
	{ flag: "ais-backend", aliases: ["aic-backend"], type: "string" },
	{ flag: "ais-system", aliases: ["aic-system"], type: "string" },
	{ flag: "ais-backend-version", aliases: ["aic-backend-version"], type: "string" },
	{ flag: "ais-tp-size", aliases: ["aic-tp-size"], type: "string" },
	{ flag: "ais-model-path", aliases: ["aic-model-path"], type: "string" },
	{ flag: "ais-moe-tp-size", aliases: ["aic-moe-tp-size"], type: "string" },
	{ flag: "ais-moe-ep-size", aliases: ["aic-moe-ep-size"], type: "string" },
	{ flag: "ais-attention-dp-size", aliases: ["aic-attention-dp-size"], type: "string" },
	{ flag: "ais-nextn", aliases: ["aic-nextn"], type: "string" },
	{ flag: "ais-nextn-accept-rates", aliases: ["aic-nextn-accept-rates"], type: "string" },
	{ flag: "ais-mtp-seed", aliases: ["aic-mtp-seed"], type: "string" },
]);

/** What remains of the frontend. */
export const OTHER_FRONTEND_FLAGS: readonly FlagSpec[] = withReason("leave it out", [
	{ flag: "kserve-grpc-server", env: ENV.DYN_KSERVE_GRPC_SERVER, type: "boolean" },
	{ flag: "grpc-metrics-port", env: ENV.DYN_GRPC_METRICS_PORT, type: "number", default: 8788 },
	{ flag: "frontend-route-extension", env: ENV.DYN_FRONTEND_ROUTE_EXTENSIONS, type: "string" },
	{ flag: "enable-anthropic-api", env: ENV.DYN_ENABLE_ANTHROPIC_API, type: "boolean" },
	{ flag: "strip-anthropic-preamble", env: ENV.DYN_STRIP_ANTHROPIC_PREAMBLE, type: "boolean", default: true },
	{ flag: "enable-streaming-tool-dispatch", env: ENV.DYN_ENABLE_STREAMING_TOOL_DISPATCH, type: "boolean" },
	{ flag: "enable-streaming-reasoning-dispatch", env: ENV.DYN_ENABLE_STREAMING_REASONING_DISPATCH, type: "boolean" },
	{
		flag: "reasoning-field-name",
		env: ENV.DYN_REASONING_FIELD_NAME,
		type: "string",
		choices: ["reasoning_content", "reasoning"],
		default: "reasoning_content",
	},
	{
		flag: "exclude-tools-when-tool-choice-none",
		env: ENV.DYN_EXCLUDE_TOOLS_WHEN_TOOL_CHOICE_NONE,
		type: "boolean",
		default: true,
	},
	{
		flag: "dyn-chat-processor",
		env: ENV.DYN_CHAT_PROCESSOR,
		type: "string",
		choices: ["dynamo", "vllm", "sglang"],
		default: "dynamo",
	},
]);
