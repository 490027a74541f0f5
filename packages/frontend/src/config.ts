// SPDX-License-Identifier: Apache-2.0
import { homedir } from "node:os";
import { join } from "node:path";
import { type BucketRange, DynamoError, ENV, METRIC_PREFIXES } from "@dynamo-ts/protocols/internal";
import type {
	BusyThresholds,
	KvRouterOptions,
	RouterMode,
	RouterPolicyConfig,
	SessionAffinityOptions,
} from "@dynamo-ts/router";
import {
	busyThresholdsFromEnv,
	kvRouterOptionsFromEnv,
	policyConfigFromEnv,
	routerModeFromEnv,
	sessionAffinityFromEnv,
} from "@dynamo-ts/router/internal";
import { EnvReader } from "@dynamo-ts/runtime/internal";
import { type ConditionalDisagg, parseConditionalDisagg } from "./conditional-disagg.js";

/** Ranges of the five histograms that can be set; units: seconds, or tokens for the two sequence lengths. */
export interface BucketRanges {
	readonly timeToFirstToken: BucketRange;
	readonly interTokenLatency: BucketRange;
	readonly inputSequence: BucketRange;
	readonly outputSequence: BucketRange;
	readonly requestDuration: BucketRange;
}

/** Where the routes are. */
export interface FrontendPaths {
	readonly chat: string;
	readonly completions: string;
	readonly models: string;
	readonly health: string;
	readonly live: string;
	readonly metrics: string;
}

/** All settings of a frontend. Times are milliseconds, sizes bytes. */
export interface FrontendConfig {
	readonly host: string;
	/** 0: any free port. */
	readonly port: number;
	readonly listenBacklog: number;
	/** Larger bodies are answered with 413. */
	readonly bodyLimitBytes: number;
	/** Longest wait for requests under way when the frontend leaves. */
	readonly gracefulShutdownTimeoutMs: number;
	/** Status for overload. */
	readonly overloadStatusCode: number;
	/** A comment event after this much silence of a stream; 0: none. */
	readonly sseKeepAliveIntervalMs: number;
	/** How long after a worker took a streamed request its errors can still be plain answers; 0: not at all. */
	readonly preCommitErrorPeekMs: number;
	/** Spans carry prompts and answers, too. */
	readonly traceContent: boolean;
	/** Longest silence of a worker, before the first token too; undefined: the runtime's deadlines. */
	readonly backendStreamTimeoutMs: number | undefined;
	/** Most times that a stream whose worker was lost goes on at another one; 0: it ends with an error. */
	readonly migrationLimit: number;
	/** Tokens of prompt and output together beyond which a stream is no longer moved; undefined: no limit. */
	readonly migrationMaxSeqLen: number | undefined;
	readonly paths: FrontendPaths;
	/** Only models of this namespace; undefined: of all. */
	readonly namespace: string | undefined;
	/** Only models of namespaces that start so; wins over {@link namespace}. */
	readonly namespacePrefix: string | undefined;
	/** Where files of model cards are looked for that are not at the path that the card gives. */
	readonly modelPath: string | undefined;
	/** Files of model cards, by content. */
	readonly modelCacheDir: string;
	/** Longest time for one model file. */
	readonly fileTimeoutMs: number;
	readonly routerMode: RouterMode;
	/** For the router mode kv. */
	readonly kvRouter: KvRouterOptions;
	/** What the file of router policies says: which requests wait, and in what order; undefined: there is none. */
	readonly policyConfig: RouterPolicyConfig | undefined;
	/** A model is there once it has so many workers. */
	readonly minInitialWorkers: number;
	/** Requests of a session stay with one worker; undefined: they do not. */
	readonly sessionAffinity: SessionAffinityOptions | undefined;
	/** Workers above them get no more; they can be changed while running. */
	readonly busyThresholds: BusyThresholds;
	/** No routes that change settings. */
	readonly disableAdminApi: boolean;
	/** Which prompts decode workers compute themselves; undefined: none. For the router mode kv. */
	readonly conditionalDisagg: ConditionalDisagg | undefined;
	/** Requests whose prompt no prefill worker computes fail, instead of being left to the decode worker alone. */
	readonly enforceDisagg: boolean;
	/** Replaces `dynamo_frontend` in the names of request metrics. */
	readonly metricsPrefix: string;
	/** Serve a page that shows the cluster, at `/dashboard`. */
	readonly dashboard: boolean;
	/** Also show what happens under the names of NVIDIA NIM's metrics. */
	readonly nimMetrics: boolean;
	/** Among those, the ones about Python. */
	readonly nimPythonMetrics: boolean;
	/** Drop `nvext` from requests. */
	readonly disableNvext: boolean;
	/** Drop unknown request fields instead of refusing them. */
	readonly ignoreUnsupportedFields: boolean;
	/** Every stream gets a usage chunk. */
	readonly forceIncludeUsage: boolean;
	readonly buckets: BucketRanges;
}

const MB = 1024 * 1024;

/**
 * Reads a frontend's settings from environment variables; an absent or empty one gives the default.
 * @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid.
 */
