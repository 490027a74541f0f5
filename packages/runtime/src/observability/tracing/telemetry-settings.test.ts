// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { EnvReader } from "../../config.js";
import { telemetryConfigFromEnv } from "./telemetry-settings.js";

const read = (env: Record<string, string>) => telemetryConfigFromEnv(new EnvReader(env));
const ON = { OTEL_EXPORT_ENABLED: "1" };

describe("telemetry settings", () => {
	it("export nothing by default", () => {
		expect(read({})).toEqual({
			serviceName: "dynamo",
			sampling: { sampler: "parentbased_always_on", ratio: 1 },
		});
		expect(read({ OTEL_EXPORTER_OTLP_ENDPOINT: "no url at all", OTEL_EXPORT_ENABLED: "off" }).traces).toBeUndefined();
	});

	it.each([
		[{}, "grpc", "http://localhost:4317", "http://localhost:4317"],
		[{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:1" }, "grpc", "http://c:1", "http://c:1"],
		[{ OTEL_EXPORTER_OTLP_ENDPOINT: "c:1" }, "grpc", "http://c:1", "http://c:1"],
		[
			{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:1/", OTEL_EXPORTER_OTLP_PROTOCOL: "http/protobuf" },
			"http/protobuf",
			"http://c:1/v1/traces",
			"http://c:1/v1/logs",
		],
		[
			{
				OTEL_EXPORTER_OTLP_ENDPOINT: "https://c:1",
				OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "https://t:2/my/path",
				OTEL_EXPORTER_OTLP_PROTOCOL: "HTTP/protobuf",
			},
			"http/protobuf",
			"https://t:2/my/path",
			"https://c:1/v1/logs",
		],
	])("%j: %s to %s and %s", (env, protocol, traces, logs) => {
		const config = read({ ...ON, ...env });
		expect(config.traces).toEqual({ protocol, url: traces });
		expect(config.logs).toEqual({ protocol, url: logs });
	});

	it("know the samplers and Dynamo's ratio", () => {
		const sampling = (env: Record<string, string>) => read(env).sampling;
		expect(sampling({ OTEL_TRACES_SAMPLE_RATIO: "0.25" })).toEqual({
			sampler: "parentbased_traceidratio",
			ratio: 0.25,
		});
		expect(sampling({ OTEL_TRACES_SAMPLER: "traceidratio", OTEL_TRACES_SAMPLER_ARG: "0.5" })).toEqual({
			sampler: "traceidratio",
			ratio: 0.5,
		});
		expect(sampling({ OTEL_TRACES_SAMPLER: "always_off", OTEL_TRACES_SAMPLE_RATIO: "1" }).sampler).toBe("always_off");
	});

	it("export metrics by a switch of their own", () => {
		expect(
			read({
				OTEL_METRICS_EXPORTER: "otlp",
				OTEL_METRIC_EXPORT_INTERVAL: "500",
				OTEL_RESOURCE_ATTRIBUTES: "deployment.environment=lab,a%20b=c%2Cd,nonsense,=x",
			}).metrics,
		).toEqual({
			protocol: "grpc",
			url: "http://localhost:4317",
			intervalMs: 500,
			resource: { "deployment.environment": "lab", "a b": "c,d" },
		});
		expect(read({ OTEL_METRICS_EXPORTER: "none" }).metrics).toBeUndefined();
	});

	it.each([
		["OTEL_EXPORT_ENABLED", "maybe", "true or false"],
		["OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://x", "an http or https URL"],
		["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", "an http or https URL"],
		["OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "one of grpc, http/protobuf"],
		["OTEL_TRACES_SAMPLER", "jaeger_remote", "one of always_on"],
		["OTEL_TRACES_SAMPLE_RATIO", "2", "a number from 0 to 1"],
	])("refuse %s=%s", (name, value, valid) => {
		expect(() => read({ ...ON, [name]: value })).toThrow(`${name}=${value} is not valid: it must be ${valid}`);
	});
});
