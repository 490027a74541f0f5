// SPDX-License-Identifier: Apache-2.0
// The engines that run.ts compares, each behind the same few questions.
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { createEngineThread } from "@dynamo-ts/engine";

/** What one engine is asked to do. */
export interface Workload {
	readonly threads: number;
	/** Tokens that each stream generates. */
	readonly newTokens: number;
	/** Tokens of the prompt whose reading is timed. */
	readonly prefillTokens: number;
	/** Streams at once and tokens before the first new one. */
	readonly decodes: readonly { readonly streams: number; readonly context: number }[];
}

/** Name of a decode figure. */
export function decodeName(streams: number, context: number): string {
	return `${streams}x${context}`;
}

/** Starts an engine, runs the workload once and stops it: tokens per second by name, and other figures. */
export type Subject = (work: Workload) => Promise<Record<string, number>>;

/** Tokens of a prompt, the same for every engine; streams differ in the last ones. */
function prompt(tokens: number, stream: number): number[] {
	return Array.from(
		{ length: tokens },
		(_, i) => 1000 + ((i * 7919 + (i >= tokens - 4 ? stream : 0) * 104729) % 40000),
	);
}

/** Collects when each stream got its tokens, and counts those while all of them were generating. */
class Arrivals {
	readonly #times: number[][];

	constructor(streams: number) {
		this.#times = Array.from({ length: streams }, () => []);
	}

	add(stream: number, tokens: number): void {
		for (let i = 0; i < tokens; i++) this.#times[stream]!.push(performance.now());
	}

	/** Tokens per second between the last stream's first token and the first stream's last one. */
	rate(): number {
		const from = Math.max(...this.#times.map((times) => times[0]!));
		const to = Math.min(...this.#times.map((times) => times.at(-1)!));
		const counted = this.#times.flat().filter((time) => time > from && time <= to).length;
		return counted / ((to - from) / 1000);
	}
}

/** Our engine, in its thread as `dynamo worker` runs it. */
export function ours(options: Parameters<typeof createEngineThread>[0]): Subject {
	return async (work) => {
		const longest = Math.max(work.prefillTokens, ...work.decodes.map(({ context }) => context));
		const begin = performance.now();
		const engine = createEngineThread({
			maxNumSeqs: Math.max(3, ...work.decodes.map(({ streams }) => streams)),
			maxModelLen: longest + work.newTokens * 4,
			...options,
			intraOpThreads: work.threads,
		});
		const info = await engine.start();
		const figures: Record<string, number> = {
			"ready (ms)": performance.now() - begin,
			"MiB per 1,000 cached tokens": (info.kvBytesPerToken * 1000) / 2 ** 20,
		};
		let requests = 0;
		const generate = (tokenIds: number[], maxTokens: number, onTokens: (count: number) => void) =>
			new Promise<void>((resolve, reject) => {
				engine.submit(
					{
						requestId: `r${requests++}`,
						tokenIds,
						sampling: { temperature: 0 },
						stop: { maxTokens, ignoreEos: true },
					},
					(output) => {
						if (output.error) return reject(new Error(output.error.message));
						onTokens(output.tokenIds.length);
						if (output.finishReason) resolve();
					},
				);
			});
		try {
			await generate(prompt(32, 7), 8, () => undefined);
			const from = performance.now();
			await generate(prompt(work.prefillTokens, 3).reverse(), 1, () => undefined);
			figures.prefill = work.prefillTokens / ((performance.now() - from) / 1000);
			for (const { streams, context } of work.decodes) {
				const arrivals = new Arrivals(streams);
				// Early streams go on until the last one has begun and got its tokens.
				const tokens = work.newTokens * (streams > 1 ? 2 : 1);
				await Promise.all(
					Array.from({ length: streams }, (_, stream) =>
						generate(prompt(context, stream), tokens, (count) => arrivals.add(stream, count)),
					),
				);
				figures[decodeName(streams, context)] = arrivals.rate();
			}
			// A prompt that says the same over and over: its continuation copies from it.
			const phrase = prompt(24, 1);
			const copying = new Arrivals(1);
			await generate(
				Array.from({ length: 240 }, (_, i) => phrase[i % phrase.length]!),
				work.newTokens * 3,
				(count) => copying.add(0, count),
			);
			figures["copying, 1 stream"] = copying.rate();
		} finally {
			await engine.close();
		}
		return figures;
	};
}

/** llama.cpp on the GGUF, through node-llama-cpp, which is found in a node_modules folder of the caller's. */
export function llamaCpp(modulesFolder: string, gguf: string): Subject {
	return async (work) => {
		const require = createRequire(join(modulesFolder, "x.js"));
		const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
		const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, maxThreads: work.threads });
		const model = await llama.loadModel({ modelPath: gguf });
		const figures: Record<string, number> = {};
		const decode = async (streams: number, tokens: number, count: number) => {
			const contextSize = tokens + count * 2 + 16;
			const context = await model.createContext({ sequences: streams, contextSize, threads: work.threads });
			const arrivals = new Arrivals(streams);
			const begin = performance.now();
			let first = 0;
			await Promise.all(
				Array.from({ length: streams }, async (_, stream) => {
					const sequence = context.getSequence();
					let seen = 0;
					const options = { temperature: 0, yieldEogToken: true };
					for await (const _token of sequence.evaluate(prompt(tokens, stream), options)) {
						if (first === 0) first = performance.now() - begin;
						arrivals.add(stream, 1);
						if (++seen === count) break;
					}
				}),
			);
			await context.dispose();
			return { rate: arrivals.rate(), first };
		};
		try {
			await decode(1, 32, 8);
			figures.prefill = work.prefillTokens / ((await decode(1, work.prefillTokens, 2)).first / 1000);
			for (const { streams, context } of work.decodes) {
				const { rate } = await decode(streams, context, work.newTokens * (streams > 1 ? 2 : 1));
				figures[decodeName(streams, context)] = rate;
			}
		} finally {
			await model.dispose();
			await llama.dispose();
		}
		return figures;
	};
}

/** onnxruntime-genai on a model folder of its own, by a Python that has it. */
export function genai(python: string, folder: string): Subject {
	return async (work) => {
		const script = new URL("./genai.py", import.meta.url).pathname;
		const names = work.decodes.map(({ streams, context }) => decodeName(streams, context));
		const args = [script, folder, work.threads, work.newTokens, work.prefillTokens, ...names].map(String);
		const child = spawn(python, args, { stdio: ["ignore", "pipe", "inherit"] });
		const figures: Record<string, number> = {};
		for await (const line of createInterface({ input: child.stdout })) {
			const { name, rate } = JSON.parse(line) as { name: string; rate: number };
			figures[name] = rate;
		}
		return figures;
	};
}
