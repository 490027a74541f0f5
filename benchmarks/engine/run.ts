// SPDX-License-Identifier: Apache-2.0
// Decode and prefill speed of our engine, of onnxruntime-genai and of llama.cpp on one machine, round by round in turn, and
// the medians of all rounds. Peers that are not named in the environment are left out:
//   DYNAMO_TEST_MODEL_GGUF, DYNAMO_TEST_MODEL_HF   the same model in both forms (the GGUF is fetched if need be)
//   LLAMA_CPP_MODULES                              a node_modules folder with node-llama-cpp
//   GENAI_PYTHON, GENAI_MODEL                      a Python with onnxruntime-genai, and a model folder made for it
// DYNAMO_BENCH_THREADS (1,2), DYNAMO_BENCH_STREAMS (1,8,32), DYNAMO_BENCH_CONTEXTS (300,2000), DYNAMO_BENCH_ROUNDS (3) and
// DYNAMO_BENCH_TOKENS (48 per stream) set the size: all of it takes an hour or more on two slow cores.
// The figures go to DYNAMO_BENCH_JSON as well, default engine-benchmark.json in the folder of temporary files.
import { writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { report, requireModel } from "../lib.js";
import { decodeName, genai, llamaCpp, ours, type Subject } from "./subjects.js";

/** A setting that is a list of whole numbers. */
function numbers(name: string, fallback: readonly number[]): number[] {
	const text = process.env[name];
	return text ? text.split(",").map(Number) : [...fallback];
}

const gguf = await requireModel();
const folder = process.env.DYNAMO_TEST_MODEL_HF;
const { LLAMA_CPP_MODULES, GENAI_PYTHON, GENAI_MODEL } = process.env;
const cacheDir = process.env.DYNAMO_BENCH_CACHE ?? join(tmpdir(), "dynamo-bench-graphs");
const output = process.env.DYNAMO_BENCH_JSON ?? join(tmpdir(), "engine-benchmark.json");
const contexts = numbers("DYNAMO_BENCH_CONTEXTS", [300, 2000]);
const streams = numbers("DYNAMO_BENCH_STREAMS", [1, 8, 32]);
const rounds = numbers("DYNAMO_BENCH_ROUNDS", [3])[0]!;
const decodes = contexts.flatMap((context) => streams.map((count) => ({ streams: count, context })));
const size = { newTokens: numbers("DYNAMO_BENCH_TOKENS", [48])[0]!, prefillTokens: 512, decodes };

const OURS = "ours";
const subjects: Record<string, Subject> = {
	[OURS]: ours({ model: folder ?? gguf, cacheDir, quantization: "auto" }),
	"ours, int4": ours({ model: folder ?? gguf, cacheDir, quantization: "int4" }),
	"ours, ngram": ours({
		model: folder ?? gguf,
		cacheDir,
		quantization: "auto",
		speculative: { method: "ngram" },
	}),
	...(folder && { "ours, GGUF": ours({ model: gguf, cacheDir, quantization: "auto" }) }),
	...(GENAI_PYTHON && GENAI_MODEL && { genai: genai(GENAI_PYTHON, GENAI_MODEL) }),
	...(LLAMA_CPP_MODULES && { "llama.cpp": llamaCpp(LLAMA_CPP_MODULES, gguf) }),
};

function median(values: readonly number[]): number {
	return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

const names = ["prefill", ...decodes.map((it) => decodeName(it.streams, it.context)), "copying, 1 stream"];
const others = ["ready (ms)", "MiB per 1,000 cached tokens"];
const results: { threads: number; medians: Record<string, Record<string, number>> }[] = [];
for (const threads of numbers("DYNAMO_BENCH_THREADS", [1, 2])) {
	const samples: Record<string, Record<string, number[]>> = {};
	for (let round = 0; round < rounds; round++) {
		for (const [subject, run] of Object.entries(subjects)) {
			// Guesses change the copying prompt alone.
			const work = subject === "ours, ngram" ? { ...size, decodes: [] } : size;
			const figures = await run({ ...work, threads });
			console.error(`${threads} thread(s), round ${round + 1}, ${subject}: ${JSON.stringify(figures)}`);
			samples[subject] ??= {};
			const byName = samples[subject];
			for (const [name, value] of Object.entries(figures)) byName[name] = [...(byName[name] ?? []), value];
		}
	}
	const medians = Object.fromEntries(
		Object.entries(samples).map(([subject, byName]) => [
			subject,
			Object.fromEntries(Object.entries(byName).map(([name, values]) => [name, median(values)])),
		]),
	);
	results.push({ threads, medians });
	const rows = [...names, ...others].map((name) => {
		const mine = medians[OURS]![name];
		const row: Record<string, string | number> = { figure: name };
		for (const [subject, byName] of Object.entries(medians)) {
			const value = byName[name];
			if (value === undefined) continue;
			row[subject] = value.toFixed(name.startsWith("MiB") ? 1 : 0);
			if (!subject.startsWith(OURS) && mine !== undefined) row[`ours / ${subject}`] = (mine / value).toFixed(2);
		}
		return row;
	});
	report(`Engine: tokens per second as STREAMSxCONTEXT, ${threads} thread(s), medians of ${rounds}`, rows);
}
const machine = { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version };
writeFileSync(output, JSON.stringify({ machine, rounds, ...size, results }, null, "\t"));
console.log(`\nwritten to ${output}`);
process.exit(0);
