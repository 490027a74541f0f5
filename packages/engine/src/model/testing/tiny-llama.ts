// SPDX-License-Identifier: Apache-2.0
// A tiny model of the Llama family with random weights, written as a Hugging Face folder or a GGUF file.
// For tests of this package and of those that need a model and not a good one.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { WeightType } from "../../weights/weight-source.js";
import { encodeGgufFile, type GgufTensor, pairRows, type TinyGgufValue, type TinyTensor } from "./gguf-encoder.js";
import { encodeWeights } from "./weight-encoders.js";

export * from "./gguf-encoder.js";

/** Sizes of the tiny model; those of a config.json. */
export interface TinyLlamaConfig {
	vocab_size: number;
	hidden_size: number;
	intermediate_size: number;
	num_hidden_layers: number;
	num_attention_heads: number;
	num_key_value_heads: number;
	head_dim: number;
	max_position_embeddings: number;
	rms_norm_eps: number;
	rope_theta: number;
	tie_word_embeddings: boolean;
	[key: string]: unknown;
}

/** The model in memory; tensors by their Hugging Face names. */
export interface TinyLlama {
	readonly config: TinyLlamaConfig;
	readonly tensors: ReadonlyMap<string, TinyTensor>;
}

/** Random numbers in -1..1 that a seed fixes. */
function randomSource(seed: number): () => number {
	let state = seed >>> 0 || 1;
	return () => {
		// xorshift32
		state ^= state << 13;
		state ^= state >>> 17;
		state ^= state << 5;
		return ((state >>> 0) / 2 ** 32) * 2 - 1;
	};
}

/** Makes a model; the intermediate size is no multiple of 64, so that padded blocks are met. */
export function makeTinyLlama(overrides: Partial<TinyLlamaConfig> = {}, seed = 1): TinyLlama {
	const config: TinyLlamaConfig = {
		architectures: ["LlamaForCausalLM"],
		model_type: "llama",
		vocab_size: 200,
		hidden_size: 64,
		intermediate_size: 96,
		num_hidden_layers: 2,
		num_attention_heads: 4,
		num_key_value_heads: 2,
		head_dim: 16,
		max_position_embeddings: 128,
		rms_norm_eps: 1e-5,
		rope_theta: 10000,
		tie_word_embeddings: true,
		hidden_act: "silu",
		bos_token_id: 1,
		eos_token_id: 2,
		...overrides,
	};
	const random = randomSource(seed);
	const tensors = new Map<string, TinyTensor>();
	const add = (name: string, shape: number[], spread: number, center = 0) => {
		const size = shape.reduce((product, dimension) => product * dimension, 1);
		tensors.set(name, { shape, data: Float32Array.from({ length: size }, () => center + spread * random()) });
	};
	const { hidden_size: hidden, intermediate_size: inner, head_dim: head } = config;
	const queries = config.num_attention_heads * head;
	const keys = config.num_key_value_heads * head;
	add("model.embed_tokens.weight", [config.vocab_size, hidden], 1);
	for (let layer = 0; layer < config.num_hidden_layers; layer++) {
		const prefix = `model.layers.${layer}.`;
		add(`${prefix}input_layernorm.weight`, [hidden], 0.2, 1);
		add(`${prefix}self_attn.q_proj.weight`, [queries, hidden], 0.4);
		add(`${prefix}self_attn.k_proj.weight`, [keys, hidden], 0.4);
		add(`${prefix}self_attn.v_proj.weight`, [keys, hidden], 0.4);
		add(`${prefix}self_attn.o_proj.weight`, [hidden, queries], 0.3);
		add(`${prefix}post_attention_layernorm.weight`, [hidden], 0.2, 1);
		add(`${prefix}mlp.gate_proj.weight`, [inner, hidden], 0.3);
		add(`${prefix}mlp.up_proj.weight`, [inner, hidden], 0.3);
		add(`${prefix}mlp.down_proj.weight`, [hidden, inner], 0.3);
	}
	add("model.norm.weight", [hidden], 0.2, 1);
	if (!config.tie_word_embeddings) add("lm_head.weight", [config.vocab_size, hidden], 0.5);
	return { config, tensors };
}

/** Bytes of a safetensors file. */
export function encodeSafetensors(tensors: ReadonlyMap<string, TinyTensor>, type: "F32" | "F16" | "BF16"): Uint8Array {
	const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
	const parts: Uint8Array[] = [];
	let offset = 0;
	for (const [name, { shape, data }] of tensors) {
		const bytes = encodeWeights(type, data);
		header[name] = { dtype: type, shape, data_offsets: [offset, offset + bytes.length] };
		parts.push(bytes);
		offset += bytes.length;
	}
	const json = Buffer.from(JSON.stringify(header));
	const length = Buffer.alloc(8);
	length.writeBigUInt64LE(BigInt(json.length));
	return Buffer.concat([length, json, ...parts]);
}

