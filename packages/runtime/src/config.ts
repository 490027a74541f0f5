// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DynamoError, ENV, parseJson, type RequestPlaneCodec } from "@dynamo-ts/protocols/internal";
import type { DiscoveryBackend } from "./discovery/discovery.js";
import { type EtcdConfig, readEtcdConfig } from "./discovery/etcd/etcd-config.js";
import { type KubernetesConfig, readKubernetesConfig } from "./discovery/kubernetes/kube-config.js";
import type { MemStore } from "./discovery/mem.js";
import { type EventSettings, eventSettingsFromEnv } from "./event-plane/event-settings.js";
import { DEFAULT_LISTEN_BACKLOG } from "./net/listen.js";
import { type NatsSettings, natsSettingsFromEnv } from "./net/nats-settings.js";
import { type TcpTlsSettings, tcpTlsSettingsFromEnv } from "./net/tcp-tls.js";
import { type LogConfig, logConfigFromEnv } from "./observability/log-settings.js";
import type { SpanSink } from "./observability/tracing/span.js";
import { type TelemetryConfig, telemetryConfigFromEnv } from "./observability/tracing/telemetry-settings.js";

/** Everything that the runtime of one process can be told. All times are milliseconds, all sizes bytes. */
export interface RuntimeConfig {
	readonly discoveryBackend: DiscoveryBackend;
	/** Folder of the file backend. */
	readonly fileKvRoot: string;
	/** The store of the mem backend; absent: the one that all runtimes of this process share. */
	readonly memStore?: MemStore;
	/** How the etcd backend reaches etcd. */
	readonly etcd: EtcdConfig;
	/** What the kubernetes backend knows of its pod and of the way to the API. */
	readonly kubernetes: KubernetesConfig;
	readonly requestPlane: "tcp" | "nats";
	/** What our endpoint records ask clients to send. */
	readonly requestPlaneCodec: RequestPlaneCodec;
	/** Listener of the request plane, and the host that it is advertised under. Port 0: any. */
	readonly tcpRpcHost: string;
	readonly tcpRpcPort: number;
	/** Listener that workers dial back to. */
	readonly tcpResponseHost: string;
	readonly tcpResponsePort: number;
	/** Connections that may wait to be accepted by either listener. */
	readonly tcpListenBacklog: number;
	readonly tcpConnectTimeoutMs: number;
	/** From sending a request to its acknowledgement. */
	readonly tcpRequestTimeoutMs: number;
	/** Most request connections per address. */
	readonly tcpPoolSize: number;
	/** Unused request connections are closed after this. */
	readonly tcpPoolIdleMs: number;
	/** Largest request frame taken or sent, headers and lengths included. */
	readonly tcpMaxMessageBytes: number;
	/** Certificates of the TCP listeners and connections. */
	readonly tcpTls: TcpTlsSettings;
	/** Where NATS is; looked at only by what uses it. */
	readonly nats: NatsSettings;
	/** From sending a request over NATS to its acknowledgement. */
	readonly natsRequestTimeoutMs: number;
	/** From sending a request to the first item; 0 for none. */
	readonly firstResponseTimeoutMs: number;
	/** Between two items; 0 for none. */
	readonly idleTimeoutMs: number;
	/** A client that lets more than this pile up on its response stream is cut off. */
	readonly maxBufferedResponseBytes: number;
	/** How long a failed instance is put aside. */
	readonly inhibitedDurationMs: number;
	/** How events travel. */
	readonly events: EventSettings;
	readonly systemHost: string;
	/** -1: no system server, 0: any port. */
	readonly systemPort: number;
	readonly systemHealthPath: string;
	readonly systemLivePath: string;
	/** Ready from the start, before any endpoint is. */
	readonly startsReady: boolean;
	/** Endpoints (names) that must be ready for the process to be, whether they have a health payload or not. */
	readonly healthEndpoints: readonly string[];
	/** Endpoints with a health payload are asked when they were silent for a while. */
	readonly healthCheckEnabled: boolean;
	/** Silence of an endpoint after which it is asked. */
	readonly canaryWaitMs: number;
	/** Longest wait for the first item of the answer. */
	readonly healthCheckTimeoutMs: number;
	/** JSON that replaces the payloads that endpoints bring; empty: theirs. */
	readonly healthCheckPayload: string;
	/** Most requests that an engine is given at once; Infinity: no limit. */
	readonly engineRequestLimit: number;
	/** Most requests that are handled at once, whatever their endpoint. */
	readonly workerPoolSize: number;
	/** Most requests that wait for that; more are refused. */
	readonly workQueueSize: number;
	/** Most requests that wait for that; Infinity: no limit. */
	readonly requestQueueLimit: number;
	/** After leaving discovery, requests are still taken for this long. */
	readonly shutdownGraceMs: number;
	/** Longest wait for requests under way at shutdown. */
	readonly shutdownTimeoutMs: number;
	readonly log: LogConfig;
	/** What is exported of traces, logs and metrics, and where to. */
	readonly telemetry: TelemetryConfig;
	/** Takes recorded spans in place of an exporter. */
	readonly spanSink?: SpanSink;
}

