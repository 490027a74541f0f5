// SPDX-License-Identifier: Apache-2.0
// What a dispatch is told, and how it gets on with the worker that computes the prompt, if that is another one.
import type {
	Annotated,
	DynamoError,
	EndpointRecord,
	PreprocessedRequest,
	RoutingHints,
} from "@dynamo-ts/protocols/internal";
import type { RoutingDecision, RoutingOverrides } from "@dynamo-ts/router";
import type { RouteTrace } from "@dynamo-ts/router/internal";
import type { OutgoingRequest, RequestOptions } from "@dynamo-ts/runtime";
import type { Continuation, MigrationObserver } from "./migration.js";

export interface DispatchOptions extends RequestOptions {
	/** Send to this instance and no other. */
	readonly pinned?: EndpointRecord;
	/** Where the spans of attempts belong; absent: there are none. */
	readonly trace?: RouteTrace;
	/** Told about each instance that is tried, before it is, and what its choice was made by. */
	readonly onAttempt?: (instance: EndpointRecord, decision: RoutingDecision | undefined) => void;
	/** The body for an instance and rank that were chosen, called for each that is tried; absent: the same for all. */
	readonly bodyFor?: (body: PreprocessedRequest, instance: EndpointRecord, rank?: number) => PreprocessedRequest;
	/** Nothing of the answer is shown before its end, so that it can begin anew elsewhere; asked after each loss. */
	readonly mayRepeat?: () => boolean;
	/** What comes before the request goes to a worker of the set. */
	readonly prefill?: PrefillStep;
	/** Told about workers that were lost with the request. */
	readonly migrations?: MigrationObserver;
	/** What the request says about its way. */
	readonly routing?: RoutingHints;
	/** Names the session that it belongs to, and the class in which it waits if it has to. */
	readonly sessionId?: string;
	readonly policyClass?: string;
	/** What the request becomes when its stream was lost; absent: it fails. */
	readonly continuation?: Continuation;
}

/** Lets another worker compute a request's prompt before, or while, the request is at a worker of the set. */
export interface PrefillStep {
	/** Begins, or begins again; what came of the run before counts no more. */
	run(request: OutgoingRequest, tokenIds: readonly number[], host: PrefillHost): void;
	/** A worker has the prompt, and is not done. */
	readonly running: boolean;
	/** The worker that took the request failed before its first item: true when the hand-over may be to blame. */
	mayBeBlamed(error: DynamoError): boolean;
	/** Abandons what is under way; the host hears nothing more. */
	cancel(): void;
	/** The answer is complete: what is under way may end by itself, but is not waited for long. */
	release(): void;
}

/** Told what came of a {@link PrefillStep}; some of it may come before `run` has returned. */
export interface PrefillHost {
	/** Workers of the set that the request has been sent to. */
	readonly attemptsMade: number;
	/** The id under which the request is sent: another one after each time that a worker was told to drop it. */
	readonly requestId: string;
	/** The request can be sent. */
	onHandover(handover: Handover): void;
	/**
	 * What was handed over last is worth nothing.
	 * @returns false when the worker has begun to answer all the same, and so does not need it.
	 */
	onWithdrawn(): boolean;
	/** The prefill worker's items are the whole answer. */
	onAnswer(items: readonly Annotated<unknown>[]): void;
	/** The request cannot go on. Never called before `run` has returned. */
	onPrefillError(error: DynamoError): void;
}

/** What a request goes on with after its {@link PrefillStep}. */
export interface Handover {
	/** Members of the body that replace the request's. */
	readonly body: Partial<PreprocessedRequest>;
	readonly overrides?: RoutingOverrides;
	/** The worker that it was decided for. */
	readonly preferred?: EndpointRecord;
	/** One worker can use it, and once. */
	readonly once?: boolean;
}

/** `nvext.routing_constraints`. */
export interface RoutingConstraints {
	readonly required_taints?: readonly string[];
	readonly preferred_taints?: Readonly<Record<string, number>>;
}
