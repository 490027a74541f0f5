// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import { ActiveRequests } from "./active-requests.js";
import type { Router } from "./router.js";

/** The less loaded of two candidates drawn at random. */
export class PowerOfTwoPolicy implements Router {
	readonly name = "power-of-two";
	readonly active = new ActiveRequests();
	private readonly random: () => number;

	constructor(random: () => number = Math.random) {
		this.random = random;
	}

	pick(candidates: readonly EndpointRecord[]): EndpointRecord | undefined {
		const count = candidates.length;
		if (count < 2) return candidates[0];
		const a = Math.floor(this.random() * count);
		const b = (a + 1 + Math.floor(this.random() * (count - 1))) % count;
		const first = candidates[a] as EndpointRecord;
		const second = candidates[b] as EndpointRecord;
		return this.active.count(second.instance_id) < this.active.count(first.instance_id) ? second : first;
	}

	onStart(instanceId: bigint, requestId: string): void {
		this.active.add(instanceId, requestId);
	}

	onEnd(instanceId: bigint, requestId: string): void {
		this.active.remove(instanceId, requestId);
	}
}
