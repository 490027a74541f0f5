// SPDX-License-Identifier: Apache-2.0
// The GGUF form of a small model in Hugging Face form, as llama.cpp's converter writes it. For tests.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { SafetensorsWeights } from "../../weights/safetensors.js";
import type { WeightType } from "../../weights/weight-source.js";
import { encodeGgufFile, type GgufTensor, pairRows, type TinyGgufValue } from "./gguf-encoder.js";

type Json = Record<string, unknown>;

/** llama.cpp's architecture of a `model_type`. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
	llama: "llama",
	mistral: "llama",
	qwen2: "qwen2",
	qwen3: "qwen3",
	gemma2: "gemma2",
	gemma3_text: "gemma3",
	phi3: "phi3",
	smollm3: "smollm3",
	olmo2: "olmo2",
	olmo3: "olmo2",
};

const NAMES: Readonly<Record<string, string>> = {
	input_layernorm: "attn_norm",
	"self_attn.q_proj": "attn_q",
	"self_attn.k_proj": "attn_k",
	"self_attn.v_proj": "attn_v",
	"self_attn.qkv_proj": "attn_qkv",
	"self_attn.o_proj": "attn_output",
	"self_attn.q_norm": "attn_q_norm",
	"self_attn.k_norm": "attn_k_norm",
	"mlp.gate_proj": "ffn_gate",
	"mlp.up_proj": "ffn_up",
	"mlp.gate_up_proj": "ffn_up",
	"mlp.down_proj": "ffn_down",
	pre_feedforward_layernorm: "ffn_norm",
	post_feedforward_layernorm: "post_ffw_norm",
};

function ggufName(name: string, architecture: string): string {
	const top = name
		.replace("model.embed_tokens", "token_embd")
		.replace("model.norm", "output_norm")
		.replace("lm_head", "output");
	const layer = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name);
	if (!layer) return top;
	const [, number, module, part] = layer as unknown as [string, string, string, string];
	const afterAttention = /gemma|olmo/.test(architecture) ? "post_attention_norm" : "ffn_norm";
	return `blk.${number}.${module === "post_attention_layernorm" ? afterAttention : NAMES[module]}.${part}`;
}

/** Metadata of the architecture, under the keys without its name. */
function architectureMetadata(json: Json, architecture: string): Record<string, TinyGgufValue | undefined> {
	const rope = (json.rope_parameters ?? {}) as Json;
	const whole = (rope.full_attention ?? rope) as Json;
	const float = (value: unknown) => (typeof value === "number" ? { float: value } : undefined);
	const heads = Number(json.num_attention_heads);
	const headDim = Number(json.head_dim ?? Number(json.hidden_size) / heads);
	const scaled = whole.rope_type === "linear" || whole.rope_type === "yarn";
	const original = json.original_max_position_embeddings ?? whole.original_max_position_embeddings;
	const window = architecture === "qwen2" || architecture === "qwen3" ? undefined : json.sliding_window;
	return {
		block_count: Number(json.num_hidden_layers),
		context_length: Number(json.max_position_embeddings),
		embedding_length: Number(json.hidden_size),
		feed_forward_length: Number(json.intermediate_size),
		"attention.head_count": heads,
		"attention.head_count_kv": Number(json.num_key_value_heads),
		"attention.layer_norm_rms_epsilon": float(json.rms_norm_eps),
		"attention.key_length": headDim,
		"attention.value_length": headDim,
		"attention.sliding_window": typeof window === "number" ? window : undefined,
		"rope.dimension_count": headDim * Number(whole.partial_rotary_factor ?? 1),
		"rope.freq_base": float(whole.rope_theta),
		"rope.scaling.type": scaled ? String(whole.rope_type) : undefined,
		"rope.scaling.factor": scaled ? float(whole.factor) : undefined,
		"rope.scaling.original_context_length": typeof original === "number" ? original : undefined,
		"rope.scaling.attn_factor":
			whole.rope_type === "longrope" && typeof original === "number"
				? float(Math.sqrt(1 + Math.log(Number(json.max_position_embeddings) / original) / Math.log(original)))
				: undefined,
		attn_logit_softcapping: float(json.attn_logit_softcapping),
		final_logit_softcapping: float(json.final_logit_softcapping),
	};
}

/** Factors of rotary frequencies that the converter computes from Llama 3's settings. */
function llama3Factors(rope: Json, headDim: number): Float32Array {
	const [factor, low, high, original, theta] = [
		"factor",
		"low_freq_factor",
		"high_freq_factor",
		"original_max_position_embeddings",
		"rope_theta",
	].map((key) => Number(rope[key])) as [number, number, number, number, number];
	return Float32Array.from({ length: headDim / 2 }, (_, i) => {
		const wavelength = 2 * Math.PI * theta ** ((2 * i) / headDim);
		if (wavelength < original / high) return 1;
		if (wavelength > original / low) return factor;
		const smooth = (original / wavelength - low) / (high - low);
		return 1 / ((1 - smooth) / factor + smooth);
	});
}

/** What `familyGguf` may be told. */
export interface FamilyGgufOptions {
	/** Type of the matrices; default F32. */
	readonly type?: WeightType;
	/** More metadata, under whole keys, e.g. a tokenizer. */
	readonly metadata?: Readonly<Record<string, TinyGgufValue>>;
}

/** Bytes of the GGUF form of a folder with config.json and safetensors. */
export function familyGguf(folder: string, options: FamilyGgufOptions = {}): Buffer {
	const json = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Json;
	const architecture = ARCHITECTURES[String(json.model_type)]!;
	const metadata: Record<string, TinyGgufValue> = { "general.architecture": architecture };
	for (const [key, value] of Object.entries(architectureMetadata(json, architecture))) {
		if (value !== undefined) metadata[`${architecture}.${key}`] = value;
	}
	metadata["tokenizer.ggml.bos_token_id"] = 1;
	metadata["tokenizer.ggml.eos_token_id"] = 2;
	Object.assign(metadata, options.metadata);
	const paired = architecture === "llama" || architecture === "smollm3";
	const tensors: GgufTensor[] = [];
	const weights = new SafetensorsWeights(folder);
	try {
		for (const { name, shape, rows } of weights.tensors.values()) {
			let tensor = { shape, data: weights.readRows(name, 0, rows) };
			if (architecture.startsWith("gemma") && name.endsWith("norm.weight")) {
				tensor = { shape, data: tensor.data.map((weight) => weight + 1) };
			}
			const heads = name.includes("q_proj") ? json.num_attention_heads : json.num_key_value_heads;
			if (paired && /[qk]_proj/.test(name)) tensor = { ...pairRows(tensor, Number(heads)) };
			const type = shape.length === 1 ? "F32" : (options.type ?? "F32");
			tensors.push({ ...tensor, name: ggufName(name, architecture), type });
		}
	} finally {
		weights.close();
	}
	const rope = (json.rope_parameters ?? {}) as Json;
	const factors = (name: string, data: Float32Array) =>
		tensors.push({ name: `${name}.weight`, shape: [data.length], data, type: "F32" });
	if (rope.rope_type === "llama3") {
		const headDim = Number(json.head_dim ?? Number(json.hidden_size) / Number(json.num_attention_heads));
		factors("rope_freqs", llama3Factors(rope, headDim));
	}
	if (rope.rope_type === "longrope") {
		factors("rope_factors_long", Float32Array.from(rope.long_factor as number[]));
		factors("rope_factors_short", Float32Array.from(rope.short_factor as number[]));
	}
	return encodeGgufFile(metadata, tensors);
}
