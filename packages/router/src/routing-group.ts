// SPDX-License-Identifier: Apache-2.0
// A policy and what goes with every policy: who may take a request at all, who is too full for more, and which worker
// a session is bound to.
import { DynamoError, type EndpointId, type EndpointRecord, type WorkerRank } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import { type EligibilityFacts, eligibleWorkers, type Refusal } from "./kv/eligibility.js";
import type { LoadMonitor } from "./kv/load-monitor.js";
import { PrefillCounts } from "./prefill-counts.js";
import type { Applicant, Ticket } from "./queue/admission.js";
import type { RankLoad, Router, RouterMode, RoutingDecision, RoutingRequest } from "./router.js";
import type { RoutingObserver } from "./routing-observer.js";
import type { SessionAffinity } from "./session-affinity.js";

/** What a group is made of. */
export interface RoutingGroupParts {
	/** The model, for messages. */
	readonly model: string;
	readonly policy: Router;
	/** Told what the group's own requests occupy; absent: nobody asks. */
	readonly load?: LoadMonitor | undefined;
	/** Absent: sessions are nobody's affair. */
	readonly affinity?: SessionAffinity | undefined;
	/** Data-parallel ranks of each worker. */
	readonly firstRank: number;
	readonly rankCount: number;
}

/** The router of one group of interchangeable workers. */
export class RoutingGroup implements Router {
	readonly policy: Router;
	readonly load: LoadMonitor | undefined;
	readonly affinity: SessionAffinity | undefined;
	readonly #parts: RoutingGroupParts;
	/** For policies that keep no account of prompts themselves. */
	readonly #prefills: PrefillCounts | undefined;
	readonly #taints = new Map<bigint, readonly string[]>();
	readonly #facts: EligibilityFacts;
	/** Sessions of requests under way. */
	readonly #sessions = new Map<string, string>();
	/** Those with room among the candidates that were asked about last. */
	#roomy: readonly EndpointRecord[] = [];
	#roomyOf: readonly EndpointRecord[] | undefined;
	#roomyAt = -1;
	/** A request that was given to the worker of its session, and how the policy is to see it. */
	#bound: { readonly request: RoutingRequest; readonly as: RoutingRequest } | undefined;
	#observer: RoutingObserver | undefined;
	#members: () => readonly EndpointRecord[] = () => [];
	#refused: { readonly why: Refusal; readonly request: RoutingRequest } | undefined;

