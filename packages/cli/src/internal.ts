// SPDX-License-Identifier: Apache-2.0
export * from "./command-list.js";
export * from "./flags/flag-spec.js";
export * from "./flags/frontend-flags.js";
export * from "./flags/help-text.js";
export * from "./flags/model-flags.js";
export * from "./flags/parse-flags.js";
export * from "./index.js";
export * from "./models/resolve-model.js";
