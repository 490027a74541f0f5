// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { ChatTemplate } from "./chat-template.js";
import { resolveChatTemplates } from "./chat-template-source.js";
import { MissingChatTemplateError, TemplateError } from "./errors.js";
import type { ChatMessage } from "./message-content.js";

interface Golden {
	variables: Record<string, string>;
	templates: Record<string, string>;
	cases: {
		name: string;
		template: string;
		messages: ChatMessage[];
		variables: Record<string, unknown>;
		prompt: string | null;
		error: string | null;
	}[];
}
const golden: Golden = JSON.parse(readFileSync(new URL("../fixtures/chat-templates.json", import.meta.url), "utf8"));
const user = (content: ChatMessage["content"]): ChatMessage => ({ role: "user", content: content ?? null });
const template = (text: string, variables = {}): ChatTemplate =>
	new ChatTemplate({ chatTemplateJinja: text }, variables);

function failure(run: () => unknown): TemplateError {
	try {
		run();
	} catch (error) {
		if (error instanceof TemplateError) return error;
		throw error;
	}
	throw new Error("no error was thrown");
}

describe("ChatTemplate - same prompt as Python's jinja2", () => {
	it.each(golden.cases)("$name", ({ template: name, messages, variables, prompt, error }) => {
		const { add_generation_prompt: addGenerationPrompt, tools, documents, ...kwargs } = variables;
		const chat = template(golden.templates[name]!, golden.variables);
		const run = () =>
			chat.render({
				messages,
				tools: tools as unknown[],
				documents: documents as unknown[],
				addGenerationPrompt: addGenerationPrompt as boolean | undefined,
				kwargs,
			});
		if (error === null) expect(run()).toBe(prompt);
		else expect(failure(run)).toMatchObject({ reason: "raised", templateMessage: error });
	});

	it("arguments of tool calls may be JSON text, as OpenAI sends them", () => {
		const found = golden.cases.find((c) => c.name === "tools and tool calls")!;
		const messages = found.messages.map((message) => ({
			...message,
			...(message.tool_calls === undefined
				? {}
				: {
						tool_calls: (message.tool_calls as { function: { arguments: object } }[]).map((call) => ({
							...call,
							function: { ...call.function, arguments: JSON.stringify(call.function.arguments) },
						})),
					}),
		}));
		const chat = template(golden.templates.tools!, golden.variables);
		expect(chat.render({ messages, tools: found.variables.tools as unknown[] })).toBe(found.prompt);
	});
});

describe("ChatTemplate - message content", () => {
	const textOnly = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
	const partsOnly = "{% for m in messages %}{% for p in m['content'] %}({{ p['text'] }}){% endfor %}{% endfor %}";

	it("parts become text where the template reads text", () => {
		const parts = [
			{ type: "text", text: "one" },
			{ type: "text", text: "two" },
		];
		expect(template(textOnly).render({ messages: [user(parts), user("x")] })).toBe("<user>one\ntwo<user>x");
	});

	it("text becomes a part where the template reads parts", () => {
		expect(template(partsOnly).render({ messages: [user("hi"), user([{ type: "text", text: "ho" }])] })).toBe(
			"(hi)(ho)",
		);
	});

	it("an image for a template that reads text is refused by name", () => {
		const run = () => template(textOnly).render({ messages: [user([{ type: "image_url", image_url: { url: "x" } }])] });
		expect(failure(run)).toMatchObject({ reason: "input", message: expect.stringContaining('"image_url"') });
	});

	it.each([
		[{ reasoning_content: "t", content: "y" }, "<think>t</think>y"],
		[{ reasoning: "t", content: "y" }, "<think>t</think>y"],
		[{ reasoning_content: ["a", "b"], content: "y" }, "<think>a</think><think>b</think>y"],
		[{ reasoning_content: "t", content: null }, "<think>t</think>"],
		[{ reasoning_content: "t", content: [{ type: "text", text: "y" }] }, "<think>t</think>y"],
		[{ reasoning_content: "", content: "y" }, "y"],
		[{ role: "user", reasoning_content: "t", content: "y" }, "y"],
	])("what was thought stands before what was said: %j", (message, shown) => {
		const text = "{% for m in messages %}{{ m.content }}{% endfor %}";
		expect(template(text).render({ messages: [{ role: "assistant", ...message }] })).toBe(shown);
	});

	it("a template with a place for thoughts gets them there", () => {
		const text = "{% for m in messages %}[{{ m.reasoning_content }}]{{ m.content }}{% endfor %}";
		const messages = [{ role: "assistant", reasoning_content: "t", content: "y" }];
		expect(template(text).render({ messages })).toBe("[t]y");
	});

	it("null content stays null", () => {
		const text = "{% for m in messages %}{{ 'none' if m.content is none else m.content }}{% endfor %}";
		expect(template(text).render({ messages: [user(null)] })).toBe("none");
	});
});

