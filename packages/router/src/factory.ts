// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import { DeviceAwareWeightedPolicy } from "./device-aware-weighted.js";
import { DirectPolicy } from "./direct.js";
import type { KvRouterOptions, KvWorkers } from "./kv-options.js";
import { KvPolicy } from "./kv-policy.js";
import { LeastLoadedPolicy } from "./least-loaded.js";
import { PowerOfTwoPolicy } from "./power-of-two.js";
import { RandomPolicy } from "./random.js";
import { RoundRobinPolicy } from "./round-robin.js";
import { ROUTER_MODES, type Router, type RouterMode } from "./router.js";

/** What the policy "kv" is made of; the others need nothing. */
export interface KvSettings {
	readonly workers: KvWorkers;
	readonly options?: Partial<KvRouterOptions> | undefined;
}

const POLICIES: Record<RouterMode, (kv: KvSettings) => Router> = {
	"round-robin": () => new RoundRobinPolicy(),
	random: () => new RandomPolicy(),
	"power-of-two": () => new PowerOfTwoPolicy(),
	"least-loaded": () => new LeastLoadedPolicy(),
	kv: ({ workers, options }) => new KvPolicy(workers, options),
	direct: () => new DirectPolicy(),
	"device-aware-weighted": () => new DeviceAwareWeightedPolicy(),
};

/** True for a name in {@link ROUTER_MODES}. */
export function isRouterMode(name: string): name is RouterMode {
	return (ROUTER_MODES as readonly string[]).includes(name);
}

/**
 * Makes a router by its policy's name.
 * @param kv what the policy "kv" needs; the others do not look at it.
 * @throws DynamoError `InvalidArgument` for an unknown name; the message lists the known ones.
 */
export function createRouter(mode: string, kv: KvSettings): Router {
	if (!isRouterMode(mode)) {
		throw new DynamoError(
			"InvalidArgument",
			`unknown router mode "${mode}"; this router has: ${ROUTER_MODES.join(", ")}`,
		);
	}
	return POLICIES[mode](kv);
}
