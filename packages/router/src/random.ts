// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { Router } from "./router.js";

/** Any candidate with the same probability. */
export class RandomPolicy implements Router {
	readonly name = "random";
	private readonly random: () => number;

	/** @param random a source of numbers in [0, 1); a seeded one makes tests repeatable. */
	constructor(random: () => number = Math.random) {
		this.random = random;
	}

	pick(candidates: readonly EndpointRecord[]): EndpointRecord | undefined {
		return candidates[Math.floor(this.random() * candidates.length)];
	}
}
