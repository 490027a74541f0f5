// SPDX-License-Identifier: Apache-2.0
// The two halves of a request that different workers compute: which half is at hand, and what passes between them.
import type { EngineOutput, EngineRequest } from "@dynamo-ts/engine";
import type { PromptSource } from "./kv-transfer/kv-transfer.js";

/** What a worker does about prompts that one computes and another goes on from. */
export interface Disaggregation {
	/** Of a prefill worker: `disaggregated_params` for the decode worker, sent with the token. */
	keep?(output: EngineOutput, request: EngineRequest): unknown;
	/** Of all others: where the prompt can be had, by `disaggregated_params`; undefined: it must be computed. */
	source?(params: unknown, request: EngineRequest): PromptSource | undefined;
}

type Members = Readonly<Record<string, unknown>>;

function members(value: unknown): Members {
	return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Members) : {};
}

/**
 * The request as a prefill worker runs it: one token, whose only use is to show that the prompt is there.
 * @returns undefined for a request that the worker should serve as any other would.
 */
export function prefillLeg(request: EngineRequest, payload: unknown): EngineRequest | undefined {
	const { routing, prefill_result, _HEALTH_CHECK } = members(payload);
	if (_HEALTH_CHECK === true || (prefill_result !== undefined && prefill_result !== null)) return undefined;
	const chosen = members(routing).prefill_worker_id;
	if (chosen === undefined || chosen === null) {
		return request.stop.maxTokens === 1 ? { ...request, holdKv: holds(request) } : undefined;
	}
	return {
		...request,
		sampling: { ...request.sampling, n: 1 },
		stop: { ...request.stop, maxTokens: 1 },
		logprobs: undefined,
		promptLogprobs: undefined,
		holdKv: holds(request),
	};
}

/** Log-probabilities of a prompt need all of it computed where they are told. */
function holds(request: EngineRequest): boolean {
	return request.promptLogprobs === undefined;
}

/** What a prefill worker said of the request's prompt. */
export interface PrefillAnswer {
	readonly params: unknown;
	/** Tokens that it had in its cache, where it said. */
	readonly cachedTokens: number | undefined;
}

/** The prefill worker's answer in a request; undefined when there is none. */
export function prefillAnswer(payload: unknown): PrefillAnswer | undefined {
	const { prefill_result } = members(payload);
	if (prefill_result === undefined || prefill_result === null) return undefined;
	const { disaggregated_params: params, prompt_tokens_details } = members(prefill_result);
	const cached = members(prompt_tokens_details).cached_tokens;
	return { params, cachedTokens: typeof cached === "number" ? cached : undefined };
}
