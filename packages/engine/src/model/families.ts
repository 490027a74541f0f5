// SPDX-License-Identifier: Apache-2.0
// The model families that work, as data: how their files name them and what their layers are made of. The graph
// builder and the readers of files ask this table; nothing else knows a family by name.

/** A family of decoders whose layers have the same parts. */
export type ModelFamily =
	| "llama"
	| "mistral"
	| "qwen2"
	| "qwen3"
	| "gemma2"
	| "gemma3"
	| "phi3"
	| "smollm3"
	| "olmo2"
	| "olmo3";

/** Names of a layer's norms below `model.layers.N.`; a norm that a family does not have is absent. */
export interface LayerNorms {
	/** Of what attention reads. */
	readonly beforeAttention?: string;
	/** Of what attention gives, before it is added to the residual. */
	readonly afterAttention?: string;
	/** Of what the feed-forward layer reads. */
	readonly beforeMlp?: string;
	/** Of what the feed-forward layer gives, before it is added to the residual. */
	readonly afterMlp?: string;
}

/** What the layers of a family are made of, and how files name it. */
export interface FamilyDescription {
	/** For messages and documentation. */
	readonly title: string;
	/** `architectures` of a config.json. */
	readonly architectures: readonly string[];
	/** `model_type` of a config.json, where it names no architecture. */
	readonly modelTypes: readonly string[];
	/** `general.architecture` of a GGUF file, where llama.cpp has one for the family. */
	readonly gguf?: string;
	readonly norms: LayerNorms;
	/** Queries and keys are normalized before they turn: each head by itself, or all heads as one vector. */
	readonly queryKeyNorm?: "head" | "width";
	/** Of the gate in the feed-forward layer. "gelu_tanh" is the approximation by a hyperbolic tangent. */
	readonly activation: "silu" | "gelu_tanh";
	/** Added to the weights of norms that safetensors files hold; GGUF files have it added already. */
	readonly normOffset: 0 | 1;
	/** GGUF files store the rows of queries and keys in the order of interleaved rotary pairs. */
	readonly pairedRows: boolean;
}

const BEFORE_BOTH: LayerNorms = {
	beforeAttention: "input_layernorm.weight",
	beforeMlp: "post_attention_layernorm.weight",
};
const AFTER_BOTH: LayerNorms = {
	afterAttention: "post_attention_layernorm.weight",
	afterMlp: "post_feedforward_layernorm.weight",
};
const AROUND_BOTH: LayerNorms = {
	...AFTER_BOTH,
	beforeAttention: "input_layernorm.weight",
	beforeMlp: "pre_feedforward_layernorm.weight",
};
const PLAIN = { norms: BEFORE_BOTH, activation: "silu", normOffset: 0, pairedRows: false } as const;
const GEMMA = { norms: AROUND_BOTH, activation: "gelu_tanh", normOffset: 1, pairedRows: false } as const;

/** The families that work. */
export const FAMILIES: Readonly<Record<ModelFamily, FamilyDescription>> = {
	llama: {
		...PLAIN,
		title: "Llama 2 and 3, SmolLM2",
		architectures: ["LlamaForCausalLM"],
		modelTypes: ["llama"],
		gguf: "llama",
		pairedRows: true,
	},
	// In GGUF files Mistral is "llama".
	mistral: { ...PLAIN, title: "Mistral", architectures: ["MistralForCausalLM"], modelTypes: ["mistral"] },
	qwen2: {
		...PLAIN,
		title: "Qwen2 and 2.5",
		architectures: ["Qwen2ForCausalLM"],
		modelTypes: ["qwen2"],
		gguf: "qwen2",
	},
	qwen3: {
		...PLAIN,
		title: "Qwen3",
		architectures: ["Qwen3ForCausalLM"],
		modelTypes: ["qwen3"],
		gguf: "qwen3",
		queryKeyNorm: "head",
	},
	gemma2: {
		...GEMMA,
		title: "Gemma 2",
		architectures: ["Gemma2ForCausalLM"],
		modelTypes: ["gemma2"],
		gguf: "gemma2",
	},
	gemma3: {
		...GEMMA,
		title: "Gemma 3 (text)",
		architectures: ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
		modelTypes: ["gemma3_text", "gemma3"],
		gguf: "gemma3",
		queryKeyNorm: "head",
	},
	phi3: {
		...PLAIN,
		title: "Phi-3 and Phi-4",
		architectures: ["Phi3ForCausalLM"],
		modelTypes: ["phi3"],
		gguf: "phi3",
	},
	smollm3: {
		...PLAIN,
		title: "SmolLM3",
		architectures: ["SmolLM3ForCausalLM"],
		modelTypes: ["smollm3"],
		gguf: "smollm3",
		pairedRows: true,
	},
	olmo2: {
		...PLAIN,
		title: "OLMo 2",
		architectures: ["Olmo2ForCausalLM"],
		modelTypes: ["olmo2"],
		gguf: "olmo2",
		norms: AFTER_BOTH,
		queryKeyNorm: "width",
	},
	// In GGUF files it is "olmo2" with a window.
	olmo3: {
		...PLAIN,
		title: "OLMo 3",
		architectures: ["Olmo3ForCausalLM"],
		modelTypes: ["olmo3"],
		norms: AFTER_BOTH,
		queryKeyNorm: "width",
	},
};

const ENTRIES = Object.entries(FAMILIES) as [ModelFamily, FamilyDescription][];

/** Architectures of config.json files that work, for messages. */
export const SUPPORTED_ARCHITECTURES: readonly string[] = ENTRIES.flatMap(([, family]) => family.architectures);

/** Architectures of GGUF files that work, for messages. */
export const SUPPORTED_GGUF_ARCHITECTURES: readonly string[] = ENTRIES.flatMap(([, family]) => family.gguf ?? []);

/** The family that a config.json names by its architecture or, without one, by its model type. */
export function familyOfJson(architecture: unknown, modelType: unknown): ModelFamily | undefined {
	return ENTRIES.find(([, family]) =>
		architecture === undefined
			? family.modelTypes.includes(modelType as string)
			: family.architectures.includes(architecture as string),
	)?.[0];
}

/** The family that a GGUF file names. */
export function familyOfGguf(architecture: unknown): ModelFamily | undefined {
	return ENTRIES.find(([, family]) => family.gguf !== undefined && family.gguf === architecture)?.[0];
}