describe("ChatTemplate - variables", () => {
	it("tools and documents are none when there are none, special tokens the model lacks are undefined", () => {
		const text =
			"{{ tools is none }} {{ documents is none }} {{ pad_token is defined }} {{ bos_token }} {{ add_generation_prompt }}";
		const input = { messages: [user("x")] };
		expect(template(text, { bos_token: "<s>" }).render(input)).toBe("true true false <s> true");
		expect(template(text, { bos_token: "<s>" }).render({ ...input, tools: [] })).toBe("true true false <s> true");
	});

	it("kwargs win over variables, but not over messages or the engine's own names", () => {
		const chat = template("{{ bos_token }}{{ messages | length }}{{ thinking }}", { bos_token: "<s>" });
		const render = (kwargs: Record<string, unknown>) => chat.render({ messages: [user("x")], kwargs });
		expect(render({ bos_token: "B", thinking: true, messages: [] })).toBe("B1true");
		expect(failure(() => render({ raise_exception: 1 }))).toMatchObject({ reason: "input" });
		expect(render({ __proto__: { bos_token: "no" } })).toBe("<s>1");
	});

	it("strftime_now gives the date", () => {
		expect(template("{{ strftime_now('%Y') }}").render({ messages: [] })).toBe(String(new Date().getFullYear()));
	});
});

describe("ChatTemplate - continue_final_message", () => {
	const text =
		"{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
	const render = (content: ChatMessage["content"], source = text) =>
		template(source).render({
			messages: [user("Hi"), { role: "assistant", content: content ?? null }],
			continueFinalMessage: true,
		});

	it("ends inside the last message, with its trailing space only where the template keeps it", () => {
		expect(render("Hello Hi")).toBe("[user]Hi</s>\n[assistant]Hello Hi");
		expect(render("Hello ")).toBe("[user]Hi</s>\n[assistant]Hello");
		expect(render("Hello ", text.replace(" | trim", ""))).toBe("[user]Hi</s>\n[assistant]Hello ");
		expect(render([{ type: "text", text: "So" }])).toBe("[user]Hi</s>\n[assistant]So");
	});

	it("says why it cannot", () => {
		expect(failure(() => render(""))).toMatchObject({ reason: "input" });
		expect(failure(() => render("abc", text.replace("m.content | trim", "m.content | upper"))).message).toContain(
			"does not appear",
		);
		const both = () =>
			template(text).render({ messages: [user("x")], continueFinalMessage: true, addGenerationPrompt: true });
		expect(failure(both).message).toContain("exclude each other");
	});
});

describe("ChatTemplate - errors", () => {
	it("tells a template that cannot be parsed, one that fails, and one that refuses", () => {
		expect(failure(() => template("{% for %}")).reason).toBe("syntax");
		expect(failure(() => template("{{ messages + nothing.at.all }}").render({ messages: [] })).reason).toBe("render");
		const macro = "{% macro no(why) %}{{ raise_exception('no: ' + why) }}{% endmacro %}{{ no('because') }}";
		expect(failure(() => template(macro).render({ messages: [] }))).toMatchObject({
			reason: "raised",
			templateMessage: "no: because",
			message: "the model's chat template refused the messages: no: because",
		});
	});

	it("a model without a template says what to do", () => {
		expect(() => new ChatTemplate({ tokenizerConfig: {} })).toThrow(MissingChatTemplateError);
		expect(() => new ChatTemplate({})).toThrow(/chat_template\.jinja/);
	});
});

describe("ChatTemplate - where templates come from", () => {
	const config = (chat_template: unknown) => ({ tokenizerConfig: { chat_template } });

	it.each([
		["a text", config("T"), { default: "T" }],
		[
			"a list of named ones",
			config([
				{ name: "default", template: "D" },
				{ name: "tool_use", template: "U" },
			]),
			{ default: "D", tool_use: "U" },
		],
		["one object per name", config([{ default: "D" }, { tool_use: "U" }]), { default: "D", tool_use: "U" }],
		["chat_template.json", { ...config("T"), chatTemplateJson: '{"chat_template":"J"}' }, { default: "J" }],
		[
			"chat_template.jinja",
			{ ...config("T"), chatTemplateJson: { chat_template: "J" }, chatTemplateJinja: "F" },
			{ default: "F" },
		],
		["nowhere", config(null), {}],
	])("%s", (_name, sources, expected) => {
		expect(Object.fromEntries(resolveChatTemplates(sources))).toEqual(expected);
	});

	it("tool_use is taken when there are tools, any by name", () => {
		const chat = new ChatTemplate(
			config([
				{ name: "default", template: "D" },
				{ name: "tool_use", template: "U" },
				{ name: "rag", template: "R" },
			]),
		);
		expect(chat.names).toEqual(["default", "tool_use", "rag"]);
		expect(chat.render({ messages: [] })).toBe("D");
		expect(chat.render({ messages: [], tools: [{}] })).toBe("U");
		expect(chat.render({ messages: [], tools: [{}], templateName: "rag" })).toBe("R");
		expect(() => chat.render({ messages: [], templateName: "x" })).toThrow(/named "x"; it has: default, tool_use, rag/);
		expect(new ChatTemplate(config([{ name: "only", template: "O" }])).render({ messages: [] })).toBe("O");
	});
});
