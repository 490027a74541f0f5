// SPDX-License-Identifier: Apache-2.0
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Child, type ChildOptions, until } from "./child-process.js";
import type { Found } from "./found.js";
import { freePort } from "./free-port.js";
import { type HttpChild, listsModel } from "./real-dynamo.js";

/** The project's root folder. */
export const PROJECT_ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");

/** Starts `bin/dynamo` with the given arguments. The packages must have been built. */
export function startDynamo(args: readonly string[], options: ChildOptions = {}): Child {
	return new Child(process.execPath, [join(PROJECT_ROOT, "bin", "dynamo"), ...args], options);
}

/** Starts a program of `examples/`, with the TypeScript loader that the project has. */
export function startExample(name: string, args: readonly string[] = [], options: ChildOptions = {}): Child {
	const file = join(PROJECT_ROOT, "examples", name);
	return new Child(process.execPath, ["--import", "tsx", file, ...args], { cwd: PROJECT_ROOT, ...options });
}

/** Starts `dynamo serve` or `dynamo frontend` on a free port and waits until it lists every one of `models`. */
export async function startOwnHttp(
	command: "serve" | "frontend",
	args: readonly string[],
	env: Record<string, string>,
	...models: readonly string[]
): Promise<HttpChild> {
	const port = await freePort();
	const child = startDynamo([command, ...args, "--http-port", String(port)], { env });
	const url = `http://127.0.0.1:${port}`;
	for (const model of models) {
		await until(`dynamo ${command} lists ${model}`, () => listsModel(url, model), { timeoutMs: 120_000, child });
	}
	return { child, url };
}

/** Paths of the test model, set by the tests' global set-up; or why there is none. */
export function testModel(kind: "gguf" | "hf"): Found {
	const name = kind === "gguf" ? "DYNAMO_TEST_MODEL_GGUF" : "DYNAMO_TEST_MODEL_HF";
	const path = process.env[name];
	if (path && existsSync(path)) return { path, missing: "" };
	return { path: "", missing: `no test model: ${name} is ${path ? `${path}, which does not exist` : "not set"}` };
}
