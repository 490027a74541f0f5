// SPDX-License-Identifier: Apache-2.0
// Answers. The order of the members is the order on the wire.
import type { CompletionUsage } from "../llm-engine-output.js";

export type FinishReason = "stop" | "length" | "content_filter" | "tool_calls" | "function_call";

/** One token with its natural-log probability. `bytes`: UTF-8 of the token, null when it is no whole text. */
export interface ChatTokenLogprob {
	token: string;
	logprob: number;
	bytes: number[] | null;
	top_logprobs: { token: string; logprob: number; bytes: number[] | null }[];
}

export interface ChatLogprobs {
	content: ChatTokenLogprob[] | null;
	refusal: ChatTokenLogprob[] | null;
}

export interface ToolCall {
	id: string;
	type: "function";
	function: { name: string; arguments: string };
}

export interface ToolCallDelta {
	index: number;
	id?: string;
	type?: "function";
	function?: { name?: string; arguments?: string };
}

/** What a chunk adds to a choice; `role` rides on the first one. */
export interface ChatDelta {
	content?: string | null;
	role?: "assistant";
	reasoning_content?: string;
	tool_calls?: ToolCallDelta[];
	refusal?: string | null;
}

export interface ChatChunkChoice {
	index: number;
	delta: ChatDelta;
	finish_reason: FinishReason | null;
	logprobs: ChatLogprobs | null;
}

/** `data:` of a chat stream. `usage` stands only in the usage chunk, whose choices are empty. */
export interface ChatCompletionChunk {
	/** `chatcmpl-<uuid>`. */
	id: string;
	choices: ChatChunkChoice[];
	/** Seconds since 1970; the same in all chunks of a stream. */
	created: number;
	model: string;
	object: "chat.completion.chunk";
	usage?: CompletionUsage;
	nvext?: Record<string, unknown>;
}

export interface ChatCompletionMessage {
	content: string | null;
	refusal: string | null;
	tool_calls?: ToolCall[];
	role: "assistant";
	reasoning_content?: string;
}

export interface ChatCompletionResponse {
	id: string;
	choices: {
		index: number;
		message: ChatCompletionMessage;
		finish_reason: FinishReason | null;
		logprobs: ChatLogprobs | null;
	}[];
	created: number;
	model: string;
	object: "chat.completion";
	usage?: CompletionUsage;
	nvext?: Record<string, unknown>;
}

/** Logprobs of the older route: parallel arrays, one entry per token. */
export interface CompletionLogprobs {
	tokens: string[];
	token_logprobs: (number | null)[];
	top_logprobs: (Record<string, number> | null)[];
	/** UTF-16 units from the start of the text. */
	text_offset: number[];
}

export interface CompletionChoice {
	text: string;
	index: number;
	logprobs?: CompletionLogprobs;
	finish_reason: FinishReason | null;
}

/** Both the answer and each chunk of `POST /v1/completions`; chunks have `usage` null but for the last. */
export interface CompletionResponse {
	/** `cmpl-<uuid>`, in streams of several prompts with the prompt's number behind it. */
	id: string;
	choices: CompletionChoice[];
	created: number;
	model: string;
	system_fingerprint: string | null;
	object: "text_completion";
	usage: CompletionUsage | null;
	nvext?: Record<string, unknown>;
}

/** An entry of `GET /v1/models`. */
export interface ModelObject {
	id: string;
	object: "model";
	created: number;
	owned_by: string;
	/** Tokens. */
	context_window?: number;
}

export interface ModelList {
	object: "list";
	data: ModelObject[];
}
