// SPDX-License-Identifier: Apache-2.0
// Every environment variable, spelt once: the groups of the other env-*.ts files. docs/configuration.md is made from them.
import { FLAG_VARIABLES } from "./env-flags.js";
import { BUCKET_VARIABLES, OBSERVABILITY_VARIABLES } from "./env-observability.js";
import {
	HTTP_VARIABLES,
	MODEL_VARIABLES,
	ROUTING_VARIABLES,
	SHUTDOWN_VARIABLES,
	SYSTEM_SERVER_VARIABLES,
} from "./env-processes.js";
import {
	DISCOVERY_VARIABLES,
	EVENT_VARIABLES,
	NATS_VARIABLES,
	REQUEST_PLANE_VARIABLES,
	TLS_VARIABLES,
} from "./env-runtime.js";

/** The variables by group; each group is a table in the documents. */
export const ENV_GROUPS = {
	discovery: DISCOVERY_VARIABLES,
	requestPlane: REQUEST_PLANE_VARIABLES,
	nats: NATS_VARIABLES,
	tls: TLS_VARIABLES,
	events: EVENT_VARIABLES,
	systemServer: SYSTEM_SERVER_VARIABLES,
	shutdown: SHUTDOWN_VARIABLES,
	http: HTTP_VARIABLES,
	routing: ROUTING_VARIABLES,
	observability: OBSERVABILITY_VARIABLES,
	buckets: BUCKET_VARIABLES,
	models: MODEL_VARIABLES,
	flags: FLAG_VARIABLES,
} as const;

/** The keys of every member of a union. */
type KeysOf<T> = T extends unknown ? keyof T : never;

export type EnvName = KeysOf<(typeof ENV_GROUPS)[keyof typeof ENV_GROUPS]>;

/** The names, for code that reads or mentions a variable. */
export const ENV = Object.fromEntries(
	Object.values(ENV_GROUPS)
		.flatMap((group) => Object.keys(group))
		.map((name) => [name, name]),
) as { readonly [N in EnvName]: N };
