// SPDX-License-Identifier: Apache-2.0

/** Label names, each spelt once. */
export const LABELS = {
	namespace: "dynamo_namespace",
	component: "dynamo_component",
	endpoint: "dynamo_endpoint",
	model: "model",
	workerId: "worker_id",
	errorType: "error_type",
} as const;

/** Prefixes of metric families; a family's full name is `{prefix}_{name}`. */
export const METRIC_PREFIXES = {
	component: "dynamo_component",
	workHandler: "dynamo_work_handler",
} as const;

/** Families of each served endpoint and of the runtime itself, below {@link METRIC_PREFIXES}.component. */
export const COMPONENT_METRICS = {
	uptimeSeconds: "uptime_seconds",
	requestsTotal: "requests_total",
	requestBytesTotal: "request_bytes_total",
	responseBytesTotal: "response_bytes_total",
	inflightRequests: "inflight_requests",
	requestDurationSeconds: "request_duration_seconds",
	cancellationTotal: "cancellation_total",
	errorsTotal: "errors_total",
} as const;

/** Families of the process' request handling as a whole, below {@link METRIC_PREFIXES}.workHandler. */
export const WORK_HANDLER_METRICS = {
	networkTransitSeconds: "network_transit_seconds",
	timeToFirstResponseSeconds: "time_to_first_response_seconds",
	poolActiveTasks: "pool_active_tasks",
} as const;

/** Upper bounds of histograms, seconds; without the last, infinite one. */
export const RUNTIME_BUCKETS = {
	requestDurationSeconds: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600],
	networkTransitSeconds: [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1],
	timeToFirstResponseSeconds: [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
} as const;
