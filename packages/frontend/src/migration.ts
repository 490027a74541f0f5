// SPDX-License-Identifier: Apache-2.0
// How a stream whose worker was lost goes on at another one: the rest of it is a request of its own, whose prompt is
// the old prompt and what was generated so far.
import {
	type DynamoError,
	errorReason,
	isMigratable,
	type PreprocessedRequest,
	type SamplingOptions,
} from "@dynamo-ts/protocols/internal";
import { TokenLog } from "./token-log.js";

/** What a frontend allows. */
export interface MigrationLimits {
	/** Most migrations of one request; 0: a stream that was lost ends with an error. */
	readonly limit: number;
	/** Tokens of prompt and output together beyond which a request is no longer moved; undefined: no limit. */
	readonly maxSeqLen: number | undefined;
}

/** How a migration ended, as the metric label says it. */
export type MigrationOutcome = "success" | "failure" | "cancelled";
/** A request that no worker had taken yet, or a stream in the middle; values of the metric label. */
export type MigrationType = "new_request" | "ongoing_request";

/** Counts migrations; one per model. */
export interface MigrationObserver {
	/** A worker was lost. */
	onLost(type: MigrationType): void;
	/** What came of it, `seconds` after the loss. */
	onOutcome(type: MigrationType, outcome: MigrationOutcome, seconds: number): void;
}

/** True for failures after which a stream goes on elsewhere. A worker's silence is one of them, as with Dynamo. */
export function isLoss(error: DynamoError): boolean {
	return isMigratable(error) || errorReason(error) === "backend.response_timeout";
}

/** What a stream must remember to be able to go on at another worker. */
export class Continuation {
	private readonly body: PreprocessedRequest;
	private readonly log: TokenLog | undefined;
	/** Why this request cannot be moved; undefined: it can. */
	private readonly refusal: string | undefined;
	private readonly limits: MigrationLimits;
	private readonly mostTokens: number;

	/** @param mostTokens after so many there is nothing left to generate. */
	constructor(body: PreprocessedRequest, limits: MigrationLimits, mostTokens: number) {
		this.body = body;
		this.limits = limits;
		this.mostTokens = mostTokens;
		this.refusal = refusalOf(body.sampling_options);
		const { maxSeqLen = Number.POSITIVE_INFINITY } = limits;
		if (limits.limit > 0 && this.refusal === undefined) this.log = new TokenLog(maxSeqLen - body.token_ids.length);
	}

	/** Most migrations; 0 when the request cannot be moved at all. */
	get limit(): number {
		return this.log === undefined ? 0 : this.limits.limit;
	}

	/** Tokens that were taken from a worker. */
	push(ids: readonly number[]): void {
		this.log?.push(ids);
	}

	/** Tokens that were generated so far. */
	get tokens(): number {
		return this.log?.length ?? 0;
	}

	/** Why the stream cannot go on elsewhere; undefined when it can. */
	get obstacle(): string | undefined {
		if (this.refusal !== undefined) return this.refusal;
		if (this.log === undefined) return "migration is off (--migration-limit)";
		if (this.log.length >= this.mostTokens) return "every token is there already";
		return this.log.givenUp ? "the sequence is longer than --migration-max-seq-len" : undefined;
	}

	/**
	 * The request for what is left. Only call it without an {@link obstacle}.
	 * @returns the same request with the generated tokens behind the prompt and both token limits reduced by them.
	 */
	rest(): PreprocessedRequest {
		const { body } = this;
		const log = this.log as TokenLog;
		if (log.length === 0) return body;
		const { max_tokens, min_tokens } = body.stop_conditions;
		const left = (tokens: number | null): number | null =>
			typeof tokens === "number" ? Math.max(0, tokens - log.length) : tokens;
		return {
			...body,
			// Those of the prompt came with the first token.
			output_options: { ...body.output_options, prompt_logprobs: null },
			generated_tokens: log.length,
			token_ids: log.after(body.token_ids),
			stop_conditions: { ...body.stop_conditions, max_tokens: left(max_tokens), min_tokens: left(min_tokens) },
		};
	}
}

/** State that lives in the worker and does not come out of the tokens. */
function refusalOf(sampling: SamplingOptions): string | undefined {
	if (Math.max(sampling.n ?? 1, sampling.best_of ?? 1) > 1) return "several choices (n, best_of) cannot be moved";
	if (sampling.guided_decoding !== null && sampling.guided_decoding !== undefined) {
		return "the state of guided decoding cannot be moved";
	}
	const greedy = sampling.temperature === 0 || sampling.top_k === 1;
	const seeded = sampling.seed !== null && sampling.seed !== undefined;
	return seeded && !greedy ? "the state of seeded sampling cannot be moved" : undefined;
}
