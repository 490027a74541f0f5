// SPDX-License-Identifier: Apache-2.0
// Flags over variables over defaults, with every bad value naming its flag or variable, the value and what is valid.
import { parseArgs } from "node:util";
import { usageError } from "../cli-error.js";
import { closest } from "./closest.js";
import type { CommandSpec, FlagSpec, FlagValue } from "./flag-spec.js";

/** Where a value came from. */
export type FlagSource = "flag" | "env" | "default";

export interface ParsedFlags {
	readonly help: boolean;
	readonly version: boolean;
	readonly positionals: readonly string[];
	/** One line per flag that was accepted without effect. */
	readonly notices: readonly string[];
	/** A copy of the environment in which the given flags override their variables. */
	readonly env: NodeJS.ProcessEnv;
	source(flag: string): FlagSource;
	string(flag: string): string | undefined;
	number(flag: string): number | undefined;
	boolean(flag: string): boolean;
	/** All values by flag name, for printing. */
	readonly values: Readonly<Record<string, FlagValue>>;
}

interface Name {
	readonly spec: FlagSpec;
	readonly negated: boolean;
}

function namesOf(spec: CommandSpec): Map<string, Name> {
	const names = new Map<string, Name>();
	for (const flag of spec.flags) {
		for (const name of [flag.flag, ...(flag.aliases ?? [])]) {
			names.set(name, { spec: flag, negated: false });
			if (flag.type === "boolean") names.set(`no-${name}`, { spec: flag, negated: true });
		}
	}
	return names;
}

/**
 * Reads a command line.
 * @throws CliError (exit code 2) for an unknown flag (with the closest one), a bad value, or a wrong number of
 * arguments.
 */
export function parseFlags(command: CommandSpec, argv: readonly string[], env: NodeJS.ProcessEnv): ParsedFlags {
	const names = namesOf(command);
	const options: Record<string, { type: "string" | "boolean"; multiple: true; short?: string }> = {
		help: { type: "boolean", multiple: true, short: "h" },
		version: { type: "boolean", multiple: true },
	};
	for (const [name, { spec }] of names) {
		options[name] = {
			type: spec.type === "boolean" ? "boolean" : "string",
			multiple: true,
			...(spec.short !== undefined && name === spec.flag ? { short: spec.short } : {}),
		};
	}
	const { tokens } = parseArgs({
		args: argv.map(dashes),
		options,
		strict: false,
		allowPositionals: true,
		tokens: true,
	});

	let help = false;
	let version = false;
	const positionals: string[] = [];
	const given = new Map<string, { value: FlagValue; shown: string }>();
	for (const token of tokens) {
		if (token.kind === "positional") positionals.push(token.value);
		if (token.kind !== "option") continue;
		if (token.name === "help") {
			help = true;
			continue;
		}
		if (token.name === "version") {
			version = true;
			continue;
		}
		const name = names.get(token.name);
		if (name === undefined) {
			const near = closest(token.rawName, [...[...names.keys()].map((known) => `--${known}`), "--help"]);
			throw usageError(
				`unknown flag ${token.rawName}${near === undefined ? "" : `; did you mean ${near}?`} (dynamo ${command.name} --help lists all flags)`,
			);
		}
		const { spec } = name;
		const shown = token.rawName;
		if (spec.type === "boolean") {
			const text = token.value;
			const value = text === undefined ? true : readBoolean(text);
			if (value === undefined) throw usageError(`${shown}: "${text}" is not valid; true or false is expected`);
			given.set(spec.flag, { value: name.negated ? !value : value, shown });
			continue;
		}
		if (token.value === undefined) {
			throw usageError(`${shown} needs a value: ${expectation(spec)}`);
		}
		given.set(spec.flag, { value: readValue(spec, token.value, shown), shown });
	}

	const values: Record<string, FlagValue> = {};
	const sources = new Map<string, FlagSource>();
	const notices: string[] = [];
	const merged: NodeJS.ProcessEnv = { ...env };
	if (!help && !version) {
		checkPositionals(command, positionals);
		for (const spec of command.flags) {
			const fromFlag = given.get(spec.flag);
			const text = spec.env === undefined ? undefined : env[spec.env];
			let value: FlagValue = spec.default;
			let source: FlagSource = "default";
			let shown = `--${spec.flag}`;
			if (fromFlag !== undefined) {
				value = fromFlag.value;
				source = "flag";
				shown = fromFlag.shown;
				if (spec.env !== undefined) merged[spec.env] = String(value);
			} else if (text !== undefined && text !== "") {
				shown = spec.env!;
				value = readValue(spec, text, shown);
				source = "env";
			}
			if (source !== "default" && spec.status !== undefined) {
				if (spec.status.kind === "ignored") notices.push(`${shown} has no meaning here: ${spec.status.why}`);
				else if (!asksForNothing(spec, value)) {
					throw usageError(`${shown} is not in this version: ${spec.status.why}`);
				}
			}
			values[spec.flag] = value;
			sources.set(spec.flag, source);
		}
	}
	const get = (flag: string): FlagValue => {
		if (!Object.hasOwn(values, flag)) throw new Error(`no flag --${flag} in the table of ${command.name}`);
		return values[flag];
	};
	return {
		help,
		version,
		positionals,
		notices,
		env: merged,
		values,
		source: (flag) => sources.get(flag) ?? "default",
		string: (flag) => get(flag) as string | undefined,
		number: (flag) => get(flag) as number | undefined,
		boolean: (flag) => get(flag) === true,
	};
}

