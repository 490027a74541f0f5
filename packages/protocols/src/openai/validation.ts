// SPDX-License-Identifier: Apache-2.0
// The rules of both completion routes, in Dynamo 1.6.1's words. Each rule looks at one field (or a few that belong
// together) and throws; the tables in parse-requests.ts give their order.
import { isJsonObject } from "../json.js";
import { f32Text } from "./float-text.js";
import { HttpError } from "./http-error.js";
import { passes, sequence, u32 } from "./serde-check.js";

/** The fields of a parsed body. */
export type Fields = Readonly<Record<string, unknown>>;

/** A rule; throws HttpError when it is broken. */
export type Rule = (fields: Fields) => void;

/** Most tokens that a request may ask for. */
export const MAX_REQUESTED_TOKENS = 1_048_576;
/** Most stop strings, and most stop token ids. */
export const MAX_STOPS = 32;
/** Longest `suffix`, in bytes. */
export const MAX_SUFFIX_BYTES = 10_000;

/** @throws HttpError always: 400 with the prefix that validation errors have. */
function invalid(message: string, param: string, code?: string): never {
	throw new HttpError(400, `Validation: ${message}`, code === undefined ? { param } : { param, code });
}

interface Range {
	field: string;
	/** How messages call it. */
	label: string;
	min: number;
	max: number;
	/** The minimum itself is refused. */
	above?: boolean;
}

/** A float within bounds; compared as the 32-bit float that it becomes. */
export const floatRange = ({ field, label, min, max, above }: Range): Rule => {
	return (fields) => {
		const given = fields[field];
		if (given === undefined) return;
		const value = Math.fround(Number(given));
		if (value > max || value < min || (above && value === min)) {
			invalid(`${label} must be between ${min} and ${max}, got ${f32Text(Number(given))}`, field);
		}
	};
};

export const integerRange = ({ field, label, min, max }: Range): Rule => {
	return (fields) => {
		const value = fields[field] as number | undefined;
		if (value !== undefined && (value < min || value > max)) {
			invalid(`${label} must be between ${min} and ${max}, got ${value}`, field);
		}
	};
};

export const temperature = floatRange({ field: "temperature", label: "Temperature", min: 0, max: 2 });
export const topP = floatRange({ field: "top_p", label: "Top_p", min: 0, max: 1, above: true });
export const minP = floatRange({ field: "min_p", label: "Min_p", min: 0, max: 1 });
export const frequencyPenalty = floatRange({ field: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2 });
export const presencePenalty = floatRange({ field: "presence_penalty", label: "Presence penalty", min: -2, max: 2 });
export const repetitionPenalty = floatRange({
	field: "repetition_penalty",
	label: "Repetition penalty",
	min: 0,
	max: 2,
	above: true,
});
export const n = integerRange({ field: "n", label: "n", min: 1, max: 128 });
export const topLogprobs = integerRange({ field: "top_logprobs", label: "Top_logprobs", min: 0, max: 20 });
export const completionLogprobs = integerRange({ field: "logprobs", label: "Logprobs", min: 0, max: 5 });
const bestOfRange = integerRange({ field: "best_of", label: "Best_of", min: 0, max: 20 });

export const bestOf: Rule = (fields) => {
	bestOfRange(fields);
	const { best_of: best, n: count } = fields as { best_of?: number; n?: number };
	if (best !== undefined && count !== undefined && best < count) {
		invalid(`Best_of must be greater than or equal to n, got best_of=${best} and n=${count}`, "best_of");
	}
};

const tokens = (field: string, label: string): Rule => {
	return (fields) => {
		const value = fields[field] as number | undefined;
		if (value === undefined) return;
		if (value === 0) invalid(`${label} must be greater than 0, got 0`, field);
		if (value > MAX_REQUESTED_TOKENS) invalid(`${label} must not exceed ${MAX_REQUESTED_TOKENS}, got ${value}`, field);
	};
};
export const maxTokens = tokens("max_tokens", "Max tokens");
export const maxCompletionTokens = tokens("max_completion_tokens", "Max completion tokens");

export const topK: Rule = ({ top_k: value }) => {
	if (value !== undefined && (value as number) < -1)
		invalid("Top_k must be null or greater than or equal to -1", "top_k");
};

