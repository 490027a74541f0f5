// SPDX-License-Identifier: Apache-2.0
import { computedBuckets } from "@dynamo-ts/protocols/internal";
import { describe, expect, it } from "vitest";
import { frontendConfigFromEnv } from "./config.js";

describe("buckets of the histograms", () => {
	const { buckets } = frontendConfigFromEnv({});
	it.each([
		[
			"time to first token",
			buckets.timeToFirstToken,
			[0, 0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1, 2.2, 4.7, 10, 22, 48, 100, 220, 480],
		],
		[
			"inter-token latency",
			buckets.interTokenLatency,
			[
				0, 0.0018, 0.0033, 0.0059, 0.011, 0.02, 0.035, 0.064, 0.12, 0.21, 0.38, 0.69, 1.2, 2.3, 4.1, 7.4, 13, 24, 44,
				80,
			],
		],
		["input sequence", buckets.inputSequence, [0, 100, 210, 430, 870, 1800, 3600, 7400, 15000, 31000, 63000, 130000]],
		["output sequence", buckets.outputSequence, [0, 100, 210, 430, 880, 1800, 3700, 7600, 16000, 32000]],
		["request duration", buckets.requestDuration, [0, 2, 4, 8, 16, 32, 64, 130, 260, 510]],
	])("%s: the bounds that the real frontend shows", (_name, range, bounds) => {
		expect(computedBuckets(range)).toEqual(bounds);
	});

	it("follows the environment, and its defaults where that makes no sense", () => {
		const env = { DYN_METRICS_TTFT_MIN: "0.01", DYN_METRICS_TTFT_MAX: "10", DYN_METRICS_TTFT_COUNT: "4" };
		expect(computedBuckets(frontendConfigFromEnv(env).buckets.timeToFirstToken)).toEqual([0, 0.1, 1, 10]);
		const bad = { DYN_METRICS_TTFT_MIN: "10", DYN_METRICS_TTFT_MAX: "1" };
		expect(frontendConfigFromEnv(bad).buckets.timeToFirstToken).toEqual(buckets.timeToFirstToken);
	});
});

describe("frontendConfigFromEnv", () => {
	it("has the documented defaults", () => {
		const config = frontendConfigFromEnv({});
		expect(config).toMatchObject({
			host: "0.0.0.0",
			port: 8000,
			bodyLimitBytes: 45 * 1024 * 1024,
			gracefulShutdownTimeoutMs: 5000,
			overloadStatusCode: 529,
			sseKeepAliveIntervalMs: 0,
			backendStreamTimeoutMs: undefined,
			routerMode: "round-robin",
			namespace: undefined,
		});
	});

	it("names the variable, the value and what is valid", () => {
		expect(() => frontendConfigFromEnv({ DYN_HTTP_PORT: "eighty" })).toThrow(/DYN_HTTP_PORT=eighty .* 0 to 65535/);
		expect(() => frontendConfigFromEnv({ DYN_ROUTER_MODE: "best" })).toThrow(/DYN_ROUTER_MODE=best .*round-robin/);
	});
});