/** The value of a flag that is not there yet may be its default: nothing is missed then. Dynamo takes "None" too. */
function asksForNothing(spec: FlagSpec, value: FlagValue): boolean {
	if (spec.type === "boolean") return value === (spec.default ?? false);
	return value === spec.default || (spec.default === undefined && (value === "None" || value === "[]"));
}

function checkPositionals(command: CommandSpec, positionals: readonly string[]): void {
	const wanted = command.positionals ?? [];
	if (positionals.length > wanted.length) {
		throw usageError(
			`dynamo ${command.name} does not take "${positionals[wanted.length]}"${wanted.length === 0 ? "; it has flags only" : ` after ${wanted.map((p) => p.name).join(" ")}`} (see dynamo ${command.name} --help)`,
		);
	}
	const missing = wanted[positionals.length];
	if (missing?.required) {
		throw usageError(`dynamo ${command.name} needs ${missing.name}: ${missing.help}`);
	}
}

/** vLLM's command line takes `--max_model_len` as well; so does this one. */
function dashes(argument: string): string {
	if (!argument.startsWith("--")) return argument;
	const equals = argument.indexOf("=");
	const name = equals < 0 ? argument : argument.slice(0, equals);
	return name.replaceAll("_", "-") + (equals < 0 ? "" : argument.slice(equals));
}

function readBoolean(text: string): boolean | undefined {
	switch (text.toLowerCase()) {
		case "true":
		case "1":
		case "yes":
		case "on":
			return true;
		case "false":
		case "0":
		case "no":
		case "off":
			return false;
		default:
			return undefined;
	}
}

function readValue(spec: FlagSpec, text: string, shown: string): FlagValue {
	const bad = () => usageError(`${shown}: "${text}" is not valid; ${expectation(spec)} is expected`);
	switch (spec.type) {
		case "boolean": {
			const value = readBoolean(text);
			if (value === undefined) throw bad();
			return value;
		}
		case "string":
			if (spec.choices !== undefined && !spec.choices.includes(text)) throw bad();
			return text;
		default: {
			const value = text.trim() === "" ? Number.NaN : Number(text);
			if (!Number.isFinite(value)) throw bad();
			if (spec.type === "integer" && !Number.isSafeInteger(value)) throw bad();
			if (value < (spec.min ?? -Infinity) || value > (spec.max ?? Infinity)) throw bad();
			return value;
		}
	}
}

/** What a flag's value must be, in words. */
export function expectation(spec: FlagSpec): string {
	switch (spec.type) {
		case "boolean":
			return "true or false";
		case "string":
			return spec.choices === undefined ? (spec.metavar ?? "a text") : `one of ${spec.choices.join(", ")}`;
		default: {
			const kind = spec.type === "integer" ? "a whole number" : "a number";
			if (spec.min !== undefined && spec.max !== undefined) return `${kind} from ${spec.min} to ${spec.max}`;
			if (spec.min !== undefined) return `${kind} of at least ${spec.min}`;
			return kind;
		}
	}
}