/** Several answers at temperature 0 would all be the same. */
export const nNeedsTemperature: Rule = (fields) => {
	const count = (fields.n as number | undefined) ?? 1;
	const given = fields.temperature;
	if (count > 1 && given !== undefined && Math.fround(Number(given)) === 0) {
		const got = f32Text(Number(given));
		invalid(
			`When n > 1, temperature must be greater than 0 to ensure diverse outputs. Got n=${count}, temperature=${got}`,
			"n",
		);
	}
};

export const model: Rule = (fields) => {
	if (fields.model === "") invalid("Model cannot be empty", "model");
};

export const messages: Rule = (fields) => {
	if ((fields.messages as unknown[]).length === 0) {
		invalid("The 'messages' field cannot be empty. At least one message is required.", "messages");
	}
};

export const prompt: Rule = ({ prompt: value, prompt_embeds: embeds }) => {
	if (embeds !== undefined) return;
	if (value === "") invalid("Prompt string cannot be empty", "prompt");
	if (!Array.isArray(value)) return;
	if (value.length === 0) invalid("Prompt string array cannot be empty", "prompt");
	for (const [i, item] of value.entries()) {
		if (item === "") invalid(`Prompt string at index ${i} cannot be empty`, "prompt");
		if (Array.isArray(item) && item.length === 0)
			invalid(`Prompt integer array at index ${i} cannot be empty`, "prompt");
	}
};

export const suffix: Rule = ({ suffix: value }) => {
	if (typeof value === "string" && Buffer.byteLength(value) > MAX_SUFFIX_BYTES) {
		invalid(`Suffix is too long, maximum ${MAX_SUFFIX_BYTES} characters`, "suffix");
	}
};

export const user: Rule = (fields) => {
	if (fields.user === "") invalid("User ID cannot be empty", "user");
};

function tooMany(what: string, count: number, param: string): never {
	throw new HttpError(400, `Maximum of ${MAX_STOPS} ${what} allowed, got ${count}`, { param });
}

export const stop: Rule = ({ stop: value }) => {
	if (value === "") invalid("Stop sequence cannot be empty", "stop");
	if (!Array.isArray(value)) return;
	if (value.length === 0) invalid("Stop sequences array cannot be empty", "stop");
	if (value.length > MAX_STOPS) {
		tooMany(typeof value[0] === "string" ? "stop sequences" : "stop token IDs", value.length, "stop");
	}
	const empty = value.indexOf("");
	if (empty >= 0) invalid(`Stop sequence at index ${empty} cannot be empty`, "stop");
};

const tokenIds = sequence(u32);
const areTokenIds = (value: unknown): boolean => value === undefined || passes(tokenIds, value);

export const stopTokenIds: Rule = ({ stop_token_ids: ids }) => {
	if (!areTokenIds(ids)) invalid("`stop_token_ids` must be an array of token IDs", "stop_token_ids");
	if (Array.isArray(ids) && ids.length > MAX_STOPS) tooMany("stop token IDs", ids.length, "stop_token_ids");
};

export const allowedTokenIds: Rule = (fields) => {
	if (!areTokenIds(fields.allowed_token_ids)) {
		invalid("`allowed_token_ids` must be an array of token IDs", "allowed_token_ids");
	}
};

export const cacheSalt: Rule = ({ cache_salt: value }) => {
	if (value !== undefined && typeof value !== "string") invalid("`cache_salt` must be a string", "cache_salt");
};

export const detokenize: Rule = ({ detokenize: value }) => {
	if (value !== undefined && typeof value !== "boolean") invalid("`detokenize` must be a boolean", "detokenize");
};

export const thinking: Rule = ({ thinking: value }) => {
	if (value === undefined || typeof value === "boolean") return;
	if (!isJsonObject(value)) {
		invalid(
			"`thinking` must be a boolean or an object with `type` set to `enabled`, `disabled`, or `adaptive`",
			"thinking",
		);
	}
	if (!["enabled", "disabled", "adaptive"].includes(value.type as string)) {
		invalid("`thinking.type` must be `enabled`, `disabled`, or `adaptive`", "thinking.type");
	}
};

