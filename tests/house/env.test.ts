// SPDX-License-Identifier: Apache-2.0
// The catalogue of environment variables: every name is read somewhere, every name read is in it, and what the
// documents say of it is made from it and true.
import { readdirSync, readFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { frontendConfigFromEnv } from "@dynamo-ts/frontend/internal";
import {
	ENV,
	ENV_GROUPS,
	type EnvName,
	type EnvUser,
	type EnvVariable,
	OF_A_FLAG,
} from "@dynamo-ts/protocols/internal";
import { runtimeConfigFromEnv } from "@dynamo-ts/runtime/internal";
import { PROJECT_ROOT } from "@dynamo-ts/testing/internal";
import { beforeAll, expect, test } from "vitest";
import { commandSpecs, configurationDocument } from "../../scripts/docs/env-tables.js";

const NAMES = Object.keys(ENV) as EnvName[];
const CATALOGUE = Object.values(ENV_GROUPS).flatMap((group) => Object.entries(group)) as readonly [
	EnvName,
	EnvVariable | typeof OF_A_FLAG,
][];

/** Variables of the system that are no settings of ours. */
const OF_THE_SYSTEM = new Set(["PATH", "HOME", "TMPDIR", "PWD", "LANG", "TERM", "COLUMNS", "SHELL", "USER"]);

/** Product sources without comments, by path within packages/, with the names that each takes. */
const sources: {
	readonly package: string;
	readonly path: string;
	readonly text: string;
	readonly names: ReadonlySet<string>;
}[] = [];

beforeAll(() => {
	for (const name of readdirSync(join(PROJECT_ROOT, "packages"))) {
		if (name === "testing") continue;
		const folder = join(PROJECT_ROOT, "packages", name, "src");
		for (const file of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
			if (!file.endsWith(".ts") || file.endsWith(".test.ts") || /(^|\/)(testing|test-support)\//.test(file)) continue;
			if (name === "protocols" && file.startsWith("env-")) continue;
			const text = readFileSync(join(folder, file), "utf8")
				.replace(/\/\*[\s\S]*?\*\//g, "")
				.replace(/^\s*\/\/.*$/gm, "");
			sources.push({ package: name, path: `${name}/src/${file}`, text, names: namesTaken(text) });
		}
	}
});

/** Names that a source takes from `ENV`: `ENV.X`, ``ENV[`X_${y}`]`` and `const { X: y } = ENV`. */
function namesTaken(text: string): Set<string> {
	const found = new Set<string>();
	for (const [, name] of text.matchAll(/\bENV\.([A-Z][A-Z0-9_]*)/g)) found.add(name!);
	for (const [, template] of text.matchAll(/\bENV\[`([^`]+)`\]/g)) {
		const pattern = new RegExp(`^${template!.replace(/\$\{[^}]*\}/g, "[A-Z0-9_]+")}$`);
		for (const name of NAMES) if (pattern.test(name)) found.add(name);
	}
	for (const [, list] of text.matchAll(/\{([^{}]*)\}\s*=\s*ENV\b/g)) {
		for (const [name] of list!.matchAll(/\b[A-Z][A-Z0-9_]+\b/g)) found.add(name);
	}
	return found;
}

test("docs/configuration.md is what npm run docs:tables writes", async () => {
	const text = readFileSync(join(PROJECT_ROOT, "docs", "configuration.md"), "utf8");
	expect(configurationDocument(text, await commandSpecs())).toBe(text);
});

test("every variable of the catalogue is read somewhere", () => {
	const read = new Set(sources.flatMap(({ names }) => [...names]));
	expect(NAMES.filter((name) => !read.has(name))).toEqual([]);
});

test("every variable that is read is in the catalogue", () => {
	const unknown: string[] = [];
	for (const { path, text, names } of sources) {
		for (const name of names) if (!(name in ENV)) unknown.push(`${path}: ${name}`);
		for (const [, dotted, quoted] of text.matchAll(/\benv(?:\.([A-Z][A-Z0-9_]+)|\[["'`]([A-Z][A-Z0-9_]+)["'`]\])/g)) {
			const name = (dotted ?? quoted)!;
			if (!OF_THE_SYSTEM.has(name)) unknown.push(`${path}: ${name}, not by ENV`);
		}
		for (const [, list] of text.matchAll(/\{([^{}]*)\}\s*=\s*process\.env\b/g)) unknown.push(`${path}: {${list}}`);
	}
	expect(unknown).toEqual([]);
});

test("a variable is explained either with a flag or in the catalogue", async () => {
	const ofFlags = new Set((await commandSpecs()).flatMap(({ flags }) => flags.map(({ env }) => env)));
	const wrong: string[] = [];
	for (const [name, variable] of CATALOGUE) {
		if ((variable === OF_A_FLAG) !== ofFlags.has(name)) wrong.push(name);
		if (variable !== OF_A_FLAG && variable.meaning === "") wrong.push(`${name} has no meaning`);
	}
	expect(wrong).toEqual([]);
});

test("who reads a variable is where it is read", () => {
	/** Where a variable of some processes alone may be looked at; what every process reads is read by the runtime. */
	const homes: Record<EnvUser, readonly string[]> = {
		"every process": ["runtime"],
		frontend: ["frontend", "router"],
		worker: ["worker", "runtime"],
		"frontend, router": ["router"],
		commands: ["cli"],
	};
	const wrong: string[] = [];
	for (const [name, variable] of CATALOGUE) {
		if (variable === OF_A_FLAG) continue;
		const readers = new Set(sources.filter(({ names }) => names.has(name)).map((source) => source.package));
		if (!homes[variable.users].some((home) => readers.has(home))) wrong.push(`${name}: ${[...readers]}`);
	}
	expect(wrong).toEqual([]);
});

test("the defaults of the catalogue and of the frontend's flags are those of the code", async () => {
	const settings: [string, string | undefined][] = CATALOGUE.map(([name, variable]) => [
		name,
		variable === OF_A_FLAG ? undefined : settingOf(variable.default),
	]);
	const frontend = (await commandSpecs()).find(({ name }) => name === "frontend");
	for (const flag of frontend?.flags ?? []) {
		if (flag.env !== undefined && flag.default !== undefined) settings.push([flag.env, String(flag.default)]);
	}
	const unset = { runtime: runtimeConfigFromEnv({}), frontend: frontendConfigFromEnv({}) };
	let compared = 0;
	for (const [name, value] of settings) {
		// Words that say where the default comes from, or that there is none.
		if (value === undefined) continue;
		expect(runtimeConfigFromEnv({ [name]: value }), name).toEqual(unset.runtime);
		expect(frontendConfigFromEnv({ [name]: value }), name).toEqual(unset.frontend);
		compared++;
	}
	expect(compared).toBeGreaterThan(100);
});

/** `5 s` → `5`, a path in backticks → the path; undefined for prose. */
function settingOf(fallback: string): string | undefined {
	const path = /^`([~/$].*)`$/.exec(fallback)?.[1];
	if (path !== undefined) return path.replace("~", homedir()).replace("$TMPDIR", tmpdir());
	if (/^(|none|any|default|the .*|.* below .*)$/.test(fallback)) return undefined;
	return fallback.replace(/ s$/, "");
}
