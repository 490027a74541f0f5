// SPDX-License-Identifier: Apache-2.0
// Variables of logs, traces and metrics.
import { type EnvVariable, everywhere, frontend, OF_A_FLAG } from "./env-variable.js";

type Variables = Record<string, EnvVariable | typeof OF_A_FLAG>;

const NO_COLOURS = "no colours, which only a terminal gets anyway";
const OTLP_ENDPOINT = "one for one kind, taken as it is";
const OTLP_PROTOCOL = "the same for one kind";
const SAMPLER =
	"which traces are recorded: `always_on`, `always_off`, `traceidratio`, each also with `parentbased_` in front; share of traces";

export const OBSERVABILITY_VARIABLES = {
	DYN_LOG: everywhere(
		"info",
		"level, or `info,target=debug,…` with targets such as `dynamo_runtime` or `dynamo_llm::http`",
	),
	DYN_LOGGING_CONFIG_PATH: everywhere(
		"",
		"TOML file with `log_level` and `[log_filters]`, see [observability.md](observability.md#logs)",
	),
	DYN_LOGGING_CONSOLE_FORMAT: everywhere("readable", "`readable` or `jsonl`; wins over the next one"),
	DYN_LOGGING_JSONL: everywhere("false", "one JSON object per line"),
	DYN_LOG_USE_LOCAL_TZ: everywhere("false", "local time with offset instead of UTC"),
	DYN_SDK_DISABLE_ANSI_LOGGING: everywhere("false", NO_COLOURS),
	NO_COLOR: everywhere("", NO_COLOURS),
	DYN_LOGGING_SPAN_EVENTS: everywhere("false", "lines at begin and end of each span"),
	OTEL_EXPORT_ENABLED: everywhere(
		"false",
		"spans and log lines are exported over OTLP, see [observability.md](observability.md#traces)",
	),
	OTEL_SERVICE_NAME: everywhere("dynamo", "the process' name there"),
	OTEL_EXPORTER_OTLP_ENDPOINT: everywhere(
		"http://localhost:4317",
		"the receiver; with http/protobuf `/v1/traces`, `/v1/logs` is added",
	),
	OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: OF_A_FLAG,
	OTEL_EXPORTER_OTLP_LOGS_ENDPOINT: everywhere("", OTLP_ENDPOINT),
	OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: everywhere("", OTLP_ENDPOINT),
	OTEL_EXPORTER_OTLP_PROTOCOL: everywhere("grpc", "`grpc` or `http/protobuf`"),
	OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: everywhere("", OTLP_PROTOCOL),
	OTEL_EXPORTER_OTLP_LOGS_PROTOCOL: everywhere("", OTLP_PROTOCOL),
	OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: everywhere("", OTLP_PROTOCOL),
	OTEL_TRACES_SAMPLER: everywhere("parentbased_always_on", SAMPLER),
	OTEL_TRACES_SAMPLER_ARG: everywhere("1", SAMPLER),
	OTEL_TRACES_SAMPLE_RATIO: everywhere(
		"1",
		"shorthand for `parentbased_traceidratio` with this share; a sampler that is named wins",
	),
	OTEL_METRICS_EXPORTER: everywhere("none", "`otlp`: metrics are pushed as well"),
	OTEL_METRIC_EXPORT_INTERVAL: everywhere("60000", "milliseconds between two pushes"),
	OTEL_RESOURCE_ATTRIBUTES: everywhere("", "`key=value,…` that go with pushed metrics"),
	DYN_TRACE_CONTENT: frontend("false", "prompts and answers are attributes of spans"),
} as const satisfies Variables;

const BUCKETS = "bounds of a histogram: the lowest and the highest, and how many, in geometric steps; of ";
const TTFT = `${BUCKETS}the time to the first token, seconds`;
const ITL = `${BUCKETS}the time between tokens, seconds`;
const INPUT = `${BUCKETS}prompt tokens`;
const OUTPUT = `${BUCKETS}output tokens`;
const DURATION = `${BUCKETS}a whole request, seconds`;

export const BUCKET_VARIABLES = {
	DYN_METRICS_TTFT_MIN: frontend("0.001", TTFT),
	DYN_METRICS_TTFT_MAX: frontend("480", TTFT),
	DYN_METRICS_TTFT_COUNT: frontend("18", TTFT),
	DYN_METRICS_ITL_MIN: frontend("0.001", ITL),
	DYN_METRICS_ITL_MAX: frontend("80", ITL),
	DYN_METRICS_ITL_COUNT: frontend("20", ITL),
	DYN_METRICS_INPUT_SEQUENCE_MIN: frontend("50", INPUT),
	DYN_METRICS_INPUT_SEQUENCE_MAX: frontend("128000", INPUT),
	DYN_METRICS_INPUT_SEQUENCE_COUNT: frontend("12", INPUT),
	DYN_METRICS_OUTPUT_SEQUENCE_MIN: frontend("50", OUTPUT),
	DYN_METRICS_OUTPUT_SEQUENCE_MAX: frontend("32000", OUTPUT),
	DYN_METRICS_OUTPUT_SEQUENCE_COUNT: frontend("10", OUTPUT),
	DYN_METRICS_REQUEST_DURATION_MIN: frontend("1", DURATION),
	DYN_METRICS_REQUEST_DURATION_MAX: frontend("512", DURATION),
	DYN_METRICS_REQUEST_DURATION_COUNT: frontend("10", DURATION),
} as const satisfies Variables;
