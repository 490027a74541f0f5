// SPDX-License-Identifier: Apache-2.0
export type { CardRouting } from "./card-routing.js";
export { DeviceAwareWeightedPolicy } from "./device-aware-weighted.js";
export { DirectPolicy } from "./direct.js";
export { createRouter, isRouterMode, type KvSettings } from "./factory.js";
export type { GroupPlace } from "./group-metrics.js";
export type { CostWeights } from "./kv/cost.js";
export type { BusyThresholds } from "./kv/eligibility.js";
export { LoadMonitor, type LoadMonitorOptions, type ObservedLoad } from "./kv/load-monitor.js";
export {
	type KvEventCounts,
	type KvEventSink,
	KvEventSubscriber,
	type KvEventSubscriberOptions,
} from "./kv-events/kv-event-subscriber.js";
export { DEFAULT_KV_ROUTER_OPTIONS, type KvRouterOptions, type KvWorkers } from "./kv-options.js";
export { KvPolicy } from "./kv-policy.js";
export { kvWorkersOf } from "./kv-workers.js";
export { LeastLoadedPolicy } from "./least-loaded.js";
export { PowerOfTwoPolicy } from "./power-of-two.js";
export type { AdmissionObserver, Applicant, Ticket } from "./queue/admission.js";
export { RouterPolicyConfig } from "./queue/policy-config.js";
export { type PolicyClass, PolicyProfile, type QueueOrder } from "./queue/policy-profile.js";
export { RandomPolicy } from "./random.js";
export { RoundRobinPolicy } from "./round-robin.js";
export {
	type RankLoad,
	ROUTER_MODES,
	type Router,
	type RouterMode,
	type RoutingDecision,
	type RoutingOverrides,
	type RoutingRequest,
} from "./router.js";
export { RouterMetrics } from "./router-metrics.js";
export { RoutingGroup, type RoutingGroupParts } from "./routing-group.js";
export type { RoutingObserver, Selection } from "./routing-observer.js";
export { StandaloneRouter, type StandaloneRouterOptions } from "./service/standalone-router.js";
export {
	SESSION_AFFINITY_MODES,
	SessionAffinity,
	type SessionAffinityMode,
	type SessionAffinityOptions,
} from "./session-affinity.js";
