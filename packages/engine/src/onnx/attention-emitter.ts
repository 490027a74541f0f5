// SPDX-License-Identifier: Apache-2.0
// Attention, the key/value cache and the step's inputs in the graph: the one part that differs between devices.

import type { ModelConfig } from "../model/model-runner.js";
import type { OnnxModel } from "./onnx-model.js";
import { MICROSOFT, OnnxType } from "./onnx-model.js";
import { ROTARY_INPUTS, rotaryKinds } from "./rope-cache.js";

/** Queries, keys and values of all tokens, each [tokens, heads * headDim]; or all three side by side. */
export type AttentionProjections =
	| { readonly packed: string }
	| { readonly q: string; readonly k: string; readonly v: string };

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
 * ONNX Runtime's GroupQueryAttention over one contiguous cache per sequence, fp32.
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
	/** Names of shapes [batch, sequence, width] by width. */
	readonly #shapes = new Map<number, string>();
	#idsShape = "";

	constructor(model: OnnxModel, config: ModelConfig) {
		this.#model = model;
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

	attend(layer: number, projections: AttentionProjections): string {
		const { numHeads, numKvHeads, headDim, attentionScale, attentionSoftcap, layers } = this.#config;
		const { window, rope } = layers[layer]!;
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
			this.#model[end](`${end === "input" ? "past_key_values" : "present"}.${layer}.${side}`, OnnxType.FLOAT, [
				"batch",
				numKvHeads,
				"max_length",
				headDim,
			]);
		const tables = rope === "none" ? [] : [ROTARY_INPUTS[rope].cos, ROTARY_INPUTS[rope].sin];
		const attended = this.#model.node(
			"GroupQueryAttention",
			[...inputs, cache("key", "input"), cache("value", "input"), "seqlens_k", "total_sequence_length", ...tables],
			{
				domain: MICROSOFT,
				outputs: [`model.layers.${layer}.attention`, cache("key", "output"), cache("value", "output")],
				attributes: {
					num_heads: numHeads,
					kv_num_heads: numKvHeads,
					do_rotary: rope === "none" ? 0 : 1,
					rotary_interleaved: 0,
					scale: { float: attentionScale },
					...(attentionSoftcap !== null && { softcap: { float: attentionSoftcap } }),
					...(window !== null && { local_window_size: window }),
				},
			},
		);
		return this.#model.node("Reshape", [attended, "attention_shape"]);
	}
}
