// SPDX-License-Identifier: Apache-2.0
// Attributes by which products for watching language models know a request, on its span `http-request`. Prompts and
// answers are among them only where that was asked for.
import type { ChatCompletionRequest, CompletionRequest } from "@dynamo-ts/protocols/internal";
import type { Span } from "@dynamo-ts/runtime";

/** Units of UTF-16 of a text that goes into a span. */
const MAX_CONTENT = 8192;

/**
 * What the request says.
 * @param host by which the client reached the frontend.
 */
export function setRequestAttributes(
	span: Span | undefined,
	request: ChatCompletionRequest | CompletionRequest,
	host: string | undefined,
	withContent: boolean,
): void {
	if (span?.recording !== true) return;
	const chat = "messages" in request;
	span.setAttribute("gen_ai.system", "dynamo");
	span.setAttribute("llm.request.type", chat ? "chat" : "completion");
	span.setAttribute("gen_ai.request.model", request.model);
	span.setAttribute("gen_ai.response.model", request.model);
	const limit = ("max_completion_tokens" in request ? request.max_completion_tokens : undefined) ?? request.max_tokens;
	span.setAttribute("gen_ai.request.max_tokens", limit ?? undefined);
	span.setAttribute("gen_ai.request.temperature", request.temperature ?? undefined);
	span.setAttribute("gen_ai.request.top_p", request.top_p ?? undefined);
	if (host !== undefined) span.setAttribute("gen_ai.openai.api_base", `http://${host}/v1`);
	if (!withContent) return;
	const prompts = chat
		? request.messages.map(({ role, content }) => [role, textOf(content)] as const)
		: [["user", textOf(request.prompt)] as const];
	for (const [index, [role, content]] of prompts.entries()) {
		span.setAttribute(`gen_ai.prompt.${index}.role`, role);
		span.setAttribute(`gen_ai.prompt.${index}.content`, content.slice(0, MAX_CONTENT));
	}
}

/** Keeps the beginning of the answer's first choice, for spans that want it. */
export class ContentAttribute {
	private text = "";
	private readonly span: Span;

	constructor(span: Span) {
		this.span = span;
	}

	add(text: string): void {
		if (this.text.length < MAX_CONTENT) this.text += text;
	}

	end(): void {
		this.span.setAttribute("gen_ai.completion.0.role", "assistant");
		this.span.setAttribute("gen_ai.completion.0.content", this.text.slice(0, MAX_CONTENT));
	}
}

function textOf(content: unknown): string {
	return typeof content === "string" ? content : (JSON.stringify(content) ?? "");
}
