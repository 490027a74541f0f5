// SPDX-License-Identifier: Apache-2.0
// What a request must satisfy before it may become sequences; the same for the real and the simulated engine.

import type { EngineError, EngineRequest } from "./engine.js";
import { checkSampling } from "./sampling-params.js";

export interface RequestLimits {
	/** Tokens of prompt and output together. */
	readonly maxModelLen: number;
	readonly vocabSize: number;
}

/**
 * Never throws, whatever a peer made of the request.
 * @returns the error to answer with, or undefined when the request can run.
 */
export function checkRequest(request: EngineRequest, limits: RequestLimits): EngineError | undefined {
	try {
		return findProblem(request, limits);
	} catch (cause) {
		return invalid(`the request is malformed: ${cause instanceof Error ? cause.message : cause}`);
	}
}

function findProblem(request: EngineRequest, limits: RequestLimits): EngineError | undefined {
	const { tokenIds } = request;
	const { maxModelLen, vocabSize } = limits;
	if (tokenIds.length === 0) return invalid("the prompt has no tokens");
	if (tokenIds.length > maxModelLen - 1) {
		return {
			code: "context_length_exceeded",
			message:
				`the prompt has ${tokenIds.length} tokens; the context holds ${maxModelLen} tokens, ` +
				"of which at least one must be left for the answer",
		};
	}
	for (let i = 0; i < tokenIds.length; i++) {
		const id = tokenIds[i]!;
		// The comparison is false for NaN and undefined, too.
		if (!(id >= 0 && id < vocabSize && Number.isInteger(id))) {
			return invalid(`token id ${id} of the prompt is not in the vocabulary of ${vocabSize} tokens`);
		}
	}
	for (const id of [...(request.stop.stopTokenIds ?? []), ...(request.stop.eosTokenIds ?? [])]) {
		if (!Number.isInteger(id)) return invalid(`stop token id ${id} is not a whole number`);
	}
	const { generatedTokens = 0 } = request;
	if (!Number.isInteger(generatedTokens) || generatedTokens < 0 || generatedTokens > tokenIds.length) {
		return invalid(`generatedTokens is ${generatedTokens}; the prompt has ${tokenIds.length} tokens`);
	}
	const problem = checkSampling(request, vocabSize);
	return problem === undefined ? undefined : invalid(problem);
}

function invalid(message: string): EngineError {
	return { code: "invalid_argument", message };
}
