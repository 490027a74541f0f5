// SPDX-License-Identifier: Apache-2.0
export { CliError, EXIT } from "./cli-error.js";
export { COMMANDS } from "./command-list.js";
export type { Console } from "./console.js";
export { runCli } from "./run-cli.js";
