// SPDX-License-Identifier: Apache-2.0
import { CHAT_FIELDS, COMPLETION_FIELDS } from "./field-tables.js";
import { type BodyType, parseBody } from "./parse-body.js";
import type { ChatCompletionRequest, CompletionRequest } from "./request-types.js";
import * as rules from "./validation.js";

export interface ParseOptions {
	/** Drop fields that no type knows instead of refusing them (DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS). */
	ignoreUnsupportedFields?: boolean;
	/** Drop `nvext`, after its types were checked (DYN_DISABLE_FRONTEND_NVEXT). */
	disableNvext?: boolean;
}

const CHAT: BodyType = {
	name: "NvCreateChatCompletionRequest",
	fields: CHAT_FIELDS,
	required: ["messages", "model"],
};

const COMPLETION: BodyType = {
	name: "NvCreateCompletionRequest",
	fields: COMPLETION_FIELDS,
	required: ["model", "prompt"],
};

/** In Dynamo's order, which decides what a request with several faults is told: rules before unknown fields, and after. */
interface RuleOrder {
	before: readonly rules.Rule[];
	after: readonly rules.Rule[];
}

const PASSED_FIELDS = [rules.cacheSalt, rules.stopTokenIds, rules.detokenize, rules.allowedTokenIds];

const CHAT_RULES: RuleOrder = {
	before: [rules.thinking, rules.functionCall, rules.functions, rules.messages, rules.streamOptions],
	after: [
		...PASSED_FIELDS,
		rules.guidedDecoding,
		rules.model,
		rules.frequencyPenalty,
		rules.logitBias,
		rules.topLogprobs,
		rules.maxTokens,
		rules.maxCompletionTokens,
		rules.n,
		rules.presencePenalty,
		rules.responseFormat,
		rules.stop,
		rules.temperature,
		rules.topP,
		rules.systemTools,
		rules.tools,
		rules.toolChoice,
		rules.user,
		rules.repetitionPenalty,
		rules.minP,
		rules.topK,
		rules.nNeedsTemperature,
		rules.continueFinalMessage,
	],
};

const COMPLETION_RULES: RuleOrder = {
	before: [rules.streamOptions],
	after: [
		...PASSED_FIELDS,
		rules.guidedDecoding,
		rules.model,
		rules.promptEmbeds,
		rules.prompt,
		rules.suffix,
		rules.maxTokens,
		rules.temperature,
		rules.topP,
		rules.n,
		rules.completionLogprobs,
		rules.stop,
		rules.presencePenalty,
		rules.frequencyPenalty,
		rules.bestOf,
		rules.logitBias,
		rules.user,
		rules.repetitionPenalty,
		rules.minP,
		rules.topK,
		rules.nNeedsTemperature,
		rules.chatOnlyFields,
	],
};

function parse(body: string | Uint8Array, type: BodyType, order: RuleOrder, options: ParseOptions): rules.Fields {
	const { fields, unknown } = parseBody(body, type);
	for (const rule of order.before) rule(fields);
	if (!options.ignoreUnsupportedFields) rules.refuseUnknownFields(unknown);
	for (const rule of order.after) rule(fields);
	if (options.disableNvext) delete fields.nvext;
	return fields;
}

/**
 * Parses and validates the body of `POST /v1/chat/completions`, in the order and the words of Dynamo 1.6.1. Fields that
 * are null are left out; `chat_template_kwargs` becomes `chat_template_args`.
 *
 * @throws HttpError 400, or 501 for the deprecated function fields.
 */
export function parseChatCompletionRequest(
	body: string | Uint8Array,
	options: ParseOptions = {},
): ChatCompletionRequest {
	return parse(body, CHAT, CHAT_RULES, options) as unknown as ChatCompletionRequest;
}

/**
 * Parses and validates the body of `POST /v1/completions`, in the order and the words of Dynamo 1.6.1.
 *
 * @throws HttpError 400.
 */
export function parseCompletionRequest(body: string | Uint8Array, options: ParseOptions = {}): CompletionRequest {
	return parse(body, COMPLETION, COMPLETION_RULES, options) as unknown as CompletionRequest;
}
