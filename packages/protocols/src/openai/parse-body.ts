// SPDX-License-Identifier: Apache-2.0
import { isJsonObject, parseJson } from "../json.js";
import type { Field, FieldGroup, FieldTable } from "./field-tables.js";
import { HttpError } from "./http-error.js";
import {
	countMembers,
	escapeControls,
	findSyntaxError,
	itemsOf,
	locate,
	MAX_JSON_DEPTH,
	membersOf,
	positionAt,
	type TextPosition,
} from "./json-scanner.js";
import { FloatLexeme, missing, SerdeError, unexpected } from "./serde-check.js";

/** Which struct a body is read into. */
export interface BodyType {
	/** As serde calls it, e.g. `NvCreateChatCompletionRequest`. */
	name: string;
	fields: FieldTable;
	/** In the order in which their absence is told. */
	required: readonly string[];
}

/** A body whose fields have the right types, those that are null left out, and the names that no field has. */
export interface ParsedBody {
	fields: Record<string, unknown>;
	/** In the order of the text. */
	unknown: string[];
}

function refuse(message: string, position: TextPosition, param?: string): HttpError {
	return new HttpError(
		400,
		`Failed to deserialize the JSON body into the target type: ${message} at line ${position.line} column ${position.column}`,
		param === undefined ? {} : { param },
	);
}

const startOfValue = (text: string): number => Math.max(0, text.search(/[^ \n\r\t]/));
/** Behind the value's last character. */
const endOfValue = (text: string): number => text.trimEnd().length;

/** Where serde stood when it found the fault: only errors of direct fields know more than the body's end. */
function positionOf(error: SerdeError, text: string, direct: boolean): TextPosition {
	if (!direct) return positionAt(text, endOfValue(text));
	const span = locate(text, error.path);
	if (span === undefined) return positionAt(text, endOfValue(text));
	if (error.place === "key") return positionAt(text, span.keyEnd);
	const first = text[span.valueStart];
	// serde tells a wrong array or object before it reads it.
	const before = error.place === "value" && (first === "{" || first === "[");
	return positionAt(text, before ? span.valueStart : span.valueEnd);
}

function paramOf(error: SerdeError): string | undefined {
	if (error.path.length > 0) return error.path.reduce<string>((path, step) => joined(path, step), "");
	return /^missing field `([^`]+)`$/.exec(error.message)?.[1];
}

function joined(path: string, step: string | number): string {
	if (typeof step === "number") return `${path}[${step}]`;
	return path === "" ? step : `${path}.${step}`;
}

/** The name under which a field is kept. */
const canonical = (key: string, field: Field): string => field.aliasOf ?? key;

/**
 * JSON.parse takes doubled fields, serde does not. Counting members tells whether there are any; only then (or when both
 * names of a field are there) are their names looked at.
 */
function findDuplicate(
	text: string,
	object: Record<string, unknown>,
	fields: FieldTable,
	counted: number,
): SerdeError | undefined {
	let members = 0;
	let twoNames = false;
	for (const key in object) {
		members++;
		const alias = fields.get(key)?.aliasOf;
		if (alias !== undefined && Object.hasOwn(object, alias)) twoNames = true;
	}
	if (!twoNames && counted === members) return undefined;
	const seen = new Set<string>();
	for (const { key } of membersOf(text)) {
		const field = fields.get(key);
		if (field === undefined || field.group === "passed") continue;
		const name = canonical(key, field);
		if (seen.has(name)) {
			const error = new SerdeError(`duplicate field \`${name}\``, "key");
			error.path.push(key);
			return error;
		}
		seen.add(name);
	}
	return undefined;
}

/** Members of messages that may not be doubled; others are read by nobody. */
const MESSAGE_FIELDS: ReadonlySet<string> = new Set([
	"role",
	"content",
	"name",
	"tool_calls",
	"tool_call_id",
	"refusal",
]);

/** As {@link findDuplicate}, within the messages of a chat. */
function findDuplicateInMessages(text: string): SerdeError | undefined {
	const items = itemsOf(text, "messages");
	for (let index = 0; index < items.length; index++) {
		const { start } = items[index] as { start: number };
		if (text[start] !== "{") continue;
		const seen = new Set<string>();
		for (const { key } of membersOf(text, start)) {
			if (seen.has(key) && MESSAGE_FIELDS.has(key)) {
				const error = new SerdeError(`duplicate field \`${key}\``, "end");
				error.path.push("messages", index, key);
				return error;
			}
			seen.add(key);
		}
	}
	return undefined;
}

/** How many members all objects within a value have. @throws SerdeError for nesting that serde_json does not take. */
function countKeys(value: unknown, depth = 1): number {
	if (typeof value !== "object" || value === null) return 0;
	if (depth >= MAX_JSON_DEPTH) throw new SerdeError("recursion limit exceeded");
	let count = 0;
	if (Array.isArray(value)) {
		for (const item of value) if (typeof item === "object") count += countKeys(item, depth + 1);
		return count;
	}
	for (const key in value) count += 1 + countKeys((value as Record<string, unknown>)[key], depth + 1);
	return count;
}

/** Integer fields that clients are known to write as floats. */
const FLOAT_FOR_INTEGER =
	/"(?:max_tokens|max_completion_tokens|min_tokens|n|seed|top_k|top_logprobs|logprobs|best_of|prompt_logprobs|thinking_token_budget)"\s*:\s*-?\d+[.eE]/;

