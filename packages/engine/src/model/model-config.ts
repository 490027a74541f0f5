// SPDX-License-Identifier: Apache-2.0
// Reads the architecture out of a config.json.

import { ModelFileError } from "../weights/model-file-error.js";
import { FAMILIES, familyOfJson, type ModelFamily, SUPPORTED_ARCHITECTURES } from "./families.js";
import type { LayerAttention, ModelConfig } from "./model-runner.js";
import { ropeFromJson } from "./rope-settings.js";
import { checkedConfig, Settings, tokenIds } from "./settings.js";

type Json = Record<string, unknown>;

/**
 * What the keys that a file leaves out stand for, where that differs from Llama's meaning. Files leave out what equals
 * the default of their class in transformers, above all Gemma 3's files with a `text_config`.
 */
const DEFAULTS: Partial<Record<ModelFamily, Json>> = {
	mistral: { sliding_window: 4096, num_key_value_heads: 8, max_position_embeddings: 131072 },
	qwen3: { head_dim: 128 },
	gemma2: {
		head_dim: 256,
		query_pre_attn_scalar: 256,
		sliding_window: 4096,
		attn_logit_softcapping: 50,
		final_logit_softcapping: 30,
	},
	gemma3: {
		vocab_size: 262208,
		num_attention_heads: 8,
		num_key_value_heads: 4,
		head_dim: 256,
		query_pre_attn_scalar: 256,
		sliding_window: 4096,
		max_position_embeddings: 131072,
		rope_theta: 1e6,
		rope_local_base_freq: 1e4,
	},
	phi3: { rms_norm_eps: 1e-5, max_position_embeddings: 4096 },
	smollm3: { rope_theta: 2e6, num_key_value_heads: 4, max_position_embeddings: 32768 },
	olmo2: { rms_norm_eps: 1e-5 },
	olmo3: { rms_norm_eps: 1e-5, rope_theta: 5e5, sliding_window: 4096 },
};

/** What the activations of the families are called. */
const ACTIVATIONS = { silu: ["silu", "swish"], gelu_tanh: ["gelu_pytorch_tanh"] } as const;

/** Whether a layer has a window, where a file has no `layer_types`. */
function isSliding(family: ModelFamily, json: Json, layer: number): boolean {
	switch (family) {
		case "mistral":
		case "phi3":
			return true;
		case "gemma2":
			return layer % 2 === 0;
		case "gemma3":
			return (layer + 1) % Number(json.sliding_window_pattern ?? 6) !== 0;
		case "olmo3":
			return (layer + 1) % 4 !== 0;
		case "qwen2":
		case "qwen3":
			return layer >= Number(json.max_window_layers ?? 28);
		case "smollm3":
			return !turns(family, json, layer);
		default:
			return false;
	}
}

/** Whether the queries and keys of a layer turn with the position. */
function turns(family: ModelFamily, json: Json, layer: number): boolean {
	if (family !== "smollm3") return true;
	// Despite the key's name, 1 stands for a layer that turns.
	if (Array.isArray(json.no_rope_layers)) return Boolean(json.no_rope_layers[layer]);
	return (layer + 1) % Number(json.no_rope_layer_interval ?? 4) !== 0;
}

/** Windows and rotary embeddings of all layers. */
function layerAttention(settings: Settings, family: ModelFamily, json: Json, local: boolean): LayerAttention[] {
	const optIn = family === "qwen2" || family === "qwen3" || family === "smollm3";
	const windowed = !optIn || json.use_sliding_window === true;
	const window = windowed ? settings.optionalNumber("sliding_window") : null;
	const types = json.layer_types;
	return Array.from({ length: settings.size("num_hidden_layers") }, (_, layer) => {
		const sliding = Array.isArray(types) ? types[layer] === "sliding_attention" : isSliding(family, json, layer);
		return {
			window: sliding ? window : null,
			rope: !turns(family, json, layer) ? "none" : sliding && local ? "local" : "global",
		};
	});
}

