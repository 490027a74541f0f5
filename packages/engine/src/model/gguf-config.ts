// SPDX-License-Identifier: Apache-2.0
// Reads the architecture out of the metadata of a GGUF file. Keys and their meaning: llama.cpp.

import type { GgufHeader } from "../weights/gguf-header.js";
import { ModelFileError } from "../weights/model-file-error.js";
import { familyOfGguf, SUPPORTED_GGUF_ARCHITECTURES } from "./families.js";
import type { ModelConfig, RopeScaling } from "./model-runner.js";
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

/**
 * Architecture from GGUF metadata that passed `checkGgufFamily`.
 * @param ropeFactors the tensor rope_freqs, which some files carry in place of the scaling's settings.
 * @throws ModelFileError for a missing size or a feature that does not work.
 */
export function configFromGguf(path: string, header: GgufHeader, ropeFactors?: Float32Array): ModelConfig {
	const { metadata } = header;
	const architecture = metadata.get("general.architecture") as string;
	const family = familyOfGguf(architecture)!;
	const settings = new Settings(path, (key) => metadata.get(`${architecture}.${key}`), `${architecture}.`);
	const numHeads = settings.size("attention.head_count");
	const hiddenSize = settings.size("embedding_length");
	const embedding = header.tensors.find((tensor) => tensor.name === "token_embd.weight");
	if (!embedding) throw new ModelFileError(path, "has no tensor token_embd.weight");
	const headDim = settings.size("attention.key_length", hiddenSize / numHeads);
	const rotaryDim = settings.size("rope.dimension_count", headDim);
	const scaling = settings.get("rope.scaling.type") ?? "none";
	if (scaling !== "none" && scaling !== "linear") {
		settings.fail("rope.scaling.type", `is ${JSON.stringify(scaling)}; none and linear work`);
	}
	let ropeScaling: RopeScaling | null = null;
	if (ropeFactors) {
		if (ropeFactors.length !== rotaryDim / 2) {
			throw new ModelFileError(path, `rope_freqs has ${ropeFactors.length} numbers for heads of ${headDim}`);
		}
		ropeScaling = { type: "factors", factors: [...ropeFactors] };
	} else if (scaling === "linear") {
		ropeScaling = { type: "linear", factor: settings.number("rope.scaling.factor") };
	}
	const numLayers = settings.size("block_count");
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
		rope: { theta: settings.number("rope.freq_base", 10000), scaling: ropeScaling },
		localRope: null,
		layers: Array.from({ length: numLayers }, () => ({ window: null, rope: "global" as const })),
		attentionScale: 1 / Math.sqrt(headDim),
		attentionSoftcap: null,
		logitSoftcap: null,
		embeddingScale: 1,
		rmsNormEps: settings.number("attention.layer_norm_rms_epsilon", 1e-5),
		normOffset: 0,
		maxPositionEmbeddings: settings.size("context_length"),
		tieWordEmbeddings: !header.tensors.some((tensor) => tensor.name === "output.weight"),
		bosTokenId: tokenIds(metadata.get("tokenizer.ggml.bos_token_id"))[0] ?? null,
		eosTokenIds: tokenIds(metadata.get("tokenizer.ggml.eos_token_id")),
	});
}
