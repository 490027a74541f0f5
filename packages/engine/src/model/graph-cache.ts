// SPDX-License-Identifier: Apache-2.0
// Built graphs on disk, one folder per model and way of building. A folder appears whole, by a rename: another
// process sees either nothing or a finished graph.

import { createHash, randomBytes } from "node:crypto";
import {
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	readlinkSync,
	renameSync,
	rmSync,
	statSync,
	utimesSync,
	writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import type { CacheFormat } from "../onnx/attention-emitter.js";
import { buildDecoderGraph, GRAPH_VERSION } from "../onnx/decoder-graph.js";
import type { GraphTarget } from "../onnx/matrix-writer.js";
import { WeightsWriter } from "../onnx/weights-writer.js";
import { addSamples } from "../weights/file-samples.js";
import { ModelFileError } from "../weights/model-file-error.js";
import { calibrateCache } from "./calibrate-cache.js";
import type { KvCacheDtype, Quantization } from "./model-runner.js";
import type { OpenModel } from "./open-model.js";

const MODEL_FILE = "model.onnx";
/** Beside the .onnx file. */
export const WEIGHTS_FILE = "weights.bin";
const TRIAL_FILE = "trial.onnx";
const MANIFEST_FILE = "manifest.json";
/** Graphs that are kept when a new one is built, the new one included; the ones used last stay. */
const KEPT_GRAPHS = 4;
/** A graph used so recently may be about to be loaded by another process. */
const IN_USE_MS = 10 * 60 * 1000;
/** Unfinished folders of this age belong to processes that died. */
const STALE_MS = 24 * 3600 * 1000;

/** What a finished folder says about itself. */
interface Manifest {
	readonly graphVersion: number;
	readonly modelBytes: number;
	/** SHA-256 of the .onnx file, hex. */
	readonly modelDigest: string;
	readonly weightsBytes: number;
}

/** Name of the cache folder: a hash of everything that the graph depends on. */
export function graphKey(
	model: OpenModel,
	quantization: Quantization,
	target: GraphTarget = "cpu",
	kvCacheDtype: KvCacheDtype = "fp32",
): string {
	const hash = createHash("sha256");
	hash.update(JSON.stringify([GRAPH_VERSION, target, quantization, kvCacheDtype, model.description.config]));
	for (const path of model.description.files) {
		const { size, mtimeMs } = statSync(path);
		hash.update(JSON.stringify([size, mtimeMs]));
		addSamples(hash, path);
	}
	return hash.digest("hex").slice(0, 32);
}

function sha256(data: Uint8Array): string {
	return createHash("sha256").update(data).digest("hex");
}

/** True where a folder holds all that its manifest says. */
function isWhole(folder: string): boolean {
	try {
		const manifest = JSON.parse(readFileSync(join(folder, MANIFEST_FILE), "utf8")) as Manifest;
		return (
			manifest.graphVersion === GRAPH_VERSION &&
			statSync(join(folder, WEIGHTS_FILE)).size === manifest.weightsBytes &&
			sha256(readFileSync(join(folder, MODEL_FILE))) === manifest.modelDigest
		);
	} catch {
		return false;
	}
}

/** Puts a finished folder in place. Where another process was faster with a whole one, that one is kept. */
function publish(temporary: string, folder: string): void {
	for (let attempt = 0; attempt < 3; attempt++) {
		try {
			renameSync(temporary, folder);
			return;
		} catch (error) {
			if (!["ENOTEMPTY", "EEXIST", "EPERM"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
			if (isWhole(folder)) return;
			discard(folder);
		}
	}
	throw new Error(`${folder} cannot be replaced; remove it by hand`);
}

/** Moves a broken folder out of the way before it is removed, so that nobody sees a half-removed one. */
function discard(folder: string): void {
	const grave = `${folder}.broken-${processTag()}-${randomBytes(6).toString("hex")}`;
	try {
		renameSync(folder, grave);
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
		throw error;
	}
	rmSync(grave, { recursive: true, force: true });
}

/** Names this process in names of folders: where it runs, and its number there. */
function processTag(): string {
	let space = hostname();
	try {
		// The same number may be another process after a restart, and in another container.
		space += readFileSync("/proc/sys/kernel/random/boot_id", "utf8") + readlinkSync("/proc/self/ns/pid");
	} catch {
		// Not Linux: the name of the host must do.
	}
	return `${createHash("sha256").update(space).digest("hex").slice(0, 12)}-${process.pid}`;
}

function isAlive(pid: number): boolean {
	try {
		process.kill(pid, 0);
		return true;
	} catch (error) {
		return (error as NodeJS.ErrnoException).code === "EPERM";
	}
}

/** Removes what builds have left whose process died here, or which are too old to be under way anywhere. */
function removeStale(cacheDir: string): void {
	if (!statSync(cacheDir, { throwIfNoEntry: false })?.isDirectory()) return;
	const here = processTag().split("-")[0];
	for (const name of readdirSync(cacheDir)) {
		const left = /\.(?:building|broken)-(?:([0-9a-f]{12})-(\d+)-)?[0-9a-f]{12}$/.exec(name);
		if (left === null) continue;
		const path = join(cacheDir, name);
		if (left[1] === here && !isAlive(Number(left[2]))) {
			rmSync(path, { recursive: true, force: true });
			continue;
		}
		const stats = statSync(path, { throwIfNoEntry: false });
		if (stats && Date.now() - stats.mtimeMs > STALE_MS) rmSync(path, { recursive: true, force: true });
	}
}

/** Notes that a graph is used now. */
function markUsed(folder: string): void {
	const now = new Date();
	try {
		utimesSync(join(folder, MANIFEST_FILE), now, now);
	} catch {
		// A cache that cannot be written serves all the same.
	}
}

/** Removes the graphs that have not been used for the longest time. */
function evict(cacheDir: string): void {
	const graphs: { folder: string; usedAt: number }[] = [];
	for (const name of readdirSync(cacheDir)) {
		if (!/^[0-9a-f]{32}$/.test(name)) continue;
		const folder = join(cacheDir, name);
		const stats = statSync(join(folder, MANIFEST_FILE), { throwIfNoEntry: false });
		if (stats) graphs.push({ folder, usedAt: stats.mtimeMs });
	}
	graphs.sort((a, b) => b.usedAt - a.usedAt);
	for (const { folder, usedAt } of graphs.slice(KEPT_GRAPHS)) {
		if (Date.now() - usedAt > IN_USE_MS) discard(folder);
	}
}

/** A graph on disk. */
export interface CachedGraph {
	/** The .onnx file; its weights lie beside it. */
	readonly modelPath: string;
	/** True where it had to be built now. */
	readonly built: boolean;
}

/**
 * Finds or builds the graph of a model. A build removes graphs that were not used for long, all but the last few.
 * @throws ModelFileError when the model cannot be read or the cache folder not be written.
 */
export function cachedGraph(
	model: OpenModel,
	quantization: Quantization,
	cacheDir: string,
	onProgress?: (fraction: number) => void,
	target: GraphTarget = "cpu",
	kvCacheDtype: KvCacheDtype = "fp32",
): CachedGraph {
	removeStale(cacheDir);
	const folder = join(cacheDir, graphKey(model, quantization, target, kvCacheDtype));
	const modelPath = join(folder, MODEL_FILE);
	if (isWhole(folder)) {
		markUsed(folder);
		return { modelPath, built: false };
	}
	const temporary = `${folder}.building-${processTag()}-${randomBytes(6).toString("hex")}`;
	try {
		mkdirSync(temporary, { recursive: true });
		const writer = new WeightsWriter(join(temporary, WEIGHTS_FILE));
		let graph: Uint8Array;
		try {
			const build = (cache: CacheFormat): Uint8Array =>
				buildDecoderGraph({
					config: model.description.config,
					source: model.weights,
					quantization,
					target,
					writer,
					weightsFile: WEIGHTS_FILE,
					cache,
					...(onProgress && { onProgress }),
				});
			if (kvCacheDtype === "int8") {
				// The same graph with an fp32 cache first: a run of it shows how large keys and values get.
				const trial = join(temporary, TRIAL_FILE);
				writeFileSync(trial, build({ dtype: "fp32" }));
				const scales = calibrateCache(trial, model.description.config);
				rmSync(trial);
				writer.repeat();
				graph = build({ dtype: "int8", scales });
			} else graph = build({ dtype: kvCacheDtype });
		} finally {
			writer.close();
		}
		writeFileSync(join(temporary, MODEL_FILE), graph);
		const manifest: Manifest = {
			graphVersion: GRAPH_VERSION,
			modelBytes: graph.length,
			modelDigest: sha256(graph),
			weightsBytes: statSync(join(temporary, WEIGHTS_FILE)).size,
		};
		writeFileSync(join(temporary, MANIFEST_FILE), JSON.stringify(manifest));
		publish(temporary, folder);
		evict(cacheDir);
	} catch (error) {
		const code = (error as NodeJS.ErrnoException).code;
		if (code && ["EACCES", "EROFS", "ENOSPC", "ENOTDIR", "EDQUOT"].includes(code)) {
			throw new ModelFileError(cacheDir, `the graph cache cannot be written (${code})`, { cause: error });
		}
		throw error;
	} finally {
		if (existsSync(temporary)) rmSync(temporary, { recursive: true, force: true });
	}
	return { modelPath, built: true };
}
