// SPDX-License-Identifier: Apache-2.0
export type {
	Component,
	Endpoint,
	EndpointClient,
	Namespace,
	ServedEndpoint,
	ServeOptions,
} from "./component.js";
export type { LogConfig, RuntimeConfig } from "./config.js";
export type { Discovery, DiscoveryBackend, DiscoveryEvent, Watch } from "./discovery/discovery.js";
export type { Health, SystemServer } from "./observability/health.js";
export type { LogFields, Logger, LogLevel } from "./observability/logging.js";
export type { Counter, Gauge, Histogram, MetricsRegistry, MetricVec } from "./observability/metrics.js";
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