/** Writes config.json and the weights, in one file or in shards, into `folder`. */
export function writeTinyFolder(
	folder: string,
	model: TinyLlama,
	options: { readonly type?: "F32" | "F16" | "BF16"; readonly shards?: number } = {},
): string {
	const { type = "F32", shards = 1 } = options;
	mkdirSync(folder, { recursive: true });
	writeFileSync(join(folder, "config.json"), JSON.stringify(model.config));
	if (shards === 1) {
		writeFileSync(join(folder, "model.safetensors"), encodeSafetensors(model.tensors, type));
		return folder;
	}
	const weightMap: Record<string, string> = {};
	for (let shard = 0; shard < shards; shard++) {
		const file = `model-${shard + 1}-of-${shards}.safetensors`;
		const part = new Map([...model.tensors].filter((_, i) => i % shards === shard));
		for (const name of part.keys()) weightMap[name] = file;
		writeFileSync(join(folder, file), encodeSafetensors(part, type));
	}
	writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ weight_map: weightMap }));
	return folder;
}

const GGUF_NAMES: readonly (readonly [RegExp, string])[] = [
	[/^model\.embed_tokens/, "token_embd"],
	[/^model\.norm/, "output_norm"],
	[/^lm_head/, "output"],
	[/^model\.layers\.(\d+)\.input_layernorm/, "blk.$1.attn_norm"],
	[/^model\.layers\.(\d+)\.self_attn\.(q|k|v)_proj/, "blk.$1.attn_$2"],
	[/^model\.layers\.(\d+)\.self_attn\.o_proj/, "blk.$1.attn_output"],
	[/^model\.layers\.(\d+)\.post_attention_layernorm/, "blk.$1.ffn_norm"],
	[/^model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj/, "blk.$1.ffn_$2"],
];

/** What `encodeGguf` may be told beside the model. */
export interface TinyGgufOptions {
	/** Type of matrices of a name. */
	readonly type?: WeightType | ((name: string) => WeightType);
	/** Bytes of a matrix, in place of its own numbers in its type. */
	readonly encode?: (name: string, data: Float32Array) => Uint8Array;
	/** Type of vectors; default F32. */
	readonly vectorType?: "F32" | "F16" | "BF16";
	/** Put in as the tensor rope_freqs.weight. */
	readonly ropeFactors?: readonly number[];
	/** More metadata, e.g. a tokenizer. */
	readonly metadata?: Readonly<Record<string, TinyGgufValue>>;
	readonly version?: 2 | 3;
}

/** Bytes of a GGUF file of the model. */
export function encodeGguf(model: TinyLlama, options: TinyGgufOptions = {}): Buffer {
	const { type = "F32", version = 3 } = options;
	const { config } = model;
	const metadata: Record<string, TinyGgufValue> = {
		"general.architecture": "llama",
		"llama.block_count": config.num_hidden_layers,
		"llama.context_length": config.max_position_embeddings,
		"llama.embedding_length": config.hidden_size,
		"llama.feed_forward_length": config.intermediate_size,
		"llama.attention.head_count": config.num_attention_heads,
		"llama.attention.head_count_kv": config.num_key_value_heads,
		"llama.attention.layer_norm_rms_epsilon": { float: config.rms_norm_eps },
		"llama.attention.key_length": config.head_dim,
		"llama.rope.dimension_count": config.head_dim,
		"llama.rope.freq_base": { float: config.rope_theta },
		"tokenizer.ggml.bos_token_id": 1,
		"tokenizer.ggml.eos_token_id": 2,
		...options.metadata,
	};
	const tensors: GgufTensor[] = [];
	for (const [name, stored] of model.tensors) {
		const [pattern, replacement] = GGUF_NAMES.find(([regex]) => regex.test(name)) ?? [/^[^.]+/, "$&"];
		const heads = name.includes("q_proj") ? config.num_attention_heads : config.num_key_value_heads;
		const wanted = typeof type === "function" ? type(name) : type;
		const tensor = /[qk]_proj/.test(name) ? pairRows(stored, heads) : stored;
		tensors.push({
			...tensor,
			...(options.encode && tensor.shape.length > 1 && { data: options.encode(name, tensor.data) }),
			name: `${pattern.exec(name)![0].replace(pattern, replacement)}.weight`,
			type: stored.shape.length === 1 ? (options.vectorType ?? "F32") : wanted,
		});
	}
	if (options.ropeFactors) {
		const data = Float32Array.from(options.ropeFactors);
		tensors.push({ name: "rope_freqs.weight", shape: [data.length], data, type: options.vectorType ?? "F32" });
	}
	return encodeGgufFile(metadata, tensors, version);
}
