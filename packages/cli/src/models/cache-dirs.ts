// SPDX-License-Identifier: Apache-2.0
import { homedir } from "node:os";
import { join } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";

type Env = Readonly<Record<string, string | undefined>>;

/** Where things that can be made or fetched again are kept. */
export interface CacheDirs {
	readonly root: string;
	/** Models that did not come from the hub. */
	readonly models: string;
	/** Graphs that the engine makes from models. */
	readonly graphs: string;
	/** ONNX Runtime with its CUDA provider, where ORT_LIB_DIR names no other folder. */
	readonly ortCuda: string;
	/** Files of model cards that were made from GGUF files. */
	readonly cards: string;
	/** Files of model cards that the frontend fetched. */
	readonly fetchedCards: string;
}

/** DYN_CACHE_DIR, or `dynamo-ts` in the user's cache folder. */
export function cacheDirs(env: Env): CacheDirs {
	const root =
		text(env[ENV.DYN_CACHE_DIR]) ?? join(text(env[ENV.XDG_CACHE_HOME]) ?? join(homedir(), ".cache"), "dynamo-ts");
	return {
		root,
		models: join(root, "models"),
		graphs: join(root, "graphs"),
		ortCuda: join(root, "ort-cuda"),
		cards: join(root, "cards"),
		fetchedCards: join(root, "mdc"),
	};
}

/** Folders in which ONNX Runtime with its CUDA provider is looked for. */
export function cudaLibraryDirs(env: Env): string[] {
	return [text(env[ENV.ORT_LIB_DIR]) ?? cacheDirs(env).ortCuda];
}

/** The Hugging Face cache, where other tools look too: HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub. */
export function hubCacheDir(env: Env): string {
	const cache = text(env[ENV.HF_HUB_CACHE]);
	if (cache !== undefined) return cache;
	const home =
		text(env[ENV.HF_HOME]) ?? join(text(env[ENV.XDG_CACHE_HOME]) ?? join(homedir(), ".cache"), "huggingface");
	return join(home, "hub");
}

function text(value: string | undefined): string | undefined {
	return value === undefined || value === "" ? undefined : value;
}