export function frontendConfigFromEnv(env: Readonly<Record<string, string | undefined>> = process.env): FrontendConfig {
	const read = new EnvReader(env);
	const routerMode = routerModeFromEnv(read);
	const kvRouter = kvRouterOptionsFromEnv(read);
	if (kvRouter.serveIndexer && routerMode !== "kv") {
		throw new DynamoError(
			"InvalidArgument",
			`${ENV.DYN_SERVE_INDEXER} needs the router mode kv; the mode is ${routerMode}, which keeps no index`,
		);
	}
	const optional = (name: string): string | undefined => read.text(name, "") || undefined;
	return {
		host: read.text(ENV.DYN_HTTP_HOST, "0.0.0.0"),
		port: read.integer(ENV.DYN_HTTP_PORT, 8000, 0, 65535),
		listenBacklog: read.integer(ENV.DYN_HTTP_LISTEN_BACKLOG, 65535, 1, 65535),
		bodyLimitBytes: read.integer(ENV.DYN_HTTP_BODY_LIMIT_MB, 45, 1, 2000) * MB,
		gracefulShutdownTimeoutMs: read.seconds(ENV.DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS, 5),
		overloadStatusCode: read.integer(ENV.DYN_HTTP_OVERLOAD_STATUS_CODE, 529, 400, 599),
		traceContent: read.flag(ENV.DYN_TRACE_CONTENT, false),
		sseKeepAliveIntervalMs: read.integer(ENV.DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS, 0, 0, 0x7fff_ffff),
		preCommitErrorPeekMs: read.integer(ENV.DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS, 0, 0, 0x7fff_ffff),
		backendStreamTimeoutMs: read.seconds(ENV.DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS, 0) || undefined,
		migrationLimit: read.integer(ENV.DYN_MIGRATION_LIMIT, 0, 0, 0xffff_ffff),
		migrationMaxSeqLen:
			optional(ENV.DYN_MIGRATION_MAX_SEQ_LEN) === undefined
				? undefined
				: read.integer(ENV.DYN_MIGRATION_MAX_SEQ_LEN, 0, 0, 0xffff_ffff),
		paths: {
			chat: read.text(ENV.DYN_HTTP_SVC_CHAT_PATH, "/v1/chat/completions"),
			completions: read.text(ENV.DYN_HTTP_SVC_CMP_PATH, "/v1/completions"),
			models: read.text(ENV.DYN_HTTP_SVC_MODELS_PATH, "/v1/models"),
			health: read.text(ENV.DYN_HTTP_SVC_HEALTH_PATH, "/health"),
			live: read.text(ENV.DYN_HTTP_SVC_LIVE_PATH, "/live"),
			metrics: read.text(ENV.DYN_HTTP_SVC_METRICS_PATH, "/metrics"),
		},
		namespace: optional(ENV.DYN_NAMESPACE),
		namespacePrefix: optional(ENV.DYN_NAMESPACE_PREFIX),
		modelPath: optional(ENV.DYN_MODEL_PATH),
		modelCacheDir: read.text(ENV.DYN_MODEL_CACHE_DIR, join(homedir(), ".cache", "dynamo-ts", "mdc")),
		fileTimeoutMs: 60_000,
		routerMode,
		kvRouter,
		policyConfig: policyConfigFromEnv(read),
		minInitialWorkers: read.integer(ENV.DYN_ROUTER_MIN_INITIAL_WORKERS, 0, 0, 0xffff_ffff),
		sessionAffinity: sessionAffinityFromEnv(read),
		busyThresholds: busyThresholdsFromEnv(read),
		disableAdminApi: read.flag(ENV.DYN_DISABLE_FRONTEND_ADMIN_API, false),
		conditionalDisagg: read.flag(ENV.DYN_ROUTER_CONDITIONAL_DISAGG, false)
			? parseConditionalDisagg(
					optional(ENV.DYN_ROUTER_CONDITIONAL_DISAGG_CONFIG),
					ENV.DYN_ROUTER_CONDITIONAL_DISAGG_CONFIG,
				)
			: undefined,
		enforceDisagg: read.flag(ENV.DYN_ENFORCE_DISAGG, false),
		metricsPrefix: read.text(ENV.DYN_METRICS_PREFIX, METRIC_PREFIXES.frontend),
		dashboard: read.flag(ENV.DYN_DASHBOARD, true),
		nimMetrics: read.flag(ENV.DYN_NIM_METRICS, true),
		nimPythonMetrics: read.flag(ENV.DYN_NIM_PYTHON_METRICS, true),
		disableNvext: read.flag(ENV.DYN_DISABLE_FRONTEND_NVEXT, false),
		ignoreUnsupportedFields: read.flag(ENV.DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS, false),
		forceIncludeUsage: read.flag(ENV.DYN_ENABLE_FORCE_INCLUDE_USAGE, false),
		buckets: {
			timeToFirstToken: bucketRange(env, "TTFT", { min: 0.001, max: 480, count: 18 }),
			interTokenLatency: bucketRange(env, "ITL", { min: 0.001, max: 80, count: 20 }),
			inputSequence: bucketRange(env, "INPUT_SEQUENCE", { min: 50, max: 128_000, count: 12 }),
			outputSequence: bucketRange(env, "OUTPUT_SEQUENCE", { min: 50, max: 32_000, count: 10 }),
			requestDuration: bucketRange(env, "REQUEST_DURATION", { min: 1, max: 512, count: 10 }),
		},
	};
}

type BucketName = "TTFT" | "ITL" | "INPUT_SEQUENCE" | "OUTPUT_SEQUENCE" | "REQUEST_DURATION";

/** As the real frontend does, a range that makes no sense falls back to the default as a whole. */
function bucketRange(
	env: Readonly<Record<string, string | undefined>>,
	name: BucketName,
	fallback: BucketRange,
): BucketRange {
	const number = (variable: string, otherwise: number): number => {
		const text = env[variable];
		return text === undefined || text === "" ? otherwise : Number(text);
	};
	const min = number(ENV[`DYN_METRICS_${name}_MIN`], fallback.min);
	const max = number(ENV[`DYN_METRICS_${name}_MAX`], fallback.max);
	const count = number(ENV[`DYN_METRICS_${name}_COUNT`], fallback.count);
	const valid = min > 0 && max > min && Number.isFinite(max) && Number.isInteger(count) && count >= 2 && count <= 1000;
	return valid ? { min, max, count } : fallback;
}
