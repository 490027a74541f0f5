// SPDX-License-Identifier: Apache-2.0
import { isJsonObject, parseJson } from "../json.js";
import type { Field, FieldGroup, FieldTable } from "./field-tables.js";
import { HttpError } from "./http-error.js";
import { countMembers, findSyntaxError, locate, membersOf, positionAt, type TextPosition } from "./json-scanner.js";
import { missing, SerdeError, unexpected } from "./serde-check.js";

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
function findDuplicate(text: string, object: Record<string, unknown>, fields: FieldTable): SerdeError | undefined {
	let members = 0;
	let twoNames = false;
	for (const key in object) {
		members++;
		const alias = fields.get(key)?.aliasOf;
		if (alias !== undefined && Object.hasOwn(object, alias)) twoNames = true;
	}
	if (!twoNames && countMembers(text) === members) return undefined;
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
	try {
		checkGroup(object, type.fields, "direct");
		const duplicate = findDuplicate(text, object, type.fields);
		direct = duplicate !== undefined && type.fields.get(String(duplicate.path[0]))?.group === "direct";
		if (duplicate !== undefined) throw duplicate;
		checkGroup(object, type.fields, "inner");
		for (const field of type.required) if (!Object.hasOwn(object, field)) throw missing(field);
		checkGroup(object, type.fields, "common");
		checkGroup(object, type.fields, "passed");
	} catch (error) {
		if (!(error instanceof SerdeError)) throw error;
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

/**
 * Parses a request body and checks the types of its fields in the order and words of Dynamo 1.6.1.
 *
 * @throws HttpError 400.
 */
export function parseBody(body: string | Uint8Array, type: BodyType): ParsedBody {
	const text =
		typeof body === "string" ? body : Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString("utf8");
	let value: unknown;
	try {
		value = parseJson(text);
	} catch {
		refuseSyntax(text, type);
	}
	checkTop(value, text, type);
	checkTypes(value, text, type);
	const fields: Record<string, unknown> = {};
	const unknown: string[] = [];
	for (const key in value) {
		const field = type.fields.get(key);
		if (field === undefined) unknown.push(key);
		else if (value[key] !== null) fields[canonical(key, field)] = value[key];
	}
	return { fields, unknown };
}
