// SPDX-License-Identifier: Apache-2.0
// What is exported over OTLP and where to: OpenTelemetry's variables, with Dynamo's switch and defaults.
import { ENV } from "@dynamo-ts/protocols/internal";
import { bad, type EnvReader } from "../../config.js";
import { SAMPLERS, type SamplingConfig } from "./sampler.js";

export type OtlpProtocol = "grpc" | "http/protobuf";

/** Where one kind of signal goes. */
export interface OtlpTarget {
	readonly protocol: OtlpProtocol;
	/** For http/protobuf with its path. */
	readonly url: string;
}

/** What is exported of traces, logs and metrics, and where to. */
export interface TelemetryConfig {
	/** How the process is called in traces. */
	readonly serviceName: string;
	/** Which traces are recorded. Decides the sampled flag of new traces even when nothing is exported. */
	readonly sampling: SamplingConfig;
	/** Absent: traces and logs stay local. */
	readonly traces?: OtlpTarget;
	readonly logs?: OtlpTarget;
	/** Absent: metrics are only scraped. */
	readonly metrics?: MetricsExportConfig;
}

export interface MetricsExportConfig extends OtlpTarget {
	readonly intervalMs: number;
	/** Of the resource, beside the service's name. */
	readonly resource: Readonly<Record<string, string>>;
}

const DEFAULT_ENDPOINT = "http://localhost:4317";

/** Reads the settings. @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid. */
export function telemetryConfigFromEnv(read: EnvReader): TelemetryConfig {
	const common = { serviceName: read.text(ENV.OTEL_SERVICE_NAME, "dynamo"), sampling: samplingFromEnv(read) };
	const metrics = metricsFromEnv(read);
	const withMetrics = { ...common, ...(metrics === undefined ? {} : { metrics }) };
	if (!read.flag(ENV.OTEL_EXPORT_ENABLED, false)) return withMetrics;
	return {
		...withMetrics,
		traces: target(read, ENV.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, ENV.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, "/v1/traces"),
		logs: target(read, ENV.OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, ENV.OTEL_EXPORTER_OTLP_LOGS_PROTOCOL, "/v1/logs"),
	};
}

/** Dynamo's own ratio is a shorthand for the sampler by trace id; a sampler that is named wins. */
function samplingFromEnv(read: EnvReader): SamplingConfig {
	const named = read.text(ENV.OTEL_TRACES_SAMPLER, "");
	if (named !== "") {
		const sampler = read.choice(ENV.OTEL_TRACES_SAMPLER, SAMPLERS, "parentbased_always_on");
		return { sampler, ratio: read.number(ENV.OTEL_TRACES_SAMPLER_ARG, 1, 0, 1) };
	}
	const ratio = read.number(ENV.OTEL_TRACES_SAMPLE_RATIO, 1, 0, 1);
	return { sampler: ratio === 1 ? "parentbased_always_on" : "parentbased_traceidratio", ratio };
}

/** The signal's own endpoint is taken as it is; the common one gets the signal's path when it is HTTP. */
function target(read: EnvReader, ownEndpoint: string, ownProtocol: string, path: string): OtlpTarget {
	const common = read.choice(ENV.OTEL_EXPORTER_OTLP_PROTOCOL, ["grpc", "http/protobuf"], "grpc");
	const protocol = read.choice(ownProtocol, ["grpc", "http/protobuf"], common);
	const own = read.text(ownEndpoint, "");
	const name = own === "" ? ENV.OTEL_EXPORTER_OTLP_ENDPOINT : ownEndpoint;
	const given = own === "" ? read.text(ENV.OTEL_EXPORTER_OTLP_ENDPOINT, DEFAULT_ENDPOINT) : own;
	const withScheme = /^[a-z]+:\/\//i.test(given) ? given : `http://${given}`;
	if (!URL.canParse(withScheme) || !/^https?:/i.test(withScheme)) throw bad(name, given, "an http or https URL");
	if (protocol === "grpc" || own !== "") return { protocol, url: withScheme };
	return { protocol, url: `${withScheme.replace(/\/+$/, "")}${path}` };
}

function metricsFromEnv(read: EnvReader): MetricsExportConfig | undefined {
	if (read.text(ENV.OTEL_METRICS_EXPORTER, "none").toLowerCase() !== "otlp") return undefined;
	const { OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: endpoint, OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: protocol } = ENV;
	return {
		...target(read, endpoint, protocol, "/v1/metrics"),
		intervalMs: read.integer(ENV.OTEL_METRIC_EXPORT_INTERVAL, 60_000, 1, 0x7fff_ffff),
		resource: resourceFromEnv(read),
	};
}

/** `key=value` pairs, separated by commas; both may be percent-encoded. Pairs that are none are left out. */
function resourceFromEnv(read: EnvReader): Record<string, string> {
	const attributes: Record<string, string> = {};
	for (const pair of read.text(ENV.OTEL_RESOURCE_ATTRIBUTES, "").split(",")) {
		const equals = pair.indexOf("=");
		if (equals > 0) attributes[decoded(pair.slice(0, equals).trim())] = decoded(pair.slice(equals + 1).trim());
	}
	return attributes;
}

function decoded(text: string): string {
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}
