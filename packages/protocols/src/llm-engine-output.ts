// SPDX-License-Identifier: Apache-2.0
import type { Annotated } from "./annotated.js";
import { DynamoError } from "./dynamo-error.js";

/** Why a worker stopped; an object carries the text of an error. */
export type WireFinishReason =
	| "stop"
	| "eos"
	| "length"
	| "content_filter"
	| "cancelled"
	| "abort"
	| "error"
	| { error: string };

export interface PromptTokensDetails {
	audio_tokens?: number | null;
	cached_tokens?: number | null;
}

/** What generated tokens were. */
export interface CompletionTokensDetails {
	accepted_prediction_tokens?: number | null;
	audio_tokens?: number | null;
	reasoning_tokens?: number | null;
	rejected_prediction_tokens?: number | null;
}

/** Token counts. A frontend counts generated tokens itself and takes everything else from the last of these. */
export interface CompletionUsage {
	prompt_tokens: number;
	completion_tokens: number;
	total_tokens: number;
	prompt_tokens_details?: PromptTokensDetails | null;
	completion_tokens_details?: CompletionTokensDetails | null;
}

/** One candidate token with its natural-log probability. */
export interface TopLogprob {
	rank: number;
	token_id: number;
	token: string | null;
	logprob: number;
	bytes?: number[] | null;
}

/** Log-probability of one token in one place of a prompt. */
export interface WirePromptLogprob {
	logprob: number;
	/** 1 = the likeliest. */
	rank?: number | null;
	decoded_token?: string | null;
}

/** One per token of the prompt, null for the first: that token and the likeliest ones in its place, by token id. */
export type WirePromptLogprobs = ({ [tokenId: string]: WirePromptLogprob } | null)[];

/** One delta of generated tokens, as a worker writes it; only `token_ids` is required. */
export interface LLMEngineOutput {
	/** New tokens only. */
	token_ids: number[];
	tokens?: (string | null)[] | null;
	/** When set, shown verbatim instead of detokenizing `token_ids`. */
	text?: string | null;
	output_type?: string | null;
	cum_log_probs?: number | null;
	/** One per entry of `token_ids`. */
	log_probs?: number[] | null;
	top_logprobs?: TopLogprob[][] | null;
	finish_reason?: WireFinishReason | null;
	stop_reason?: string | number | null;
	/** Choice number for n > 1. */
	index?: number | null;
	completion_usage?: CompletionUsage | null;
	disaggregated_params?: unknown;
	/** What an engine has to say beside the tokens; Dynamo's workers send it with the last item. */
	engine_data?: { prompt_logprobs?: WirePromptLogprobs | null; [other: string]: unknown } | null;
}

/** The failure that a worker's item tells of as the end of the answer. */
export function finishError(item: Annotated<unknown>): DynamoError | undefined {
	const reason = (item.data as Partial<LLMEngineOutput> | null | undefined)?.finish_reason;
	if (reason === null || reason === undefined) return undefined;
	const why = typeof reason === "object" ? reason.error : reason === "error" ? "no reason given" : undefined;
	return why === undefined ? undefined : new DynamoError("Unknown", `the worker failed: ${why}`);
}
