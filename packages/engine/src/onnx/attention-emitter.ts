// SPDX-License-Identifier: Apache-2.0
// Attention, the key/value cache and the step's inputs in the graph: the one part that differs between devices.

import type { KvCacheDtype, LayerAttention, ModelConfig } from "../model/model-runner.js";
import type { OnnxAttribute, OnnxModel } from "./onnx-model.js";
import { MICROSOFT, OnnxType } from "./onnx-model.js";
import { ROTARY_INPUTS, rotaryKinds } from "./rope-cache.js";

/** Attributes of one layer that ONNX Runtime's attention operators have in common, contiguous or paged. */
export function attentionAttributes(config: ModelConfig, layer: number): Record<string, OnnxAttribute> {
	const { window, rope } = config.layers[layer]!;
	return {
		num_heads: config.numHeads,
		kv_num_heads: config.numKvHeads,
		do_rotary: rope === "none" ? 0 : 1,
		rotary_interleaved: 0,
		scale: { float: config.attentionScale },
		...(config.attentionSoftcap !== null && { softcap: { float: config.attentionSoftcap } }),
		...(window !== null && { local_window_size: window }),
	};
}

/** Queries, keys and values of all tokens, each [tokens, heads * headDim]; or all three side by side. */
export type AttentionProjections =
	| { readonly packed: string }
	| { readonly q: string; readonly k: string; readonly v: string };

/** How the cache is held; int8 with the step of the rounding per layer: a number n stands for n * scale. */
export type CacheFormat =
	| { readonly dtype: Exclude<KvCacheDtype, "int8"> }
	| { readonly dtype: "int8"; readonly scales: readonly { readonly key: number; readonly value: number }[] };

const CACHE_TYPES = { fp32: OnnxType.FLOAT, fp16: OnnxType.FLOAT16, int8: OnnxType.INT8 } as const;
/** Attributes of an int8 cache. */
const INT8_CACHE = { k_quant_type: "PER_TENSOR", v_quant_type: "PER_TENSOR", kv_cache_bit_width: 8 } as const;
/** Place of the cache's scales among the inputs of GroupQueryAttention, counted from the rotary tables. */
const SCALES_AFTER_TABLES = 5;

/** What a device's attention adds to a graph whose other activations are [tokens, width]. */
export interface AttentionEmitter {
	/**
	 * Declares the inputs that all layers share. Called once, first.
	 * @returns the ids of the step's tokens [tokens], and the numbers of the tokens whose logits are wanted [rows]
	 */
	begin(): { readonly ids: string; readonly rows: string };
	/**
	 * Adds the attention of a layer with its rotary embedding, and its cache as inputs and outputs.
	 * @returns [tokens, numHeads * headDim]
	 */
	attend(layer: number, projections: AttentionProjections): string;
	/** Adds what the device computes from the logits [rows, vocabulary] fp32. */
	finish?(logits: string): void;
}

/**
 * ONNX Runtime's GroupQueryAttention over one contiguous cache per sequence.
 *
 * Inputs: input_ids [batch, sequence] int32; seqlens_k [batch] int32, the index of each row's last token;
 * total_sequence_length int32, the longest row with its new tokens; rows [rows] int32, the tokens whose
 * logits are wanted, counted over batch * sequence; cos_cache and sin_cache [positions, rotaryDim / 2], and
 * cos_cache_local and sin_cache_local where layers differ; past_key_values.N.key / .value [batch, kvHeads,
 * maxLength, headDim] per layer. Outputs: present.N.key / .value, to be bound to the same memory as the past.
 */
export class GroupQueryAttention implements AttentionEmitter {
	readonly #model: OnnxModel;
	readonly #config: ModelConfig;
	readonly #cache: CacheFormat;
	/** Names of shapes [batch, sequence, width] by width. */
	readonly #shapes = new Map<number, string>();
	#idsShape = "";

