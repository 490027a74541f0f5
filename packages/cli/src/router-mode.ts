// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import { usageError } from "./cli-error.js";
import type { ParsedFlags } from "./flags/parse-flags.js";

/** @throws CliError for a router mode of Dynamo that this version does not have, with those that it has. */
export async function requireRouterMode(flags: ParsedFlags): Promise<void> {
	const { isRouterMode, ROUTER_MODES } = await import("@dynamo-ts/router");
	const mode = flags.string("router-mode") ?? "round-robin";
	if (isRouterMode(mode)) return;
	throw usageError(
		`--router-mode ${mode} (${ENV.DYN_ROUTER_MODE}) is not in this version; it has ${ROUTER_MODES.join(", ")}`,
	);
}
