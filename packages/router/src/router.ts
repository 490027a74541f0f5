// SPDX-License-Identifier: Apache-2.0
import type { DynamoError, EndpointId, EndpointRecord, WorkerRank } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, Span } from "@dynamo-ts/runtime";
import type { Applicant, Ticket } from "./queue/admission.js";
import type { Selection } from "./routing-observer.js";

/** What a policy may look at. */
export interface RoutingRequest {
	/** The prompt; absent for requests that are passed on as text. */
	readonly tokenIds?: readonly number[] | undefined;
	/** What else than tokens makes cached blocks differ. */
	readonly loraName?: string | undefined;
	readonly cacheSalt?: string | undefined;
	/** The request's id, as workers know it. */
	readonly requestId?: string | undefined;
	/** Names the session that it belongs to. */
	readonly sessionId?: string | undefined;
	/** Tokens that it is expected to generate. */
	readonly expectedOutputTokens?: number | undefined;
	/** The data-parallel rank that the client asked for. */
	readonly dpRank?: number | undefined;
	/** The only worker, of those that are there, that may take it. */
	readonly pinned?: bigint | undefined;
	/** The workers that may take it; absent: all. */
	readonly allowed?: readonly bigint[] | undefined;
	/** Words that a worker must have on its card (`runtime_config.taints`). */
	readonly requiredTaints?: readonly string[] | undefined;
	/** Words that make a worker that has them cheaper, by their weight. */
	readonly preferredTaints?: Readonly<Record<string, number>> | undefined;
	/** While requests wait: who goes first, by how many seconds it counts as earlier, and the class that it belongs to. */
	readonly strictPriority?: number | undefined;
	readonly priorityJump?: number | undefined;
	readonly policyClass?: string | undefined;
	/** What holds for this request in place of the router's settings. */
	readonly overrides?: RoutingOverrides | undefined;
	/** What the choice is recorded in; absent: nobody records it. */
	readonly span?: Span | undefined;
}

/** Settings of the policy "kv" that a request can have of its own; `router_config_override` on the wire. */
export interface RoutingOverrides {
	/** Blocks of prefill that a cached block saves. */
	readonly overlapScoreCredit?: number;
	/** Its blocks may be those of other requests under way. */
	readonly assumeKvReuse?: boolean;
	/** What the prompt counts beside the blocks in use. */
	readonly prefillLoadScale?: number;
	/** 0: always the cheapest worker. */
	readonly temperature?: number;
	/** Its prompt is to be computed by the worker. */
	readonly trackPrefillTokens?: boolean;
}

/** What a policy that weighs cache and load knew of the instance that it chose for a request. */
export interface RoutingDecision {
	readonly dpRank: number;
	/** Blocks of the prompt, the last partial one included, and how many of them the worker holds in device memory. */
	readonly promptBlocks: number;
	readonly overlapBlocks: number;
	/** Prompt tokens that it need not compute, by what it holds in any tier. */
	readonly cachedTokens: number;
	/** Prompt tokens that it has still to compute for other requests. */
	readonly activePrefillTokens: number;
	/** Blocks that would be in use at the worker with this request. */
	readonly decodeBlocks: number;
	/** Requests that wait for their turn. */
	readonly queueDepth: number;
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
	/**
	 * Finds out elsewhere what a choice needs to know, for those that do not come through {@link admit}; that does it by
	 * itself. Never rejects. Undefined, or absent: all is known.
	 */
	lookUp?(request: RoutingRequest): Promise<void> | undefined;
	/**
	 * Lets a request in, before {@link pick}, or makes it wait until a worker has less to do; absent: nobody waits.
	 * @returns undefined: it can be picked for now.
	 * @throws DynamoError `WorkerOverloaded` when it would have to wait and there is no room for it.
	 */
	admit?(applicant: Applicant): Ticket | undefined;
	/** Why {@link pick} picked nobody, where that is not for want of candidates. */
	refusal?(): DynamoError | undefined;
	/** The data-parallel rank for a request that goes to the instance; undefined: the worker decides. */
	rankFor?(instanceId: bigint, request: RoutingRequest): number | undefined;
	/**
	 * What speaks for and against an instance, before {@link onStart} of that request; asking changes nothing. Absent in
	 * policies that do not look at caches.
	 */
	explain?(instanceId: bigint, request: RoutingRequest): RoutingDecision;
	/**
	 * A request was sent to an instance. Followed by exactly one {@link onEnd} with the same arguments.
	 * @param requestId names this attempt; no other one under way has the same.
	 */
	onStart?(instanceId: bigint, requestId: string, request: RoutingRequest): void;
	/** The first item of its answer came. */
	onFirstItem?(requestId: string): void;
	/** It generated tokens. */
	onTokens?(requestId: string, tokens: number): void;
	/** That request ended, whatever its outcome. */
	onEnd?(instanceId: bigint, requestId: string): void;
	/**
	 * Begins to follow the workers of an endpoint; requests come after that.
	 * @throws DynamoError `Unavailable` when that is not possible now; it is tried again then.
	 */
	open?(runtime: DistributedRuntime, endpoint: EndpointId): Promise<void>;
	/** Names the one listener that is told what the router counts of a worker's rank, whenever that changes. */
	watchLoad?(listener: (load: RankLoad) => void): void;
	/** Names the one listener that is told each choice once a request is given to its worker. */
	watchSelections?(listener: (selection: Selection) => void): void;
	/** What the ranks of a worker have to do; absent in policies that keep no account of it. */
	loadsOf?(workerId: bigint): readonly RankLoad[];
	/** There are other workers, or fewer. */
	recheck?(): void;
	/** Names who knows the words on workers' cards that requests can prefer. */
	knowTaints?(taintsOf: (workerId: bigint) => readonly string[]): void;
	/** Ends what {@link open} began. */
	close?(): Promise<void>;
}

/** What a router's own requests occupy at a worker's rank. */
export interface RankLoad extends WorkerRank {
	/** Blocks in use, each once however many requests share it. */
	readonly activeBlocks: number;
	/** Prompt tokens that are still to be computed. */
	readonly prefillTokens: number;
}

/** Names of the policies that this package has. */
export const ROUTER_MODES = [
	"round-robin",
	"random",
	"power-of-two",
	"least-loaded",
	"kv",
	"direct",
	"device-aware-weighted",
] as const;
export type RouterMode = (typeof ROUTER_MODES)[number];
