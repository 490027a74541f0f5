// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { EnvReader } from "../../config.js";
import { readEtcdConfig } from "./etcd-config.js";

const read = (env: Record<string, string>) => readEtcdConfig(new EnvReader(env));

describe("etcd settings", () => {
	it("has Dynamo's defaults", () => {
		expect(read({})).toEqual({
			endpoints: ["http://localhost:2379"],
			leaseTtlSeconds: 30,
			startupTimeoutMs: 120_000,
			keepAliveIntervalMs: 10_000,
			keepAliveTimeoutMs: 5000,
		});
	});

	it.each([
		["http://a:1, http://b:2/", ["http://a:1", "http://b:2"]],
		["a,b:7", ["http://a:2379", "http://b:7"]],
		["http://[::1]:2379", ["http://[::1]:2379"]],
		["https://a:443", ["https://a:443"]],
	])("takes the endpoints %s", (text, endpoints) => {
		expect(read({ ETCD_ENDPOINTS: text }).endpoints).toEqual(endpoints);
	});

	it("reads login and certificates, and takes TLS where a bare endpoint has something to do it with", () => {
		const env = {
			ETCD_ENDPOINTS: "a:1",
			ETCD_AUTH_USERNAME: "u",
			ETCD_AUTH_PASSWORD: "p",
			ETCD_AUTH_CA: "/ca",
			ETCD_AUTH_CLIENT_CERT: "/cert",
			ETCD_AUTH_CLIENT_KEY: "/key",
			ETCD_LEASE_TTL: "5",
			ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS: "3",
			ETCD_KEEPALIVE_INTERVAL_SECONDS: "7",
			ETCD_KEEPALIVE_TIMEOUT_SECONDS: "2",
		};
		expect(read(env)).toEqual({
			endpoints: ["https://a:1"],
			leaseTtlSeconds: 5,
			startupTimeoutMs: 3000,
			keepAliveIntervalMs: 7000,
			keepAliveTimeoutMs: 2000,
			username: "u",
			password: "p",
			ca: "/ca",
			clientCert: "/cert",
			clientKey: "/key",
		});
	});

	it.each([
		[{ ETCD_AUTH_USERNAME: "u" }, "ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD go together"],
		[{ ETCD_AUTH_CLIENT_KEY: "/k" }, "ETCD_AUTH_CLIENT_CERT and ETCD_AUTH_CLIENT_KEY go together"],
		[{ ETCD_ENDPOINTS: "ftp://a:1" }, "the scheme must be http or https"],
		[{ ETCD_ENDPOINTS: "http://a b" }, "is not a URL like http://host:2379"],
	] as [Record<string, string>, string][])("refuses %j", (env, message) => {
		expect(() => read(env)).toThrow(message);
	});
});
