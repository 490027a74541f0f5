// SPDX-License-Identifier: Apache-2.0
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { Child, until } from "./child-process.js";
import type { Found } from "./found.js";
import { freePort } from "./free-port.js";
import { http } from "./sse-client.js";

/** Path of the Python interpreter that has the real Dynamo 1.6.1, or why there is none. */
export function findRealDynamo(): Found {
	const venv = process.env.DYNAMO_PEER_VENV ?? join(homedir(), ".cache", "dynamo-peer");
	const path = join(venv, "bin", "python");
	if (existsSync(path)) return { path, missing: "" };
	return { path: "", missing: `no real Dynamo in ${venv}; install it there or set DYNAMO_PEER_VENV` };
}

/** Settings with which real and our own processes meet in a folder over TCP on the loopback interface. */
export function fileDiscoveryEnv(folder: string): Record<string, string> {
	return {
		DYN_DISCOVERY_BACKEND: "file",
		DYN_FILE_KV: folder,
		DYN_REQUEST_PLANE: "tcp",
		DYN_TCP_RPC_HOST: "127.0.0.1",
		DYN_TCP_RESPONSE_STREAM_HOST: "127.0.0.1",
		DYN_SYSTEM_HOST: "127.0.0.1",
		DYN_HTTP_HOST: "127.0.0.1",
		DYN_EVENT_PLANE_HOST: "127.0.0.1",
		HF_HUB_OFFLINE: "1",
	};
}

export interface HttpChild {
	child: Child;
	/** `http://127.0.0.1:port`. */
	url: string;
}

/** Starts a real frontend and waits until it lists `model`. */
export async function startRealFrontend(
	python: string,
	env: Record<string, string>,
	model: string,
	extraArgs: string[] = [],
): Promise<HttpChild> {
	const port = await freePort();
	const child = new Child(python, ["-m", "dynamo.frontend", "--http-port", String(port), ...extraArgs], { env });
	const url = `http://127.0.0.1:${port}`;
	await until(`the real frontend lists ${model}`, () => listsModel(url, model), { timeoutMs: 60_000, child });
	return { child, url };
}

/** Starts a real mocker on a model folder. Ready when some frontend lists its model. */
export function startRealMocker(
	python: string,
	env: Record<string, string>,
	modelPath: string,
	model: string,
	extraArgs: string[] = [],
): Child {
	const args = ["-m", "dynamo.mocker", "--model-path", modelPath, "--model-name", model, ...extraArgs];
	return new Child(python, args, { env });
}

/** True when the server at `url` lists `model`. */
export async function listsModel(url: string, model: string): Promise<boolean> {
	try {
		// A connection of its own: one that is kept would look like a leak of the server's.
		const answer = await http(`${url}/v1/models`, { signal: AbortSignal.timeout(2000) });
		const list = answer.json as { data?: { id: string }[] };
		return list.data?.some((entry) => entry.id === model) ?? false;
	} catch {
		return false;
	}
}