	constructor(parts: RoutingGroupParts) {
		const { policy, load, affinity, firstRank, rankCount } = parts;
		this.#parts = parts;
		this.policy = policy;
		this.load = load;
		this.affinity = affinity;
		this.#facts = {
			firstRank,
			rankCount,
			taintsOf: (id) => this.#taints.get(id) ?? [],
			isBusy: (id) => load?.isBusy(id) ?? false,
		};
		policy.knowTaints?.(this.#facts.taintsOf);
		if (load === undefined) return;
		if (policy.watchLoad !== undefined) {
			policy.watchLoad(({ workerId, dpRank, activeBlocks, prefillTokens }) =>
				load.count(workerId, dpRank, { activeDecodeBlocks: activeBlocks, activePrefillTokens: prefillTokens }),
			);
			return;
		}
		// Which rank takes a request is the worker's affair then: on the whole each gets its share.
		this.#prefills = new PrefillCounts((workerId, tokens) => {
			for (let rank = firstRank; rank < firstRank + rankCount; rank++) {
				load.count(workerId, rank, { activePrefillTokens: tokens / rankCount });
			}
		});
	}

	get name(): RouterMode {
		return this.policy.name;
	}

	/** Begins to tell what becomes of requests. */
	observe(observer: RoutingObserver): void {
		this.#observer = observer;
		this.policy.watchSelections?.((selection) => observer.onSelection(selection));
	}

	/** Names who knows the group's workers. */
	knowMembers(members: () => readonly EndpointRecord[]): void {
		this.#members = members;
	}

	/** What the ranks of all workers have to do; nothing where the policy keeps no account of it. */
	loads(): RankLoad[] {
		return this.#members().flatMap(({ instance_id }) => this.policy.loadsOf?.(instance_id) ?? []);
	}

	/** Words on a worker's card, which may change while it lives. */
	setTaints(workerId: bigint, taints: readonly string[]): void {
		if (taints.length > 0) this.#taints.set(workerId, taints);
		else this.#taints.delete(workerId);
		this.policy.recheck?.();
	}

	/** The worker is gone. */
	forget(workerId: bigint): void {
		this.#taints.delete(workerId);
		this.load?.forget(workerId);
		this.affinity?.forget(workerId);
	}

	/** Those of the candidates that may take the request; the same array until something changes, if it demands nothing. */
	eligible(candidates: readonly EndpointRecord[], request: RoutingRequest): readonly EndpointRecord[] {
		const { pinned, allowed, requiredTaints } = request;
		// Other policies leave the rank to the worker, a bad one too.
		const dpRank = this.policy.rankFor === undefined ? undefined : request.dpRank;
		if (pinned === undefined && allowed === undefined && requiredTaints === undefined && dpRank === undefined) {
			const roomy = this.#withRoom(candidates);
			this.#refuse(roomy.length > 0 ? undefined : candidates.length > 0 ? "overloaded" : "no_worker", request);
			return roomy;
		}
		const found = eligibleWorkers(candidates, { pinned, allowed, requiredTaints, dpRank }, this.#facts);
		const refused = typeof found === "string" ? found : undefined;
		this.#refuse(refused, request);
		return typeof found === "string" ? [] : found;
	}

	pick(candidates: readonly EndpointRecord[], request: RoutingRequest): EndpointRecord | undefined {
		const eligible = this.eligible(candidates, request);
		if (eligible.length === 0) return undefined;
		if (request.pinned !== undefined) return eligible[0];
		const bound = this.#boundTo(candidates, request);
		if (bound !== undefined) {
			const record = eligible.find(({ instance_id }) => instance_id === bound.workerId);
			if (record !== undefined) {
				this.#bound = { request, as: this.#parts.rankCount > 1 ? { ...request, dpRank: bound.dpRank } : request };
				return record;
			}
			if (this.affinity?.options.mode === "hard") {
				this.#refuse("overloaded", request);
				return undefined;
			}
		}
		return this.policy.pick(eligible, request);
	}

	lookUp(request: RoutingRequest): Promise<void> | undefined {
		return this.policy.lookUp?.(request);
	}

	admit(applicant: Applicant): Ticket | undefined {
		if (this.policy.admit === undefined) return undefined;
		const bound = this.#boundTo(applicant.candidates(), applicant.request);
		const isHard = bound !== undefined && this.affinity?.options.mode === "hard";
		const request = isHard ? { ...applicant.request, pinned: bound.workerId } : applicant.request;
		return this.policy.admit({
			request,
			settled: bound !== undefined || applicant.settled,
			candidates: () => this.eligible(applicant.candidates(), request),
			onTurn: () => applicant.onTurn(),
			onRefused: (error) => applicant.onRefused(error),
		});
	}

	refusal(): DynamoError | undefined {
		const { model } = this.#parts;
		switch (this.#refused?.why) {
			case "overloaded":
				return new DynamoError(
					"WorkerOverloaded",
					`every worker of model ${model} that may take the request is above one of the limits that /busy_threshold shows`,
				);
			case "dp_rank":
				return new DynamoError(
					"InvalidArgument",
					`workers of model ${model} have no data-parallel rank ${this.#refused.request.dpRank}`,
				);
			case "taints":
				return new DynamoError(
					"Unavailable",
					`no worker of model ${model} has all of the taints ${this.#refused.request.requiredTaints?.join(", ")}`,
					{ reason: "backend.unavailable" },
				);
			case "not_allowed":
				return new DynamoError(
					"Unavailable",
					`none of the workers of model ${model} that may take the request is there`,
					{
						reason: "backend.unavailable",
					},
				);
			default:
				return this.policy.refusal?.();
		}
	}

	rankFor(instanceId: bigint, request: RoutingRequest): number | undefined {
		return this.policy.rankFor?.(instanceId, this.#asSeen(request));
	}

	/** Absent where the policy does not look at caches. */
	get explain(): ((instanceId: bigint, request: RoutingRequest) => RoutingDecision) | undefined {
		const { policy } = this;
		if (policy.explain === undefined) return undefined;
		return (instanceId, request) =>
			(policy.explain as NonNullable<Router["explain"]>)(instanceId, this.#asSeen(request));
	}

	onStart(instanceId: bigint, requestId: string, request: RoutingRequest): void {
		const seen = this.#asSeen(request);
		const { sessionId } = request;
		if (this.affinity !== undefined && sessionId !== undefined) {
			const { rankCount, firstRank } = this.#parts;
			const rank = rankCount > 1 ? (this.rankFor(instanceId, request) ?? request.dpRank) : undefined;
			this.affinity.begin(sessionId, instanceId, rank ?? firstRank);
			this.#sessions.set(requestId, sessionId);
		}
		this.#observer?.onStart(requestId, request.tokenIds?.length ?? 0);
		this.policy.onStart?.(instanceId, requestId, seen);
		this.#bound = undefined;
		const tokens = request.overrides?.trackPrefillTokens === false ? 0 : (request.tokenIds?.length ?? 0);
		this.#prefills?.add(requestId, instanceId, tokens);
	}

	onFirstItem(requestId: string): void {
		this.#observer?.onFirstItem(requestId);
		this.policy.onFirstItem?.(requestId);
		this.#prefills?.done(requestId);
	}

	onTokens(requestId: string, tokens: number): void {
		this.#observer?.onTokens(requestId, tokens);
		this.policy.onTokens?.(requestId, tokens);
	}

	/** The worker says how many prompt tokens it did not have to compute. */
	onReused(requestId: string, tokens: number): void {
		this.#observer?.onReused(requestId, tokens);
	}

	/** The first token came of a prompt that a prefill worker had computed, `seconds` after it had. */
	onHandedOver(seconds: number): void {
		this.#observer?.onHandedOver(seconds);
	}

	onEnd(instanceId: bigint, requestId: string): void {
		this.#observer?.onEnd(requestId);
		this.policy.onEnd?.(instanceId, requestId);
		this.#prefills?.done(requestId);
		const sessionId = this.#sessions.get(requestId);
		if (sessionId === undefined) return;
		this.#sessions.delete(requestId);
		this.affinity?.end(sessionId);
	}

	recheck(): void {
		this.policy.recheck?.();
	}

	/**
	 * @param isMember true for a worker of the group; bindings of sessions to others are not taken over.
	 * @throws DynamoError `Unavailable` when that is not possible now; it is tried again then.
	 */
	async open(
		runtime: DistributedRuntime,
		endpoint: EndpointId,
		isMember: (workerId: bigint) => boolean = () => true,
	): Promise<void> {
		await this.affinity?.open(runtime, endpoint, isMember);
		await this.policy.open?.(runtime, endpoint);
	}

	async close(): Promise<void> {
		await Promise.all([this.policy.close?.(), this.load?.close(), this.affinity?.close()]);
	}

	/** The worker that the request's session is bound to, while it is among the candidates. */
	#boundTo(candidates: readonly EndpointRecord[], { sessionId }: RoutingRequest): WorkerRank | undefined {
		const bound = sessionId === undefined ? undefined : this.affinity?.boundTo(sessionId);
		if (bound === undefined) return undefined;
		return candidates.some(({ instance_id }) => instance_id === bound.workerId) ? bound : undefined;
	}

	#asSeen(request: RoutingRequest): RoutingRequest {
		return this.#bound?.request === request ? this.#bound.as : request;
	}

	#withRoom(candidates: readonly EndpointRecord[]): readonly EndpointRecord[] {
		const { load } = this;
		if (load === undefined) return candidates;
		if (candidates !== this.#roomyOf || load.version !== this.#roomyAt) {
			this.#roomyOf = candidates;
			this.#roomyAt = load.version;
			const roomy = candidates.filter(({ instance_id }) => !load.isBusy(instance_id));
			this.#roomy = roomy.length === candidates.length ? candidates : roomy;
		}
		return this.#roomy;
	}

	#refuse(why: Refusal | undefined, request: RoutingRequest): void {
		this.#refused = why === undefined ? undefined : { why, request };
	}
}
