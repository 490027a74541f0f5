// SPDX-License-Identifier: Apache-2.0
// What the catalogue says of an environment variable, and short ways to say it.

/** Who looks at a variable. */
export type EnvUser = "every process" | "frontend" | "worker" | "frontend, router" | "commands";

export interface EnvVariable {
	readonly users: EnvUser;
	/** As one would write it, with its unit; empty: none. */
	readonly default: string;
	/** Half a sentence for the table in the documents. Neighbours with the same one share a row there. */
	readonly meaning: string;
}

/** For a variable that stands in for a flag: what it means is said once, with the flag. */
export const OF_A_FLAG = "of a flag";

const by =
	(users: EnvUser) =>
	(fallback: string, meaning: string): EnvVariable => ({ users, default: fallback, meaning });

/** Read by the runtime below every command. */
export const everywhere = by("every process");
export const frontend = by("frontend");
export const worker = by("worker");
export const routers = by("frontend, router");
/** Read by commands that get or look for models and libraries. */
export const commands = by("commands");
