// SPDX-License-Identifier: Apache-2.0
// Writes a tiny model as onnxruntime-genai's builder would: lengths from an attention mask, 64-bit ids, logits of every
// token, a cache that is shared in place.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { MICROSOFT, OnnxModel, OnnxType } from "../../onnx/onnx-model.js";
import { rotaryTables } from "../../onnx/rope-cache.js";
import { configFromJson } from "../model-config.js";
import type { TinyLlama } from "./tiny-llama.js";

type Json = Record<string, unknown>;

/** Writes model.onnx and genai_config.json; `change` may spoil the latter. */
export function writeGenaiFolder(
	folder: string,
	tiny: TinyLlama,
	options: { readonly change?: (config: { model: Json; search: Json }) => void } = {},
): void {
	const config = configFromJson("config.json", tiny.config as unknown as Json);
	const { numLayers, numHeads, numKvHeads, headDim, hiddenSize, vocabSize, maxPositionEmbeddings, rmsNormEps } = config;
	const model = new OnnxModel("tiny", "model.onnx.data");
	const bytes = (data: Float32Array) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
	const weight = (name: string): string => {
		const tensor = tiny.tensors.get(name)!;
		return model.initializer(name, OnnxType.FLOAT, tensor.shape, bytes(tensor.data));
	};
	const times = (x: string, name: string, output?: string): string => {
		const { shape, data } = tiny.tensors.get(name)!;
		const [rows, columns] = shape as [number, number];
		const turned = new Float32Array(data.length);
		for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) turned[c * rows + r] = data[r * columns + c]!;
		const right = model.initializer(`${output ?? ""}${name}.t`, OnnxType.FLOAT, [columns, rows], bytes(turned));
		return model.node("MatMul", [x, right], output ? { outputs: [output] } : {});
	};
	const norm = (x: string, name: string): string =>
		model.node("SimplifiedLayerNormalization", [x, weight(name)], {
			attributes: { axis: -1, epsilon: { float: rmsNormEps } },
		});
	const ids = model.input("input_ids", OnnxType.INT64, ["batch", "sequence"]);
	const mask = model.input("attention_mask", OnnxType.INT64, ["batch", "total"]);
	model.int64Constant("one", [1], true);
	model.int64Constant("axis_1", [1]);
	const sum = model.node("ReduceSum", [mask, "axis_1"], { attributes: { keepdims: 0 } });
	const INT32 = { attributes: { to: OnnxType.INT32 } };
	const seqlens = model.node("Cast", [model.node("Sub", [sum, "one"])], INT32);
	const width = model.node("Gather", [model.node("Shape", [mask]), "one"], { attributes: { axis: 0 } });
	const total = model.node("Cast", [width], INT32);
	for (const { name, width: columns, values } of rotaryTables(config, maxPositionEmbeddings)) {
		model.initializer(name, OnnxType.FLOAT, [maxPositionEmbeddings, columns], bytes(values));
	}
	const cacheShape = ["batch", numKvHeads, "length", headDim];
	let x = model.node("Gather", [weight("model.embed_tokens.weight"), ids], { attributes: { axis: 0 } });
	for (let layer = 0; layer < numLayers; layer++) {
		const at = (name: string) => `model.layers.${layer}.${name}.weight`;
		const h = norm(x, at("input_layernorm"));
		const past = (side: string) => model.input(`past_key_values.${layer}.${side}`, OnnxType.FLOAT, cacheShape);
		const present = (side: string) => model.output(`present.${layer}.${side}`, OnnxType.FLOAT, cacheShape);
		const [q, k, v] = ["q", "k", "v"].map((name) => times(h, at(`self_attn.${name}_proj`))) as [string, string, string];
		const attention = model.node(
			"GroupQueryAttention",
			[q, k, v, past("key"), past("value"), seqlens, total, "cos_cache", "sin_cache"],
			{
				domain: MICROSOFT,
				outputs: [`attention.${layer}`, present("key"), present("value")],
				attributes: {
					num_heads: numHeads,
					kv_num_heads: numKvHeads,
					do_rotary: 1,
					scale: { float: 1 / Math.sqrt(headDim) },
				},
			},
		);
		x = model.node("Add", [x, times(attention, at("self_attn.o_proj"))]);
		const m = norm(x, at("post_attention_layernorm"));
		const gate = times(m, at("mlp.gate_proj"));
		const silu = model.node("Mul", [gate, model.node("Sigmoid", [gate])]);
		x = model.node("Add", [x, times(model.node("Mul", [silu, times(m, at("mlp.up_proj"))]), at("mlp.down_proj"))]);
	}
	const output = tiny.tensors.has("lm_head.weight") ? "lm_head.weight" : "model.embed_tokens.weight";
	times(norm(x, "model.norm.weight"), output, "logits");
	model.output("logits", OnnxType.FLOAT, ["batch", "sequence", vocabSize]);
	writeFileSync(join(folder, "model.onnx"), model.serialize());
	const genai = {
		model: {
			type: "llama",
			vocab_size: vocabSize,
			context_length: maxPositionEmbeddings,
			bos_token_id: 1,
			eos_token_id: 2,
			decoder: {
				filename: "model.onnx",
				head_size: headDim,
				hidden_size: hiddenSize,
				num_attention_heads: numHeads,
				num_key_value_heads: numKvHeads,
				num_hidden_layers: numLayers,
				inputs: {
					input_ids: "input_ids",
					attention_mask: "attention_mask",
					past_key_names: "past_key_values.%d.key",
					past_value_names: "past_key_values.%d.value",
				},
				outputs: {
					logits: "logits",
					present_key_names: "present.%d.key",
					present_value_names: "present.%d.value",
				},
			},
		} as Json,
		search: { past_present_share_buffer: true } as Json,
	};
	options.change?.(genai);
	writeFileSync(join(folder, "genai_config.json"), JSON.stringify(genai));
}
