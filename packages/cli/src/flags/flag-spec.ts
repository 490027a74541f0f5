// SPDX-License-Identifier: Apache-2.0
import type { EnvName } from "@dynamo-ts/protocols/internal";

/** A flag's value after parsing; undefined where neither flag, variable nor default gives one. */
export type FlagValue = string | number | boolean | undefined;

interface FlagBase {
	/** Name without dashes: `http-port`. */
	readonly flag: string;
	/** One letter. */
	readonly short?: string;
	/** Further names, e.g. those of other tools. */
	readonly aliases?: readonly string[];
	/** The variable that stands in when the flag is absent. */
	readonly env?: EnvName;
	/** What the value stands for in help: `PORT`. */
	readonly metavar?: string;
	/** Plain sentence. */
	readonly help: string;
	/** Shown instead of the default where the default is worked out later. */
	readonly defaultText?: string;
	/** Heading in help; absent: the command's own options. */
	readonly group?: string;
	/**
	 * "ignored": accepted, and one line says that it has no meaning here (the text). "missing": Dynamo has it, this
	 * version does not; accepted only with the value that asks for nothing (the default).
	 */
	readonly status?: { readonly kind: "ignored" | "missing"; readonly why: string };
}

export interface StringFlag extends FlagBase {
	readonly type: "string";
	readonly default?: string;
	readonly choices?: readonly string[];
}
export interface NumberFlag extends FlagBase {
	readonly type: "integer" | "number";
	readonly default?: number;
	readonly min?: number;
	readonly max?: number;
}
/** Has a `--no-` form too. */
export interface BooleanFlag extends FlagBase {
	readonly type: "boolean";
	readonly default?: boolean;
}

/** One row of a command's flag table. */
export type FlagSpec = StringFlag | NumberFlag | BooleanFlag;

/** What a command takes, as `--help` shows it. */
export interface CommandSpec {
	readonly name: string;
	/** One line for the list of commands. */
	readonly summary: string;
	/** Positional arguments in order, e.g. `[MODEL]`. */
	readonly positionals?: readonly { readonly name: string; readonly required: boolean; readonly help: string }[];
	readonly flags: readonly FlagSpec[];
	/** Lines after the flags: examples. */
	readonly epilog?: readonly string[];
}
