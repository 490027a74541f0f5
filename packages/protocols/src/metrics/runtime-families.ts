// SPDX-License-Identifier: Apache-2.0
import { LABELS } from "../metric-names.js";
import { counter, gauge, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const SHORT_SECONDS = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1];
const ANSWER_SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

/** Request handling of a process that serves endpoints, below `dynamo_work_handler`. */
export const WORK_HANDLER_FAMILIES = {
	enqueueRejectedTotal: counter("enqueue_rejected_total", "Requests turned away because pool and queue were full", []),
	networkTransitSeconds: histogram(
		"network_transit_seconds",
		"Time from the frontend's send to the arrival here, by the clocks of both, seconds",
		[],
		SHORT_SECONDS,
	),
	permitWaitSeconds: histogram(
		"permit_wait_seconds",
		"Time that a request waited for a place in the pool, seconds",
		[],
		[0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60],
	),
	poolActiveTasks: gauge("pool_active_tasks", "Requests that hold a place in the pool", []),
	poolCapacity: gauge("pool_capacity", "Places in the pool", []),
	queueCapacity: gauge("queue_capacity", "Requests that may wait for a place in the pool", []),
	queueDepth: gauge("queue_depth", "Requests that wait for a place in the pool", []),
	timeToFirstResponseSeconds: histogram(
		"time_to_first_response_seconds",
		"Time from the arrival of a request until the worker said that it takes it, seconds",
		[],
		[...ANSWER_SECONDS, 10, 30, 60],
	),
} as const satisfies Record<string, MetricFamily>;

/** A worker's limits on requests, below `dynamo`. */
export const ADMISSION_FAMILIES = {
	engineRequest: gauge("engine_request", "Requests in the engine; counted where there is a limit on them", []),
	rejectionRequestTotal: counter("rejection_request_total", "Requests refused because engine and queue were full", []),
	requestQueue: gauge("request_queue", "Requests that wait to enter the engine", []),
} as const satisfies Record<string, MetricFamily>;

/** The side that sends requests to endpoints, below `dynamo_request_plane`. */
export const REQUEST_PLANE_FAMILIES = {
	inflightRequests: gauge("inflight_requests", "Requests sent to endpoints that have not ended", []),
	queueSeconds: histogram(
		"queue_seconds",
		"Time from the call to the moment at which the request is handed to the transport, seconds",
		[],
		SHORT_SECONDS,
	),
	roundtripTtftSeconds: histogram(
		"roundtrip_ttft_seconds",
		"Time from sending a request to the first item of its response, seconds",
		[],
		ANSWER_SECONDS,
	),
	sendSeconds: histogram(
		"send_seconds",
		"Time from handing a request to the transport to the worker's acknowledgement, seconds",
		[],
		SHORT_SECONDS,
	),
} as const satisfies Record<string, MetricFamily>;

/** Connections of that side, below `dynamo_transport`. */
export const TRANSPORT_FAMILIES = {
	tcpAcceptBackoffTotal: counter(
		"tcp_accept_backoff_total",
		"Requests not sent because the process was about to run out of file descriptors",
		[],
	),
	tcpBytesReceivedTotal: counter("tcp_bytes_received_total", "Bytes of responses received", []),
	tcpBytesSentTotal: counter("tcp_bytes_sent_total", "Bytes of requests sent", []),
	tcpErrorsTotal: counter("tcp_errors_total", "Requests that could not be sent or were not acknowledged in time", []),
} as const satisfies Record<string, MetricFamily>;

/** The event plane, by topic, below `dynamo_component`; not in Dynamo. */
export const EVENT_FAMILIES = {
	droppedTotal: counter("event_plane_dropped_total", "Events that found no room in a queue of the event plane", [
		LABELS.topic,
		LABELS.workerId,
	]),
	kvEventsMissing: gauge(
		"router_kv_events_missing",
		"1 while KV events are expected and none has come some seconds after the first prompt",
		[LABELS.component, LABELS.namespace, LABELS.model, MORE_LABELS.targetComponent, LABELS.workerId],
	),
	lostTotal: counter("event_plane_lost_total", "Events missing by their sequence numbers", [
		LABELS.topic,
		LABELS.workerId,
	]),
	malformedTotal: counter("event_plane_malformed_total", "Messages on the event plane that could not be read", [
		LABELS.topic,
		LABELS.workerId,
	]),
	publishedTotal: counter("event_plane_published_total", "Events given to the event plane", [
		LABELS.topic,
		LABELS.workerId,
	]),
	receivedTotal: counter("event_plane_received_total", "Events received", [LABELS.topic, LABELS.workerId]),
} as const satisfies Record<string, MetricFamily>;
