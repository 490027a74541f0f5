// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { rotaryFrequencies, rotaryTables } from "../onnx/rope-cache.js";
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
			rotaryDim: 16,
			rope: { theta: 10000, scaling: null },
			localRope: null,
			layers: [
				{ window: null, rope: "global" },
				{ window: null, rope: "global" },
			],
			attentionScale: 0.25,
			attentionSoftcap: null,
			logitSoftcap: null,
			embeddingScale: 1,
			rmsNormEps: 1e-5,
			normOffset: 0,
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
				rope: { theta: 5e5, scaling: null },
			},
		);
	});

	it("takes end-of-text ids from generation_config.json first", () => {
		expect(configFromJson("config.json", json(), { eos_token_id: [5, 6] }).eosTokenIds).toEqual([5, 6]);
	});

	it("refuses what does not work and says what does", () => {
		expect(() => config({ architectures: ["MambaForCausalLM"] })).toThrow(
			/config\.json: the architecture "MambaForCausalLM" is not supported; LlamaForCausalLM, .*Olmo3ForCausalLM work/,
		);
		expect(() => config({ hidden_act: "gelu" })).toThrow(/hidden_act is "gelu"; silu works/);
		expect(() => config({ hidden_size: undefined })).toThrow(/hidden_size is missing/);
		expect(() => config({ num_hidden_layers: 2.5 })).toThrow(/a whole number is needed/);
		expect(() => config({ num_key_value_heads: 3 })).toThrow(/4 heads cannot share 3/);
		expect(() => config({ rope_scaling: { type: "other", factor: 2 } })).toThrow(
			/type "other"; default, linear,.* work/,
		);
	});
});

const frequencies = ({ rope, rotaryDim }: ModelConfig, positions = 128) =>
	rotaryFrequencies(rope, rotaryDim, positions);

describe("rotary frequencies", () => {
	it("fall geometrically and follow linear scaling", () => {
		const plain = frequencies(config());
		expect(plain[0]).toBe(1);
		expect(plain[4]).toBeCloseTo(0.01, 8);
		const scaled = frequencies(config({ rope_scaling: { rope_type: "linear", factor: 4 } }));
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
		const plain = frequencies(config());
		const scaled = frequencies(config({ rope_scaling: scaling }));
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
		const tables = rotaryTables(config(), 3);
		expect(tables.map(({ name, width }) => [name, width])).toEqual([
			["cos_cache", 8],
			["sin_cache", 8],
		]);
		const [cos, sin] = tables.map(({ values }) => values) as [Float32Array, Float32Array];
		expect([...cos.subarray(0, 8)]).toEqual(new Array(8).fill(1));
		expect(cos[2 * 8]).toBeCloseTo(Math.cos(2), 6);
		expect(sin[2 * 8 + 4]).toBeCloseTo(Math.sin(0.02), 6);
	});
});
