// SPDX-License-Identifier: Apache-2.0
export * from "./card.js";
export * from "./generate-handler.js";
export * from "./generate-request.js";
export * from "./index.js";
export * from "./kv-events/block-index.js";
export * from "./kv-events/engine-socket.js";
export * from "./kv-events/load-publisher.js";
export * from "./kv-events/vllm-converter.js";
export * from "./kv-events/worker-events.js";
export * from "./kv-transfer/transfer-params.js";
export { readVocabulary } from "./mocker.js";
export { readSamplingDefaults } from "./model-files.js";
export { loadTokenTexts } from "./token-texts.js";