const MiB = 1024 * 1024;

/** How each setting is read; only those that are asked for are looked at. */
const READERS: { readonly [K in keyof Required<RuntimeConfig>]: (read: EnvReader) => RuntimeConfig[K] } = {
	discoveryBackend: (read) => read.choice(ENV.DYN_DISCOVERY_BACKEND, ["kubernetes", "etcd", "file", "mem"], "etcd"),
	fileKvRoot: (read) => read.text(ENV.DYN_FILE_KV, join(tmpdir(), "dynamo_store_kv")),
	// Not a matter of the environment.
	memStore: () => undefined,
	etcd: readEtcdConfig,
	kubernetes: readKubernetesConfig,
	requestPlane: (read) => read.choice(ENV.DYN_REQUEST_PLANE, ["tcp", "nats"], "tcp"),
	requestPlaneCodec: (read) => read.choice(ENV.DYN_REQUEST_PLANE_CODEC, ["msgpack", "json"], "msgpack"),
	tcpRpcHost: (read) => read.text(ENV.DYN_TCP_RPC_HOST, "127.0.0.1"),
	tcpRpcPort: (read) => read.integer(ENV.DYN_TCP_RPC_PORT, 0, 0, 65535),
	tcpResponseHost: (read) => read.text(ENV.DYN_TCP_RESPONSE_STREAM_HOST, "127.0.0.1"),
	tcpResponsePort: (read) => read.integer(ENV.DYN_TCP_RESPONSE_STREAM_PORT, 0, 0, 65535),
	tcpListenBacklog: (read) => read.integer(ENV.DYN_TCP_LISTEN_BACKLOG, DEFAULT_LISTEN_BACKLOG, 1, 65535),
	tcpConnectTimeoutMs: (read) => read.seconds(ENV.DYN_TCP_CONNECT_TIMEOUT, 5),
	tcpRequestTimeoutMs: (read) => read.seconds(ENV.DYN_TCP_REQUEST_TIMEOUT, 5),
	tcpPoolSize: (read) => read.integer(ENV.DYN_TCP_POOL_SIZE, 100, 1, 65535),
	tcpPoolIdleMs: (read) => read.seconds(ENV.DYN_TCP_HOST_IDLE_TTL_SECS, 300),
	tcpMaxMessageBytes: (read) => read.integer(ENV.DYN_TCP_MAX_MESSAGE_SIZE, 32 * MiB, 1024, 0x7fff_ffff),
	tcpTls: tcpTlsSettingsFromEnv,
	nats: natsSettingsFromEnv,
	natsRequestTimeoutMs: (read) => read.seconds(ENV.DYN_NATS_REQUEST_TIMEOUT_SECS, 10),
	firstResponseTimeoutMs: (read) => read.seconds(ENV.DYN_REQUEST_FIRST_RESPONSE_TIMEOUT_SECS, 300),
	idleTimeoutMs: (read) => read.seconds(ENV.DYN_REQUEST_IDLE_TIMEOUT_SECS, 120),
	maxBufferedResponseBytes: (read) => read.integer(ENV.DYN_TCP_RESPONSE_BUFFER_SIZE, 16 * MiB, 1024, 0x7fff_ffff),
	inhibitedDurationMs: (read) => read.seconds(ENV.DYN_RUNTIME_INHIBITED_DURATION_SECS, 5),
	events: eventSettingsFromEnv,
	systemHost: (read) => read.text(ENV.DYN_SYSTEM_HOST, "0.0.0.0"),
	systemPort: (read) => read.integer(ENV.DYN_SYSTEM_PORT, -1, -1, 65535),
	systemHealthPath: (read) => read.text(ENV.DYN_SYSTEM_HEALTH_PATH, "/health"),
	systemLivePath: (read) => read.text(ENV.DYN_SYSTEM_LIVE_PATH, "/live"),
	startsReady: (read) =>
		read.choice(ENV.DYN_SYSTEM_STARTING_HEALTH_STATUS, ["notready", "ready"], "notready") === "ready",
	healthEndpoints: (read) => endpointNames(read),
	healthCheckEnabled: (read) => read.flag(ENV.DYN_HEALTH_CHECK_ENABLED, false),
	canaryWaitMs: (read) => read.seconds(ENV.DYN_CANARY_WAIT_TIME, 10),
	healthCheckTimeoutMs: (read) => read.seconds(ENV.DYN_HEALTH_CHECK_REQUEST_TIMEOUT, 3),
	healthCheckPayload: (read) => healthCheckPayload(read),
	workerPoolSize: (read) => read.integer(ENV.DYN_TCP_WORKER_POOL_SIZE, 10_000, 1, 1_000_000),
	workQueueSize: (read) => read.integer(ENV.DYN_TCP_WORK_QUEUE_SIZE, 40_000, 0, 1_000_000),
	engineRequestLimit: (read) => limit(read, ENV.DYN_ENGINE_REQUEST_LIMIT, 1),
	requestQueueLimit: (read) => limit(read, ENV.DYN_DYNAMO_REQUEST_QUEUE_LIMIT, 0),
	shutdownGraceMs: (read) => read.seconds(ENV.DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS, 0.5),
	shutdownTimeoutMs: (read) =>
		read.seconds(
			ENV.DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT,
			read.seconds(ENV.DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS, 30) / 1000,
		),
	log: logConfigFromEnv,
	telemetry: telemetryConfigFromEnv,
	// Not a matter of the environment.
	spanSink: () => undefined,
};

