// SPDX-License-Identifier: Apache-2.0
export type {
	Component,
	Endpoint,
	EndpointClient,
	Namespace,
	ServedEndpoint,
	ServeOptions,
} from "./component.js";
export { EnvReader, type RuntimeConfig, runtimeConfigFromEnv } from "./config.js";
export type { Discovery, DiscoveryBackend, DiscoveryEvent, Watch } from "./discovery/discovery.js";
export { createMemStore, type MemStore } from "./discovery/mem.js";
export type { EventListener, EventPlane, EventPublisher, EventSubscription } from "./event-plane/event-plane.js";
export type { Health } from "./observability/health.js";
export type { LogConfig } from "./observability/log-settings.js";
export {
	createLogger,
	type LineWriter,
	type LogFields,
	type LogFunction,
	type Logger,
	type LogLevel,
	type LogRelay,
} from "./observability/logging.js";
export {
	type Counter,
	createMetricsRegistry,
	type Gauge,
	type Histogram,
	METRICS_CONTENT_TYPE,
	type MetricsLevelOptions,
	type MetricsRegistry,
	type MetricVec,
} from "./observability/metrics.js";
export type { SystemServer } from "./observability/system-server.js";
export type {
	Span,
	SpanEvent,
	SpanKind,
	SpanOptions,
	SpanSink,
	SpanValue,
	Tracer,
} from "./observability/tracing/span.js";
export type { MetricsExportConfig, OtlpTarget, TelemetryConfig } from "./observability/tracing/telemetry-settings.js";
export type {
	ActiveRequest,
	CancelKind,
	EndpointHandler,
	IngressRequest,
	OutgoingRequest,
	RequestOptions,
	ResponseSink,
	ResponseWriter,
} from "./request-plane/request-plane.js";
export { DistributedRuntime } from "./runtime.js";
export { installSignalHandlers, type SignalOptions } from "./signals.js";
