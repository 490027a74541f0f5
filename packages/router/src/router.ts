// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";

/** What a policy may look at. */
export interface RoutingRequest {
	/** The context id. */
	readonly id: string;
	/** The prompt; absent for requests that are passed on as text. */
	readonly tokenIds?: readonly number[];
}

/**
 * Chooses an instance for a request; one object per group of interchangeable workers. Policies keep no lists of their
 * own: `candidates` are the instances that are there and have not failed lately, so that a failed one is skipped
 * without the policy knowing.
 */
export interface Router {
	/** The policy's name, as the `--router-mode` flag spells it; used as a label too. */
	readonly name: RouterMode;
	/**
	 * Picks one of the candidates; undefined only when there is none. Called once per attempt, must not block.
	 * @param candidates in discovery's order; the same array until something changes.
	 */
	pick(candidates: readonly EndpointRecord[], request: RoutingRequest): EndpointRecord | undefined;
	/** A request was sent to an instance. Followed by exactly one {@link onEnd} with the same arguments. */
	onStart?(instanceId: bigint, requestId: string): void;
	/** That request ended, whatever its outcome. */
	onEnd?(instanceId: bigint, requestId: string): void;
}

/** Names of the policies that this package has. */
export const ROUTER_MODES = ["round-robin", "random", "power-of-two", "least-loaded"] as const;
export type RouterMode = (typeof ROUTER_MODES)[number];
