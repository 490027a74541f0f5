// SPDX-License-Identifier: Apache-2.0
// Settings as the published models of each family have them, in older and newer forms of config.json.

import { describe, expect, it } from "vitest";
import { rotaryFrequencies, rotaryTables } from "../onnx/rope-cache.js";
import { configFromJson } from "./model-config.js";
import type { ModelConfig } from "./model-runner.js";

type Json = Record<string, unknown>;

const SIZES: Json = {
	vocab_size: 1000,
	hidden_size: 256,
	intermediate_size: 512,
	num_hidden_layers: 4,
	num_attention_heads: 4,
	num_key_value_heads: 2,
	max_position_embeddings: 4096,
	rms_norm_eps: 1e-6,
};
const read = (architecture: string, settings: Json): ModelConfig =>
	configFromJson("config.json", { ...SIZES, architectures: [architecture], ...settings });
const windows = (config: ModelConfig) => config.layers.map(({ window }) => window);
const ropes = (config: ModelConfig) => config.layers.map(({ rope }) => rope);

describe("windows", () => {
	it("Mistral: in all layers; null means none, no setting the default", () => {
		expect(windows(read("MistralForCausalLM", { sliding_window: 1024 }))).toEqual([1024, 1024, 1024, 1024]);
		expect(windows(read("MistralForCausalLM", { sliding_window: null }))).toEqual([null, null, null, null]);
		expect(windows(read("MistralForCausalLM", {}))).toEqual([4096, 4096, 4096, 4096]);
	});

	it("Qwen: only where they are switched on, from max_window_layers on", () => {
		const settings = { sliding_window: 512, max_window_layers: 3 };
		expect(windows(read("Qwen2ForCausalLM", settings))).toEqual([null, null, null, null]);
		expect(windows(read("Qwen2ForCausalLM", { ...settings, use_sliding_window: true }))).toEqual([
			null,
			null,
			null,
			512,
		]);
	});

	it("Gemma 2: every other layer; Gemma 3: all but every sixth", () => {
		expect(windows(read("Gemma2ForCausalLM", { sliding_window: 64 }))).toEqual([64, null, 64, null]);
		const gemma3 = read("Gemma3ForCausalLM", { num_hidden_layers: 7, sliding_window: 64 });
		expect(windows(gemma3)).toEqual([64, 64, 64, 64, 64, null, 64]);
		expect(ropes(gemma3)).toEqual(["local", "local", "local", "local", "local", "global", "local"]);
		const other = read("Gemma3ForCausalLM", { num_hidden_layers: 4, sliding_window: 64, sliding_window_pattern: 2 });
		expect(windows(other)).toEqual([64, null, 64, null]);
	});

	it("layer_types win", () => {
		const types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"];
		expect(windows(read("Gemma2ForCausalLM", { sliding_window: 64, layer_types: types }))).toEqual([
			null,
			64,
			null,
			64,
		]);
	});
});

describe("Gemma", () => {
	it("scales embeddings and attention by its own numbers and caps logits", () => {
		const config = read("Gemma2ForCausalLM", { query_pre_attn_scalar: 144 });
		expect(config).toMatchObject({
			headDim: 256,
			attentionScale: 1 / 12,
			embeddingScale: 16,
			attentionSoftcap: 50,
			logitSoftcap: 30,
			normOffset: 1,
		});
		expect(read("Gemma3ForCausalLM", {})).toMatchObject({ attentionSoftcap: null, logitSoftcap: null });
		expect(() => read("Gemma2ForCausalLM", { hidden_activation: "gelu" })).toThrow(
			/hidden_activation is "gelu"; gelu_pytorch_tanh works/,
		);
	});

	it("3: the text part of a model that sees images, with the defaults of its class", () => {
		const config = configFromJson("config.json", {
			architectures: ["Gemma3ForConditionalGeneration"],
			model_type: "gemma3",
			text_config: {
				model_type: "gemma3_text",
				hidden_size: 2560,
				intermediate_size: 10240,
				num_hidden_layers: 34,
				rope_scaling: { factor: 8, rope_type: "linear" },
				sliding_window: 1024,
			},
			vision_config: { hidden_size: 1152, num_hidden_layers: 27 },
			eos_token_id: [1, 106],
		});
		expect(config).toMatchObject({
			family: "gemma3",
			hiddenSize: 2560,
			numLayers: 34,
			numHeads: 8,
			numKvHeads: 4,
			headDim: 256,
			vocabSize: 262208,
			rope: { theta: 1e6, scaling: { type: "linear", factor: 8 } },
			localRope: { theta: 1e4, scaling: null },
			maxPositionEmbeddings: 131072,
			eosTokenIds: [1, 106],
		});
		expect(rotaryTables(config, 2).map(({ name }) => name)).toEqual([
			"cos_cache",
			"sin_cache",
			"cos_cache_local",
			"sin_cache_local",
		]);
	});

	it("3: rotary settings per kind of layer are what the older keys say", () => {
		const newer = {
			rope_parameters: {
				full_attention: { rope_type: "linear", factor: 8, rope_theta: 5e5 },
				sliding_attention: { rope_type: "default", rope_theta: 2e4 },
			},
		};
		const older = { rope_theta: 5e5, rope_local_base_freq: 2e4, rope_scaling: { rope_type: "linear", factor: 8 } };
		expect(read("Gemma3ForCausalLM", newer)).toEqual(read("Gemma3ForCausalLM", older));
	});
});

