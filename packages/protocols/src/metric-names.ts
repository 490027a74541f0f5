// SPDX-License-Identifier: Apache-2.0

/** Label names, each spelt once. */
export const LABELS = {
	namespace: "dynamo_namespace",
	component: "dynamo_component",
	endpoint: "dynamo_endpoint",
	model: "model",
	workerId: "worker_id",
	errorType: "error_type",
	topic: "topic",
	device: "device",
	note: "note",
} as const;

/** Prefixes of metric families; a family's full name is `{prefix}_{name}`, or the name alone. */
export const METRIC_PREFIXES = {
	component: "dynamo_component",
	workHandler: "dynamo_work_handler",
	frontend: "dynamo_frontend",
	admission: "dynamo",
	requestPlane: "dynamo_request_plane",
	transport: "dynamo_transport",
	router: "dynamo_router",
	event: "dynamo_component",
	engine: "dynamo_component",
	kvTransfer: "dynamo_component",
	vllm: "",
	nim: "",
} as const;

/** Label names of the frontend's families beside {@link LABELS}. */
export const FRONTEND_LABELS = {
	status: "status",
	requestType: "request_type",
	apiEndpoint: "endpoint",
	errorClass: "class",
	reason: "reason",
	stage: "stage",
	phase: "phase",
	operation: "operation",
	dpRank: "dp_rank",
	workerType: "worker_type",
} as const;
