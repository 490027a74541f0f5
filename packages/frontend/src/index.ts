// SPDX-License-Identifier: Apache-2.0
export type { BucketRange } from "@dynamo-ts/protocols";
export {
	type BucketRanges,
	type FrontendConfig,
	type FrontendPaths,
	frontendConfigFromEnv,
} from "./config.js";
export { type Frontend, startFrontend } from "./server.js";
