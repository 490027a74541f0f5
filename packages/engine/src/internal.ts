// SPDX-License-Identifier: Apache-2.0
// For sister packages and tests; may change at any time.

export * from "./engine-core.js";
export * from "./index.js";
export { type FakeModelOptions, FakeModelRunner } from "./mock/fake-model-runner.js";
export type { DeviceChoice } from "./model/choose-device.js";
export { loadModelRunner } from "./model/load-model-runner.js";
export * from "./model/model-runner.js";
export { describeModel, type ModelDescription } from "./model/open-model.js";
export * from "./model/testing/llama-reference.js";
export { RunnerDriver } from "./model/testing/runner-driver.js";
export * from "./model/testing/tiny-llama.js";
export { CudaError, CudaUnavailableError } from "./ort/cuda-error.js";
export { type CudaProbe, probeCuda } from "./ort/cuda-probe.js";
export { OrtError, type OrtErrorCode } from "./ort/ort-error.js";
export { buildNullCuda, cudaOrtFolder, nullCudaObstacle } from "./ort/testing/null-cuda.js";
export * from "./sampler.js";
export * from "./scheduler.js";
export * from "./token-mask.js";
export type { GgufArray, GgufValue } from "./weights/gguf-header.js";
export { GgufWeights } from "./weights/gguf-weights.js";
export { ModelFileError } from "./weights/model-file-error.js";
export type { WeightType } from "./weights/weight-source.js";
