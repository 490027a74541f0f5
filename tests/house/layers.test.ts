// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { PROJECT_ROOT } from "@dynamo-ts/testing/internal";
import { describe, expect, test } from "vitest";

/** Which packages a package's sources may import. Tests may import `testing` as well. */
const ALLOWED: Record<string, readonly string[]> = {
	protocols: [],
	runtime: ["protocols"],
	tokenizers: ["protocols"],
	engine: ["protocols"],
	router: ["runtime", "protocols"],
	worker: ["engine", "tokenizers", "runtime", "protocols"],
	frontend: ["router", "tokenizers", "runtime", "protocols"],
	cli: ["frontend", "worker", "router", "engine", "tokenizers", "runtime", "protocols"],
	testing: ["protocols", "runtime", "tokenizers", "engine", "worker", "router", "frontend"],
};

const packagesDir = join(PROJECT_ROOT, "packages");

function sourceFiles(folder: string): string[] {
	return readdirSync(folder, { recursive: true, encoding: "utf8" })
		.filter((name) => name.endsWith(".ts"))
		.map((name) => join(folder, name));
}

function importsOf(file: string): string[] {
	const text = readFileSync(file, "utf8");
	return [...text.matchAll(/(?:from|import)\s*\(?\s*["']([^"']+)["']/g)].map((match) => match[1]!);
}

test("every package has a row in the table", () => {
	expect(readdirSync(packagesDir).sort()).toEqual(Object.keys(ALLOWED).sort());
});

describe.each(Object.keys(ALLOWED))("%s", (name) => {
	const allowed = new Set(ALLOWED[name]);
	const folder = join(packagesDir, name);

	test("package.json depends only on what the arrows allow", () => {
		const manifest = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
		const ours = Object.keys(manifest.dependencies ?? {}).filter((dependency) => dependency.startsWith("@dynamo-ts/"));
		expect(ours.filter((dependency) => !allowed.has(dependency.slice("@dynamo-ts/".length)))).toEqual([]);
	});

	test("sources import only along the arrows, and other packages only by their two doors", () => {
		const wrong: string[] = [];
		for (const file of sourceFiles(join(folder, "src"))) {
			const isTest = file.endsWith(".test.ts") || /\/(testing|test-support)\//.test(file.slice(folder.length));
			for (const specifier of importsOf(file)) {
				const match = /^@dynamo-ts\/([a-z]+)(\/.*)?$/.exec(specifier);
				if (match) {
					const [, target, door] = match;
					const fits = target === name || allowed.has(target!) || (isTest && target === "testing");
					if (!fits || (door !== undefined && door !== "/internal")) wrong.push(`${file}: ${specifier}`);
				} else if (/^\.\..*\/(packages|dist)\//.test(specifier)) {
					wrong.push(`${file}: ${specifier}`);
				}
			}
		}
		expect(wrong).toEqual([]);
	});

	test("every source file carries the licence line", () => {
		const bare = sourceFiles(join(folder, "src")).filter(
			(file) => !readFileSync(file, "utf8").startsWith("// SPDX-License-Identifier: Apache-2.0\n"),
		);
		expect(bare).toEqual([]);
	});
});

test("the engine uses no sockets, no environment variables and no runtime", () => {
	const wrong: string[] = [];
	for (const file of sourceFiles(join(packagesDir, "engine", "src"))) {
		if (file.endsWith(".test.ts")) continue;
		const text = readFileSync(file, "utf8");
		if (/from "node:(net|http|https|tls|dgram)"/.test(text)) wrong.push(`${file}: sockets`);
		if (/process\.env/.test(text)) wrong.push(`${file}: process.env`);
	}
	expect(wrong).toEqual([]);
});