/** JSON.parse makes `5.0` an integer; serde does not. */
function keepFloats(text: string, object: Record<string, unknown>): void {
	if (!FLOAT_FOR_INTEGER.test(text)) return;
	for (const { key, keyEnd, valueStart, valueEnd } of membersOf(text)) {
		const value = object[key];
		if (!Number.isInteger(value) || !FLOAT_FOR_INTEGER.test(text.slice(keyEnd - key.length - 2, valueEnd))) continue;
		if (/[.eE]/.test(text.slice(valueStart, valueEnd))) object[key] = new FloatLexeme(value as number);
	}
}

function checkGroup(object: Record<string, unknown>, fields: FieldTable, group: FieldGroup): void {
	for (const key in object) {
		const field = fields.get(key);
		if (field === undefined || field.group !== group) continue;
		try {
			field.check(object[key]);
		} catch (error) {
			if (error instanceof SerdeError) error.path.unshift(key);
			throw error;
		}
	}
}

/** Runs the checks in serde's order: direct fields, doubles, the struct's own fields, missing ones, extensions. */
function checkTypes(object: Record<string, unknown>, text: string, type: BodyType): void {
	let direct = true;
	const counted = countMembers(text);
	keepFloats(text, object);
	try {
		checkGroup(object, type.fields, "direct");
		const duplicate = findDuplicate(text, object, type.fields, counted.outer);
		direct = duplicate !== undefined && type.fields.get(String(duplicate.path[0]))?.group === "direct";
		if (duplicate !== undefined) throw duplicate;
		const inner = counted.all === countKeys(object) ? undefined : findDuplicateInMessages(text);
		if (inner !== undefined) throw inner;
		checkGroup(object, type.fields, "inner");
		for (const field of type.required) if (!Object.hasOwn(object, field)) throw missing(field);
		checkGroup(object, type.fields, "common");
		checkGroup(object, type.fields, "passed");
	} catch (error) {
		if (!(error instanceof SerdeError)) throw error;
		const syntax = error.message === "recursion limit exceeded" ? findSyntaxError(text) : undefined;
		if (syntax !== undefined) throw refuse(syntax.message, syntax.position);
		throw refuse(error.message, positionOf(error, text, direct), paramOf(error));
	}
}

function checkTop(value: unknown, text: string, type: BodyType): asserts value is Record<string, unknown> {
	if (isJsonObject(value)) return;
	const offset = Array.isArray(value) ? startOfValue(text) : endOfValue(text);
	throw refuse(`invalid type: ${unexpected(value)}, expected struct ${type.name}`, positionAt(text, offset));
}

/** @throws HttpError 400 in serde_json's words; for rubbish behind a value, what is wrong with the value comes first. */
function refuseSyntax(text: string, type: BodyType): never {
	if (text[startOfValue(text)] === "[") checkTop([], text, type);
	const syntax = findSyntaxError(text);
	if (syntax === undefined) throw new HttpError(400, "Failed to parse the request body as JSON");
	if (syntax.valueEnd !== undefined) {
		const first = text.slice(0, syntax.valueEnd);
		const value = parseJson(first);
		checkTop(value, first, type);
		checkTypes(value, first, type);
	}
	throw refuse(syntax.message, syntax.position);
}

/** What JSON.parse takes and serde does not: halves of surrogate pairs, numbers beyond all floats. */
const BEYOND_SERDE = /\\u[dD][89a-fA-F]|\d[eE]\+?\d{3}|\d{309}/;

/**
 * Parses JSON text as Dynamo does: control characters in strings are taken as they are.
 * @throws SyntaxError
 */
export function parseLenientJson(text: string): unknown {
	return parseText(text).value;
}

function parseText(text: string): { value: unknown; text: string } {
	try {
		return { value: parseJson(text), text };
	} catch (error) {
		const escaped = escapeControls(text);
		if (escaped === text) throw error;
		return { value: parseJson(escaped), text: escaped };
	}
}

function checkBody(value: unknown, text: string, type: BodyType): asserts value is Record<string, unknown> {
	const syntax = BEYOND_SERDE.test(text) ? findSyntaxError(text) : undefined;
	if (syntax !== undefined) throw refuse(syntax.message, syntax.position);
	checkTop(value, text, type);
	checkTypes(value, text, type);
}

/**
 * Parses a request body and checks the types of its fields in the order and words of Dynamo 1.6.1.
 *
 * @throws HttpError 400.
 */
export function parseBody(body: string | Uint8Array, type: BodyType): ParsedBody {
	const given =
		typeof body === "string" ? body : Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString("utf8");
	let parsed: { value: unknown; text: string };
	try {
		parsed = parseText(given);
	} catch {
		refuseSyntax(given, type);
	}
	const { value, text } = parsed;
	if (text === given) checkBody(value, text, type);
	else {
		// With any other fault the control characters are the one that is told.
		try {
			checkBody(value, text, type);
		} catch {
			refuseSyntax(given, type);
		}
	}
	const fields: Record<string, unknown> = {};
	const unknown: string[] = [];
	const object = value as Record<string, unknown>;
	for (const key in object) {
		const field = type.fields.get(key);
		if (field === undefined) unknown.push(key);
		else if (object[key] !== null) fields[canonical(key, field)] = object[key];
	}
	return { fields, unknown };
}
