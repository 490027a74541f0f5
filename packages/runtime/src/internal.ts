// SPDX-License-Identifier: Apache-2.0
export * from "./discovery/file.js";
export * from "./discovery/mem.js";
export * from "./index.js";
export * from "./net/listen.js";
export * from "./net/nats-connection.js";
export * from "./net/nats-settings.js";
export * from "./observability/canary.js";
export * from "./observability/health.js";
export * from "./observability/log-filter.js";
export * from "./observability/metrics.js";
export * from "./observability/system-server.js";
export * from "./request-plane/in-process.js";
export * from "./request-plane/request-headers.js";
export * from "./request-plane/request-plane.js";
export * from "./request-plane/tcp-client.js";
export * from "./request-plane/tcp-server.js";
export * from "./request-plane/turn-flush.js";