/**
 * Reads the runtime's settings from environment variables; an absent or empty one gives the default.
 * @param given settings that are known already: their variables are not looked at.
 * @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid.
 */
export function runtimeConfigFromEnv(
	env: Readonly<Record<string, string | undefined>> = process.env,
	given: Partial<RuntimeConfig> = {},
): RuntimeConfig {
	const read = new EnvReader(env);
	const config: Record<string, unknown> = {};
	for (const name of Object.keys(READERS) as (keyof RuntimeConfig)[]) {
		const value = given[name] ?? READERS[name](read);
		if (value !== undefined) config[name] = value;
	}
	return config as unknown as RuntimeConfig;
}

function limit(read: EnvReader, name: string, least: number): number {
	return read.text(name, "") === "" ? Number.POSITIVE_INFINITY : read.integer(name, 0, least, 0xffff_ffff);
}

/** A JSON list of names, as Dynamo has it. */
function endpointNames(read: EnvReader): readonly string[] {
	const text = read.text(ENV.DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS, "[]");
	let names: unknown;
	try {
		names = JSON.parse(text);
	} catch {
		names = undefined;
	}
	if (Array.isArray(names) && names.every((name) => typeof name === "string")) return names as string[];
	throw bad(ENV.DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS, text, 'a JSON list of endpoint names, e.g. ["generate"]');
}

/** JSON, or @ and the path of a file with it. */
function healthCheckPayload(read: EnvReader): string {
	const text = read.text(ENV.DYN_HEALTH_CHECK_PAYLOAD, "");
	if (text === "") return "";
	try {
		const json = text.startsWith("@") ? readFileSync(text.slice(1), "utf8") : text;
		parseJson(json);
		return json;
	} catch (error) {
		throw bad(ENV.DYN_HEALTH_CHECK_PAYLOAD, text, `JSON or @FILE with JSON (${(error as Error).message})`);
	}
}

/** Reads typed values out of an environment; each refusal names the variable, the value and what is valid. */
export class EnvReader {
	readonly #env: Readonly<Record<string, string | undefined>>;

	constructor(env: Readonly<Record<string, string | undefined>>) {
		this.#env = env;
	}

	/** The text, or the fallback when the variable is absent or empty. */
	text(name: string, fallback: string): string {
		const value = this.#env[name];
		return value === undefined || value === "" ? fallback : value;
	}

	/** One of the named values, in any case. */
	choice<T extends string>(name: string, valid: readonly T[], fallback: T): T {
		const value = this.text(name, fallback);
		const found = valid.find((candidate) => candidate === value.toLowerCase());
		if (found === undefined) throw bad(name, value, `one of ${valid.join(", ")}`);
		return found;
	}

	/** A whole number within bounds, both included. */
	integer(name: string, fallback: number, min: number, max: number): number {
		const value = this.text(name, String(fallback));
		const number = /^[+-]?\d+$/.test(value.trim()) ? Number(value) : Number.NaN;
		if (!Number.isSafeInteger(number) || number < min || number > max) {
			throw bad(name, value, `a whole number from ${min} to ${max}`);
		}
		return number;
	}

	/** A number within bounds, both included. */
	number(name: string, fallback: number, min: number, max: number): number {
		const value = this.text(name, String(fallback));
		const number = Number(value);
		if (value.trim() === "" || !Number.isFinite(number) || number < min || number > max) {
			throw bad(name, value, `a number from ${min} to ${max}`);
		}
		return number;
	}

	/** Seconds (fractions allowed) as milliseconds. */
	seconds(name: string, fallbackSeconds: number): number {
		const value = this.text(name, String(fallbackSeconds));
		const number = Number(value);
		if (value.trim() === "" || !Number.isFinite(number) || number < 0 || number > 2_000_000) {
			throw bad(name, value, "a number of seconds from 0 to 2000000");
		}
		return Math.round(number * 1000);
	}

	/** 1, true, yes, on; 0, false, no, off. */
	flag(name: string, fallback: boolean): boolean {
		const value = this.text(name, String(fallback)).toLowerCase();
		if (["1", "true", "yes", "on"].includes(value)) return true;
		if (["0", "false", "no", "off"].includes(value)) return false;
		throw bad(name, value, "true or false");
	}
}

/** The error for a variable whose value cannot be used. */
export function bad(name: string, value: string, valid: string): DynamoError {
	const text = `${name}=${value} is not valid: it must be ${valid}`;
	return new DynamoError("InvalidArgument", text, { publicMessage: text, param: name });
}
