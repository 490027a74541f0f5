// SPDX-License-Identifier: Apache-2.0
import { availableParallelism } from "node:os";
import type { Engine, EngineInfo, SpeculativeOptions } from "@dynamo-ts/engine";
import { CliError, EXIT, usageError } from "./cli-error.js";
import type { Console } from "./console.js";
import type { ParsedFlags } from "./flags/parse-flags.js";
import { cudaLibraryDirs } from "./models/cache-dirs.js";
import type { ResolvedModel } from "./models/resolve-model.js";

/** More threads than this gain nothing in one decode step of the models that run on a CPU. */
const MAX_DEFAULT_THREADS = 8;

/**
 * Threads per engine when none are asked for: all cores but one, which serves HTTP, shared by the engines. Of two cores both:
 * serving takes little of one, and the second makes a step up to 1.8 times as fast.
 */
export function defaultNumThreads(engines = 1): number {
	const cores = availableParallelism();
	return Math.max(1, Math.min(MAX_DEFAULT_THREADS, Math.floor((cores > 2 ? cores - 1 : cores) / engines)));
}

/** Makes the engine that the flags ask for; nothing is loaded yet. */
export async function createEngine(
	flags: ParsedFlags,
	model: ResolvedModel,
	graphsDir: string,
	console: Console,
	numThreads: number,
): Promise<Engine> {
	const { createEngineThread } = await import("@dynamo-ts/engine");
	return createEngineThread({
		model: model.path,
		cacheDir: graphsDir,
		quantization: (flags.string("quantization") ?? "auto") as "auto" | "none" | "int8" | "int4",
		maxNumSeqs: flags.number("max-num-seqs"),
		maxModelLen: flags.number("max-model-len"),
		maxNumBatchedTokens: flags.number("max-num-batched-tokens"),
		blockSize: flags.number("block-size"),
		device: (flags.string("device") ?? "auto") as "auto" | "cpu" | "cuda",
		cudaLibraryDirs: cudaLibraryDirs(flags.env),
		gpuMemoryUtilization: flags.number("gpu-memory-utilization"),
		enforceEager: flags.boolean("enforce-eager"),
		kvCacheMemory: kvCacheBytes(flags.number("kv-cache-memory")),
		kvCacheDtype: flags.string("kv-cache-dtype") as "auto" | "fp32" | "fp16" | "int8" | undefined,
		enablePrefixCaching: flags.boolean("enable-prefix-caching"),
		speculative: speculation(flags),
		intraOpThreads: flags.number("num-threads") ?? numThreads,
		onProgress: buildNotice(console),
	});
}

/** The engine's names for what the flags set. */
const FLAG_OF_OPTION: Readonly<Record<string, string>> = {
	maxModelLen: "--max-model-len",
	maxNumSeqs: "--max-num-seqs",
	maxNumBatchedTokens: "--max-num-batched-tokens",
	kvCacheMemory: "--kv-cache-memory",
	gpuMemoryUtilization: "--gpu-memory-utilization",
	kvCacheDtype: "--kv-cache-dtype",
	blockSize: "--block-size",
	intraOpThreads: "--num-threads",
};

/**
 * Starts an engine.
 * @throws CliError with the flags' names where the engine speaks of its options.
 */
export async function startEngine(engine: Engine): Promise<EngineInfo> {
	try {
		return await engine.start();
	} catch (error) {
		const message = error instanceof Error ? error.message : String(error);
		const named = message.replaceAll(/\b[a-z]+[A-Z][A-Za-z]+\b/g, (word) => FLAG_OF_OPTION[word] ?? word);
		throw new CliError(named, EXIT.failure, { cause: error });
	}
}

/** @throws CliError for a method that is not there, or JSON that is none. */
function speculation(flags: ParsedFlags): SpeculativeOptions | undefined {
	const json = flags.string("speculative-config");
	if (json === undefined) {
		if ((flags.string("speculative") ?? "none") === "none") return undefined;
		return { method: "ngram", numTokens: flags.number("speculative-tokens") };
	}
	let config: { method?: unknown; num_speculative_tokens?: unknown };
	try {
		config = JSON.parse(json) as typeof config;
	} catch (cause) {
		throw usageError(`--speculative-config is not JSON: ${(cause as Error).message}`);
	}
	const { method, num_speculative_tokens: numTokens } = config ?? {};
	if (method !== "ngram" && method !== "[ngram]") {
		throw usageError(`--speculative-config: the method is ${JSON.stringify(method) ?? "missing"}; ngram works`);
	}
	if (numTokens !== undefined && !(Number.isInteger(numTokens) && Number(numTokens) >= 1 && Number(numTokens) <= 64)) {
		throw usageError("--speculative-config: num_speculative_tokens must be a whole number from 1 to 64");
	}
	return { method: "ngram", numTokens: numTokens as number | undefined };
}

/** GiB to bytes. */
function kvCacheBytes(gibibytes: number | undefined): number | undefined {
	return gibibytes === undefined ? undefined : Math.floor(gibibytes * 2 ** 30);
}

/** Says so when the model is prepared for the first time, which takes a while. */
function buildNotice(console: Console): (stage: string, fraction: number) => void {
	let told = false;
	return (stage) => {
		if (told || !/build|write|quanti/i.test(stage)) return;
		told = true;
		console.note("preparing the model for this machine (once; it is kept in the cache)");
	};
}
