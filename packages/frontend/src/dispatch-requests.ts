// SPDX-License-Identifier: Apache-2.0
// A request as the router sees it, and as it is once the router has chosen.
import type { RoutingHints } from "@dynamo-ts/protocols/internal";
import type { RoutingOverrides, RoutingRequest } from "@dynamo-ts/router";
import type { OutgoingRequest } from "@dynamo-ts/runtime";
import type { DispatchOptions, RoutingConstraints } from "./dispatch-options.js";

/** What the router may look at. */
export function routingRequestOf(
	options: DispatchOptions,
	requestId: string,
	tokenIds: readonly number[] | undefined,
	overrides: RoutingOverrides | undefined,
): RoutingRequest {
	const { routing, sessionId, policyClass, pinned } = options;
	const constraints = (routing?.routing_constraints ?? {}) as RoutingConstraints;
	return {
		tokenIds: tokenIds,
		requestId: requestId,
		sessionId,
		policyClass,
		loraName: routing?.lora_name,
		cacheSalt: routing?.cache_salt,
		dpRank: routing?.dp_rank,
		expectedOutputTokens: routing?.expected_output_tokens,
		pinned: pinned?.instance_id,
		allowed: routing?.allowed_worker_ids,
		requiredTaints: constraints.required_taints?.length ? constraints.required_taints : undefined,
		preferredTaints: constraints.preferred_taints,
		strictPriority: routing?.strict_priority,
		priorityJump: routing?.priority_jump,
		overrides: overrides,
	};
}

/** The request with the rank that it is for; the same one where the worker decides. */
export function withRank(request: OutgoingRequest, rank: number | undefined): OutgoingRequest {
	if (rank === undefined) return request;
	const body = request.payload as { readonly routing?: RoutingHints };
	return { ...request, payload: { ...body, routing: { ...body.routing, dp_rank: rank } } };
}
