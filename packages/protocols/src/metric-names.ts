// SPDX-License-Identifier: Apache-2.0

/** Label names, each spelt once. */
export const LABELS = {
	namespace: "dynamo_namespace",
	component: "dynamo_component",
	endpoint: "dynamo_endpoint",
	model: "model",
	workerId: "worker_id",
} as const;
