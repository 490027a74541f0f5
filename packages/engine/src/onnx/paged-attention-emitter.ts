// SPDX-License-Identifier: Apache-2.0
// Attention over a cache in blocks, and the tail that leaves a step's likeliest tokens: what a CUDA graph has in place
// of the CPU's attention.

import type { ModelConfig } from "../model/model-runner.js";
import { type AttentionEmitter, type AttentionProjections, attentionAttributes } from "./attention-emitter.js";
import type { OnnxModel } from "./onnx-model.js";
import { MICROSOFT, OnnxType } from "./onnx-model.js";
import { ROTARY_INPUTS, rotaryKinds } from "./rope-cache.js";

/** Tokens per row that the tail gives; fewer where the vocabulary is smaller. */
export const DEVICE_TOP_K = 64;

/** Inputs of a step, all int32. */
const STEP_INPUTS = {
	/** Token ids of all rows, one after the other. */
	input_ids: ["tokens"],
	/** Where each row begins among them, and their number at the end. */
	cumulative_sequence_length: ["batch_plus_1"],
	/** Tokens of each row that are in the cache already. */
	past_seqlens: ["batch"],
	/** Blocks of each row; what a row does not use is ignored. */
	block_table: ["batch", "columns"],
	/** Numbers of the tokens whose logits are wanted. */
	rows: ["rows"],
	/**
	 * In host memory: bounds of the longest new part and of the longest row, from above, and of the longest row from
	 * below. They pick kernels and size buffers, and never change a result.
	 */
	attention_metadata: [3],
} as const;

/**
 * ONNX Runtime's PagedAttention, for CUDA; keys and values are half precision.
 *
 * Inputs: those of STEP_INPUTS, rotary tables as GroupQueryAttention has them in half precision, and key_cache.N /
 * value_cache.N [blocks, blockSize, kvHeads, headDim] per layer. Outputs: key_cache_out.N / value_cache_out.N, to be
 * bound to the same memory; logits [rows, vocabulary] fp32; top_logits and top_logprobs fp32 and top_ids int32
 * [rows, k], likeliest first. A logit minus its log-probability is the logarithm of the sum of all exponentials:
 * ReduceLogSumExp, which would give it, needs cuDNN.
 */
export class PagedAttention implements AttentionEmitter {
	readonly #model: OnnxModel;
	readonly #config: ModelConfig;

	constructor(model: OnnxModel, config: ModelConfig) {
		this.#model = model;
		this.#config = config;
	}

	begin(): { ids: string; rows: string } {
		const model = this.#model;
		for (const [name, shape] of Object.entries(STEP_INPUTS)) model.input(name, OnnxType.INT32, shape);
		for (const kind of rotaryKinds(this.#config)) {
			const { cos, sin } = ROTARY_INPUTS[kind];
			for (const name of [cos, sin]) model.input(name, model.floatType, ["positions", this.#config.rotaryDim / 2]);
		}
		return { ids: "input_ids", rows: "rows" };
	}

	attend(layer: number, projections: AttentionProjections): string {
		const { numKvHeads, headDim, layers } = this.#config;
		const { rope } = layers[layer]!;
		const inputs =
			"packed" in projections ? [projections.packed, "", ""] : [projections.q, projections.k, projections.v];
		const shape = ["blocks", "block_size", numKvHeads, headDim];
		const model = this.#model;
		const tables = rope === "none" ? ["", ""] : [ROTARY_INPUTS[rope].cos, ROTARY_INPUTS[rope].sin];
		return model.node(
			"PagedAttention",
			[
				...inputs,
				model.input(`key_cache.${layer}`, model.floatType, shape),
				model.input(`value_cache.${layer}`, model.floatType, shape),
				"cumulative_sequence_length",
				"past_seqlens",
				"block_table",
				...tables,
				// slot_mapping, head_sink, q_norm_weight, k_norm_weight, k_scale, v_scale
				...Array<string>(6).fill(""),
				"attention_metadata",
			],
			{
				domain: MICROSOFT,
				outputs: [
					`model.layers.${layer}.attention`,
					model.output(`key_cache_out.${layer}`, model.floatType, shape),
					model.output(`value_cache_out.${layer}`, model.floatType, shape),
				],
				attributes: attentionAttributes(this.#config, layer),
			},
		);
	}

	finish(logits: string): void {
		const model = this.#model;
		const k = Math.min(DEVICE_TOP_K, this.#config.vocabSize);
		const count = model.int64Constant("top_k", [k]);
		model.node("TopK", [logits, count], { outputs: ["top_logits", "top_places"], attributes: { axis: -1 } });
		model.node("Cast", ["top_places"], { outputs: ["top_ids"], attributes: { to: OnnxType.INT32 } });
		const logprobs = model.node("LogSoftmax", [logits], { attributes: { axis: -1 } });
		model.node("GatherElements", [logprobs, "top_places"], { outputs: ["top_logprobs"], attributes: { axis: -1 } });
		model.output("top_logits", OnnxType.FLOAT, ["rows", k]);
		model.output("top_ids", OnnxType.INT32, ["rows", k]);
		model.output("top_logprobs", OnnxType.FLOAT, ["rows", k]);
	}
}
