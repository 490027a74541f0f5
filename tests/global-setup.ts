// SPDX-License-Identifier: Apache-2.0
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { ensureHfModel, PROJECT_ROOT, startDynamo } from "@dynamo-ts/testing/internal";

/**
 * Finds the test model once for all tests: DYNAMO_TEST_MODEL_GGUF, or the default model as `dynamo pull` puts it.
 * Where it cannot be had, tests that need it are skipped and say so.
 */
export default async function setup(): Promise<void> {
	if (!existsSync(join(PROJECT_ROOT, "packages", "cli", "dist", "main.js"))) {
		throw new Error("the packages are not built; run `npm run setup` first");
	}
	if (!process.env.DYNAMO_TEST_MODEL_GGUF) {
		const pull = startDynamo(["pull", "smollm2-135m"]);
		const { code } = await pull.exited;
		const path = pull.stdout.trim().split("\n").at(-1) ?? "";
		if (code === 0 && existsSync(path)) process.env.DYNAMO_TEST_MODEL_GGUF = path;
		else console.warn(`tests: no test model (dynamo pull: ${pull.stderr.trim().split("\n").at(-1)})`);
	}
	const gguf = process.env.DYNAMO_TEST_MODEL_GGUF;
	if (gguf && !process.env.DYNAMO_TEST_MODEL_HF) {
		const folder = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "dynamo-ts", "test-models");
		process.env.DYNAMO_TEST_MODEL_HF = await ensureHfModel(gguf, folder);
	}
}
