// SPDX-License-Identifier: Apache-2.0

/** Label names of the routers' families, each spelt once. */
export const MORE_LABELS = {
	action: "action",
	eventType: "event_type",
	migrationType: "migration_type",
	outcome: "outcome",
	policy: "policy",
	policyClass: "policy_class",
	routerId: "router_id",
	routerWorkerId: "router_worker_id",
	routingGroup: "routing_group",
	state: "state",
	targetComponent: "target_component",
	targetEndpoint: "target_endpoint",
	targetNamespace: "target_namespace",
	warningKind: "warning_kind",
} as const;
