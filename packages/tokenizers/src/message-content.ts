// SPDX-License-Identifier: Apache-2.0
import { TemplateError } from "./errors.js";

/** One part of a message's content in OpenAI's form. */
export interface ContentPart {
	type?: string;
	text?: string;
	[field: string]: unknown;
}

/** A chat message in OpenAI's form; unknown fields go to the template as they are. */
export interface ChatMessage {
	role: string;
	content?: string | readonly ContentPart[] | null;
	[field: string]: unknown;
}

/**
 * What a template can read as message content.
 * - `text`: text only; parts are joined before rendering.
 * - `parts`: a list of parts only; a text becomes a list of one.
 * - `both`: whatever the client sent.
 */
export type ContentFormat = "text" | "parts" | "both";

const MARK = "qzqcontentqzq";
/** A field that no template asks for: it shows up in the prompt when a list is printed instead of being read. */
const STRAY = "qzqstrayqzq";

/**
 * Finds out what content a template reads, by rendering a one-message conversation in both forms.
 * A template that fails on both (it may want other roles) is taken to read text.
 */
export function detectContentFormat(render: (messages: ChatMessage[]) => string): ContentFormat {
	const attempt = (content: ChatMessage["content"]): boolean => {
		try {
			const text = render([{ role: "user", content: content ?? null }]);
			return text.includes(MARK) && !text.includes(STRAY);
		} catch {
			return false;
		}
	};
	const text = attempt(MARK);
	const parts = attempt([{ type: "text", text: MARK, stray: STRAY }]);
	if (parts) return text ? "both" : "parts";
	return "text";
}

/**
 * Messages as the template reads them: content in a form it knows, and the arguments of earlier tool calls,
 * which OpenAI sends as JSON text, as the object that templates print.
 *
 * @param readsReasoning the template itself knows what to do with `reasoning_content`
 * @throws TemplateError (`input`) for a part other than text where the template reads text only
 */
export function prepareMessages(
	messages: readonly ChatMessage[],
	format: ContentFormat,
	readsReasoning = false,
): ChatMessage[] {
	return messages.map((message) => {
		const content = withReasoning(message, prepareContent(message.content, format), readsReasoning);
		const calls = prepareToolCalls(message.tool_calls);
		if (content === message.content && calls === message.tool_calls) return message;
		const prepared: ChatMessage = { ...message };
		if (content !== undefined) prepared.content = content;
		if (calls !== undefined) prepared.tool_calls = calls;
		return prepared;
	});
}

function prepareContent(content: ChatMessage["content"], format: ContentFormat): ChatMessage["content"] {
	if (format === "parts") return typeof content === "string" ? [{ type: "text", text: content }] : content;
	if (format === "both" || !Array.isArray(content)) return content;
	const texts = (content as readonly (ContentPart | string)[]).map((part) => {
		if (typeof part === "string") return part;
		if (typeof part?.text === "string" && (part.type === undefined || part.type === "text")) return part.text;
		throw new TemplateError("input", `this model's template reads text only, not content of type "${part?.type}"`);
	});
	return texts.join("\n");
}

/** What an assistant thought goes in front of what it said, marked as models mark it, unless the template does that. */
function withReasoning(
	message: ChatMessage,
	content: ChatMessage["content"],
	readsReasoning: boolean,
): ChatMessage["content"] {
	if (readsReasoning || message.role !== "assistant") return content;
	const given = message.reasoning_content ?? message.reasoning;
	const thoughts = (Array.isArray(given) ? given : [given]).filter((text) => typeof text === "string" && text !== "");
	if (thoughts.length === 0) return content;
	const marked = thoughts.map((text) => `<think>${text}</think>`).join("");
	if (Array.isArray(content)) return [{ type: "text", text: marked }, ...content];
	return marked + (content ?? "");
}

function prepareToolCalls(calls: unknown): unknown {
	if (!Array.isArray(calls)) return calls;
	let changed = false;
	const prepared = calls.map((call) => {
		const args = call?.function?.arguments;
		if (typeof args !== "string") return call;
		const parsed = parseObject(args);
		if (parsed === undefined) return call;
		changed = true;
		return { ...call, function: { ...call.function, arguments: parsed } };
	});
	return changed ? prepared : calls;
}

/** The object that a JSON text holds; undefined for anything else, which then stays text. */
function parseObject(text: string): object | undefined {
	if (text.trim() === "") return {};
	try {
		const value: unknown = JSON.parse(text);
		return typeof value === "object" && value !== null && !Array.isArray(value) ? value : undefined;
	} catch {
		return undefined;
	}
}
