// SPDX-License-Identifier: Apache-2.0
// A decoder as an ONNX graph, whatever its family: the description of the family says which norms its layers have,
// the configuration says the numbers. Activations are [tokens, width]; attention and its cache are the emitter's part.
// Beside the emitter's inputs and outputs the graph has one output: logits [rows, vocabulary].

import { FAMILIES, type FamilyDescription } from "../model/families.js";
import type { ModelConfig, Quantization } from "../model/model-runner.js";
import type { WeightSource, WeightTensor } from "../weights/weight-source.js";
import {
	type AttentionEmitter,
	type AttentionProjections,
	type CacheFormat,
	GroupQueryAttention,
} from "./attention-emitter.js";
import { GraphTensors } from "./graph-tensors.js";
import { MatrixProducts } from "./matrix-products.js";
import { formatName, type GraphTarget, matrixFormat } from "./matrix-writer.js";
import { encodeFloats, type FloatType, MICROSOFT, OnnxModel, OnnxType } from "./onnx-model.js";
import { PagedAttention } from "./paged-attention-emitter.js";
import type { WeightsWriter } from "./weights-writer.js";

/** Changes whenever the same model would give another graph: old cached graphs are then not used. */
export const GRAPH_VERSION = 5;

/** Names of a layer's matrices below `model.layers.N.`. */
const LAYER = {
	q: "self_attn.q_proj.weight",
	k: "self_attn.k_proj.weight",
	v: "self_attn.v_proj.weight",
	/** All three in one, where a file has them so. */
	qkv: "self_attn.qkv_proj.weight",
	qNorm: "self_attn.q_norm.weight",
	kNorm: "self_attn.k_norm.weight",
	o: "self_attn.o_proj.weight",
	gate: "mlp.gate_proj.weight",
	up: "mlp.up_proj.weight",
	/** Both in one, the gate first. */
	gateUp: "mlp.gate_up_proj.weight",
	down: "mlp.down_proj.weight",
} as const;

const EMBEDDING = "model.embed_tokens.weight";
const OUTPUT_NORM = "model.norm.weight";
const OUTPUT = "lm_head.weight";

/** What building a graph needs. */
export interface GraphOptions {
	readonly config: ModelConfig;
	readonly source: WeightSource;
	readonly quantization: Quantization;
	readonly writer: WeightsWriter;
	/** Name of the writer's file, relative to where the model will lie. */
	readonly weightsFile: string;
	/** Default: "cpu". */
	readonly target?: GraphTarget;
	/** How the cache is held on a CPU; default fp32. */
	readonly cache?: CacheFormat;
	onProgress?(fraction: number): void;
}

/** How the matrices of a model are held in its graph, in words; the format of most weights first. */
export function weightFormats(
	config: ModelConfig,
	source: WeightSource,
	quantization: Quantization,
	target: GraphTarget = "cpu",
): string[] {
	const weights = new Map<string, number>();
	for (const { name, type, rows, columns } of source.tensors.values()) {
		if (rows === 1) continue;
		const isOutput = name === OUTPUT && !outputIsEmbedding(config, source);
		const isLayer = /^model\.layers\.\d+\.(self_attn|mlp)\./.test(name);
		if (!isOutput && !isLayer && name !== EMBEDDING) continue;
		const role = isLayer ? "layer" : "vocabulary";
		const format = formatName(type, matrixFormat(type, quantization, role, target), target);
		weights.set(format, (weights.get(format) ?? 0) + rows * columns);
	}
	return [...weights].sort(([, a], [, b]) => b - a).map(([format]) => format);
}

/** True where the output matrix is the embedding: the configuration says so, or there is no other. */
export function outputIsEmbedding(config: ModelConfig, source: WeightSource): boolean {
	return config.tieWordEmbeddings || !source.tensors.has(OUTPUT);
}

class DecoderGraphBuilder {
	readonly #options: GraphOptions;
	readonly #config: ModelConfig;
	readonly #family: FamilyDescription;
	readonly #model: OnnxModel;
	readonly #tensors: GraphTensors;
	readonly #products: MatrixProducts;
	readonly #attention: AttentionEmitter;

	constructor(options: GraphOptions) {
		const { config, source, writer, quantization, target = "cpu" } = options;
		this.#options = options;
		this.#config = config;
		this.#family = FAMILIES[config.family];
		this.#model = new OnnxModel(
			config.family,
			options.weightsFile,
			target === "cpu" ? OnnxType.FLOAT : OnnxType.FLOAT16,
		);
		this.#tensors = new GraphTensors(this.#model, source, writer);
		this.#products = new MatrixProducts(this.#model, this.#tensors, quantization, target);
		this.#attention =
			target === "cpu"
				? new GroupQueryAttention(this.#model, config, options.cache)
				: new PagedAttention(this.#model, config);
	}

	/** A number as a constant. */
	#scalar(name: string, value: number, type: FloatType = this.#model.floatType): string {
		const { buffer } = encodeFloats(type, Float32Array.of(value));
		return this.#model.initializer(name, type, [], new Uint8Array(buffer));
	}

