// SPDX-License-Identifier: Apache-2.0
export {
	type CustomModel,
	type CustomModelOptions,
	type EndReason,
	type Generated,
	serveModel,
	type TextModelOptions,
	type TokensModelOptions,
} from "./custom-engine.js";
export { formatEndpointAddress, parseEndpointAddress } from "./endpoint-address.js";
export type { SamplingDefaults } from "./generate-request.js";
export type { GenerateContext } from "./generator-handler.js";
export { KvEventPublisher, type KvEventPublisherOptions } from "./kv-events/kv-event-publisher.js";
export { type EngineSocketConfig, type KvEventsConfig, parseKvEventsConfig } from "./kv-events/kv-events-config.js";
export { type KvEventsRelay, type KvEventsRelayOptions, relayKvEvents } from "./kv-events/kv-events-relay.js";
export { type KvTransferConfig, kvTransferConfigFromEnv } from "./kv-transfer/kv-transfer.js";
export { type MockerOptions, startMocker } from "./mocker.js";
export { findModelFiles, type ModelFiles } from "./model-files.js";
export { preloadTokenizer } from "./preload-tokenizer.js";
export type { OpenAIRequest, TextItem } from "./text-items.js";
export type { TokensItem } from "./tokens-items.js";
export { startWorker, type WorkerHandle, type WorkerOptions } from "./worker.js";
export { DEFAULT_COMPONENT, type WorkerRole } from "./worker-role.js";
