// SPDX-License-Identifier: Apache-2.0
export * from "./choice-state.js";
export * from "./chunk-format.js";
export * from "./config.js";
export * from "./frontend-metrics.js";
export * from "./http-errors.js";
export * from "./model.js";
export * from "./model-files.js";
export * from "./model-manager.js";
export * from "./model-materials.js";
export * from "./model-watcher.js";
export * from "./preprocessor.js";
export * from "./scripted-worker.js";
export * from "./server.js";
export * from "./sse.js";
export * from "./worker-set.js";
