// SPDX-License-Identifier: Apache-2.0
// Token models (model_input Tokens): token ids in, token ids out.
import {
	DynamoError,
	isJsonObject,
	type LLMEngineOutput,
	type PreprocessedRequest,
} from "@dynamo-ts/protocols/internal";
import type { Generated } from "./custom-engine.js";
import type { GenerateContext } from "./generator-handler.js";

/** A token id, several, or an output as it goes over the wire. */
export type TokensItem = number | readonly number[] | LLMEngineOutput;

/** A request with the number of tokens that it may have. */
export interface ReadTokensRequest {
	readonly request: PreprocessedRequest;
	readonly maxTokens: number;
}

/**
 * Reads a preprocessed request: prompt and max_tokens are checked, the rest is passed on as it came.
 * @param contextLength tokens of prompt and output together; undefined: no limit.
 * @throws DynamoError `InvalidArgument`; `code` is `context_length_exceeded` for a prompt that leaves no room.
 */
export function readTokensRequest(payload: unknown, contextLength: number | undefined): ReadTokensRequest {
	if (!isJsonObject(payload)) throw invalid("the request must be a map");
	const given = payload.token_ids;
	const list = ArrayBuffer.isView(given) ? Array.from(given as unknown as ArrayLike<number>, Number) : given;
	if (!Array.isArray(list) || list.some((id) => !Number.isInteger(id) || id < 0)) {
		throw invalid("token_ids must be a list of token ids");
	}
	const conditions = isJsonObject(payload.stop_conditions) ? payload.stop_conditions : {};
	const asked = conditions.max_tokens ?? Number.POSITIVE_INFINITY;
	if (typeof asked !== "number" || asked < 0) throw invalid("max_tokens must be a number");
	const room = (contextLength ?? Number.POSITIVE_INFINITY) - list.length;
	if (room <= 0) {
		throw invalid(
			`This model's maximum context length is ${contextLength} tokens. However, the prompt has ${list.length} tokens, which leaves no room for an answer. Please shorten the prompt.`,
			"context_length_exceeded",
		);
	}
	const request = { ...payload, token_ids: list as number[], stop_conditions: conditions };
	return { request: request as unknown as PreprocessedRequest, maxTokens: Math.min(asked, room) };
}

function invalid(message: string, code?: string): DynamoError {
	return new DynamoError("InvalidArgument", message, {
		publicMessage: message,
		...(code === undefined ? {} : { code }),
	});
}

/** The outputs of a token generator's answer, no more tokens than may be; the last says why it ended. */
export async function* tokensItems(
	{ request, maxTokens }: ReadTokensRequest,
	context: GenerateContext,
	generate: (request: PreprocessedRequest, context: GenerateContext) => Generated<TokensItem>,
): AsyncGenerator<LLMEngineOutput> {
	const generator = generate(request, context);
	let left = maxTokens;
	try {
		while (left > 0) {
			const { done, value } = await generator.next();
			if (done === true) {
				yield { token_ids: [], finish_reason: value ?? "stop" };
				return;
			}
			const output = outputOf(value);
			const ids = output.token_ids;
			if (ids.length > left) output.token_ids = ids.slice(0, left);
			left -= ids.length;
			yield output;
			// An output of its own may say the end itself.
			if (output.finish_reason !== undefined && output.finish_reason !== null) return;
		}
		yield { token_ids: [], finish_reason: "length" };
	} finally {
		await generator.return?.(undefined);
	}
}

function outputOf(value: TokensItem): LLMEngineOutput {
	if (typeof value === "number") return { token_ids: [value] };
	return "token_ids" in value ? { ...value } : { token_ids: [...value] };
}
