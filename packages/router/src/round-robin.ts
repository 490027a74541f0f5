// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { Router } from "./router.js";

/** Each candidate in turn: over any run with the same candidates their counts differ by at most one. */
export class RoundRobinPolicy implements Router {
	readonly name = "round-robin";
	private next = 0;

	pick(candidates: readonly EndpointRecord[]): EndpointRecord | undefined {
		if (candidates.length === 0) return undefined;
		// The list may have become shorter since the last call.
		const at = this.next % candidates.length;
		this.next = at + 1;
		return candidates[at];
	}
}
