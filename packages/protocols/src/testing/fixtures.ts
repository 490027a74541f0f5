// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync } from "node:fs";

const ROOT = new URL("../../fixtures/", import.meta.url);

/** Bytes of a file below this package's fixtures folder. */
export function fixture(path: string): Buffer {
	return readFileSync(new URL(path, ROOT));
}

/** Names in a folder below this package's fixtures folder. */
export function fixtureNames(path: string): string[] {
	return readdirSync(new URL(path, ROOT)).sort();
}

/** The parsed lines of a .jsonl file. */
export function fixtureLines<T>(path: string): T[] {
	return fixture(path)
		.toString("utf8")
		.split("\n")
		.filter((line) => line !== "")
		.map((line) => JSON.parse(line) as T);
}