const deprecated = (field: string, instead: string): Rule => {
	return (fields) => {
		if (fields[field] === undefined) return;
		throw new HttpError(501, `Validation: \`${field}\` is deprecated. Please migrate to use \`${instead}\` instead.`, {
			param: field,
			code: "unsupported_parameter",
			type: "invalid_request_error",
		});
	};
};
export const functionCall = deprecated("function_call", "tool_choice");
export const functions = deprecated("functions", "tools");

export const streamOptions: Rule = (fields) => {
	if (fields.stream_options !== undefined && fields.stream !== true) {
		invalid("The 'stream_options' field is only allowed when 'stream' is set to true.", "stream_options");
	}
};

/** @throws HttpError 400 that names all of them, in the order of the request. */
export function refuseUnknownFields(unknown: readonly string[]): void {
	if (unknown.length === 0) return;
	const names = unknown.map((name) => `\`${name}\``).join(", ");
	invalid(`Unsupported parameter(s): ${names}`, unknown[0] as string, "unsupported_parameter");
}

const KEY = /^\+?\d+$/;

function rustValue(value: unknown): string {
	if (value === null) return "Null";
	if (typeof value === "boolean") return `Bool(${value})`;
	if (typeof value === "string") return `String(${JSON.stringify(value.slice(0, 256))})`;
	if (Array.isArray(value))
		return value.length === 0 ? "Array []" : `Array [${value.slice(0, 16).map(rustValue).join(", ")}]`;
	if (!isJsonObject(value)) return `Number(${value})`;
	const members = Object.entries(value).slice(0, 16);
	const shown = members.map(([key, member]) => `${JSON.stringify(key)}: ${rustValue(member)}`);
	return members.length === 0 ? "Object {}" : `Object {${shown.join(", ")}}`;
}

export const logitBias: Rule = ({ logit_bias: biases }) => {
	if (biases === undefined) return;
	for (const [key, value] of Object.entries(biases as Record<string, unknown>)) {
		if (!KEY.test(key) || Number(key) > 0xffff_ffff) {
			invalid("Logit bias key must be a non-negative 32-bit integer token id", "logit_bias");
		}
		if (typeof value !== "number" && typeof value !== "bigint") {
			invalid(`Logit bias value for token '${key}' must be a number, got ${rustValue(value)}`, "logit_bias");
		}
		const bias = Math.fround(Number(value));
		if (bias < -100 || bias > 100) {
			invalid(`Logit bias for token '${key}' must be between -100 and 100, got ${f32Text(bias)}`, "logit_bias");
		}
	}
};

interface Tool {
	function: { name: string; parameters?: unknown };
}

function checkFunctionName(name: string, index: number): void {
	if (name === "") invalid(`Function name at index ${index} cannot be empty`, `tools[${index}].function.name`);
	if (!/^[A-Za-z0-9_-]+$/.test(name)) {
		invalid(
			`Function at index ${index} has an invalid name: "${name}". Only a-z, A-Z, 0-9, underscores, and dashes are allowed.`,
			`tools[${index}].function.name`,
		);
	}
}

/** Tools that a system message brings itself: bare functions, or in the form of the request's own tools. */
export const systemTools: Rule = (fields) => {
	for (const message of fields.messages as { role: string; tools?: unknown[] }[]) {
		if (message.role !== "system" || !Array.isArray(message.tools)) continue;
		for (const [i, tool] of message.tools.entries()) checkSystemTool(tool, i);
	}
};

function checkSystemTool(tool: unknown, index: number): void {
	const what = `dynamic system tool at index ${index}`;
	if (!isJsonObject(tool)) invalid(`${what} must be a JSON object`, "messages");
	if (tool.function !== undefined && tool.type !== "function") {
		invalid(`${what} with a function field needs type="function"`, "messages");
	}
	const declared = isJsonObject(tool.function) ? tool.function : tool;
	if (typeof declared.name !== "string" || declared.name === "") {
		invalid(`${what} needs a non-empty string name`, "messages");
	}
	const { parameters } = declared;
	if (parameters !== undefined && parameters !== null && !isJsonObject(parameters)) {
		invalid(`${what} parameters must be a JSON Schema object`, "messages");
	}
	checkFunctionName(declared.name, index);
}

