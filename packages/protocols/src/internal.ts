// SPDX-License-Identifier: Apache-2.0
export * from "./annotated.js";
export * from "./discovery-records.js";
export * from "./dynamo-error.js";
export * from "./env-names.js";
export * from "./llm-engine-output.js";
export * from "./metric-names.js";
export * from "./model-card.js";
export * from "./preprocessed-request.js";
