// SPDX-License-Identifier: Apache-2.0
// Reads the architecture out of a config.json or the metadata of a GGUF file. Only the Llama family works.

import type { GgufHeader } from "../weights/gguf-header.js";
import { ModelFileError } from "../weights/model-file-error.js";
import type { ModelConfig, RopeScaling } from "./model-runner.js";

/** What works, for messages. */
export const SUPPORTED_ARCHITECTURES: readonly string[] = ["LlamaForCausalLM"];

/** Heads must be a multiple of this wide. */
const HEAD_GRAIN = 16;

type Json = Record<string, unknown>;

/** Typed access to settings of one file, with errors that name the file and the key. */
class Settings {
	readonly path: string;
	readonly #get: (key: string) => unknown;

	constructor(path: string, get: (key: string) => unknown) {
		this.path = path;
		this.#get = get;
	}

	number(key: string, fallback?: number): number {
		const value = this.#get(key) ?? fallback;
		if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
			throw new ModelFileError(
				this.path,
				`${key} is ${JSON.stringify(value) ?? "missing"}; a positive number is needed`,
			);
		}
		return value;
	}

	size(key: string, fallback?: number): number {
		const value = this.number(key, fallback);
		if (!Number.isInteger(value)) throw new ModelFileError(this.path, `${key} is ${value}; a whole number is needed`);
		return value;
	}

	get(key: string): unknown {
		return this.#get(key);
	}
}

/** Refuses head counts and sizes that cannot be computed. */
function checked(path: string, config: ModelConfig): ModelConfig {
	if (config.numHeads % config.numKvHeads !== 0) {
		throw new ModelFileError(path, `${config.numHeads} heads cannot share ${config.numKvHeads} key/value heads`);
	}
	if (config.headDim % 2 !== 0 || !Number.isInteger(config.headDim)) {
		throw new ModelFileError(path, `heads of ${config.headDim} have no rotary pairs`);
	}
	// A condition of ONNX Runtime's GroupQueryAttention with rotary embeddings, found out only when it runs.
	if (config.headDim % HEAD_GRAIN !== 0) {
		throw new ModelFileError(path, `heads of ${config.headDim} do not work; multiples of ${HEAD_GRAIN} do`);
	}
	return config;
}

function tokenIds(value: unknown): number[] {
	const list = Array.isArray(value) ? value : [value];
	return list.filter((id): id is number => Number.isInteger(id));
}

/** `rope_scaling` of a config.json. */
function ropeScaling(path: string, value: unknown): RopeScaling | null {
	if (value === null || value === undefined) return null;
	const json = value as Json;
	const type = json.rope_type ?? json.type;
	const settings = new Settings(path, (key) => json[key.slice("rope_scaling.".length)]);
	if (type === "default") return null;
	if (type === "linear") return { type, factor: settings.number("rope_scaling.factor") };
	if (type === "llama3") {
		return {
			type,
			factor: settings.number("rope_scaling.factor"),
			lowFreqFactor: settings.number("rope_scaling.low_freq_factor"),
			highFreqFactor: settings.number("rope_scaling.high_freq_factor"),
			originalMaxPositionEmbeddings: settings.size("rope_scaling.original_max_position_embeddings"),
		};
	}
	throw new ModelFileError(path, `rope_scaling has the type ${JSON.stringify(type)}; linear and llama3 work`);
}

/**
 * Architecture from a parsed config.json.
 * @param generation the parsed generation_config.json, whose end-of-text ids win.
 * @throws ModelFileError for a family or feature that does not work, or a missing size.
 */
export function configFromJson(path: string, json: Json, generation: Json = {}): ModelConfig {
	const architecture = Array.isArray(json.architectures) ? json.architectures[0] : undefined;
	const known =
		architecture === undefined ? json.model_type === "llama" : SUPPORTED_ARCHITECTURES.includes(architecture);
	if (!known) {
		const name = architecture ?? json.model_type;
		throw new ModelFileError(
			path,
			`the architecture ${JSON.stringify(name)} is not supported; ${SUPPORTED_ARCHITECTURES.join(", ")} works`,
		);
	}
	for (const key of ["attention_bias", "mlp_bias"]) {
		if (json[key] === true) throw new ModelFileError(path, `${key} is true; only models without biases work`);
	}
	if (json.quantization_config !== undefined && json.quantization_config !== null) {
		const method = (json.quantization_config as Json).quant_method;
		throw new ModelFileError(
			path,
			`the weights are quantized (quantization_config: ${JSON.stringify(method) ?? "unknown method"}); ` +
				"F32, F16 and BF16 safetensors work, and GGUF files with F32, F16, BF16, Q8_0, Q4_0 and Q4_1",
		);
	}
	if (Number(json.partial_rotary_factor ?? 1) !== 1) {
		throw new ModelFileError(path, `partial_rotary_factor is ${json.partial_rotary_factor}; only whole heads turn`);
	}
	const activation = json.hidden_act ?? "silu";
	if (activation !== "silu") {
		throw new ModelFileError(path, `hidden_act is ${JSON.stringify(activation)}; silu works`);
	}
	const settings = new Settings(path, (key) => json[key]);
	// Newer files keep both settings in rope_parameters.
	const rope = (json.rope_parameters ?? {}) as Json;
	const numHeads = settings.size("num_attention_heads");
	const hiddenSize = settings.size("hidden_size");
	return checked(path, {
		family: "llama",
		vocabSize: settings.size("vocab_size"),
		hiddenSize,
		intermediateSize: settings.size("intermediate_size"),
		numLayers: settings.size("num_hidden_layers"),
		numHeads,
		numKvHeads: settings.size("num_key_value_heads", numHeads),
		headDim: settings.size("head_dim", hiddenSize / numHeads),
		ropeTheta: settings.number("rope_theta", typeof rope.rope_theta === "number" ? rope.rope_theta : 10000),
		ropeScaling: ropeScaling(path, json.rope_scaling ?? json.rope_parameters),
		rmsNormEps: settings.number("rms_norm_eps", 1e-6),
		maxPositionEmbeddings: settings.size("max_position_embeddings", 2048),
		tieWordEmbeddings: json.tie_word_embeddings === true,
		bosTokenId: tokenIds(generation.bos_token_id ?? json.bos_token_id)[0] ?? null,
		eosTokenIds: tokenIds(generation.eos_token_id ?? json.eos_token_id),
	});
}

