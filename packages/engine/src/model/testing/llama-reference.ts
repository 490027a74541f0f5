// SPDX-License-Identifier: Apache-2.0
// The Llama decoder in plain loops and double precision: what the graph must compute.

import type { TinyLlama, TinyTensor } from "./tiny-llama.js";

/** Options of the reference. */
export interface ReferenceOptions {
	/** Turning speed of each rotary pair; by default from rope_theta, unscaled. */
	readonly frequencies?: readonly number[];
}

function multiply(x: readonly number[], { shape, data }: TinyTensor): number[] {
	const [rows, columns] = shape as [number, number];
	const out: number[] = [];
	for (let row = 0; row < rows; row++) {
		let sum = 0;
		for (let i = 0; i < columns; i++) sum += x[i]! * data[row * columns + i]!;
		out.push(sum);
	}
	return out;
}

function normalize(x: readonly number[], { data }: TinyTensor, epsilon: number): number[] {
	const mean = x.reduce((sum, value) => sum + value * value, 0) / x.length;
	return x.map((value, i) => (value / Math.sqrt(mean + epsilon)) * data[i]!);
}

/** Turns one head in place; pairs are the elements i and i + half. */
function rotate(head: number[], position: number, frequencies: readonly number[]): number[] {
	const half = head.length / 2;
	return head.map((value, i) => {
		const angle = position * frequencies[i % half]!;
		const other = i < half ? -head[i + half]! : head[i - half]!;
		return value * Math.cos(angle) + other * Math.sin(angle);
	});
}

/** Logits of every token of a text, [tokens][vocabulary]. */
export function referenceLogits(
	model: TinyLlama,
	tokenIds: readonly number[],
	options: ReferenceOptions = {},
): number[][] {
	const { config, tensors } = model;
	const tensor = (name: string): TinyTensor => tensors.get(`${name}.weight`)!;
	const { head_dim: size, num_attention_heads: heads, num_key_value_heads: kvHeads } = config;
	const frequencies =
		options.frequencies ?? Array.from({ length: size / 2 }, (_, i) => config.rope_theta ** (-i / (size / 2)));
	const embedding = tensor("model.embed_tokens");
	const hidden = config.hidden_size;
	let states = tokenIds.map((id) => [...embedding.data.subarray(id * hidden, (id + 1) * hidden)]);
	for (let layer = 0; layer < config.num_hidden_layers; layer++) {
		const at = (name: string) => tensor(`model.layers.${layer}.${name}`);
		const normalized = states.map((x) => normalize(x, at("input_layernorm"), config.rms_norm_eps));
		const split = (x: number[], position: number, turned: boolean) =>
			Array.from({ length: x.length / size }, (_, h) => {
				const head = x.slice(h * size, (h + 1) * size);
				return turned ? rotate(head, position, frequencies) : head;
			});
		const q = normalized.map((x, t) => split(multiply(x, at("self_attn.q_proj")), t, true));
		const k = normalized.map((x, t) => split(multiply(x, at("self_attn.k_proj")), t, true));
		const v = normalized.map((x, t) => split(multiply(x, at("self_attn.v_proj")), t, false));
		states = states.map((x, t) => {
			const mixed: number[] = [];
			for (let h = 0; h < heads; h++) {
				const kv = Math.floor((h * kvHeads) / heads);
				const scores = Array.from({ length: t + 1 }, (_, s) => {
					const dot = q[t]![h]!.reduce((sum, value, i) => sum + value * k[s]![kv]![i]!, 0);
					return dot / Math.sqrt(size);
				});
				const top = Math.max(...scores);
				const weights = scores.map((score) => Math.exp(score - top));
				const total = weights.reduce((sum, value) => sum + value, 0);
				for (let i = 0; i < size; i++) {
					mixed.push(weights.reduce((sum, weight, s) => sum + (weight / total) * v[s]![kv]![i]!, 0));
				}
			}
			const attended = multiply(mixed, at("self_attn.o_proj")).map((value, i) => value + x[i]!);
			const inner = normalize(attended, at("post_attention_layernorm"), config.rms_norm_eps);
			const up = multiply(inner, at("mlp.up_proj"));
			const gated = multiply(inner, at("mlp.gate_proj")).map((value, i) => (value / (1 + Math.exp(-value))) * up[i]!);
			return multiply(gated, at("mlp.down_proj")).map((value, i) => value + attended[i]!);
		});
	}
	const output = config.tie_word_embeddings ? embedding : tensor("lm_head");
	return states.map((x) => multiply(normalize(x, tensor("model.norm"), config.rms_norm_eps), output));
}
