// SPDX-License-Identifier: Apache-2.0
// What a worker's model card asks of frontends' routing: the router flags of `dynamo worker` and `dynamo mocker`.
import { ENV } from "@dynamo-ts/protocols/internal";

/**
 * The card's `router_config`; undefined without DYN_ROUTER_MODE: frontends route as they like.
 * @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid.
 */
export async function advertisedRouting(env: NodeJS.ProcessEnv): Promise<Record<string, unknown> | undefined> {
	if (!env[ENV.DYN_ROUTER_MODE]) return undefined;
	const [{ EnvReader }, router] = await Promise.all([
		import("@dynamo-ts/runtime/internal"),
		import("@dynamo-ts/router/internal"),
	]);
	const read = new EnvReader(env);
	const mode = router.routerModeFromEnv(read);
	const kv = router.kvRouterOptionsFromEnv(read);
	return {
		...router.cardOfRouting({
			mode,
			// As Dynamo's workers: what no other mode asks is not told.
			kv: mode === "kv" ? kv : router.DEFAULT_KV_ROUTER_OPTIONS,
			busy: router.busyThresholdsFromEnv(read),
			sessionAffinity: router.sessionAffinityFromEnv(read),
		}),
	};
}
