// SPDX-License-Identifier: Apache-2.0
import { once } from "node:events";
import {
	existsSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	rmSync,
	truncateSync,
	utimesSync,
	writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { afterAll, describe, expect, it } from "vitest";
import { rotaryFrequencies } from "../onnx/rope-cache.js";
import { dequantize } from "../weights/dequantize.js";
import type { WeightType } from "../weights/weight-source.js";
import { loadModelRunner } from "./load-model-runner.js";
import { configFromJson } from "./model-config.js";
import type { ModelConfig, ModelRunner, ModelRunnerOptions } from "./model-runner.js";
import { describeModel } from "./open-model.js";
import { referenceLogits } from "./testing/llama-reference.js";
import { RunnerDriver } from "./testing/runner-driver.js";
import { encodeGguf, makeTinyLlama, type TinyLlama, type TinyTensor, writeTinyFolder } from "./testing/tiny-llama.js";
import { encodeWeights } from "./testing/weight-encoders.js";

/** Turning speeds of a model as its config.json says them. */
function frequenciesOf({ rope, rotaryDim, maxPositionEmbeddings }: ModelConfig): Float32Array {
	return rotaryFrequencies(rope, rotaryDim, maxPositionEmbeddings);
}

const root = mkdtempSync(join(tmpdir(), "runner-"));
afterAll(() => rmSync(root, { recursive: true }));
let paths = 0;
const newPath = (suffix = "") => join(root, `${paths++}${suffix}`);
const cacheDir = join(root, "cache");

function load(model: string, options: Partial<ModelRunnerOptions> = {}): Promise<ModelRunner> {
	return loadModelRunner({ model, maxNumSeqs: 4, maxModelLen: 64, quantization: "none", cacheDir, ...options });
}

async function withRunner<T>(
	model: string,
	options: Partial<ModelRunnerOptions>,
	use: (runner: RunnerDriver) => T,
): Promise<T> {
	const runner = await load(model, options);
	try {
		return use(new RunnerDriver(runner));
	} finally {
		runner.close();
	}
}

function writeGguf(model: TinyLlama, type: WeightType | ((name: string) => WeightType) = "F32"): string {
	const path = newPath(".gguf");
	writeFileSync(path, encodeGguf(model, { type }));
	return path;
}

/** The model as a stored type rounds it. */
function rounded(model: TinyLlama, type: (name: string) => WeightType): TinyLlama {
	const tensors = new Map<string, TinyTensor>();
	for (const [name, { shape, data }] of model.tensors) {
		const out = new Float32Array(data.length);
		const stored = shape.length === 1 ? "F32" : type(name);
		dequantize(stored, encodeWeights(stored, data), out);
		tensors.set(name, { shape, data: out });
	}
	return { config: model.config, tensors };
}

const TEXT = [1, 17, 180, 3, 99, 42, 42, 7, 150, 66, 23, 5, 199, 0, 88, 120, 31];

const ids = (list: readonly number[]) => Int32Array.from(list);

/** Largest difference between two sets of logits. */
function distance(actual: ArrayLike<number>, expected: readonly number[][] | ArrayLike<number>): number {
	const flat = Array.from(expected as ArrayLike<number | number[]>).flat();
	expect(actual.length).toBe(flat.length);
	return flat.reduce((most, value, i) => Math.max(most, Math.abs(value - actual[i]!)), 0);
}

const allLogits = (runner: RunnerDriver, text: readonly number[] = TEXT, slot = 0) =>
	runner.prefillAllLogits(slot, Int32Array.from(text), 0);

const model = makeTinyLlama();

describe("fp32 graphs against a plain implementation", () => {
	for (const [title, overrides] of [
		["shared embedding", {}],
		["an output matrix of its own", { tie_word_embeddings: false }],
		["one key/value head per head", { num_key_value_heads: 4 }],
		["heads wider than the hidden size divided", { head_dim: 32 }],
		["another rotary base", { rope_theta: 500 }],
	] as const) {
		it(title, async () => {
			const tiny = makeTinyLlama(overrides, 7);
			const logits = await withRunner(writeTinyFolder(newPath(), tiny), {}, allLogits);
			expect(distance(logits, referenceLogits(tiny, TEXT))).toBeLessThan(1e-3);
		});
	}

	it("rope scaling", async () => {
		const scaling = {
			rope_type: "llama3",
			factor: 8,
			low_freq_factor: 1,
			high_freq_factor: 4,
			original_max_position_embeddings: 64,
		};
		const tiny = makeTinyLlama({ rope_scaling: scaling });
		const frequencies = [...frequenciesOf(configFromJson("", tiny.config))];
		const logits = await withRunner(writeTinyFolder(newPath(), tiny), {}, allLogits);
		expect(distance(logits, referenceLogits(tiny, TEXT, { frequencies }))).toBeLessThan(1e-3);
		expect(distance(logits, referenceLogits(tiny, TEXT))).toBeGreaterThan(1e-2);
	});

	it("GGUF and safetensors of one model give the same bits", async () => {
		const fromFolder = await withRunner(writeTinyFolder(newPath(), model, { shards: 2 }), {}, allLogits);
		const fromGguf = await withRunner(writeGguf(model), {}, allLogits);
		expect(distance(fromGguf, fromFolder)).toBe(0);
	});

	for (const type of ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"] as const) {
		it(`reads ${type} exactly`, async () => {
			const logits = await withRunner(writeGguf(model, type), {}, allLogits);
			expect(
				distance(
					logits,
					referenceLogits(
						rounded(model, () => type),
						TEXT,
					),
				),
			).toBeLessThan(1e-3);
		});
	}
});

describe("quantized graphs", () => {
	/** Of a typical logit, what the 8-bit activations of the block kernels may change. */
	const ACTIVATION_ERROR = 0.04;

	function relativeDistance(actual: Float32Array, expected: readonly number[][]): number {
		const flat = expected.flat();
		const error = flat.reduce((sum, value, i) => sum + (value - actual[i]!) ** 2, 0);
		return Math.sqrt(error / flat.reduce((sum, value) => sum + value ** 2, 0));
	}

	for (const type of ["Q8_0", "Q4_0", "Q4_1"] as const) {
		it(`auto computes with ${type} as stored`, async () => {
			const logits = await withRunner(writeGguf(model, type), { quantization: "auto" }, allLogits);
			expect(
				relativeDistance(
					logits,
					referenceLogits(
						rounded(model, () => type),
						TEXT,
					),
				),
			).toBeLessThan(ACTIVATION_ERROR);
		});
	}

	it("a file whose q, k and v have different types, and an embedding with offsets", async () => {
		const type = (name: string): WeightType =>
			name.includes("v_proj") ? "Q8_0" : name.includes("embed") ? "Q4_1" : "Q4_0";
		const logits = await withRunner(writeGguf(model, type), { quantization: "auto" }, allLogits);
		expect(relativeDistance(logits, referenceLogits(rounded(model, type), TEXT))).toBeLessThan(ACTIVATION_ERROR);
	});

	for (const [quantization, bound] of [
		["int8", 0.05],
		["auto", 0.05],
		["int4", 0.4],
	] as const) {
		it(`${quantization} of fp32 weights is near the model`, async () => {
			const folder = writeTinyFolder(newPath(), model);
			const logits = await withRunner(folder, { quantization }, allLogits);
			expect(relativeDistance(logits, referenceLogits(model, TEXT))).toBeLessThan(bound);
		});
	}
});

describe("cache", () => {
	it("a sequence that begins with persisted blocks of another gives the same bits", async () => {
		const text = [...TEXT, ...TEXT, ...TEXT].map((id, i) => (id + i) % 200);
		await withRunner(writeTinyFolder(newPath(), model), { blockSize: 8 }, ({ runner }) => {
			const row = (id: number, start: number, first: number) => ({
				id,
				tokens: Int32Array.from(text),
				start,
				end: text.length,
				blocks: Int32Array.from({ length: 8 }, (_, i) => (i < start / 8 ? i : first + i)),
				wanted: 1,
				isPrefill: true,
			});
			const whole = runner
				.execute([row(1, 0, 0)])
				.row(0)
				.slice();
			for (let i = 0; i < 5; i++) runner.persist(1, i, i);
			runner.release(1);
			// Another text in the same slot, so that only the pool has the blocks.
			runner.execute([{ ...row(2, 0, 20), tokens: Int32Array.from(text, (id) => (id + 5) % 200) }]);
			for (const count of [1, 3, 5]) {
				const logits = runner.execute([row(10 + count, count * 8, 30)]).row(0);
				expect(distance(logits, whole)).toBe(0);
				runner.release(10 + count);
			}
			const content = new Uint8Array(runner.blockBytes);
			runner.readBlock(2, content);
			runner.writeBlock(14, content);
			const moved = { ...row(30, 24, 40), blocks: Int32Array.of(0, 1, 14, 40, 41, 42, 43) };
			expect(distance(runner.execute([moved]).row(0), whole)).toBe(0);
			expect(() => runner.writeBlock(0, new Uint8Array(3))).toThrow(/bytes/);
		});
	});

	it("guesses, prompts and single tokens of several sequences in one step do not mix", async () => {
		await withRunner(writeTinyFolder(newPath(), model), {}, (driver) => {
			const expected = referenceLogits(model, TEXT);
			for (const id of [0, 1, 2]) driver.prefill(id, ids(TEXT.slice(0, 5)), 0, false);
			// A gap: sequence 1 is gone, and 2 is the only other one in the batch.
			driver.release(1);
			const tokens = ids(TEXT);
			const blocks = ids([0, 1, 2, 3]);
			const more = { tokens, blocks, wanted: 1, isPrefill: false };
			const logits = driver.runner.execute([
				{ ...more, id: 0, start: 5, end: 8, wanted: 3 },
				{ ...more, id: 2, start: 5, end: 6, blocks: ids([8, 9]) },
				{ ...more, id: 7, start: 0, end: 9, blocks: ids([12, 13]), isPrefill: true },
			]);
			for (const [i, position] of [5, 6, 7, 5, 8].entries()) {
				expect(distance(logits.row(i), expected[position]!)).toBeLessThan(1e-3);
			}
		});
	});
});

describe("numbers do not depend on company", () => {
	const folder = writeTinyFolder(newPath(), model);
	const V = model.config.vocab_size;

	it("decode continues a prefill as the reference does", async () => {
		await withRunner(folder, {}, (runner) => {
			const expected = referenceLogits(model, TEXT);
			expect(distance(runner.prefill(0, ids(TEXT.slice(0, 5)), 0, true)!, expected[4]!)).toBeLessThan(1e-3);
			for (let length = 5; length < TEXT.length; length++) {
				const logits = runner.decode(1, ids([TEXT[length]!]), ids([length]));
				expect(distance(logits, expected[length]!)).toBeLessThan(1e-3);
			}
		});
	});

	const asStored = writeGguf(model, (name) => (name.includes("embed") ? "Q8_0" : "Q4_1"));
	for (const [quantization, path] of [
		["none", folder],
		["int8", folder],
		["auto", asStored],
	] as const) {
		it(`${quantization}: the bits of a text do not depend on its chunks, slot or batch mates`, async () => {
			await withRunner(path, { quantization }, (runner) => {
				const whole = runner.prefill(0, ids(TEXT), 0, true)!.slice();
				for (const chunk of [1, 2, 5, 16]) {
					let last: Float32Array | undefined;
					for (let at = 0; at < TEXT.length; at += chunk) {
						last = runner.prefill(3, ids(TEXT.slice(at, at + chunk)), at, at + chunk >= TEXT.length);
					}
					// A text of lone tokens begins with one that has no other before it.
					if (chunk > 1) expect(distance(last!, whole)).toBe(0);
					else expect(distance(last!, whole)).toBeLessThan(1);
				}
				const alone = runner.decode(1, ids([9]), ids([TEXT.length])).slice();
				for (let batch = 2; batch <= 4; batch++) {
					for (let slot = 1; slot < batch; slot++) runner.prefill(slot, ids(TEXT.slice(0, slot * 3)), 0, false);
					runner.prefill(batch - 1, ids(TEXT), 0, false);
					const lengths = Array.from({ length: batch }, (_, slot) =>
						slot === 0 || slot === batch - 1 ? TEXT.length : slot * 3,
					);
					const logits = runner.decode(batch, ids(new Array(batch).fill(9)), ids(lengths));
					expect(distance(logits.subarray(0, V), alone)).toBe(0);
					expect(distance(logits.subarray((batch - 1) * V), alone)).toBe(0);
				}
			});
		});
	}

	it("gives no logits when none are wanted, and all when all are", async () => {
		await withRunner(folder, {}, (runner) => {
			expect(runner.prefill(0, ids(TEXT), 0, false)).toBeUndefined();
			const all = allLogits(runner);
			expect(distance(runner.prefill(1, ids(TEXT), 0, true)!, all.subarray(-V))).toBe(0);
			// The larger memory for all logits must not disturb later steps.
			expect(runner.decode(2, ids([1, 2]), ids([17, 17])).length).toBe(2 * V);
			expect(runner.runner.kvBytesPerToken).toBe(2 * 2 * 2 * 16 * 4);
		});
	});

	it("refuses what does not fit and goes on", async () => {
		await withRunner(folder, {}, (runner) => {
			for (let id = 0; id < 4; id++) runner.prefill(id, ids([1]), 0, true);
			expect(() => runner.prefill(4, ids([1]), 0, true)).toThrow(/more than 4 sequences/);
			runner.release(3);
			expect(() => runner.prefill(0, ids([]), 0, true)).toThrow(RangeError);
			expect(() => runner.prefill(0, ids(new Array(65).fill(1)), 0, true)).toThrow(/do not fit a sequence of 64/);
			expect(() => runner.prefill(0, ids([200]), 0, true)).toThrow(/token 200/);
			expect(() => runner.decode(1, ids([-1]), ids([0]))).toThrow(/token -1/);
			expect(() => runner.decode(1, ids([1]), ids([64]))).toThrow(/do not fit/);
			expect(distance(allLogits(runner), referenceLogits(model, TEXT))).toBeLessThan(1e-3);
		});
	});
});

describe("loading", () => {
	const stages = async (path: string, options: Partial<ModelRunnerOptions> = {}) => {
		const seen = new Set<string>();
		const runner = await load(path, { ...options, onProgress: (stage) => seen.add(stage) });
		const logits = allLogits(new RunnerDriver(runner));
		runner.close();
		return { seen: [...seen], logits };
	};

	it("builds a graph once, again when the model changes, and again when the cache is broken", async () => {
		const cache = join(root, "cache-life");
		const folder = writeTinyFolder(newPath(), model);
		const first = await stages(folder, { cacheDir: cache });
		expect(first.seen).toEqual(["build", "load"]);
		expect((await stages(folder, { cacheDir: cache })).seen).toEqual(["load"]);
		expect(readdirSync(cache)).toHaveLength(1);
		const [name] = readdirSync(cache);
		for (const file of ["weights.bin", "model.onnx", "manifest.json"]) {
			truncateSync(join(cache, name!, file), 10);
			const again = await stages(folder, { cacheDir: cache });
			expect(again.seen).toEqual(["build", "load"]);
			expect(distance(again.logits, first.logits)).toBe(0);
			expect(readdirSync(cache)).toEqual([name]);
		}
		utimesSync(join(folder, "model.safetensors"), 1, 1);
		expect((await stages(folder, { cacheDir: cache })).seen).toEqual(["build", "load"]);
		expect(readdirSync(cache)).toHaveLength(2);
	});

	it("keeps the graphs used last when it builds another", async () => {
		const cache = join(root, "cache-evict");
		const folders = Array.from({ length: 6 }, (_, i) => writeTinyFolder(newPath(), makeTinyLlama({}, 20 + i)));
		const names: string[] = [];
		const build = async (i: number) => {
			(await load(folders[i]!, { cacheDir: cache })).close();
			const name = readdirSync(cache).find((one) => !names.includes(one));
			if (name !== undefined) names[i] = name;
		};
		const usedHoursAgo = (i: number, hours: number) => {
			const then = Date.now() / 1000 - hours * 3600;
			utimesSync(join(cache, names[i]!, "manifest.json"), then, then);
		};
		for (let i = 0; i < 5; i++) await build(i);
		// All are too young to be removed.
		expect(readdirSync(cache)).toHaveLength(5);
		for (let i = 0; i < 5; i++) usedHoursAgo(i, 5 - i);
		// Loading the oldest makes it the youngest.
		await build(0);
		await build(5);
		expect(readdirSync(cache).sort()).toEqual([names[0], names[3], names[4], names[5]].sort());
	});

	it("clears away what a dead process left, and nothing younger", async () => {
		const cache = join(root, "cache-stale");
		const stale = join(cache, "0123.building-0123456789ab");
		const young = join(cache, "0123.building-ba9876543210");
		for (const path of [stale, young]) mkdirSync(path, { recursive: true });
		utimesSync(stale, 1, 1);
		(await load(writeTinyFolder(newPath(), model), { cacheDir: cache })).close();
		expect(existsSync(stale)).toBe(false);
		expect(existsSync(young)).toBe(true);
	});

	it("gives the same graph to two threads that build it at once", async () => {
		const cache = join(root, "cache-race");
		const folder = writeTinyFolder(newPath(), model);
		const script = fileURLToPath(new URL("../../dist/model/load-model-runner.js", import.meta.url));
		const code = `import(${JSON.stringify(pathToFileURL(script).href)}).then(async ({ loadModelRunner }) => {
			const runner = await loadModelRunner(require("node:worker_threads").workerData);
			const row = { id: 0, tokens: Int32Array.of(1, 2, 3), start: 0, end: 3, blocks: Int32Array.of(0), wanted: 1 };
			const logits = runner.execute([{ ...row, isPrefill: true }]).row(0).slice();
			runner.close();
			require("node:worker_threads").parentPort.postMessage(logits);
		})`;
		const workerData = { model: folder, maxNumSeqs: 1, maxModelLen: 64, quantization: "int8", cacheDir: cache };
		const results = await Promise.all(
			[1, 2, 3].map(async () => {
				const worker = new Worker(code, { eval: true, workerData });
				const exit = once(worker, "exit");
				const [logits] = (await once(worker, "message")) as [Float32Array];
				expect(await exit).toEqual([0]);
				return logits;
			}),
		);
		expect(readdirSync(cache)).toHaveLength(1);
		const here = await withRunner(folder, { quantization: "int8", cacheDir: cache }, (runner) =>
			runner.prefill(0, Int32Array.of(1, 2, 3), 0, true),
		);
		for (const logits of results) expect(logits).toEqual(here);
	});

	it("leaves nothing behind when a build fails", async () => {
		const cache = join(root, "cache-fail");
		const broken: TinyLlama = { config: model.config, tensors: new Map(model.tensors) };
		(broken.tensors as Map<string, TinyTensor>).delete("model.layers.1.mlp.up_proj.weight");
		await expect(load(writeTinyFolder(newPath(), broken), { cacheDir: cache })).rejects.toThrow(
			/the tensor model\.layers\.1\.mlp\.up_proj\.weight is missing/,
		);
		expect(readdirSync(cache)).toEqual([]);
	});

	it("says what is wrong with a path or a size", async () => {
		await expect(load(join(root, "nowhere"))).rejects.toThrow(/nowhere: does not exist/);
		await expect(load(root)).rejects.toThrow(/has no config\.json/);
		const folder = writeTinyFolder(newPath(), model);
		await expect(load(folder, { maxModelLen: 129 })).rejects.toThrow(/made for 128 tokens/);
		await expect(load(folder, { maxNumSeqs: 0 })).rejects.toThrow(/maxNumSeqs is 0/);
		const file = newPath();
		writeFileSync(file, "");
		await expect(load(folder, { cacheDir: file })).rejects.toThrow(/cache cannot be written/);
		const wrong = writeTinyFolder(newPath(), { config: { ...model.config, vocab_size: 100 }, tensors: model.tensors });
		await expect(load(wrong)).rejects.toThrow(/embed_tokens\.weight is 200 x 64; the configuration needs 100 x 64/);
	});

	it("describes a model without reading weights", () => {
		const folder = writeTinyFolder(newPath(), model, { type: "BF16" });
		const described = describeModel(folder);
		expect(described).toMatchObject({ format: "safetensors", weightTypes: { BF16: model.tensors.size } });
		expect(described.files.every(existsSync)).toBe(true);
		const gguf = describeModel(writeGguf(model, "Q4_0"));
		expect(gguf.config).toMatchObject({ vocabSize: 200, hiddenSize: 64, numKvHeads: 2, eosTokenIds: [2] });
		expect(gguf.weightTypes).toEqual({ F32: 5, Q4_0: 15 });
		expect(gguf.gguf!.get("general.architecture")).toBe("llama");
	});
});