export const tools: Rule = ({ tools: list }) => {
	if (list === undefined) return;
	if ((list as Tool[]).length === 0) {
		invalid("tools array cannot be empty; omit the field entirely to disable tool use", "tools");
	}
	for (const [i, { function: tool }] of (list as Tool[]).entries()) {
		checkFunctionName(tool.name, i);
		if (tool.parameters !== undefined && tool.parameters !== null && !isJsonObject(tool.parameters)) {
			invalid(
				`Function parameters at index ${i} for "${tool.name}" must be a JSON Schema object`,
				`tools[${i}].function.parameters`,
			);
		}
	}
};

export const toolChoice: Rule = ({ tool_choice: choice, tools: list }) => {
	if (choice === "required" && list === undefined)
		invalid('tool_choice is "required" but tools is empty', "tool_choice");
	if (!isJsonObject(choice)) return;
	const { name } = choice.function as { name: string };
	const known = ((list ?? []) as Tool[]).some((tool) => tool.function.name === name);
	if (!known) invalid(`tool named "${name}" in tool_choice is not present in tools`, "tool_choice");
};

const jsonKind = (value: unknown): string =>
	Array.isArray(value) ? "array" : typeof value === "bigint" ? "number" : typeof value;

export const responseFormat: Rule = ({ response_format: format }) => {
	if (!isJsonObject(format) || format.type !== "json_schema") return;
	const { schema } = format.json_schema as { schema: unknown };
	const param = "response_format.json_schema.schema";
	if (schema === null) {
		invalid(`\`${param}\` is required when \`response_format.type\` is \`json_schema\``, param);
	}
	if (!isJsonObject(schema)) invalid(`\`${param}\` must be a JSON object, got ${jsonKind(schema)}`, param);
};

/** The guided-decoding constraints that are set, in Dynamo's order. */
export function guidedConstraints(fields: Fields): string[] {
	const format = fields.response_format;
	const schemaGiven = isJsonObject(format) && (format.type === "json_schema" || format.type === "json_object");
	const names: string[] = [];
	if (fields.guided_json !== undefined || schemaGiven) names.push("json");
	if (fields.guided_regex !== undefined) names.push("regex");
	if (Array.isArray(fields.guided_choice) && fields.guided_choice.length > 0) names.push("choice");
	if (fields.guided_grammar !== undefined) names.push("grammar");
	return names;
}

export const guidedDecoding: Rule = (fields) => {
	const names = guidedConstraints(fields);
	if (names.length < 2) return;
	throw new HttpError(400, `Only one guided-decoding constraint can be set; received: ${names.join(", ")}`, {
		param: `guided_${names[1]}`,
	});
};

/** Whether a generation prompt is added is true unless the request says otherwise. */
export const continueFinalMessage: Rule = (fields) => {
	if (fields.continue_final_message === true && fields.add_generation_prompt !== false) {
		invalid("Cannot set both `continue_final_message` and `add_generation_prompt` to True.", "continue_final_message");
	}
};

export const chatOnlyFields: Rule = (fields) => {
	const field = ["add_generation_prompt", "continue_final_message"].find((name) => fields[name] !== undefined);
	if (field === undefined) return;
	invalid("`add_generation_prompt` and `continue_final_message` are only supported on /v1/chat/completions", field);
};

/** Fewest and most bytes that embeddings of a prompt can have. */
const MIN_PROMPT_EMBEDS_BYTES = 100;
const MAX_PROMPT_EMBEDS_BYTES = 10 * 1024 * 1024;

export const promptEmbeds: Rule = ({ prompt_embeds: value }) => {
	if (typeof value !== "string") return;
	if (value.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(value)) {
		invalid("prompt_embeds must be valid base64-encoded data", "prompt_embeds");
	}
	const bytes = Buffer.byteLength(value, "base64");
	if (bytes < MIN_PROMPT_EMBEDS_BYTES) {
		invalid(
			`prompt_embeds decoded data must be at least ${MIN_PROMPT_EMBEDS_BYTES} bytes, got ${bytes} bytes`,
			"prompt_embeds",
		);
	}
	if (bytes > MAX_PROMPT_EMBEDS_BYTES) {
		invalid(`prompt_embeds decoded data exceeds maximum size of 10MB, got ${bytes} bytes`, "prompt_embeds");
	}
};
