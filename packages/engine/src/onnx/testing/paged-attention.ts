// SPDX-License-Identifier: Apache-2.0
// The operator PagedAttention by its definition: packed tokens of several sequences, keys and values in blocks.

import type { CacheValue, Value } from "./interpreter.js";
import type { ReadNode } from "./onnx-reader.js";

/** What the operator reads and changes. */
export interface PagedAttentionInputs {
	input(i: number): Value;
	optional(i: number): Value | undefined;
	readonly keys: CacheValue;
	readonly values: CacheValue;
}

/** Attention of every token of a step; writes keys and values of the new tokens to their blocks. */
export function pagedAttention(node: ReadNode, io: PagedAttentionInputs): Value {
	const { input, optional, keys, values } = io;
	const attribute = (name: string, fallback: number): number => (node.attributes.get(name) as number) ?? fallback;
	const heads = attribute("num_heads", 0);
	const kvHeads = attribute("kv_num_heads", 0);
	const [tokens, width] = input(0).shape as [number, number];
	// Keys and values come by themselves or behind the queries.
	const size = optional(1) ? width / heads : width / (heads + 2 * kvHeads);
	const [numBlocks, blockSize, cacheHeads, cacheSize] = keys.shape as [number, number, number, number];
	if (cacheHeads !== kvHeads || cacheSize !== size) throw new Error(`a cache of ${keys.shape} for heads of ${size}`);
	const scale = attribute("scale", 0) || 1 / Math.sqrt(size);
	const softcap = attribute("softcap", 0);
	const window = attribute("local_window_size", -1);
	const epsilon = attribute("qk_norm_epsilon", 1e-6);
	const cumulative = input(5).data;
	const past = input(6).data;
	const table = input(7);
	const columns = table.shape[1]!;
	const [maxQuery, maxKv, maxKvLower] = optional(16)?.data ?? [0, 0, 0];
	if (cumulative[cumulative.length - 1] !== tokens) throw new Error(`${tokens} tokens, cumulated ${cumulative}`);
	const cos = attribute("do_rotary", 0) === 1 ? input(8) : undefined;
	const sin = cos && input(9);

	const head = (kind: "q" | "k" | "v", token: number, index: number): Float32Array => {
		const separate = kind === "q" ? undefined : optional(kind === "k" ? 1 : 2);
		const { data, shape } = separate ?? input(0);
		const before = separate || kind === "q" ? 0 : heads + (kind === "v" ? kvHeads : 0);
		const from = token * shape[1]! + (before + index) * size;
		return data.slice(from, from + size) as Float32Array;
	};
	const normalized = (x: Float32Array, weight: Value | undefined): Float32Array => {
		if (!weight) return x;
		const mean = x.reduce((sum, value) => sum + value * value, 0) / size;
		return x.map((value, i) => (value / Math.sqrt(mean + epsilon)) * weight.data[i]!);
	};
	const turned = (x: Float32Array, position: number): Float32Array => {
		if (!cos || !sin) return x;
		const pairs = cos.shape[1]!;
		if (position >= cos.shape[0]!) throw new Error(`position ${position} is beyond the rotary cache`);
		const out = x.slice();
		for (let i = 0; i < pairs; i++) {
			const c = cos.data[position * pairs + i]!;
			const s = sin.data[position * pairs + i]!;
			out[i] = x[i]! * c - x[i + pairs]! * s;
			out[i + pairs] = x[i + pairs]! * c + x[i]! * s;
		}
		return out;
	};
	/** Where a token of a row lies in the caches. */
	const slot = (row: number, position: number): number => {
		const column = Math.floor(position / blockSize);
		const block = column < columns ? table.data[row * columns + column]! : -1;
		if (!(block >= 0 && block < numBlocks)) throw new Error(`token ${position} of row ${row} is in block ${block}`);
		return (block * blockSize + (position % blockSize)) * kvHeads;
	};

	const out = new Float32Array(tokens * heads * size);
	for (let row = 0; row < past.length; row++) {
		const first = cumulative[row]!;
		const count = cumulative[row + 1]! - first;
		const length = past[row]! + count;
		if (maxQuery && count > maxQuery) throw new Error(`a row of ${count} tokens, bound ${maxQuery}`);
		if (maxKv && length > maxKv) throw new Error(`a row of length ${length}, bound ${maxKv}`);
		for (let i = 0; i < count; i++) {
			const position = past[row]! + i;
			const at = slot(row, position);
			for (let h = 0; h < kvHeads; h++) {
				const key = turned(normalized(head("k", first + i, h), optional(13)), position);
				keys.write((at + h) * size, key);
				values.write((at + h) * size, head("v", first + i, h));
			}
		}
		for (let i = 0; i < count; i++) {
			const position = past[row]! + i;
			const from = window > 0 ? Math.max(0, position - window + 1) : 0;
			const slots = Array.from({ length: position + 1 - from }, (_, t) => slot(row, from + t));
			for (let h = 0; h < heads; h++) {
				const kv = Math.floor((h * kvHeads) / heads);
				const q = turned(normalized(head("q", first + i, h), optional(12)), position);
				const scores = slots.map((at) => {
					let dot = 0;
					for (let d = 0; d < size; d++) dot += q[d]! * keys.read((at + kv) * size + d);
					return softcap > 0 ? softcap * Math.tanh((dot * scale) / softcap) : dot * scale;
				});
				const top = Math.max(...scores);
				const weights = scores.map((score) => Math.exp(score - top));
				const total = weights.reduce((sum, weight) => sum + weight, 0);
				for (let d = 0; d < size; d++) {
					let sum = 0;
					slots.forEach((at, t) => {
						sum += (weights[t]! / total) * values.read((at + kv) * size + d);
					});
					out[((first + i) * heads + h) * size + d] = sum;
				}
			}
		}
	}
	// The lower bound is of the longest row.
	const longest = Math.max(...Array.from(past, (p, row) => p + cumulative[row + 1]! - cumulative[row]!));
	if (maxKvLower && longest < maxKvLower) throw new Error(`the longest row has ${longest} tokens, bound ${maxKvLower}`);
	return { shape: [tokens, heads * size], data: out };
}
