// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import { usageError } from "../cli-error.js";
import type { FlagSpec } from "./flag-spec.js";
import type { ParsedFlags } from "./parse-flags.js";
import { TRANSPORT_TLS_FLAGS } from "./transport-tls-flags.js";

const GROUP = "runtime options";

/** Flags that every process of a deployment takes: how it finds the others and talks to them. */
export const RUNTIME_FLAGS: readonly FlagSpec[] = [
	{
		flag: "discovery-backend",
		env: ENV.DYN_DISCOVERY_BACKEND,
		type: "string",
		choices: ["kubernetes", "etcd", "file", "mem"],
		default: "etcd",
		group: GROUP,
		help: `How processes find each other: etcd (${ENV.ETCD_ENDPOINTS}, default http://localhost:2379), kubernetes (custom resources through the API server), file (a folder that all of them see, ${ENV.DYN_FILE_KV} or $TMPDIR/dynamo_store_kv) or mem (within one process).`,
	},
	{
		flag: "request-plane",
		env: ENV.DYN_REQUEST_PLANE,
		type: "string",
		choices: ["nats", "tcp"],
		default: "tcp",
		group: GROUP,
		help: `How requests reach workers, the same for every process: tcp, or nats (${ENV.NATS_SERVER}). Responses come over TCP either way.`,
	},
	{
		flag: "response-plane",
		env: ENV.DYN_RESPONSE_PLANE,
		type: "string",
		choices: ["tcp", "quic"],
		default: "tcp",
		group: GROUP,
		help: "How responses come back. This version has tcp.",
	},
	{
		flag: "event-plane",
		env: ENV.DYN_EVENT_PLANE,
		type: "string",
		choices: ["nats", "zmq"],
		group: GROUP,
		defaultText: "zmq",
		help: `How KV events and load travel from workers to routers, the same for every process: zmq (${ENV.DYN_EVENT_PLANE_HOST}: the address that others connect to), or nats (${ENV.NATS_SERVER}).`,
	},
	{
		flag: "otlp-traces-endpoint",
		env: ENV.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
		type: "string",
		metavar: "URL",
		group: GROUP,
		defaultText: `${ENV.OTEL_EXPORTER_OTLP_ENDPOINT}, or http://localhost:4317`,
		help: `Where spans are sent when ${ENV.OTEL_EXPORT_ENABLED} is set.`,
	},
	...TRANSPORT_TLS_FLAGS,
];

/** Sets the variables of these flags to what the flags say, so that the runtime reads it. */
export function setRuntimeVariables(flags: ParsedFlags, env: NodeJS.ProcessEnv): void {
	for (const { flag, env: variable } of RUNTIME_FLAGS) {
		const value = flags.values[flag];
		if (variable !== undefined && value !== undefined) env[variable] = String(value);
	}
}

/**
 * Refuses the planes that this version does not have, with what works instead.
 * @throws CliError
 */
export function checkPlanes(command: string, flags: ParsedFlags): void {
	if (flags.string("response-plane") === "quic") {
		throw usageError(
			`--response-plane quic is not in this version of dynamo ${command}: use tcp (--response-plane tcp, or unset ${ENV.DYN_RESPONSE_PLANE})`,
		);
	}
}