describe("rotary settings", () => {
	const factors = { short_factor: new Array(24).fill(1), long_factor: new Array(24).fill(2) };
	const phi = (rope: Json, settings: Json = {}) =>
		read("Phi3ForCausalLM", {
			max_position_embeddings: 8192,
			original_max_position_embeddings: 4096,
			partial_rotary_factor: 0.75,
			rope_scaling: { ...factors, ...rope },
			...settings,
		});

	it("LongRoPE: part of a head, factors by the length that is served", () => {
		const config = phi({ type: "longrope" });
		expect(config.rotaryDim).toBe(48);
		expect(config.rope.scaling).toMatchObject({ originalMaxPositionEmbeddings: 4096 });
		const slowest = (positions: number) => rotaryFrequencies(config.rope, 48, positions)[23]!;
		expect(slowest(4096)).toBeCloseTo(2 * slowest(4097), 12);
		const [cos] = rotaryTables(config, 4);
		expect(cos!.values[0]).toBeCloseTo(Math.sqrt(1 + Math.log(2) / Math.log(4096)), 6);
	});

	it("LongRoPE under its older names", () => {
		expect(phi({ type: "su" })).toEqual(phi({ type: "longrope" }));
		expect(phi({ type: "yarn" })).toEqual(phi({ rope_type: "longrope" }));
	});

	it("LongRoPE needs a factor for each pair", () => {
		expect(() => phi({ type: "longrope" }, { partial_rotary_factor: 1 })).toThrow(
			/rope_scaling\.short_factor has 24 numbers; 32 are needed/,
		);
		expect(() => phi({ type: "longrope", long_factor: undefined })).toThrow(/long_factor is not a list of positive/);
		const odd = { short_factor: new Array(19).fill(1), long_factor: new Array(19).fill(1) };
		expect(() => phi({ type: "longrope", ...odd }, { partial_rotary_factor: 0.6 })).toThrow(
			/38 of the 64 numbers of a head turn; multiples of 16 work/,
		);
	});

	it("dynamic: nothing up to the original length, then the base grows", () => {
		const config = read("LlamaForCausalLM", { rope_scaling: { type: "dynamic", factor: 4 } });
		expect(config.maxPositionEmbeddings).toBe(16384);
		const plain = rotaryFrequencies({ theta: 10000, scaling: null }, 64, 0);
		expect(rotaryFrequencies(config.rope, 64, 4096)).toEqual(plain);
		expect(rotaryFrequencies(config.rope, 64, 8192)[31]).toBeLessThan(plain[31]!);
	});

	it("YaRN: fast pairs keep their speed, slow ones are divided, the context is the longer one", () => {
		const config = read("Qwen2ForCausalLM", {
			rope_theta: 1e6,
			rope_scaling: { type: "yarn", factor: 4, original_max_position_embeddings: 32768 },
		});
		expect(config.maxPositionEmbeddings).toBe(131072);
		const plain = rotaryFrequencies({ theta: 1e6, scaling: null }, 64, 0);
		const scaled = rotaryFrequencies(config.rope, 64, 0);
		expect(scaled[0]).toBe(plain[0]);
		expect(scaled[31]).toBeCloseTo(plain[31]! / 4, 12);
		expect(config.rope.scaling).toMatchObject({ attentionFactor: 0.1 * Math.log(4) + 1, betaFast: 32, betaSlow: 1 });
	});

	it("SmolLM3: layers without positions, by list or by interval", () => {
		expect(ropes(read("SmolLM3ForCausalLM", {}))).toEqual(["global", "global", "global", "none"]);
		expect(ropes(read("SmolLM3ForCausalLM", { no_rope_layers: [1, 0, 1, 0] }))).toEqual([
			"global",
			"none",
			"global",
			"none",
		]);
		expect(rotaryTables(read("SmolLM3ForCausalLM", { no_rope_layers: [0, 0, 0, 0] }), 4)).toEqual([]);
	});
});