	/** Normalizes rows of `width`; without a norm x stays as it is. */
	#normalize(x: string, norm: string | undefined, width = this.#config.hiddenSize): string {
		if (norm === undefined) return x;
		const weight = this.#tensors.norm(norm, width, this.#config.normOffset);
		return this.#model.node("SimplifiedLayerNormalization", [x, weight], {
			attributes: { axis: -1, epsilon: { float: this.#config.rmsNormEps } },
		});
	}

	/** Adds `x` to the residual and normalizes the sum. */
	#addAndNormalize(x: string, residual: string, norm: string | undefined): { normalized: string; residual: string } {
		if (norm === undefined) {
			const sum = this.#model.node("Add", [x, residual]);
			return { normalized: sum, residual: sum };
		}
		const normalized = `${norm}.out`;
		const sum = `${norm}.residual`;
		const weight = this.#tensors.norm(norm, this.#config.hiddenSize, this.#config.normOffset);
		this.#model.node("SkipSimplifiedLayerNormalization", [x, residual, weight], {
			domain: MICROSOFT,
			outputs: [normalized, "", "", sum],
			attributes: { epsilon: { float: this.#config.rmsNormEps } },
		});
		return { normalized, residual: sum };
	}

	/** Name of a layer's norm; undefined where the family has none at this place. */
	#norm(layer: number, place: keyof FamilyDescription["norms"]): string | undefined {
		const name = this.#family.norms[place];
		return name && `model.layers.${layer}.${name}`;
	}

	/** The matrices of a layer that read the same, from one fused tensor or several. */
	#matrices(prefix: string, fused: string, parts: readonly (readonly [string, number])[]): WeightTensor[] {
		const { hiddenSize } = this.#config;
		if (this.#tensors.has(prefix + fused)) {
			const rows = parts.reduce((sum, [, count]) => sum + count, 0);
			return [this.#tensors.matrix(prefix + fused, rows, hiddenSize)];
		}
		return parts.map(([name, rows]) => this.#tensors.matrix(prefix + name, rows, hiddenSize));
	}

	/** Divides x [tokens, widths] into parts. */
	#split(x: string, names: readonly string[], widths: readonly number[]): void {
		const sizes = `split_${widths.join("_")}`;
		if (!this.#splits.has(sizes)) {
			this.#model.int64Constant(sizes, widths);
			this.#splits.add(sizes);
		}
		this.#model.node("Split", [x, sizes], { outputs: names, attributes: { axis: 1 } });
	}
	readonly #splits = new Set<string>();

	/** Queries, keys and values of a layer, normalized where the family does so. */
	#projections(x: string, prefix: string): AttentionProjections {
		const { numHeads, numKvHeads, headDim } = this.#config;
		const widths = [numHeads * headDim, numKvHeads * headDim, numKvHeads * headDim] as const;
		const names = [LAYER.q, LAYER.k, LAYER.v] as const;
		const matrices = this.#matrices(
			prefix,
			LAYER.qkv,
			names.map((name, i) => [name, widths[i]!]),
		);
		// Of all matrices the ones before attention suffer most from rounded activations, and they are small.
		const values = this.#products.products(x, `${prefix}qkv`, matrices, true);
		const { queryKeyNorm } = this.#family;
		if (values.length === 1) {
			if (!queryKeyNorm) return { packed: values[0]! };
			const parts = [`${prefix}q`, `${prefix}k`, `${prefix}v`];
			this.#split(values[0]!, parts, widths);
			values.splice(0, 1, ...parts);
		}
		const [q, k, v] = values as [string, string, string];
		if (!queryKeyNorm) return { q, k, v };
		const normalized = (value: string, norm: string, width: number) => {
			if (queryKeyNorm === "width") return this.#normalize(value, prefix + norm, width);
			const heads = this.#model.node("Reshape", [value, this.#products.rowsOf(headDim)]);
			const each = this.#normalize(heads, prefix + norm, headDim);
			return this.#model.node("Reshape", [each, this.#products.rowsOf(width)]);
		};
		return { q: normalized(q, LAYER.qNorm, widths[0]), k: normalized(k, LAYER.kNorm, widths[1]), v };
	}

	/** The feed-forward part of a layer. */
	#mlp(x: string, prefix: string): string {
		const model = this.#model;
		const { hiddenSize, intermediateSize } = this.#config;
		const matrices = this.#matrices(prefix, LAYER.gateUp, [
			[LAYER.gate, intermediateSize],
			[LAYER.up, intermediateSize],
		]);
		let values = this.#products.products(x, `${prefix}gate_up`, matrices);
		if (values.length === 1) {
			const parts = [`${prefix}gate`, `${prefix}up`];
			model.node("Split", [values[0]!], { outputs: parts, attributes: { axis: 1, num_outputs: 2 } });
			values = parts;
		}
		const [gate, up] = values as [string, string];
		const activated =
			this.#family.activation === "silu"
				? model.node("QuickGelu", [gate], { domain: MICROSOFT, attributes: { alpha: { float: 1 } } })
				: model.node("FastGelu", [gate], { domain: MICROSOFT });
		const down = this.#tensors.matrix(prefix + LAYER.down, hiddenSize, intermediateSize);
		return this.#products.product(model.node("Mul", [activated, up]), `${prefix}down`, down);
	}

	/** The final logits out of normalized states [rows, hidden]. */
	#logits(x: string, multiply: (x: string, name: string | undefined) => string): void {
		const model = this.#model;
		const cap = this.#config.logitSoftcap;
		const isFloat = model.floatType === OnnxType.FLOAT;
		model.output("logits", OnnxType.FLOAT, ["rows", this.#config.vocabSize]);
		let logits = multiply(x, isFloat && cap === null ? "logits" : undefined);
		if (!isFloat) {
			const named = cap === null ? { outputs: ["logits"] } : {};
			logits = model.node("Cast", [logits], { ...named, attributes: { to: OnnxType.FLOAT } });
		}
		if (cap !== null) {
			const inverse = this.#scalar("logit_cap_inverse", 1 / cap, OnnxType.FLOAT);
			const bent = model.node("Tanh", [model.node("Mul", [logits, inverse])]);
			model.node("Mul", [bent, this.#scalar("logit_cap", cap, OnnxType.FLOAT)], { outputs: ["logits"] });
		}
		this.#attention.finish?.("logits");
	}

	build(): Uint8Array {
		const { source, onProgress } = this.#options;
		const { hiddenSize, numHeads, headDim, vocabSize, numLayers, embeddingScale } = this.#config;
		const model = this.#model;
		const { ids, rows } = this.#attention.begin();

		const embedding = this.#tensors.matrix(EMBEDDING, vocabSize, hiddenSize);
		const output = outputIsEmbedding(this.#config, source)
			? embedding
			: this.#tensors.matrix(OUTPUT, vocabSize, hiddenSize);
		const { embedded, logits } = this.#products.vocabulary(ids, embedding, output);
		let residual =
			embeddingScale === 1 ? embedded : model.node("Mul", [embedded, this.#scalar("embedding_scale", embeddingScale)]);
		let x = this.#normalize(residual, this.#norm(0, "beforeAttention"));

		for (let layer = 0; layer < numLayers; layer++) {
			const prefix = `model.layers.${layer}.`;
			let mixed = this.#attention.attend(layer, this.#projections(x, prefix));
			if (layer === numLayers - 1) {
				// From here on only the tokens whose logits are wanted matter.
				mixed = model.node("Gather", [mixed, rows], { attributes: { axis: 0 } });
				residual = model.node("Gather", [residual, rows], { attributes: { axis: 0 } });
			}
			const o = this.#tensors.matrix(prefix + LAYER.o, hiddenSize, numHeads * headDim);
			const attended = this.#normalize(
				this.#products.product(mixed, `${prefix}o`, o),
				this.#norm(layer, "afterAttention"),
			);
			const middle = this.#addAndNormalize(attended, residual, this.#norm(layer, "beforeMlp"));
			const fed = this.#normalize(this.#mlp(middle.normalized, prefix), this.#norm(layer, "afterMlp"));
			const nextNorm = layer + 1 < numLayers ? this.#norm(layer + 1, "beforeAttention") : OUTPUT_NORM;
			const next = this.#addAndNormalize(fed, middle.residual, nextNorm);
			residual = next.residual;
			x = next.normalized;
			onProgress?.((layer + 1) / (numLayers + 1));
		}
		this.#tensors.checkAllUsed(numLayers, this.#config.family);
		this.#logits(x, logits);
		onProgress?.(1);
		return model.serialize();
	}
}

/**
 * Builds the graph; the weights go to `options.writer`.
 * @returns the bytes of the .onnx file.
 * @throws ModelFileError when a tensor is missing, has the wrong shape, has no place in the family or cannot be read.
 */
export function buildDecoderGraph(options: GraphOptions): Uint8Array {
	return new DecoderGraphBuilder(options).build();
}
