// SPDX-License-Identifier: Apache-2.0

/** Exit codes of the command. */
export const EXIT = {
	ok: 0,
	/** Something that was tried did not work. */
	failure: 1,
	/** The command line or an environment variable is wrong. */
	usage: 2,
} as const;

/** Ends the command with one line on stderr and an exit code. The message says what failed and what to do. */
export class CliError extends Error {
	readonly exitCode: number;

	constructor(message: string, exitCode: number = EXIT.failure, options?: { cause?: unknown }) {
		super(message, options);
		this.name = "CliError";
		this.exitCode = exitCode;
	}
}

/** A wrong command line: exit code 2. */
export function usageError(message: string): CliError {
	return new CliError(message, EXIT.usage);
}
