// SPDX-License-Identifier: Apache-2.0
export { createRouter, isRouterMode } from "./factory.js";
export {
	type KvEventCounts,
	type KvEventSink,
	KvEventSubscriber,
	type KvEventSubscriberOptions,
} from "./kv-events/kv-event-subscriber.js";
export { LeastLoadedPolicy } from "./least-loaded.js";
export { PowerOfTwoPolicy } from "./power-of-two.js";
export { RandomPolicy } from "./random.js";
export { RoundRobinPolicy } from "./round-robin.js";
export { ROUTER_MODES, type Router, type RouterMode, type RoutingRequest } from "./router.js";
