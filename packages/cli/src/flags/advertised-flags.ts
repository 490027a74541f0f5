// SPDX-License-Identifier: Apache-2.0
// Router flags of workers: what they ask of frontends in their model card, as Dynamo's workers do.
import type { FlagSpec } from "./flag-spec.js";
import { ROUTER_MODE_FLAG } from "./frontend-flags.js";
import { KV_ROUTER_FLAGS } from "./kv-router-flags.js";
import { MISSING_ROUTER_FLAGS } from "./missing-flags.js";
import { ROUTER_QUEUE_FLAGS, SESSION_FLAGS } from "./router-queue-flags.js";

const GROUP = "routing that the model card asks frontends for, in place of their own flags";

/** Read by no worker: a path means nothing on another machine, and the preset is the frontend's. */
const FRONTEND_ONLY: ReadonlySet<string> = new Set(["router-policy-config", "load-aware"]);

const { default: _default, ...mode } = ROUTER_MODE_FLAG as Extract<FlagSpec, { type: "string" }>;

export const ADVERTISED_ROUTER_FLAGS: readonly FlagSpec[] = [
	{
		...mode,
		defaultText: "the frontend's",
		group: GROUP,
		help: "How frontends are to choose among these workers; without it the other flags of this group say nothing.",
	},
	...[...KV_ROUTER_FLAGS, ...SESSION_FLAGS, ...ROUTER_QUEUE_FLAGS, ...MISSING_ROUTER_FLAGS]
		.filter(({ flag }) => !FRONTEND_ONLY.has(flag))
		.map((flag) => ({ ...flag, group: GROUP })),
];
