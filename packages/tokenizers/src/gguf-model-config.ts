// SPDX-License-Identifier: Apache-2.0
import type { GgufFields } from "./gguf-metadata.js";

interface Naming {
	architecture: string;
	modelType: string;
	/** Activation of the feed-forward layers. */
	activation?: string;
}

const GELU = "gelu_pytorch_tanh";

/** Hugging Face names of GGUF architectures. */
const ARCHITECTURES: Readonly<Record<string, Naming>> = {
	llama: { architecture: "LlamaForCausalLM", modelType: "llama" },
	mistral3: { architecture: "MistralForCausalLM", modelType: "mistral" },
	qwen2: { architecture: "Qwen2ForCausalLM", modelType: "qwen2" },
	qwen3: { architecture: "Qwen3ForCausalLM", modelType: "qwen3" },
	gemma2: { architecture: "Gemma2ForCausalLM", modelType: "gemma2", activation: GELU },
	gemma3: { architecture: "Gemma3ForCausalLM", modelType: "gemma3_text", activation: GELU },
	phi3: { architecture: "Phi3ForCausalLM", modelType: "phi3" },
	smollm3: { architecture: "SmolLM3ForCausalLM", modelType: "smollm3" },
	olmo2: { architecture: "Olmo2ForCausalLM", modelType: "olmo2" },
	granite: { architecture: "GraniteForCausalLM", modelType: "granite" },
};

export interface GgufModelFacts {
	/** Number of token ids. */
	vocabSize: number;
	bosTokenId: number | undefined;
	eosTokenIds: readonly number[];
	/** Whether the output layer reuses the embedding (the file has no output.weight); undefined: not known. */
	tieWordEmbeddings: boolean | undefined;
}

/**
 * config.json for a GGUF file of a family that is laid out like Llama; undefined for others. Keys that the file
 * lacks are left out (RMSNorm epsilon, rope base and head counts have the defaults that GGUF gives them).
 */
export function ggufModelConfig(fields: GgufFields, facts: GgufModelFacts): Record<string, unknown> | undefined {
	const name = fields.string("general.architecture");
	const known = name === undefined ? undefined : ARCHITECTURES[name];
	if (name === undefined || known === undefined) return undefined;
	const number = (key: string): number | undefined => fields.uniformNumber(`${name}.${key}`);

	const hiddenSize = number("embedding_length");
	const heads = number("attention.head_count");
	const config: Record<string, unknown> = {
		architectures: [known.architecture],
		model_type: known.modelType,
		vocab_size: facts.vocabSize,
		hidden_size: hiddenSize,
		intermediate_size: number("feed_forward_length"),
		num_hidden_layers: number("block_count"),
		num_attention_heads: heads,
		num_key_value_heads: number("attention.head_count_kv") ?? heads,
		head_dim:
			number("attention.key_length") ??
			(hiddenSize !== undefined && heads !== undefined ? Math.floor(hiddenSize / heads) : undefined),
		max_position_embeddings: number("context_length"),
		rms_norm_eps: fields.float(`${name}.attention.layer_norm_rms_epsilon`),
		rope_theta: fields.float(`${name}.rope.freq_base`) ?? 10000,
		rope_scaling: ropeScaling(fields, name),
		sliding_window: number("attention.sliding_window"),
		hidden_act: known.activation ?? "silu",
		hidden_activation: known.activation,
		attn_logit_softcapping: fields.float(`${name}.attn_logit_softcapping`),
		final_logit_softcapping: fields.float(`${name}.final_logit_softcapping`),
		tie_word_embeddings: facts.tieWordEmbeddings,
		bos_token_id: facts.bosTokenId,
		eos_token_id: facts.eosTokenIds.length > 1 ? facts.eosTokenIds : facts.eosTokenIds[0],
	};
	return Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
}

/** `rope_scaling` of config.json; null without scaling. Llama 3's own kind is a tensor in GGUF, not a key. */
function ropeScaling(fields: GgufFields, name: string): object | null {
	const type = fields.string(`${name}.rope.scaling.type`);
	const factor = fields.float(`${name}.rope.scaling.factor`) ?? fields.float(`${name}.rope.scale_linear`);
	if (factor === undefined || factor === 0 || type === "none") return null;
	const original = fields.number(`${name}.rope.scaling.original_context_length`);
	return {
		rope_type: type ?? "linear",
		factor,
		...(original === undefined ? {} : { original_max_position_embeddings: original }),
	};
}
