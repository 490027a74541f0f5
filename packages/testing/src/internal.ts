// SPDX-License-Identifier: Apache-2.0
export * from "./certificates.js";
export * from "./child-process.js";
export * from "./collecting-sink.js";
export * from "./etcd-server.js";
export * from "./fake-kube-api.js";
export * from "./fleet.js";
export * from "./free-port.js";
export * from "./hf-model.js";
export * from "./leak-check.js";
export * from "./nats-server.js";
export * from "./own-processes.js";
export * from "./prom-parse.js";
export * from "./real-dynamo.js";
export * from "./sse-client.js";
export * from "./stream-load.js";
export * from "./stream-validator.js";
export * from "./zmq-broker.js";