	constructor(model: OnnxModel, config: ModelConfig, cache: CacheFormat = { dtype: "fp32" }) {
		this.#model = model;
		this.#cache = cache;
		this.#config = config;
	}

	begin(): { ids: string; rows: string } {
		const model = this.#model;
		const ids = model.input("input_ids", OnnxType.INT32, ["batch", "sequence"]);
		model.input("seqlens_k", OnnxType.INT32, ["batch"]);
		model.input("total_sequence_length", OnnxType.INT32, [1]);
		const rows = model.input("rows", OnnxType.INT32, ["rows"]);
		for (const kind of rotaryKinds(this.#config)) {
			const { cos, sin } = ROTARY_INPUTS[kind];
			for (const name of [cos, sin]) {
				model.input(name, OnnxType.FLOAT, ["positions", this.#config.rotaryDim / 2]);
			}
		}
		model.int64Constant("flat_shape", [-1]);
		model.int64Constant("attention_shape", [-1, this.#config.numHeads * this.#config.headDim]);
		this.#idsShape = model.node("Shape", [ids]);
		return { ids: model.node("Reshape", [ids, "flat_shape"]), rows };
	}

	/** x [tokens, width] as [batch, sequence, width]. */
	#perRow(x: string, width: number): string {
		let shape = this.#shapes.get(width);
		if (!shape) {
			const size = this.#model.int64Constant(`width_${width}`, [width]);
			shape = this.#model.node("Concat", [this.#idsShape, size], { attributes: { axis: 0 } });
			this.#shapes.set(width, shape);
		}
		return this.#model.node("Reshape", [x, shape]);
	}

	/** The inputs behind the lengths: rotary tables, some that are not used, and the cache's scales. */
	#lastInputs(layer: number, rope: LayerAttention["rope"]): string[] {
		const tables = rope === "none" ? [] : [ROTARY_INPUTS[rope].cos, ROTARY_INPUTS[rope].sin];
		if (this.#cache.dtype !== "int8") return tables;
		const { key, value } = this.#cache.scales[layer]!;
		const unused = new Array<string>(SCALES_AFTER_TABLES - tables.length).fill("");
		const scale = (side: string, step: number) =>
			this.#model.initializer(
				`model.layers.${layer}.${side}_scale`,
				OnnxType.FLOAT,
				[1],
				new Uint8Array(Float32Array.of(step).buffer),
			);
		return [...tables, ...unused, scale("key", key), scale("value", value)];
	}

	attend(layer: number, projections: AttentionProjections): string {
		const { numHeads, numKvHeads, headDim, layers } = this.#config;
		const { rope } = layers[layer]!;
		const [queryWidth, keyWidth] = [numHeads * headDim, numKvHeads * headDim];
		const inputs =
			"packed" in projections
				? [this.#perRow(projections.packed, queryWidth + 2 * keyWidth), "", ""]
				: [
						this.#perRow(projections.q, queryWidth),
						this.#perRow(projections.k, keyWidth),
						this.#perRow(projections.v, keyWidth),
					];
		const cache = (side: string, end: "input" | "output") =>
			this.#model[end](
				`${end === "input" ? "past_key_values" : "present"}.${layer}.${side}`,
				CACHE_TYPES[this.#cache.dtype],
				["batch", numKvHeads, "max_length", headDim],
			);
		const attended = this.#model.node(
			"GroupQueryAttention",
			[
				...inputs,
				cache("key", "input"),
				cache("value", "input"),
				"seqlens_k",
				"total_sequence_length",
				...this.#lastInputs(layer, rope),
			],
			{
				domain: MICROSOFT,
				outputs: [`model.layers.${layer}.attention`, cache("key", "output"), cache("value", "output")],
				attributes: {
					...attentionAttributes(this.#config, layer),
					...(this.#cache.dtype === "int8" && INT8_CACHE),
				},
			},
		);
		return this.#model.node("Reshape", [attended, "attention_shape"]);
	}
}
