// SPDX-License-Identifier: Apache-2.0
// Tokens per second of our engine and of llama.cpp (node-llama-cpp) on the same GGUF, at 1 and 8 streams, in turn, both
// with the same number of threads: DYNAMO_BENCH_THREADS, or as many as there are cores.
// node-llama-cpp is not a dependency of the project: give its node_modules folder in LLAMA_CPP_MODULES.
// DYNAMO_BENCH_QUANTIZATION: our --quantization; default auto, the file's weights as stored, which is what llama.cpp runs.
import { createRequire } from "node:module";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { createEngineThread } from "@dynamo-ts/engine";
import { report, requireModel } from "./lib.js";

const modulesFolder = process.env.LLAMA_CPP_MODULES;
if (!modulesFolder) throw new Error("set LLAMA_CPP_MODULES to a node_modules folder that has node-llama-cpp");
const model = await requireModel();
const NEW_TOKENS = 64;
const PROMPT_TOKENS = 256;
const THREADS = Number(process.env.DYNAMO_BENCH_THREADS ?? availableParallelism());
const QUANTIZATION = (process.env.DYNAMO_BENCH_QUANTIZATION ?? "auto") as "auto" | "none" | "int8" | "int4";
const prompt = (stream: number) =>
	Array.from({ length: PROMPT_TOKENS }, (_, i) => 1000 + ((i * 7919 + stream * 104729) % 40000));

interface Subject {
	name: string;
	/** Runs `streams` sequences of NEW_TOKENS at once; returns seconds of decoding, from the last first token on. */
	decode(streams: number): Promise<number>;
	close(): Promise<void>;
}

async function ours(): Promise<Subject> {
	const engine = createEngineThread({
		model,
		quantization: QUANTIZATION,
		intraOpThreads: THREADS,
		maxNumSeqs: 8,
		maxModelLen: 2048,
		cacheDir: process.env.DYNAMO_BENCH_CACHE ?? join(tmpdir(), "dynamo-bench-graphs"),
	});
	await engine.start();
	let number = 0;
	return {
		name: "ours",
		decode: async (streams) => {
			let firsts = 0;
			let from = 0;
			await Promise.all(
				Array.from({ length: streams }, (_, stream) => {
					number++;
					return new Promise<void>((resolve, reject) => {
						let seen = 0;
						engine.submit(
							{
								requestId: `r${number}`,
								tokenIds: prompt(stream),
								sampling: { temperature: 0 },
								stop: { maxTokens: NEW_TOKENS, ignoreEos: true },
							},
							(output) => {
								if (output.error) return reject(new Error(output.error.message));
								if (seen === 0 && output.tokenIds.length > 0 && ++firsts === streams) from = performance.now();
								seen += output.tokenIds.length;
								if (output.finishReason) resolve();
							},
						);
					});
				}),
			);
			return (performance.now() - from) / 1000;
		},
		close: () => engine.close(),
	};
}

async function llamaCpp(): Promise<Subject> {
	const require = createRequire(join(modulesFolder!, "x.js"));
	const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
	const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, maxThreads: THREADS });
	const loaded = await llama.loadModel({ modelPath: model });
	return {
		name: "llama.cpp",
		decode: async (streams) => {
			const context = await loaded.createContext({ sequences: streams, contextSize: 1024, threads: THREADS });
			let firsts = 0;
			let from = 0;
			await Promise.all(
				Array.from({ length: streams }, async (_, stream) => {
					const sequence = context.getSequence();
					let seen = 0;
					for await (const _token of sequence.evaluate(prompt(stream), { temperature: 0, yieldEogToken: true })) {
						if (seen === 0 && ++firsts === streams) from = performance.now();
						if (++seen === NEW_TOKENS) break;
					}
				}),
			);
			const seconds = (performance.now() - from) / 1000;
			await context.dispose();
			return seconds;
		},
		close: async () => {
			await loaded.dispose();
			await llama.dispose();
		},
	};
}

const rows: Record<string, string | number>[] = [];
const best: Record<string, Record<number, number>> = {};
for (let round = 0; round < 3; round++) {
	for (const make of [ours, llamaCpp]) {
		const subject = await make();
		for (const streams of [1, 8]) {
			await subject.decode(streams);
			const seconds = await subject.decode(streams);
			const rate = (streams * (NEW_TOKENS - 1)) / seconds;
			best[subject.name] ??= {};
			best[subject.name]![streams] = Math.max(best[subject.name]![streams] ?? 0, rate);
		}
		await subject.close();
	}
}
for (const [name, rates] of Object.entries(best))
	rows.push({ engine: name, "1 stream (tok/s)": rates[1]!.toFixed(0), "8 streams (tok/s)": rates[8]!.toFixed(0) });
rows.push({
	engine: "ours / llama.cpp",
	"1 stream (tok/s)": (best.ours![1]! / best["llama.cpp"]![1]!).toFixed(2),
	"8 streams (tok/s)": (best.ours![8]! / best["llama.cpp"]![8]!).toFixed(2),
});
report(`Engine: decode rate on the same GGUF, ${QUANTIZATION}, ${THREADS} thread(s) each (best of 3)`, rows);
process.exit(0);
