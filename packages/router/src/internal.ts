// SPDX-License-Identifier: Apache-2.0
export * from "./active-requests.js";
export * from "./factory.js";
export * from "./kv/active-sequences.js";
export * from "./kv/cost.js";
export * from "./kv/eligibility.js";
export * from "./kv/kv-scheduler.js";
export * from "./kv/radix-tree.js";
export * from "./kv/worker-slots.js";
export * from "./kv-events/kv-event-subscriber.js";
export * from "./kv-events/source-state.js";
export * from "./least-loaded.js";
export * from "./power-of-two.js";
export * from "./random.js";
export * from "./round-robin.js";
export * from "./router.js";
