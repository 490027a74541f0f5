// SPDX-License-Identifier: Apache-2.0
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { PROJECT_ROOT } from "@dynamo-ts/testing/internal";
import { expect, test } from "vitest";

const packages = readdirSync(join(PROJECT_ROOT, "packages")).sort();

// A change of a public list is a decision: run vitest with -u and look at the difference.
test.each(packages)("the values that @dynamo-ts/%s makes public", async (name) => {
	const door = await import(join(PROJECT_ROOT, "packages", name, "src", "index.ts"));
	expect(Object.keys(door).sort()).toMatchSnapshot();
});
