// SPDX-License-Identifier: Apache-2.0
// Tiny models of many shapes against a plain implementation, and files that must be refused in words that help.

import { mkdtempSync, readFileSync, rmSync, truncateSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { rotaryFrequencies } from "../onnx/rope-cache.js";
import { dequantize } from "../weights/dequantize.js";
import { BLOCK_LAYOUTS, type BlockType } from "../weights/gguf-blocks.js";
import { ModelFileError } from "../weights/model-file-error.js";
import type { WeightType } from "../weights/weight-source.js";
import { loadModelRunner } from "./load-model-runner.js";
import { configFromJson } from "./model-config.js";
import type { ModelConfig, Quantization } from "./model-runner.js";
import { referenceLogits } from "./testing/llama-reference.js";
import { RunnerDriver } from "./testing/runner-driver.js";
import {
	encodeGguf,
	GgufEncoder,
	makeTinyLlama,
	type TinyGgufOptions,
	type TinyLlama,
	type TinyTensor,
	writeTinyFolder,
} from "./testing/tiny-llama.js";
import { encodeWeights, randomBlocks } from "./testing/weight-encoders.js";

/** Turning speeds of a model as its config.json says them. */
function frequenciesOf({ rope, rotaryDim, maxPositionEmbeddings }: ModelConfig): Float32Array {
	return rotaryFrequencies(rope, rotaryDim, maxPositionEmbeddings);
}

const root = mkdtempSync(join(tmpdir(), "variants-"));
afterAll(() => rmSync(root, { recursive: true }));
const cacheDir = join(root, "cache");
let paths = 0;
const newPath = (suffix = "") => join(root, `${paths++}${suffix}`);

const TEXT = [1, 17, 80, 3, 99, 42, 42, 7, 50, 66, 23, 5];

async function withRunner<T>(model: string, quantization: Quantization, use: (runner: RunnerDriver) => T): Promise<T> {
	const runner = await loadModelRunner({ model, maxNumSeqs: 2, maxModelLen: 32, quantization, cacheDir });
	try {
		return use(new RunnerDriver(runner));
	} finally {
		runner.close();
	}
}

/** Logits of the whole text: its first part as one chunk, the rest token by token. */
function logitsOf(runner: RunnerDriver): number[] {
	const half = TEXT.length >> 1;
	const out = [...runner.prefillAllLogits(0, Int32Array.from(TEXT.slice(0, half)), 0)];
	for (let i = half; i < TEXT.length; i++) {
		out.push(...runner.decode(1, Int32Array.of(TEXT[i]!), Int32Array.of(i)));
	}
	return out;
}

/** Root mean square of the differences, as a share of that of the expected numbers. */
function relativeError(actual: readonly number[], expected: readonly number[][]): number {
	const flat = expected.flat();
	expect(actual.length).toBe(flat.length);
	const error = flat.reduce((sum, value, i) => sum + (value - actual[i]!) ** 2, 0);
	return Math.sqrt(error / flat.reduce((sum, value) => sum + value ** 2, 0));
}

/** The model as stored types round it. */
function rounded(model: TinyLlama, type: (name: string) => WeightType, vectors: WeightType = "F32"): TinyLlama {
	const tensors = new Map<string, TinyTensor>();
	for (const [name, { shape, data }] of model.tensors) {
		const out = new Float32Array(data.length);
		const stored = shape.length === 1 ? vectors : type(name);
		dequantize(stored, encodeWeights(stored, data), out);
		tensors.set(name, { shape, data: out });
	}
	return { config: model.config, tensors };
}

function writeGguf(model: TinyLlama, options: TinyGgufOptions = {}): string {
	const path = newPath(".gguf");
	writeFileSync(path, encodeGguf(model, options));
	return path;
}

const FP32_ERROR = 1e-4;
/** What rounded activations and 8-bit weights may change in a model as small as these. */
const INT8_ERROR = 0.06;
const INT4_ERROR = 0.5;

describe("shapes", () => {
	const odd = { hidden_size: 80, num_attention_heads: 5, num_key_value_heads: 5, intermediate_size: 72 };
	for (const [title, overrides] of [
		["sizes that no block divides", { ...odd, vocab_size: 131 }],
		["the same with an output matrix of its own", { ...odd, vocab_size: 131, tie_word_embeddings: false }],
		["heads wider than the hidden size divided", { head_dim: 32, vocab_size: 100 }],
		["heads narrower than the hidden size divided", { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16 }],
		["one key/value head for all", { num_key_value_heads: 1 }],
		["one layer of many heads", { num_hidden_layers: 1, num_attention_heads: 8, num_key_value_heads: 4, head_dim: 16 }],
	] as const) {
		it(title, async () => {
			const tiny = makeTinyLlama(overrides, 11);
			const folder = writeTinyFolder(newPath(), tiny, { shards: 3 });
			const expected = referenceLogits(tiny, TEXT);
			for (const [quantization, bound] of [
				["none", FP32_ERROR],
				["auto", INT8_ERROR],
				["int8", INT8_ERROR],
				["int4", INT4_ERROR],
			] as const) {
				const logits = await withRunner(folder, quantization, logitsOf);
				expect(relativeError(logits, expected), quantization).toBeLessThan(bound);
			}
		});
	}

	for (const type of ["F16", "BF16"] as const) {
		it(`${type} throughout, norms included, from both kinds of files`, async () => {
			const tiny = makeTinyLlama({}, 5);
			const expected = referenceLogits(
				rounded(tiny, () => type, type),
				TEXT,
			);
			const folder = writeTinyFolder(newPath(), tiny, { type });
			expect(relativeError(await withRunner(folder, "none", logitsOf), expected)).toBeLessThan(FP32_ERROR);
			const gguf = writeGguf(tiny, { type, vectorType: type });
			expect(relativeError(await withRunner(gguf, "none", logitsOf), expected)).toBeLessThan(FP32_ERROR);
		});
	}

	it("a file of many types, untied", async () => {
		const tiny = makeTinyLlama({ tie_word_embeddings: false }, 9);
		const type = (name: string): WeightType => {
			if (name.includes("embed")) return "F16";
			if (name.includes("lm_head")) return "Q8_0";
			if (name.includes("down")) return "Q4_1";
			return name.includes("v_proj") ? "F32" : "Q4_0";
		};
		const path = writeGguf(tiny, { type });
		const expected = referenceLogits(rounded(tiny, type), TEXT);
		expect(relativeError(await withRunner(path, "none", logitsOf), expected)).toBeLessThan(FP32_ERROR);
		for (const quantization of ["auto", "int8", "int4"] as const) {
			const logits = await withRunner(path, quantization, logitsOf);
			expect(relativeError(logits, expected), quantization).toBeLessThan(quantization === "int4" ? 0.2 : INT8_ERROR);
		}
	});
});

describe("block types of GGUF files, embedding included", () => {
	it.each(Object.keys(BLOCK_LAYOUTS) as BlockType[])("%s", async (type) => {
		const tiny = makeTinyLlama({ hidden_size: 256, intermediate_size: 256, head_dim: 64, num_hidden_layers: 1 }, 3);
		let state = 7;
		const random = () => {
			state = (state * 16807) % 2147483647;
			return (state / 2147483647) * 2 - 1;
		};
		// Every matrix of one type, made of random blocks of the size of its weights.
		const blocks = (name: string, data: Float32Array) =>
			randomBlocks(type, data.length, name.includes("embed") ? 0.6 : 0.06, random);
		const path = newPath(".gguf");
		writeFileSync(path, encodeGguf(tiny, { type: () => type, encode: blocks }));
		const exact = await withRunner(path, "none", logitsOf);
		const expected = [exact];
		expect(Math.max(...exact) - Math.min(...exact)).toBeGreaterThan(1);
		for (const quantization of ["auto", "int8", "int4"] as const) {
			const logits = await withRunner(path, quantization, logitsOf);
			expect(relativeError(logits, expected), quantization).toBeLessThan(INT8_ERROR);
		}
		expect(await withRunner(path, "auto", (runner) => runner.runner.weightFormats)).toEqual([
			`${type.toLowerCase()} as stored`,
		]);
	});
});

describe("rotary scaling", () => {
	const llama3 = {
		rope_type: "llama3",
		factor: 8,
		low_freq_factor: 1,
		high_freq_factor: 4,
		original_max_position_embeddings: 64,
	};
	const linear = { type: "linear", factor: 4 };

	for (const scaling of [llama3, linear]) {
		it(`${scaling === linear ? "linear" : "llama3"} in config.json`, async () => {
			const tiny = makeTinyLlama({ rope_scaling: scaling });
			const frequencies = [...frequenciesOf(configFromJson("", tiny.config))];
			const logits = await withRunner(writeTinyFolder(newPath(), tiny), "none", logitsOf);
			expect(relativeError(logits, referenceLogits(tiny, TEXT, { frequencies }))).toBeLessThan(FP32_ERROR);
			expect(relativeError(logits, referenceLogits(tiny, TEXT))).toBeGreaterThan(0.01);
		});
	}

	it("factors and linear scaling in GGUF", async () => {
		const tiny = makeTinyLlama();
		const plain = [...frequenciesOf(configFromJson("", tiny.config))];
		const ropeFactors = plain.map((_, i) => 1 + i / 2);
		const factored = await withRunner(writeGguf(tiny, { ropeFactors }), "none", logitsOf);
		const divided = plain.map((frequency, i) => frequency / ropeFactors[i]!);
		expect(relativeError(factored, referenceLogits(tiny, TEXT, { frequencies: divided }))).toBeLessThan(FP32_ERROR);
		const metadata = { "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": { float: 4 } };
		const scaled = await withRunner(writeGguf(tiny, { metadata }), "none", logitsOf);
		const slower = plain.map((frequency) => frequency / 4);
		expect(relativeError(scaled, referenceLogits(tiny, TEXT, { frequencies: slower }))).toBeLessThan(FP32_ERROR);
	});

	it("is refused where it does not work", async () => {
		const short = writeGguf(makeTinyLlama(), { ropeFactors: [1, 2, 3] });
		await expect(withRunner(short, "none", logitsOf)).rejects.toThrow(
			/rope_freqs has 3 numbers for heads of which 16 turn/,
		);
		const other = writeGguf(makeTinyLlama(), { metadata: { "llama.rope.scaling.type": "other" } });
		await expect(withRunner(other, "none", logitsOf)).rejects.toThrow(/"other"; none, linear and yarn work/);
	});
});

describe("what a graph is made of is told", () => {
	const tiny = makeTinyLlama();
	const formats = (model: string, quantization: Quantization) =>
		withRunner(model, quantization, (runner) => runner.runner.weightFormats);

	it("for every way of quantizing", async () => {
		const folder = writeTinyFolder(newPath(), tiny);
		const gguf = writeGguf(tiny, { type: (name) => (name.includes("embed") ? "Q8_0" : "Q4_1") });
		expect(await formats(folder, "auto")).toEqual(["int8"]);
		expect(await formats(folder, "int4")).toEqual(["int4", "int8"]);
		expect(await formats(folder, "none")).toEqual(["fp32"]);
		expect(await formats(gguf, "auto")).toEqual(["q4_1 as stored", "q8_0 as stored"]);
		expect(await formats(gguf, "int8")).toEqual(["int8", "q8_0 as stored"]);
	});
});

describe("what cannot run is refused", () => {
	const tiny = makeTinyLlama();

	async function refusal(model: string): Promise<string> {
		const error = await withRunner(model, "auto", () => undefined).then(
			() => undefined,
			(cause: unknown) => cause,
		);
		expect(error).toBeInstanceOf(ModelFileError);
		return (error as ModelFileError).message;
	}

	/** A folder whose config.json has other settings than its weights. */
	function folderWith(settings: Record<string, unknown>, tensors = tiny.tensors): string {
		return writeTinyFolder(newPath(), { config: { ...tiny.config, ...settings }, tensors });
	}

	function withTensor(name: string, tensor: TinyTensor): Map<string, TinyTensor> {
		return new Map(tiny.tensors).set(name, tensor);
	}

	for (const [number, type] of [
		[9, "Q8_1"],
		[18, "IQ3_XXS"],
		[39, "MXFP4"],
		[99, "number 99"],
	] as const) {
		it(`GGUF tensors of the type ${type}`, async () => {
			const header = new GgufEncoder().bytes(Buffer.from("GGUF")).u32(3).u64(1).u64(1);
			header.string("general.architecture").value("llama");
			header.string("blk.0.ffn_up.weight").u32(2).u64(256).u64(4).u32(number).u64(0);
			const path = newPath(".gguf");
			writeFileSync(path, Buffer.concat([header.finish(), Buffer.alloc(8192)]));
			expect(await refusal(path)).toContain(
				`tensor blk.0.ffn_up.weight has the type ${type}, which cannot be read; use a file with the types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, `,
			);
		});
	}

	it("other families, before anything else about them", async () => {
		for (const architecture of ["gemma", "qwen3moe", "mamba"]) {
			const header = new GgufEncoder().bytes(Buffer.from("GGUF")).u32(3).u64(1).u64(1);
			header.string("general.architecture").value(architecture);
			header.string("blk.0.ffn_up.weight").u32(2).u64(256).u64(4).u32(18).u64(0);
			const path = newPath(".gguf");
			writeFileSync(path, Buffer.concat([header.finish(), Buffer.alloc(8192)]));
			expect(await refusal(path)).toContain(
				`general.architecture is "${architecture}"; llama, qwen2, qwen3, gemma2, gemma3, phi3, smollm3, olmo2 work`,
			);
		}
		expect(await refusal(folderWith({ architectures: ["Qwen3MoeForCausalLM"], model_type: "qwen3_moe" }))).toMatch(
			/"Qwen3MoeForCausalLM" is not supported; LlamaForCausalLM, .*Qwen3ForCausalLM, .* work/,
		);
		expect(await refusal(folderWith({ architectures: undefined, model_type: "gemma" }))).toMatch(/"gemma"/);
	});

	it("tensors that the family's layers have no place for", async () => {
		const norm = withTensor("model.layers.0.self_attn.q_norm.weight", { shape: [16], data: new Float32Array(16) });
		expect(await refusal(folderWith({}, norm))).toMatch(
			/the tensor model\.layers\.0\.self_attn\.q_norm\.weight has no place in the layers of the family llama/,
		);
	});

	it("weights that are quantized in another way", async () => {
		expect(await refusal(folderWith({ quantization_config: { quant_method: "gptq" } }))).toMatch(
			/quantized \(quantization_config: "gptq"\).*F32, F16 and BF16 safetensors work/,
		);
		const folder = folderWith({});
		const path = join(folder, "model.safetensors");
		const bytes = readFileSync(path);
		const length = Number(bytes.readBigUInt64LE(0));
		const json = JSON.parse(bytes.toString("utf8", 8, 8 + length)) as Record<string, { dtype: string }>;
		json["model.layers.1.mlp.up_proj.weight"]!.dtype = "I32";
		const header = Buffer.from(JSON.stringify(json));
		const size = Buffer.alloc(8);
		size.writeBigUInt64LE(BigInt(header.length));
		writeFileSync(path, Buffer.concat([size, header, bytes.subarray(8 + length)]));
		expect(await refusal(folder)).toMatch(/up_proj\.weight has the type I32, which cannot be read; F32, F16/);
	});

	it("weights of other shapes than the settings", async () => {
		expect(await refusal(folderWith({ intermediate_size: 128 }))).toMatch(
			/is 96 x 64; the configuration needs 128 x 64/,
		);
		expect(await refusal(folderWith({ num_key_value_heads: 4 }))).toMatch(/k_proj\.weight is 32 x 64;.* needs 64 x 64/);
		expect(await refusal(folderWith({ num_hidden_layers: 3 }))).toMatch(/model\.layers\.2\..* is missing/);
		expect(await refusal(folderWith({ head_dim: 15 }))).toMatch(/no rotary pairs/);
		expect(await refusal(folderWith({ head_dim: 8 }))).toMatch(/heads of 8 do not work; multiples of 16 do/);
	});

	it("files that are cut short or missing", async () => {
		const short = folderWith({});
		truncateSync(join(short, "model.safetensors"), 5000);
		expect(await refusal(short)).toMatch(/model\.safetensors.*(cut short|bytes of data)/);
		const lost = writeTinyFolder(newPath(), tiny, { shards: 2 });
		unlinkSync(join(lost, "model-2-of-2.safetensors"));
		expect(await refusal(lost)).toMatch(/model-2-of-2\.safetensors: cannot be opened \(ENOENT\)/);
		const bare = folderWith({});
		unlinkSync(join(bare, "config.json"));
		expect(await refusal(bare)).toMatch(/has no config\.json/);
		writeFileSync(join(bare, "config.json"), "{");
		expect(await refusal(bare)).toMatch(/config\.json: cannot be read as JSON/);
		expect(await refusal(writeGguf(tiny, { metadata: { "split.count": 3 } }))).toMatch(/one of 3 parts; merge them/);
	});
});
