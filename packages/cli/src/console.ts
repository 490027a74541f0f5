// SPDX-License-Identifier: Apache-2.0

/** What a command writes to and is told; tests pass their own. */
export interface Console {
	/** Results, on stdout. */
	out(text: string): void;
	/** Notices and progress, on stderr; one line. */
	note(line: string): void;
	/** Whether stderr is a terminal, so that progress bars make sense. */
	readonly interactive: boolean;
}

/** The process' own stdout and stderr. A closed pipe is no error: whoever read it has seen enough. */
export function processConsole(): Console {
	process.stdout.on("error", () => {});
	process.stderr.on("error", () => {});
	return {
		out: (text) => void process.stdout.write(text),
		note: (line) => void process.stderr.write(`${line}\n`),
		interactive: process.stderr.isTTY === true,
	};
}
