// SPDX-License-Identifier: Apache-2.0
// Reads the architecture out of the metadata of a GGUF file. Keys and their meaning: llama.cpp.

import type { GgufHeader } from "../weights/gguf-header.js";
import { ModelFileError } from "../weights/model-file-error.js";
import { familyOfGguf, type ModelFamily, SUPPORTED_GGUF_ARCHITECTURES } from "./families.js";
import type { LayerAttention, ModelConfig, RopeScaling, RotarySettings } from "./model-runner.js";
import { extendedLength } from "./rope-settings.js";
import { checkedConfig, Settings, tokenIds } from "./settings.js";

/**
 * Refuses GGUF files of another family, of several parts, or with features that do not work.
 * @throws ModelFileError that says what works.
 */
export function checkGgufFamily(path: string, header: GgufHeader): void {
	const { metadata } = header;
	const architecture = metadata.get("general.architecture");
	if (!familyOfGguf(architecture)) {
		throw new ModelFileError(
			path,
			`general.architecture is ${JSON.stringify(architecture) ?? "missing"}; ` +
				`${SUPPORTED_GGUF_ARCHITECTURES.join(", ")} work`,
		);
	}
	const parts = Number(metadata.get("split.count") ?? 1);
	if (parts > 1) {
		throw new ModelFileError(path, `is one of ${parts} parts; merge them into one file (llama-gguf-split --merge)`);
	}
	if (Number(metadata.get(`${architecture}.expert_count`) ?? 0) > 0) {
		throw new ModelFileError(path, "is a mixture of experts; only dense models work");
	}
}

/** Factors of rotary frequencies that a file holds as tensors. */
export interface RopeFactorTensors {
	/** rope_freqs: in place of Llama 3's settings. */
	readonly all?: Float32Array | undefined;
	/** rope_factors_short and rope_factors_long: of LongRoPE. */
	readonly short?: Float32Array | undefined;
	readonly long?: Float32Array | undefined;
}

/** Of every so many layers the last sees the whole context; a file may say another number or each layer's kind. */
const FULL_ATTENTION_INTERVAL: Partial<Record<ModelFamily, number>> = { gemma2: 2, gemma3: 6, olmo2: 4 };
/** Families whose layers all have the window, where a file says one. */
const WINDOW_EVERYWHERE: readonly ModelFamily[] = ["llama", "phi3"];
/** llama.cpp knows these models by their number of layers: their attention is scaled by the width per head. */
const SCALED_BY_WIDTH: Partial<Record<ModelFamily, number>> = { gemma2: 46, gemma3: 62 };
/** SmolLM3: of so many layers the last does not turn. */
const NO_ROPE_INTERVAL = 4;

/** One of the factor tensors, of the right length. */
function checkedFactors(path: string, name: string, factors: Float32Array, rotaryDim: number): number[] {
	if (factors.length !== rotaryDim / 2) {
		throw new ModelFileError(path, `${name} has ${factors.length} numbers for heads of which ${rotaryDim} turn`);
	}
	return [...factors];
}

function ropeScaling(settings: Settings, rotaryDim: number, tensors: RopeFactorTensors): RopeScaling | null {
	const { path } = settings;
	const context = settings.size("context_length");
	const original = () => settings.size("rope.scaling.original_context_length", context);
	if (tensors.short && tensors.long) {
		return {
			type: "longrope",
			shortFactors: checkedFactors(path, "rope_factors_short", tensors.short, rotaryDim),
			longFactors: checkedFactors(path, "rope_factors_long", tensors.long, rotaryDim),
			originalMaxPositionEmbeddings: original(),
			attentionFactor: settings.number("rope.scaling.attn_factor", 1),
		};
	}
	if (tensors.all) return { type: "factors", factors: checkedFactors(path, "rope_freqs", tensors.all, rotaryDim) };
	const factor = settings.optionalNumber("rope.scaling.factor") ?? settings.optionalNumber("rope.scale_linear") ?? 1;
	const type = settings.get("rope.scaling.type") ?? "linear";
	if (type === "none" || (type === "linear" && factor === 1)) return null;
	if (type === "linear") return { type: "linear", factor };
	if (type === "yarn") {
		return {
			type: "yarn",
			factor: settings.number("rope.scaling.factor"),
			originalMaxPositionEmbeddings: original(),
			betaFast: settings.number("rope.scaling.yarn_beta_fast", 32),
			betaSlow: settings.number("rope.scaling.yarn_beta_slow", 1),
			truncate: true,
			attentionFactor: settings.number("rope.scaling.attn_factor", 1) * (1 + 0.1 * Math.log(Math.max(1, factor))),
		};
	}
	return settings.fail("rope.scaling.type", `is ${JSON.stringify(type)}; none, linear and yarn work`);
}

