// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { PROJECT_ROOT } from "@dynamo-ts/testing/internal";
import { expect, test } from "vitest";

/** The two files in which names of metrics and environment variables are spelt; tables split off them count as the same place. */
const HOMES = /packages\/protocols\/src\/(metric-|env-)[a-z-]+\.ts$/;

function* productSources(): Generator<[string, string]> {
	for (const name of readdirSync(join(PROJECT_ROOT, "packages"))) {
		if (name === "testing") continue;
		const folder = join(PROJECT_ROOT, "packages", name, "src");
		for (const file of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
			if (!file.endsWith(".ts") || file.endsWith(".test.ts") || /(^|\/)(testing|test-support)\//.test(file)) continue;
			const path = join(folder, file);
			if (!HOMES.test(path)) yield [path, readFileSync(path, "utf8")];
		}
	}
}

/** Source text without comments, so that prose may name things. */
function withoutComments(text: string): string {
	return text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
}

test("metric names are spelt in one place", () => {
	const found: string[] = [];
	for (const [path, text] of productSources()) {
		for (const match of withoutComments(text).matchAll(
			/["'`](dynamo_(?:component|frontend|router|request_plane|transport|namespace|endpoint)[a-z_]*)/g,
		)) {
			found.push(`${path}: ${match[1]}`);
		}
	}
	expect(found).toEqual([]);
});

test("environment variables are spelt in one place", () => {
	const found: string[] = [];
	for (const [path, text] of productSources()) {
		for (const match of withoutComments(text).matchAll(/["'`]((?:DYN|DYNAMO|ETCD|NATS|OTEL|HF)_[A-Z0-9_]+)["'`]/g)) {
			found.push(`${path}: ${match[1]}`);
		}
		for (const match of withoutComments(text).matchAll(/process\.env(?:\.|\[["'])([A-Z]+_[A-Z_]+)/g)) {
			found.push(`${path}: process.env ${match[1]}`);
		}
	}
	expect(found).toEqual([]);
});

test("no registry host and no path of a build machine is in the tree", () => {
	const found: string[] = [];
	for (const [path, text] of productSources()) {
		if (/registry\.npmjs|pypi\.org|files\.pythonhosted|proxy\.golang|deb\.debian|\/work\/|\/root\//.test(text))
			found.push(path);
	}
	expect(found).toEqual([]);
});