/** Refuses settings that the graph does not have. */
function checkFeatures(path: string, family: ModelFamily, json: Json): void {
	if (json.quantization_config !== undefined && json.quantization_config !== null) {
		const method = (json.quantization_config as Json).quant_method;
		throw new ModelFileError(
			path,
			`the weights are quantized (quantization_config: ${JSON.stringify(method) ?? "unknown method"}); ` +
				"F32, F16 and BF16 safetensors work, and GGUF files with most of llama.cpp's types",
		);
	}
	const works = ACTIVATIONS[FAMILIES[family].activation];
	const key = typeof json.hidden_activation === "string" ? "hidden_activation" : "hidden_act";
	const activation = json[key] ?? works[0];
	if (!(works as readonly unknown[]).includes(activation)) {
		throw new ModelFileError(path, `${key} is ${JSON.stringify(activation)}; ${works[0]} works`);
	}
	if (json.use_bidirectional_attention === true) {
		throw new ModelFileError(path, "use_bidirectional_attention is true; only models that see what came before work");
	}
}

/** The settings of the text model: of a model that sees images too they are in an object of their own. */
function textSettings(family: ModelFamily, json: Json): Json {
	const text = family === "gemma3" && typeof json.text_config === "object" ? (json.text_config as Json) : {};
	const given = Object.entries({ ...json, ...text }).filter(([, value]) => value !== undefined);
	return { ...DEFAULTS[family], ...Object.fromEntries(given) };
}

/**
 * Architecture from a parsed config.json.
 * @param generation the parsed generation_config.json, whose end-of-text ids win.
 * @throws ModelFileError for a family or feature that does not work, or a missing size.
 */
export function configFromJson(path: string, file: Json, generation: Json = {}): ModelConfig {
	const architecture = Array.isArray(file.architectures) ? file.architectures[0] : undefined;
	const family = familyOfJson(architecture, file.model_type);
	if (!family) {
		const name = architecture ?? file.model_type;
		throw new ModelFileError(
			path,
			`the architecture ${JSON.stringify(name)} is not supported; ${SUPPORTED_ARCHITECTURES.join(", ")} work`,
		);
	}
	const json = textSettings(family, file);
	checkFeatures(path, family, json);
	const settings = new Settings(path, (key) => json[key]);
	const numHeads = settings.size("num_attention_heads");
	const hiddenSize = settings.size("hidden_size");
	const headDim = settings.size("head_dim", hiddenSize / numHeads);
	const rope = ropeFromJson(path, family, json, headDim);
	const isGemma = family === "gemma2" || family === "gemma3";
	return checkedConfig(path, {
		family,
		vocabSize: settings.size("vocab_size"),
		hiddenSize,
		intermediateSize: settings.size("intermediate_size"),
		numLayers: settings.size("num_hidden_layers"),
		numHeads,
		numKvHeads: settings.size("num_key_value_heads", numHeads),
		headDim,
		...rope,
		layers: layerAttention(settings, family, json, rope.localRope !== null),
		attentionScale: 1 / Math.sqrt(isGemma ? settings.number("query_pre_attn_scalar") : headDim),
		attentionSoftcap: isGemma ? settings.optionalNumber("attn_logit_softcapping") : null,
		logitSoftcap: isGemma ? settings.optionalNumber("final_logit_softcapping") : null,
		embeddingScale: isGemma ? Math.sqrt(hiddenSize) : 1,
		rmsNormEps: settings.number("rms_norm_eps", 1e-6),
		normOffset: FAMILIES[family].normOffset,
		tieWordEmbeddings: json.tie_word_embeddings === true,
		bosTokenId: tokenIds(generation.bos_token_id ?? json.bos_token_id)[0] ?? null,
		eosTokenIds: tokenIds(generation.eos_token_id ?? json.eos_token_id),
	});
}