/** Whether a layer has the window. */
function isSliding(settings: Settings, family: ModelFamily, layer: number): boolean {
	const fallback = FULL_ATTENTION_INTERVAL[family];
	if (fallback === undefined) return WINDOW_EVERYWHERE.includes(family);
	const pattern = settings.get("attention.sliding_window_pattern") ?? fallback;
	if (typeof pattern === "number") return pattern === 0 || layer % pattern < pattern - 1;
	return Boolean((pattern as ArrayLike<unknown>)[layer]);
}

function layerAttention(settings: Settings, family: ModelFamily, local: boolean): LayerAttention[] {
	const window = settings.optionalNumber("attention.sliding_window") ?? (family === "gemma2" ? 4096 : null);
	return Array.from({ length: settings.size("block_count") }, (_, layer) => {
		const sliding = window !== null && isSliding(settings, family, layer);
		const turns = family !== "smollm3" || (layer + 1) % NO_ROPE_INTERVAL !== 0;
		return {
			window: sliding ? window : null,
			rope: !turns ? "none" : sliding && local ? "local" : "global",
		};
	});
}

/** The rotary embedding of layers with a window, in the families where it is another. */
function localRope(settings: Settings, family: ModelFamily, theta: number): RotarySettings | null {
	if (family === "gemma3") return { theta: settings.number("rope.freq_base_swa", 10000), scaling: null };
	if (family === "olmo2") return { theta: settings.number("rope.freq_base_swa", theta), scaling: null };
	return null;
}

/**
 * Architecture from GGUF metadata that passed `checkGgufFamily`.
 * @throws ModelFileError for a missing size or a feature that does not work.
 */
export function configFromGguf(path: string, header: GgufHeader, factors: RopeFactorTensors = {}): ModelConfig {
	const { metadata } = header;
	const architecture = metadata.get("general.architecture") as string;
	const family = familyOfGguf(architecture)!;
	const settings = new Settings(path, (key) => metadata.get(`${architecture}.${key}`), `${architecture}.`);
	const numHeads = settings.size("attention.head_count");
	const hiddenSize = settings.size("embedding_length");
	const numLayers = settings.size("block_count");
	const embedding = header.tensors.find((tensor) => tensor.name === "token_embd.weight");
	if (!embedding) throw new ModelFileError(path, "has no tensor token_embd.weight");
	const headDim = settings.size("attention.key_length", hiddenSize / numHeads);
	const valueDim = settings.size("attention.value_length", headDim);
	if (valueDim !== headDim)
		settings.fail("attention.value_length", `is ${valueDim}; as wide as keys, ${headDim}, works`);
	const rotaryDim = settings.size("rope.dimension_count", headDim);
	const rope = {
		theta: settings.number("rope.freq_base", 10000),
		scaling: ropeScaling(settings, rotaryDim, factors),
	};
	const local = localRope(settings, family, rope.theta);
	const layers = layerAttention(settings, family, local !== null);
	const isGemma = family === "gemma2" || family === "gemma3";
	const queryWidth = SCALED_BY_WIDTH[family] === numLayers ? hiddenSize / numHeads : headDim;
	return checkedConfig(path, {
		family,
		vocabSize: embedding.shape[0]!,
		hiddenSize,
		intermediateSize: settings.size("feed_forward_length"),
		numLayers,
		numHeads,
		numKvHeads: settings.size("attention.head_count_kv", numHeads),
		headDim,
		rotaryDim,
		rope,
		localRope: layers.some((layer) => layer.rope === "local") ? local : null,
		layers,
		attentionScale: settings.number("attention.scale", 1 / Math.sqrt(queryWidth)),
		attentionSoftcap: family === "gemma2" ? settings.number("attn_logit_softcapping", 50) : null,
		logitSoftcap:
			family === "gemma2"
				? settings.number("final_logit_softcapping", 30)
				: isGemma
					? settings.optionalNumber("final_logit_softcapping")
					: null,
		embeddingScale: isGemma ? Math.sqrt(hiddenSize) : 1,
		rmsNormEps: settings.number("attention.layer_norm_rms_epsilon", 1e-5),
		normOffset: 0,
		maxPositionEmbeddings: extendedLength(rope.scaling, settings.size("context_length")),
		tieWordEmbeddings: !header.tensors.some((tensor) => tensor.name === "output.weight"),
		bosTokenId: tokenIds(metadata.get("tokenizer.ggml.bos_token_id"))[0] ?? null,
		eosTokenIds: tokenIds(metadata.get("tokenizer.ggml.eos_token_id")),
	});
}
