// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { rotaryCaches, rotaryFrequencies } from "../onnx/rope-cache.js";
import { configFromJson } from "./model-config.js";
import type { ModelConfig } from "./model-runner.js";
import { makeTinyLlama } from "./testing/tiny-llama.js";

const json = (overrides: Record<string, unknown> = {}) => ({ ...makeTinyLlama().config, ...overrides });
const config = (overrides: Record<string, unknown> = {}) => configFromJson("config.json", json(overrides));

describe("config.json", () => {
	it("is read into a ModelConfig", () => {
		expect(config()).toEqual({
			family: "llama",
			vocabSize: 200,
			hiddenSize: 64,
			intermediateSize: 96,
			numLayers: 2,
			numHeads: 4,
			numKvHeads: 2,
			headDim: 16,
			ropeTheta: 10000,
			ropeScaling: null,
			rmsNormEps: 1e-5,
			maxPositionEmbeddings: 128,
			tieWordEmbeddings: true,
			bosTokenId: 1,
			eosTokenIds: [2],
		} satisfies ModelConfig);
	});

	it("fills in what older files leave out", () => {
		const old = config({ num_key_value_heads: undefined, head_dim: undefined, tie_word_embeddings: undefined });
		expect(old).toMatchObject({ numKvHeads: 4, headDim: 16, tieWordEmbeddings: false });
		expect(config({ rope_theta: undefined, rope_parameters: { rope_type: "default", rope_theta: 5e5 } })).toMatchObject(
			{
				ropeTheta: 5e5,
				ropeScaling: null,
			},
		);
	});

	it("takes end-of-text ids from generation_config.json first", () => {
		expect(configFromJson("config.json", json(), { eos_token_id: [5, 6] }).eosTokenIds).toEqual([5, 6]);
	});

	it("refuses what does not work and says what does", () => {
		expect(() => config({ architectures: ["Qwen2ForCausalLM"] })).toThrow(
			/config\.json: the architecture "Qwen2ForCausalLM" is not supported; LlamaForCausalLM works/,
		);
		expect(() => config({ attention_bias: true })).toThrow(/attention_bias/);
		expect(() => config({ hidden_act: "gelu" })).toThrow(/hidden_act is "gelu"; silu works/);
		expect(() => config({ hidden_size: undefined })).toThrow(/hidden_size is missing/);
		expect(() => config({ num_hidden_layers: 2.5 })).toThrow(/a whole number is needed/);
		expect(() => config({ num_key_value_heads: 3 })).toThrow(/4 heads cannot share 3/);
		expect(() => config({ rope_scaling: { type: "yarn", factor: 2 } })).toThrow(/type "yarn"; linear and llama3 work/);
	});
});

describe("rotary frequencies", () => {
	it("fall geometrically and follow linear scaling", () => {
		const plain = rotaryFrequencies(config());
		expect(plain[0]).toBe(1);
		expect(plain[4]).toBeCloseTo(0.01, 8);
		const scaled = rotaryFrequencies(config({ rope_scaling: { rope_type: "linear", factor: 4 } }));
		expect([...scaled]).toEqual([...plain].map((frequency) => Math.fround(frequency / 4)));
	});

	it("follow llama3: fast pairs stay, slow ones are divided, those between lie between", () => {
		const scaling = {
			rope_type: "llama3",
			factor: 8,
			low_freq_factor: 1,
			high_freq_factor: 4,
			original_max_position_embeddings: 64,
		};
		const plain = rotaryFrequencies(config());
		const scaled = rotaryFrequencies(config({ rope_scaling: scaling }));
		for (let i = 0; i < plain.length; i++) {
			const wavelength = (2 * Math.PI) / plain[i]!;
			if (wavelength < 64 / 4) expect(scaled[i]).toBe(plain[i]);
			else if (wavelength > 64) expect(scaled[i]).toBeCloseTo(plain[i]! / 8, 7);
			else {
				expect(scaled[i]).toBeGreaterThan(plain[i]! / 8);
				expect(scaled[i]).toBeLessThan(plain[i]!);
			}
		}
	});

	it("give cosines and sines per position", () => {
		const { cos, sin } = rotaryCaches(config(), 3);
		expect([...cos.subarray(0, 8)]).toEqual(new Array(8).fill(1));
		expect(cos[2 * 8]).toBeCloseTo(Math.cos(2), 6);
		expect(sin[2 * 8 + 4]).toBeCloseTo(Math.sin(0.02), 6);
	});
});
