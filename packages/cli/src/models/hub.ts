// SPDX-License-Identifier: Apache-2.0
// Models from the Hugging Face hub, in the hub's standard cache layout, so that other tools find them too:
// models--org--name/{blobs/<etag>, refs/<revision>, snapshots/<commit>/<file> -> ../../blobs/<etag>}.
import { existsSync, readFileSync } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, stat, symlink, writeFile } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";
import { CliError } from "../cli-error.js";
import { hubCacheDir } from "./cache-dirs.js";
import { type ContentHash, causeOf, downloadFile, HttpStatusError } from "./download-file.js";
import { withFileLock } from "./file-lock.js";
import type { Progress } from "./progress.js";

type Env = Readonly<Record<string, string | undefined>>;

/** A model on the hub: a repository, and one of its files for GGUF. */
export interface HubModel {
	/** `org/name`. */
	readonly repo: string;
	/** A .gguf file of it; undefined: the safetensors and what belongs to them. */
	readonly file: string | undefined;
}

export interface HubOptions {
	readonly env: Env;
	/** False: without the weights; what a tokenizer and a card need. */
	readonly weights: boolean;
	readonly progress: Progress;
	note(line: string): void;
	readonly signal?: AbortSignal | undefined;
	/** Longest wait for the list of files, milliseconds; default 20 s. */
	readonly listTimeoutMs?: number;
}

/** The hub cannot be reached at all; something else may be tried. */
export class HubUnreachableError extends CliError {}

interface HubFile {
	readonly path: string;
	readonly size: number;
	/** Name of the blob in the cache: what the hub's ETag says. */
	readonly etag: string;
	readonly hash: ContentHash;
}

interface HubRevision {
	readonly commit: string;
	readonly files: readonly HubFile[];
}

const REVISION = "main";

/** Reads `org/name`, `org/name/file.gguf` or `org/name:file.gguf`; undefined for anything else. */
export function parseHubModel(text: string): HubModel | undefined {
	const match = /^([\w.-]+\/[\w.-]+?)(?:[:/]([\w./ -]+\.gguf))?$/i.exec(text);
	if (match === null || /(^|\/)\.\.?(\/|$)/.test(text)) return undefined;
	return { repo: match[1]!, file: match[2] };
}

/** True when HF_HUB_OFFLINE asks to stay off the network. */
export function isOffline(env: Env): boolean {
	return /^(1|true|yes|on)$/i.test(env[ENV.HF_HUB_OFFLINE] ?? "");
}

/** Address of the hub, without a slash at the end. */
export function hubEndpoint(env: Env): string {
	return (env[ENV.HF_ENDPOINT] || "https://huggingface.co").replace(/\/+$/, "");
}

function repoDir(model: HubModel, env: Env): string {
	return join(hubCacheDir(env), `models--${model.repo.replace("/", "--")}`);
}

/**
 * Finds a model in the cache without asking the hub.
 * @returns the snapshot folder, or the file in it; undefined when something is missing.
 */
export async function findCached(model: HubModel, env: Env, weights: boolean): Promise<string | undefined> {
	const root = repoDir(model, env);
	const commit = await readFile(join(root, "refs", REVISION), "utf8").catch(() => undefined);
	if (commit === undefined) return undefined;
	const snapshot = join(root, "snapshots", commit.trim());
	if (model.file !== undefined) {
		const file = join(snapshot, model.file);
		return existsSync(file) ? file : undefined;
	}
	return (await isComplete(snapshot, weights)) ? snapshot : undefined;
}

async function isComplete(snapshot: string, weights: boolean): Promise<boolean> {
	const has = (name: string) => existsSync(join(snapshot, name));
	if (!has("config.json") || !has("tokenizer.json")) return false;
	if (!weights || has("model.safetensors")) return true;
	const index = await readFile(join(snapshot, "model.safetensors.index.json"), "utf8").catch(() => undefined);
	if (index === undefined) return (await readdir(snapshot)).some((name) => name.endsWith(".safetensors"));
	try {
		const map = (JSON.parse(index) as { weight_map: Record<string, string> }).weight_map;
		return [...new Set(Object.values(map))].every(has);
	} catch {
		return false;
	}
}

/**
 * Brings a model into the cache; what is there already is not fetched again.
 * @returns the snapshot folder, or the GGUF file.
 * @throws HubUnreachableError, CliError that says what to do.
 */
