// SPDX-License-Identifier: Apache-2.0
import { Template } from "@huggingface/jinja";
import { type ChatTemplateSources, resolveChatTemplates } from "./chat-template-source.js";
import { MissingChatTemplateError, TemplateError } from "./errors.js";
import { type ChatMessage, type ContentFormat, detectContentFormat, prepareMessages } from "./message-content.js";

export interface ChatTemplateInput {
	/** Messages in OpenAI's form. */
	messages: readonly ChatMessage[];
	/** Tools in OpenAI's form; a template named `tool_use` is used where the model has one. */
	tools?: readonly unknown[] | null | undefined;
	/** Documents for retrieval templates. */
	documents?: readonly unknown[] | null | undefined;
	/** End the prompt with the start of the assistant's turn. Default true, false with continueFinalMessage. */
	addGenerationPrompt?: boolean | undefined;
	/** End the prompt inside the last message, so that the model goes on with it. Default false. */
	continueFinalMessage?: boolean | undefined;
	/** More template variables (`chat_template_kwargs`); they win over the ones above, `messages` excepted. */
	kwargs?: Readonly<Record<string, unknown>> | undefined;
	/** Name of the template to use, instead of the choice between `default` and `tool_use`. */
	templateName?: string | undefined;
}

interface Compiled {
	template: Template;
	/** Names that occur in it; other variables cannot change what it gives, and each costs the engine a dozen objects. */
	names: ReadonlySet<string>;
	/** It has a place for what an assistant thought. */
	readsReasoning: boolean;
	/** Worked out at the first render. */
	contentFormat: ContentFormat | undefined;
}

/** Compiled templates by their text; models share templates, and a card may be loaded again. */
const MAX_COMPILED = 32;
const compiledTemplates = new Map<string, Compiled>();

/** Names that the template engine defines itself and refuses to take from outside. */
const ENGINE_NAMES = new Set([
	"true",
	"false",
	"none",
	"True",
	"False",
	"None",
	"range",
	"namespace",
	"strftime_now",
	"raise_exception",
]);
/** Stands in for raise_exception in compiled templates, so that its errors can be told from the engine's. */
const RAISE = "__raise_exception";

class RaisedByTemplate extends Error {}

/** The chat template of a model: messages -> prompt text. Compiled once, shared by all requests. */
export class ChatTemplate {
	readonly #templates: ReadonlyMap<string, string>;
	readonly #variables: Readonly<Record<string, string>>;

	/**
	 * @param sources the model's files
	 * @param variables special tokens by name, see SpecialTokens.variables
	 * @throws MissingChatTemplateError when the model has none; TemplateError (`syntax`) when it cannot be parsed
	 */
	constructor(sources: ChatTemplateSources, variables: Readonly<Record<string, string>> = {}) {
		this.#templates = resolveChatTemplates(sources);
		if (this.#templates.size === 0) throw new MissingChatTemplateError();
		this.#variables = variables;
		compile(this.#pick(undefined, false));
	}

	/** Names of the model's templates. */
	get names(): string[] {
		return [...this.#templates.keys()];
	}

	/**
	 * Renders a conversation. Encode the result without adding special tokens: the template has them.
	 *
	 * @throws TemplateError: see its `reason`
	 */
	render(input: ChatTemplateInput): string {
		const tools = input.tools != null && input.tools.length > 0 ? input.tools : null;
		const continues = input.continueFinalMessage ?? false;
		if (continues && input.addGenerationPrompt === true) {
			throw new TemplateError("input", "continue_final_message and add_generation_prompt exclude each other");
		}
		const compiled = compile(this.#pick(input.templateName, tools !== null));
		compiled.contentFormat ??= detectContentFormat((messages) =>
			renderTemplate(compiled, { ...this.#variables, messages, add_generation_prompt: false }),
		);
		const messages = prepareMessages(input.messages, compiled.contentFormat, compiled.readsReasoning);
		const context: Record<string, unknown> = {
			...this.#variables,
			tools,
			documents: input.documents ?? null,
			add_generation_prompt: !continues && (input.addGenerationPrompt ?? true),
			...input.kwargs,
			messages,
		};
		for (const name of Object.keys(context)) {
			if (ENGINE_NAMES.has(name) || name === RAISE) {
				throw new TemplateError("input", `chat_template_kwargs cannot set "${name}"`);
			}
		}
		const text = renderTemplate(compiled, context);
		return continues ? cutAfterFinalMessage(text, messages) : text;
	}

	#pick(name: string | undefined, withTools: boolean): string {
		const templates = this.#templates;
		const wanted = name ?? (withTools && templates.has("tool_use") ? "tool_use" : "default");
		const text =
			templates.get(wanted) ?? (name === undefined && templates.size === 1 ? [...templates.values()][0] : undefined);
		if (text === undefined) throw new MissingChatTemplateError(wanted, this.names);
		return text;
	}
}

function compile(text: string): Compiled {
	let compiled = compiledTemplates.get(text);
	if (compiled === undefined) {
		let template: Template;
		try {
			template = new Template(text);
		} catch (error) {
			throw new TemplateError("syntax", (error as Error).message, { cause: error });
		}
		const names = new Set<string>();
		visitNames(template.parsed, names);
		compiled = { template, names, readsReasoning: text.includes("reasoning_content"), contentFormat: undefined };
	}
	compiledTemplates.delete(text);
	compiledTemplates.set(text, compiled);
	if (compiledTemplates.size > MAX_COMPILED) compiledTemplates.delete(compiledTemplates.keys().next().value!);
	return compiled;
}

/** Collects the names that a template mentions, and points every use of raise_exception at our own function. */
function visitNames(node: unknown, names: Set<string>): void {
	if (typeof node !== "object" || node === null) return;
	const named = node as { type?: unknown; value?: unknown };
	if (named.type === "Identifier" && typeof named.value === "string") {
		if (named.value === "raise_exception") named.value = RAISE;
		names.add(named.value as string);
	}
	for (const child of node instanceof Map ? [...node].flat() : Object.values(node)) visitNames(child, names);
}

function raise(message: unknown): never {
	throw new RaisedByTemplate(String(message ?? ""));
}

function renderTemplate({ template, names }: Compiled, context: Record<string, unknown>): string {
	try {
		const used: Record<string, unknown> = {};
		for (const name of Object.keys(context)) if (names.has(name)) used[name] = context[name];
		if (names.has(RAISE)) used[RAISE] = raise;
		return template.render(used);
	} catch (error) {
		const reason = error instanceof RaisedByTemplate ? "raised" : "render";
		throw new TemplateError(reason, (error as Error).message, { cause: error });
	}
}

/**
 * Drops what the template puts after the last message. The message is looked up without the white space
 * around it, since templates may trim it.
 */
function cutAfterFinalMessage(text: string, messages: readonly ChatMessage[]): string {
	let content = messages.at(-1)?.content;
	if (Array.isArray(content)) content = content.findLast((part) => typeof part?.text === "string")?.text;
	if (typeof content !== "string" || content.trim() === "") {
		throw new TemplateError("input", "continue_final_message needs a last message with text in it");
	}
	const at = text.lastIndexOf(content.trim());
	if (at < 0) {
		throw new TemplateError(
			"input",
			"continue_final_message: the last message does not appear in the prompt; the template drops or rewrites it",
		);
	}
	const untrimmedEnd = content.trimStart();
	return text.startsWith(untrimmedEnd, at)
		? text.slice(0, at + untrimmedEnd.length)
		: text.slice(0, at + content.trim().length);
}
