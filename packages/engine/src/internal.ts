// SPDX-License-Identifier: Apache-2.0
// For sister packages and tests; may change at any time.

export * from "./engine-core.js";
export * from "./index.js";
export { type FakeModelOptions, FakeModelRunner } from "./mock/fake-model-runner.js";
export * from "./sampler.js";
export * from "./scheduler.js";