export async function pullFromHub(model: HubModel, options: HubOptions): Promise<string> {
	const { env } = options;
	if (isOffline(env)) {
		const cached = await findCached(model, env, options.weights);
		if (cached !== undefined) return cached;
		throw new CliError(
			`${model.repo} is not (wholly) in the cache ${hubCacheDir(env)}, and ${ENV.HF_HUB_OFFLINE} is set: unset it, or copy the model there`,
		);
	}
	const revision = await listFiles(model, options);
	const wanted = chooseFiles(model, revision, options.weights);
	const root = repoDir(model, env);
	const total = wanted.reduce((sum, file) => sum + file.size, 0);
	const missing = wanted.filter((file) => !existsSync(join(root, "blobs", file.etag)));
	let done = total - missing.reduce((sum, file) => sum + file.size, 0);
	if (missing.length > 0) {
		options.progress.start(model.file ?? model.repo, done, total);
		try {
			for (const file of missing) {
				await fetchBlob(model, revision, file, root, options, (have) => options.progress.update(done + have));
				done += file.size;
				options.progress.update(done);
			}
		} finally {
			options.progress.stop();
		}
	}
	const snapshot = join(root, "snapshots", revision.commit);
	for (const file of wanted) await link(join(snapshot, file.path), join(root, "blobs", file.etag));
	await writeAtomically(join(root, "refs", REVISION), revision.commit);
	return model.file === undefined ? snapshot : join(snapshot, model.file);
}

/** HF_TOKEN, or what the hub's own command line stored at login. */
function accessToken(env: Env): string | undefined {
	const fromEnv = env[ENV.HF_TOKEN];
	if (fromEnv !== undefined && fromEnv !== "") return fromEnv;
	try {
		return readFileSync(join(dirname(hubCacheDir(env)), "token"), "utf8").trim() || undefined;
	} catch {
		return undefined;
	}
}

function requestHeaders(env: Env): Record<string, string> {
	const token = accessToken(env);
	return { "user-agent": "dynamo-ts", ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) };
}

async function listFiles(model: HubModel, options: HubOptions): Promise<HubRevision> {
	const url = `${hubEndpoint(options.env)}/api/models/${model.repo}/revision/${REVISION}?blobs=true`;
	const timeout = AbortSignal.timeout(options.listTimeoutMs ?? 20_000);
	let response: Response;
	let body: unknown;
	try {
		response = await fetch(url, {
			headers: requestHeaders(options.env),
			signal: options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]),
		});
		if (response.ok) body = await response.json();
		else await response.body?.cancel();
	} catch (error) {
		if (options.signal?.aborted) throw options.signal.reason;
		throw new HubUnreachableError(
			`the hub at ${hubEndpoint(options.env)} cannot be reached (${causeOf(error)}): check the network or ${ENV.HF_ENDPOINT}, or give a local folder or .gguf file`,
			1,
			{ cause: error },
		);
	}
	if (!response.ok) throw refused(model, response.status, options.env);
	return readRevision(model, body);
}

function refused(model: HubModel, status: number, env: Env): CliError {
	if (status === 401 || status === 403) {
		const cure =
			accessToken(env) === undefined
				? `check the name, or set ${ENV.HF_TOKEN} if the model is private or gated`
				: `the token in ${ENV.HF_TOKEN} has no access to it: accept the model's terms on its page, or use another token`;
		return new CliError(`the hub does not give out ${model.repo} (status ${status}): ${cure}`);
	}
	if (status === 404) return new CliError(`the hub has no model ${model.repo}: check the name (org/name)`);
	if (status >= 500 || status === 429) {
		return new HubUnreachableError(
			`the hub at ${hubEndpoint(env)} answered ${status} for ${model.repo}: try again later, or give a local folder or .gguf file`,
		);
	}
	return new CliError(`the hub at ${hubEndpoint(env)} answered ${status} for ${model.repo}`);
}