/**
 * Refuses GGUF files of another family, of several parts, or with features that do not work.
 * @throws ModelFileError that says what works.
 */
export function checkGgufFamily(path: string, header: GgufHeader): void {
	const { metadata } = header;
	const architecture = metadata.get("general.architecture");
	if (architecture !== "llama") {
		throw new ModelFileError(
			path,
			`general.architecture is ${JSON.stringify(architecture) ?? "missing"}; only "llama" works`,
		);
	}
	const parts = Number(metadata.get("split.count") ?? 1);
	if (parts > 1) {
		throw new ModelFileError(path, `is one of ${parts} parts; merge them into one file (llama-gguf-split --merge)`);
	}
	if (Number(metadata.get("llama.expert_count") ?? 0) > 0) {
		throw new ModelFileError(path, "is a mixture of experts; only dense models work");
	}
	for (const { name } of header.tensors) {
		if (name.endsWith(".bias")) throw new ModelFileError(path, `has the bias ${name}; only models without biases work`);
	}
}

/**
 * Architecture from GGUF metadata (`llama.*` keys) that passed `checkGgufFamily`.
 * @param ropeFactors the tensor rope_freqs, which some files carry in place of the scaling's settings.
 * @throws ModelFileError for a missing size or a feature that does not work.
 */
export function configFromGguf(path: string, header: GgufHeader, ropeFactors?: Float32Array): ModelConfig {
	const { metadata } = header;
	const settings = new Settings(path, (key) => metadata.get(key));
	const numHeads = settings.size("llama.attention.head_count");
	const hiddenSize = settings.size("llama.embedding_length");
	const embedding = header.tensors.find((tensor) => tensor.name === "token_embd.weight");
	if (!embedding) throw new ModelFileError(path, "has no tensor token_embd.weight");
	const headDim = settings.size("llama.attention.key_length", hiddenSize / numHeads);
	if (settings.size("llama.rope.dimension_count", headDim) !== headDim) {
		throw new ModelFileError(path, "turns only a part of each head (llama.rope.dimension_count), which does not work");
	}
	const scaling = metadata.get("llama.rope.scaling.type") ?? "none";
	if (scaling !== "none" && scaling !== "linear") {
		throw new ModelFileError(path, `llama.rope.scaling.type is ${JSON.stringify(scaling)}; none and linear work`);
	}
	let ropeScaling: RopeScaling | null = null;
	if (ropeFactors) {
		if (ropeFactors.length !== headDim / 2) {
			throw new ModelFileError(path, `rope_freqs has ${ropeFactors.length} numbers for heads of ${headDim}`);
		}
		ropeScaling = { type: "factors", factors: [...ropeFactors] };
	} else if (scaling === "linear") {
		ropeScaling = { type: "linear", factor: settings.number("llama.rope.scaling.factor") };
	}
	return checked(path, {
		family: "llama",
		vocabSize: embedding.shape[0]!,
		hiddenSize,
		intermediateSize: settings.size("llama.feed_forward_length"),
		numLayers: settings.size("llama.block_count"),
		numHeads,
		numKvHeads: settings.size("llama.attention.head_count_kv", numHeads),
		headDim,
		ropeTheta: settings.number("llama.rope.freq_base", 10000),
		ropeScaling,
		rmsNormEps: settings.number("llama.attention.layer_norm_rms_epsilon", 1e-5),
		maxPositionEmbeddings: settings.size("llama.context_length"),
		tieWordEmbeddings: !header.tensors.some((tensor) => tensor.name === "output.weight"),
		bosTokenId: tokenIds(metadata.get("tokenizer.ggml.bos_token_id"))[0] ?? null,
		eosTokenIds: tokenIds(metadata.get("tokenizer.ggml.eos_token_id")),
	});
}
