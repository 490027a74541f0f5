// SPDX-License-Identifier: Apache-2.0
// Text models (model_input Text): OpenAI's request comes in as it is, OpenAI's chunks go out.
import { DynamoError, isJsonObject } from "@dynamo-ts/protocols/internal";
import type { EndReason, Generated } from "./custom-engine.js";
import type { GenerateContext } from "./generator-handler.js";

/** A chat or completion request as the client sent it: `messages` or `prompt`, `max_tokens`, `temperature`, ... */
export type OpenAIRequest = Readonly<Record<string, unknown>> & {
	readonly model: string;
	readonly messages?: readonly { readonly role: string; readonly content?: unknown }[];
	readonly prompt?: unknown;
	readonly max_tokens?: number | null;
	readonly max_completion_tokens?: number | null;
};

/** A piece of text, or a chunk as OpenAI has it. */
export type TextItem = string | Record<string, unknown>;

/**
 * The chunks of a text generator's answer. The first has the role, the last the reason of the end.
 * @throws DynamoError `InvalidArgument` for a body that is no chat or completion request.
 */
export async function* textItems(
	payload: unknown,
	modelName: string,
	context: GenerateContext,
	generate: (request: OpenAIRequest, context: GenerateContext) => Generated<TextItem>,
): AsyncGenerator<Record<string, unknown>> {
	if (!isJsonObject(payload) || (payload.messages === undefined && payload.prompt === undefined)) {
		throw new DynamoError("InvalidArgument", "the request has neither messages nor a prompt");
	}
	const request = payload as unknown as OpenAIRequest;
	const chat = request.messages !== undefined;
	const identity = {
		id: `${chat ? "chatcmpl" : "cmpl"}-${context.requestId}`,
		created: Math.floor(Date.now() / 1000),
		model: modelName,
		object: chat ? "chat.completion.chunk" : "text_completion",
	};
	let first = true;
	const chunk = (text: string, finish_reason: EndReason | null): Record<string, unknown> => {
		const role = first ? { role: "assistant" } : {};
		first = false;
		const delta = finish_reason === null || text !== "" ? { content: text, ...role } : role;
		const choice = chat ? { index: 0, delta, finish_reason } : { index: 0, text, finish_reason };
		return { ...identity, choices: [choice] };
	};
	const generator = generate(request, context);
	try {
		for (;;) {
			const { done, value } = await generator.next();
			if (done === true) {
				yield chunk("", value ?? "stop");
				return;
			}
			if (typeof value === "string") {
				if (value !== "") yield chunk(value, null);
			} else {
				first = false;
				yield value;
			}
		}
	} finally {
		await generator.return?.(undefined);
	}
}