function readRevision(model: HubModel, body: unknown): HubRevision {
	const bad = () => new CliError(`the hub's list of files of ${model.repo} is not understood; is the endpoint a hub?`);
	const { sha, siblings } = (body ?? {}) as { sha?: unknown; siblings?: unknown };
	if (typeof sha !== "string" || !/^[0-9a-f]{7,64}$/.test(sha) || !Array.isArray(siblings)) throw bad();
	const files: HubFile[] = [];
	for (const sibling of siblings as Record<string, unknown>[]) {
		const path = sibling.rfilename;
		if (typeof path !== "string") throw bad();
		const lfs = sibling.lfs as { sha256?: unknown; oid?: unknown; size?: unknown } | null | undefined;
		const sha256 = lfs?.sha256 ?? lfs?.oid;
		if (typeof sha256 === "string" && /^[0-9a-f]{64}$/.test(sha256) && typeof lfs?.size === "number") {
			files.push({ path, size: lfs.size, etag: sha256, hash: { kind: "sha256", hex: sha256 } });
		} else if (typeof sibling.blobId === "string" && /^[0-9a-f]{40}$/.test(sibling.blobId)) {
			if (typeof sibling.size !== "number") throw bad();
			const hex = sibling.blobId;
			files.push({ path, size: sibling.size, etag: hex, hash: { kind: "git-sha1", hex } });
		}
	}
	return { commit: sha, files };
}

const SMALL_FILES = /^[^/]+\.(json|jinja|txt|model)$/;
const SKIPPED = /^(README|LICENSE|requirements|training_args|trainer_state|all_results|eval_results|train_results)/i;

/** The files that a worker reads: those at the root that describe the model, and one set of weights. */
function chooseFiles(model: HubModel, revision: HubRevision, weights: boolean): HubFile[] {
	if (model.file !== undefined) {
		const file = revision.files.find((candidate) => candidate.path === model.file);
		if (file !== undefined) return [file];
		throw new CliError(`${model.repo} has no file ${model.file}${listGguf(revision)}`);
	}
	const small = revision.files.filter(({ path }) => SMALL_FILES.test(path) && !SKIPPED.test(path));
	const tensors = revision.files.filter(({ path }) => /^[^/]+\.safetensors$/.test(path));
	const main = tensors.filter(({ path }) => /^model[.-]/.test(path));
	if (!small.some(({ path }) => path === "config.json") || (weights && tensors.length === 0)) {
		throw new CliError(
			`${model.repo} has no ${tensors.length === 0 ? "safetensors weights" : "config.json"} that this version can read${listGguf(revision)}`,
		);
	}
	return weights ? [...small, ...(main.length > 0 ? main : tensors)] : small;
}

function listGguf(revision: HubRevision): string {
	const files = revision.files.map(({ path }) => path).filter((path) => path.toLowerCase().endsWith(".gguf"));
	if (files.length === 0) return "";
	return `; it has these GGUF files, name one as org/name/file.gguf: ${files.slice(0, 12).join(", ")}${files.length > 12 ? ", ..." : ""}`;
}

async function fetchBlob(
	model: HubModel,
	revision: HubRevision,
	file: HubFile,
	root: string,
	options: HubOptions,
	onProgress: (have: number) => void,
): Promise<void> {
	const blob = join(root, "blobs", file.etag);
	const lock = join(hubCacheDir(options.env), ".locks", basename(root), `${file.etag}.lock`);
	await withFileLock(
		lock,
		{ signal: options.signal, onWait: () => options.note(`waiting for another process that downloads ${file.path}`) },
		async () => {
			if (await isThere(blob, file.size)) return;
			const url = `${hubEndpoint(options.env)}/${model.repo}/resolve/${revision.commit}/${encodePath(file.path)}`;
			try {
				await downloadFile({
					url,
					headers: requestHeaders(options.env),
					size: file.size,
					hash: file.hash,
					target: blob,
					signal: options.signal,
					onProgress,
				});
			} catch (error) {
				if (error instanceof HttpStatusError) throw refused(model, error.status, options.env);
				throw error;
			}
		},
	);
}

function encodePath(path: string): string {
	return path.split("/").map(encodeURIComponent).join("/");
}

async function isThere(path: string, size: number): Promise<boolean> {
	return stat(path).then(
		(info) => info.size === size,
		() => false,
	);
}

async function link(path: string, blob: string): Promise<void> {
	if (existsSync(path)) return;
	await mkdir(dirname(path), { recursive: true });
	await rm(path, { force: true });
	try {
		await symlink(relative(dirname(path), blob), path);
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
	}
}

async function writeAtomically(path: string, text: string): Promise<void> {
	await mkdir(dirname(path), { recursive: true });
	const temporary = `${path}.${process.pid}.tmp`;
	await writeFile(temporary, text);
	await rename(temporary, path);
}
