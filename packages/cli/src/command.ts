// SPDX-License-Identifier: Apache-2.0
import type { Console } from "./console.js";
import type { CommandSpec } from "./flags/flag-spec.js";
import type { ParsedFlags } from "./flags/parse-flags.js";
import type { Lifecycle } from "./lifecycle.js";

/** What a command runs with. */
export interface CommandContext {
	readonly flags: ParsedFlags;
	readonly console: Console;
	readonly lifecycle: Lifecycle;
}

/** One subcommand: its table and what it does. */
export interface Command {
	readonly spec: CommandSpec;
	/**
	 * Runs to the end and gives the exit code. Heavy packages are imported in here, not above, so that help and
	 * usage errors come at once.
	 * @throws CliError, DynamoError: shown as one line.
	 */
	run(context: CommandContext): Promise<number>;
}
