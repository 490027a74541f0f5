// SPDX-License-Identifier: Apache-2.0
import type { Console } from "../console.js";

/** Keeps what a command prints. */
export interface FakeConsole extends Console {
	readonly output: string[];
	readonly notes: string[];
}

export function fakeConsole(): FakeConsole {
	const output: string[] = [];
	const notes: string[] = [];
	return {
		output,
		notes,
		interactive: false,
		out: (text) => void output.push(text),
		note: (line) => void notes.push(line),
	};
}
