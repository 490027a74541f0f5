// SPDX-License-Identifier: Apache-2.0
// The constraint on generated text that a request asks for, in the form that workers get.
import { isDeepStrictEqual } from "node:util";
import {
	type ChatCompletionRequest,
	type CompletionRequest,
	DynamoError,
	type GuidedDecoding,
	isJsonObject,
} from "@dynamo-ts/protocols/internal";

type Schema = Record<string, unknown>;

/** What a function without parameters takes. */
const NO_PARAMETERS: Schema = { type: "object", properties: {} };

/**
 * From `tool_choice`, `guided_*` or `response_format`, the first of them that says something; null when none does.
 * @throws DynamoError `InvalidArgument` when a tool must be called and the text is constrained otherwise too, or when
 * the tools' definitions contradict each other.
 */
export function guidedDecoding(request: ChatCompletionRequest | CompletionRequest): GuidedDecoding | null {
	const calls = "tools" in request ? callSchema(request) : undefined;
	const guided = fromFields(request);
	if (calls !== undefined) {
		if (guided !== null) throw invalid("a required tool call and a guided_* field exclude each other", "tool_choice");
		return { json: calls };
	}
	const format = "response_format" in request ? request.response_format : undefined;
	const constraint = guided ?? fromResponseFormat(format);
	if (constraint === null) return null;
	if (request.guided_decoding_backend) constraint.backend = request.guided_decoding_backend;
	if (request.guided_whitespace_pattern) constraint.whitespace_pattern = request.guided_whitespace_pattern;
	return constraint;
}

function fromFields(request: ChatCompletionRequest | CompletionRequest): GuidedDecoding | null {
	if (request.guided_json !== null && request.guided_json !== undefined) return { json: request.guided_json };
	if (request.guided_regex) return { regex: request.guided_regex };
	if (request.guided_choice?.length) return { choice: [...request.guided_choice] };
	if (request.guided_grammar) return { grammar: request.guided_grammar };
	return null;
}

function fromResponseFormat(format: ChatCompletionRequest["response_format"]): GuidedDecoding | null {
	if (format?.type === "json_schema") return { json: format.json_schema?.schema ?? {} };
	return format?.type === "json_object" ? { json: { type: "object" } } : null;
}

/** The schema of the calls that `tool_choice` demands: one function's parameters, or a list of calls of any of them. */
function callSchema(request: ChatCompletionRequest): Schema | undefined {
	const { tool_choice, tools } = request;
	if (typeof tool_choice === "object" && tool_choice !== null) {
		const named = tools?.find((tool) => tool.function.name === tool_choice.function.name);
		return named === undefined ? undefined : parametersOf(named.function.parameters);
	}
	if (tool_choice !== "required" || !tools?.length) return undefined;
	const definitions: Schema = {};
	const anyOf = tools.map(({ function: { name, parameters } }) => ({
		properties: {
			name: { type: "string", enum: [name] },
			parameters: withoutDefinitions(parametersOf(parameters), definitions),
		},
		required: ["name", "parameters"],
	}));
	return {
		type: "array",
		minItems: 1,
		items: { type: "object", anyOf },
		...(request.parallel_tool_calls === false ? { maxItems: 1 } : {}),
		...(Object.keys(definitions).length === 0 ? {} : { $defs: definitions }),
	};
}

function parametersOf(parameters: unknown): Schema {
	return isJsonObject(parameters) ? parameters : NO_PARAMETERS;
}

/** References start at the root of a schema, so the definitions of all tools go there. */
function withoutDefinitions(schema: Schema, definitions: Schema): Schema {
	const { $defs, ...rest } = schema;
	if (!isJsonObject($defs)) return schema;
	for (const [name, definition] of Object.entries($defs)) {
		if (Object.hasOwn(definitions, name) && !isDeepStrictEqual(definitions[name], definition)) {
			throw invalid(`two tools define $defs/${name} differently`, "tools");
		}
		definitions[name] = definition;
	}
	return rest;
}

function invalid(message: string, param: string): DynamoError {
	return new DynamoError("InvalidArgument", message, { param });
}
