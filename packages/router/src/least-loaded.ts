// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import { ActiveRequests } from "./active-requests.js";
import type { Router } from "./router.js";

/** The candidate with the fewest requests under way; among equals, any. Undefined when there is none. */
export function leastLoaded(
	candidates: readonly EndpointRecord[],
	active: ActiveRequests,
	random: () => number,
): EndpointRecord | undefined {
	let best: EndpointRecord | undefined;
	let least = Number.POSITIVE_INFINITY;
	let equals = 0;
	for (const candidate of candidates) {
		const load = active.count(candidate.instance_id);
		if (load < least) {
			best = candidate;
			least = load;
			equals = 1;
		} else if (load === least) {
			// Keeps each of k equals with probability 1/k without collecting them.
			equals++;
			if (random() * equals < 1) best = candidate;
		}
	}
	return best;
}

/** The candidate with the fewest requests of this frontend under way; among equals, any. */
export class LeastLoadedPolicy implements Router {
	readonly name = "least-loaded";
	readonly active = new ActiveRequests();
	private readonly random: () => number;

	constructor(random: () => number = Math.random) {
		this.random = random;
	}

	pick(candidates: readonly EndpointRecord[]): EndpointRecord | undefined {
		return leastLoaded(candidates, this.active, this.random);
	}

	onStart(instanceId: bigint, requestId: string): void {
		this.active.add(instanceId, requestId);
	}

	onEnd(instanceId: bigint, requestId: string): void {
		this.active.remove(instanceId, requestId);
	}
}
