// SPDX-License-Identifier: Apache-2.0
import { isJsonObject, stringifyJson } from "../json.js";
import {
	anything,
	boolean,
	type Check,
	option,
	SerdeError,
	sequence,
	string,
	struct,
	tagged,
	untagged,
	variant,
} from "./serde-check.js";

const UUID = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;

const url: Check = (value) => {
	if (typeof value !== "string" || !URL.canParse(value)) throw new SerdeError("relative URL without a base");
};

const uuid: Check = (value) => {
	if (typeof value !== "string" || !UUID.test(value)) throw new SerdeError("UUID parsing failed");
};

const mediaUrl = (name: string, more: Record<string, Check> = {}): Check =>
	struct(name, { url, uuid: option(uuid), ...more }, { required: ["url"] });

const textPart = struct("ChatCompletionRequestMessageContentPartText", { text: string }, { required: ["text"] });
const refusalPart = struct(
	"ChatCompletionRequestMessageContentPartRefusal",
	{ refusal: string },
	{ required: ["refusal"] },
);

/** A part whose member may be left out or null: the medium is then known by an id alone. */
const mediaPart = (member: string, check: Check): Check =>
	struct("", { [member]: option(check), uuid: option(string) });

const imagePart = mediaPart("image_url", mediaUrl("ImageUrl", { detail: option(variant("auto", "low", "high")) }));
const videoPart = mediaPart("video_url", mediaUrl("VideoUrl", { detail: option(variant("auto", "low", "high")) }));
const audioUrlPart = mediaPart("audio_url", mediaUrl("AudioUrl"));
const inputAudioPart = struct(
	"",
	{
		input_audio: struct(
			"InputAudio",
			{ data: string, format: variant("wav", "mp3") },
			{ required: ["data", "format"] },
		),
	},
	{ required: ["input_audio"] },
);

const parts = (forms: Readonly<Record<string, Check>>): Check => sequence(tagged("content part", "type", forms));

const USER_PARTS = {
	text: textPart,
	image_url: imagePart,
	video_url: videoPart,
	audio_url: audioUrlPart,
	input_audio: inputAudioPart,
};

const content = (role: string, forms: Readonly<Record<string, Check>>): Check =>
	untagged(`ChatCompletionRequest${role}MessageContent`, string, parts(forms));

const developerContent = content("Developer", { text: textPart });
const systemContent = content("System", { text: textPart });
const userContent = content("User", USER_PARTS);
const assistantContent = content("Assistant", { text: textPart, refusal: refusalPart });
const toolContent = content("Tool", USER_PARTS);

/** A model's earlier call of a function; `arguments` is JSON text, or the JSON itself. */
const callArguments: Check = (value) => {
	if (typeof value === "string" || isJsonObject(value)) return;
	throw new SerdeError(`expected string or object for \`arguments\`, got ${stringifyJson(value)}`);
};

const functionCall = struct(
	"FunctionCall",
	{ name: string, arguments: callArguments },
	{ required: ["name", "arguments"] },
);

const toolCall = struct(
	"ChatCompletionMessageToolCall",
	{ id: string, type: variant("function"), function: functionCall },
	{ required: ["id", "function"] },
);

const name = option(string);

const systemMessage = (): Check => {
	const check = struct("ChatCompletionRequestSystemMessage", {
		content: option(systemContent),
		name,
		tools: option(sequence(anything)),
	});
	return (value) => {
		check(value);
		const message = value as Record<string, unknown>;
		const hasTools = Array.isArray(message.tools) && message.tools.length > 0;
		if ((message.content === undefined || message.content === null) && !hasTools) {
			throw new SerdeError(
				"missing field `content`: a system message needs `content` unless it declares non-empty Kimi-style `tools`",
				"end",
			);
		}
	};
};

const byRole = tagged("internally tagged enum Wire", "role", {
	developer: struct(
		"ChatCompletionRequestDeveloperMessage",
		{ content: developerContent, name },
		{ required: ["content"] },
	),
	system: systemMessage(),
	user: struct("ChatCompletionRequestUserMessage", { content: userContent, name }, { required: ["content"] }),
	assistant: struct("ChatCompletionRequestAssistantMessage", {
		content: option(assistantContent),
		reasoning_content: option(untagged("ReasoningContent", string, sequence(string))),
		refusal: name,
		name,
		audio: option(struct("ChatCompletionRequestAssistantMessageAudio", { id: string }, { required: ["id"] })),
		tool_calls: option(sequence(toolCall)),
		function_call: option(functionCall),
	}),
	tool: struct(
		"ChatCompletionRequestToolMessage",
		{ content: toolContent, tool_call_id: string },
		{ required: ["content", "tool_call_id"] },
	),
	function: struct(
		"ChatCompletionRequestFunctionMessage",
		{ content: option(string), name: string },
		{ required: ["name"] },
	),
});

/** One entry of `messages`. Text of a message that is plain text, by far the usual one, is looked at first. */
export const message: Check = (value) => {
	if (isJsonObject(value) && value.role === "user" && typeof value.content === "string" && value.name === undefined)
		return;
	byRole(value);
};

/** `tools[]`. */
export const tool: Check = struct(
	"ChatCompletionTool",
	{
		type: variant("function"),
		function: struct(
			"FunctionObject",
			{ name: string, description: option(string), parameters: anything, strict: option(boolean) },
			{ required: ["name"] },
		),
	},
	{ required: ["type", "function"] },
);

const functionName = struct("FunctionName", { name: string }, { required: ["name"] });

export const toolChoice: Check = untagged(
	"ChatCompletionToolChoiceOption",
	variant("none", "auto", "required"),
	struct(
		"ChatCompletionNamedToolChoice",
		{ type: variant("function"), function: functionName },
		{ required: ["type", "function"] },
	),
);

export const responseFormat: Check = tagged("internally tagged enum ResponseFormat", "type", {
	text: () => {},
	json_object: () => {},
	json_schema: struct(
		"",
		{
			json_schema: struct(
				"ResponseFormatJsonSchema",
				{ name: string, description: option(string), schema: anything, strict: option(boolean) },
				{ required: ["name", "schema"] },
			),
		},
		{ required: ["json_schema"] },
	),
});

export const functions: Check = sequence(
	struct(
		"ChatCompletionFunctions",
		{ name: string, description: option(string), parameters: anything },
		{ required: ["name"] },
	),
);

export const functionCallOption: Check = untagged("ChatCompletionFunctionCall", variant("none", "auto"), functionName);

export const prediction: Check = tagged("adjacently tagged enum PredictionContent", "type", {
	content: struct(
		"",
		{ content: untagged("PredictionContentContent", string, parts({ text: textPart })) },
		{ required: ["content"] },
	),
});
