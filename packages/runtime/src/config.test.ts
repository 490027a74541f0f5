// SPDX-License-Identifier: Apache-2.0
import { isDynamoError } from "@dynamo-ts/protocols/internal";
import { describe, expect, it } from "vitest";
import { runtimeConfigFromEnv } from "./config.js";

describe("runtime configuration", () => {
	it("has defaults, also for empty variables", () => {
		const config = runtimeConfigFromEnv({ DYN_SYSTEM_PORT: "" });
		expect(config).toMatchObject({
			discoveryBackend: "etcd",
			requestPlane: "tcp",
			requestPlaneCodec: "msgpack",
			tcpRpcPort: 0,
			tcpConnectTimeoutMs: 5000,
			tcpRequestTimeoutMs: 5000,
			tcpPoolSize: 100,
			tcpMaxMessageBytes: 33_554_432,
			inhibitedDurationMs: 5000,
			systemPort: -1,
			startsReady: false,
		});
		expect(config.fileKvRoot).toMatch(/dynamo_store_kv$/);
		expect(config.log).toMatchObject({ filter: "info", format: "readable" });
	});

	it("reads each variable", () => {
		const config = runtimeConfigFromEnv({
			DYN_DISCOVERY_BACKEND: "mem",
			DYN_FILE_KV: "/kv",
			DYN_TCP_RPC_HOST: "0.0.0.0",
			DYN_TCP_RPC_PORT: "1234",
			DYN_TCP_CONNECT_TIMEOUT: "0.5",
			DYN_SYSTEM_PORT: "0",
			DYN_SYSTEM_STARTING_HEALTH_STATUS: "ready",
			DYN_LOG: "debug",
			DYN_LOGGING_JSONL: "1",
			DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS: "7",
			DYN_LOG_USE_LOCAL_TZ: "on",
			DYN_HEALTH_CHECK_ENABLED: "true",
			DYN_CANARY_WAIT_TIME: "2",
			DYN_HEALTH_CHECK_REQUEST_TIMEOUT: "1.5",
			DYN_HEALTH_CHECK_PAYLOAD: '{"a":1}',
			DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS: '["generate"]',
		});
		expect(config).toMatchObject({
			discoveryBackend: "mem",
			fileKvRoot: "/kv",
			tcpRpcHost: "0.0.0.0",
			tcpRpcPort: 1234,
			tcpConnectTimeoutMs: 500,
			systemPort: 0,
			startsReady: true,
			shutdownTimeoutMs: 7000,
			healthCheckEnabled: true,
			canaryWaitMs: 2000,
			healthCheckTimeoutMs: 1500,
			healthCheckPayload: '{"a":1}',
			healthEndpoints: ["generate"],
			log: { filter: "debug", format: "jsonl", localTime: true },
		});
		expect(runtimeConfigFromEnv({ DYN_LOGGING_JSONL: "1", DYN_LOGGING_CONSOLE_FORMAT: "readable" }).log.format).toBe(
			"readable",
		);
	});

	it("does not look at the variables of settings that are given", () => {
		const read = new Set<string>();
		const env = new Proxy<Record<string, string>>(
			{ DYN_SYSTEM_PORT: "nonsense", DYN_LOGGING_JSONL: "maybe", DYN_TCP_POOL_SIZE: "7" },
			{
				get: (values, name: string) => {
					read.add(name);
					return values[name];
				},
			},
		);
		const log = { filter: "off", format: "readable", ansi: false, localTime: false } as const;
		const config = runtimeConfigFromEnv(env, { systemPort: -1, firstResponseTimeoutMs: 0, startsReady: false, log });
		expect(config).toMatchObject({
			systemPort: -1,
			firstResponseTimeoutMs: 0,
			startsReady: false,
			log,
			tcpPoolSize: 7,
		});
		expect(read).not.toContain("DYN_SYSTEM_PORT");
		expect(read).not.toContain("DYN_LOG");
		read.clear();
		expect(runtimeConfigFromEnv(env, config)).toEqual(config);
		expect(read.size).toBe(0);
	});

	it.each([
		["DYN_DISCOVERY_BACKEND", "zookeeper", "one of kubernetes, etcd, file, mem"],
		["ETCD_ENDPOINTS", "http://a:1,https://b:2", "URLs, all http or all https"],
		["ETCD_ENDPOINTS", " , ", "URLs, all http or all https"],
		["ETCD_LEASE_TTL", "0", "a whole number from 1 to 86400"],
		["DYN_REQUEST_PLANE", "http", "one of tcp, nats"],
		["DYN_SYSTEM_PORT", "-2", "a whole number from -1 to 65535"],
		["DYN_SYSTEM_PORT", "8080x", "a whole number from -1 to 65535"],
		["DYN_TCP_POOL_SIZE", "0", "a whole number from 1 to 65535"],
		["DYN_TCP_CONNECT_TIMEOUT", "soon", "a number of seconds"],
		["DYN_TCP_CONNECT_TIMEOUT", "-1", "a number of seconds"],
		["DYN_LOGGING_JSONL", "maybe", "true or false"],
		["DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", "generate", "a JSON list of endpoint names"],
		["DYN_HEALTH_CHECK_PAYLOAD", "{", "JSON or @FILE with JSON"],
	])("refuses %s=%s and says what is valid", (name, value, valid) => {
		try {
			runtimeConfigFromEnv({ [name]: value });
			expect.unreachable();
		} catch (error) {
			expect(isDynamoError(error) && error.errorClass).toBe("InvalidArgument");
			expect((error as Error).message).toContain(`${name}=${value} is not valid: it must be ${valid}`);
		}
	});
});
