// SPDX-License-Identifier: Apache-2.0
export { formatEndpointAddress, parseEndpointAddress } from "./endpoint-address.js";
export type { SamplingDefaults } from "./generate-request.js";
export { type MockerOptions, startMocker } from "./mocker.js";
export { findModelFiles, type ModelFiles } from "./model-files.js";
export { preloadTokenizer } from "./preload-tokenizer.js";
export { startWorker, type WorkerHandle, type WorkerOptions } from "./worker.js";
