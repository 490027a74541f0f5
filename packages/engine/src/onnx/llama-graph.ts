// SPDX-License-Identifier: Apache-2.0
// The decoder of the Llama family as an ONNX graph. Activations are [tokens, width]: the batch and sequence
// dimensions appear only around attention, which needs them.
//
// Inputs: input_ids [batch, sequence] int32; seqlens_k [batch] int32, the index of each row's last token;
// total_sequence_length int32, the longest row with its new tokens; rows [rows] int32, the tokens whose
// logits are wanted, counted over batch * sequence; cos_cache and sin_cache [positions, headDim / 2];
// past_key_values.N.key / .value [batch, kvHeads, maxLength, headDim] per layer.
// Outputs: logits [rows, vocabulary]; present.N.key / .value, to be bound to the same memory as the past.

import type { ModelConfig, Quantization } from "../model/model-runner.js";
import { ModelFileError } from "../weights/model-file-error.js";
import { READABLE_WEIGHT_TYPES, type WeightSource, type WeightTensor } from "../weights/weight-source.js";
import { blocksPerRow } from "./block-quantize.js";
import {
	declareBlocks,
	formatName,
	isAsStored,
	type MatrixFormat,
	matrixFormat,
	type StoredMatrix,
	sameFormat,
	writeMatrix,
} from "./matrix-writer.js";
import { MICROSOFT, OnnxModel, OnnxType } from "./onnx-model.js";
import type { WeightsWriter } from "./weights-writer.js";

/** Changes whenever the same model would give another graph: old cached graphs are then not used. */
export const GRAPH_VERSION = 3;

/** Names of a layer's tensors below `model.layers.N.`. */
const LAYER = {
	attentionNorm: "input_layernorm.weight",
	q: "self_attn.q_proj.weight",
	k: "self_attn.k_proj.weight",
	v: "self_attn.v_proj.weight",
	o: "self_attn.o_proj.weight",
	mlpNorm: "post_attention_layernorm.weight",
	gate: "mlp.gate_proj.weight",
	up: "mlp.up_proj.weight",
	down: "mlp.down_proj.weight",
} as const;

const EMBEDDING = "model.embed_tokens.weight";
const OUTPUT_NORM = "model.norm.weight";
const OUTPUT = "lm_head.weight";

/** MatMulNBits: activations are rounded to 8 bits per row and block, the products summed as integers. */
const INT8_ACTIVATIONS = 4;

/** What building a graph needs. */
export interface GraphOptions {
	readonly config: ModelConfig;
	readonly source: WeightSource;
	readonly quantization: Quantization;
	readonly writer: WeightsWriter;
	/** Name of the writer's file, relative to where the model will lie. */
	readonly weightsFile: string;
	onProgress?(fraction: number): void;
}

/** How the matrices of a model are held in its graph, in words; the format of most weights first. */
export function weightFormats(config: ModelConfig, source: WeightSource, quantization: Quantization): string[] {
	const weights = new Map<string, number>();
	for (const { name, type, rows, columns } of source.tensors.values()) {
		const isOutput = name === OUTPUT && !outputIsEmbedding(config, source);
		const isLayer = /^model\.layers\.\d+\.(self_attn|mlp)\./.test(name);
		if (!isOutput && !isLayer && name !== EMBEDDING) continue;
		const format = formatName(type, matrixFormat(type, quantization, isLayer ? "layer" : "vocabulary"));
		weights.set(format, (weights.get(format) ?? 0) + rows * columns);
	}
	return [...weights].sort(([, a], [, b]) => b - a).map(([format]) => format);
}

/** True where the output matrix is the embedding: the configuration says so, or there is no other. */
export function outputIsEmbedding(config: ModelConfig, source: WeightSource): boolean {
	return config.tieWordEmbeddings || !source.tensors.has(OUTPUT);
}

class LlamaGraphBuilder {
	readonly #options: GraphOptions;
	readonly #model: OnnxModel;
	/** Values that several matrices read: constants by name, and what is derived of an activation by its name. */
	readonly #shared = new Map<string, string>();

	constructor(options: GraphOptions) {
		this.#options = options;
		this.#model = new OnnxModel("llama", options.weightsFile);
	}

	#tensor(name: string, rows: number, columns: number): WeightTensor {
		const tensor = this.#options.source.tensors.get(name);
		if (!tensor) {
			const type = this.#options.source.unreadable.get(name);
			const works = READABLE_WEIGHT_TYPES.join(", ");
			const problem = type ? `has the type ${type}, which cannot be read; ${works} work` : "is missing";
			throw new ModelFileError("model", `the tensor ${name} ${problem}`);
		}
		if (tensor.rows !== rows || tensor.columns !== columns) {
			throw new ModelFileError(
				"model",
				`the tensor ${name} is ${tensor.rows} x ${tensor.columns}; the configuration needs ${rows} x ${columns}`,
			);
		}
		return tensor;
	}

	#format(tensor: WeightTensor, role: "layer" | "vocabulary"): MatrixFormat {
		return matrixFormat(tensor.type, this.#options.quantization, role);
	}

	/** The weights of a norm. */
	#vector(name: string): string {
		const { hiddenSize } = this.#options.config;
		this.#tensor(name, 1, hiddenSize);
		const data = this.#options.writer.tensor(this.#options.source.readRows(name, 0, 1));
		return this.#model.initializer(name, OnnxType.FLOAT, [hiddenSize], data);
	}

	/**
	 * x [tokens, columns] times a stored matrix [rows, columns] transposed; the result may be given a name.
	 * `refined` adds the product with what the kernel's rounding of x to 8 bits leaves out.
	 */
	#multiply(
		x: string,
		name: string,
		matrix: StoredMatrix,
		options: { output?: string; refined?: boolean } = {},
	): string {
		const model = this.#model;
		const { format, rows, columns } = matrix;
		const named = options.output ? { outputs: [options.output] } : {};
		if (format.kind === "float") {
			const weight = model.initializer(name, OnnxType.FLOAT, [rows, columns], matrix.data);
			return model.node("Gemm", [x, weight], { ...named, attributes: { transB: 1 } });
		}
		const blocks = declareBlocks(model, name, matrix);
		const attributes = {
			K: columns,
			N: rows,
			bits: format.bits,
			block_size: format.blockSize,
			accuracy_level: INT8_ACTIVATIONS,
		};
		const refined = options.refined === true && columns % format.blockSize === 0;
		let product = model.node("MatMulNBits", [x, ...blocks], {
			...(matrix.offsets || refined ? {} : named),
			domain: MICROSOFT,
			attributes,
		});
		if (refined) {
			const rest = this.#roundingRest(x, columns, format.blockSize);
			const correction = model.node("MatMulNBits", [rest, ...blocks], { domain: MICROSOFT, attributes });
			product = model.node("Add", [product, correction], matrix.offsets ? {} : named);
		}
		if (!matrix.offsets) return product;
		const numBlocks = blocksPerRow(columns, format.blockSize);
		const offsets = model.initializer(`${name}.offset`, OnnxType.FLOAT, [rows, numBlocks], matrix.offsets);
		const sums = this.#blockSum(x, numBlocks, format.blockSize);
		return model.node("Gemm", [sums, offsets, product], { ...named, attributes: { transB: 1 } });
	}

	/**
	 * x minus x as MatMulNBits rounds it: to 8 bits, with one scale per row and block. A product of each block with
	 * the identity gives the rounded x, whatever the kernel's way of rounding is.
	 */
	#roundingRest(x: string, columns: number, blockSize: number): string {
		const model = this.#model;
		const key = `${x}/rest/${blockSize}`;
		let rest = this.#shared.get(key);
		if (!rest) {
			const identity = `identity_${blockSize}`;
			if (!this.#shared.has(identity)) {
				// 1 with the zero point 128.
				const packed = new Uint8Array(blockSize * blockSize).fill(128);
				for (let i = 0; i < blockSize; i++) packed[i * blockSize + i] = 129;
				const { writer } = this.#options;
				const scales = new Float32Array(blockSize).fill(1);
				model.initializer(`${identity}.q`, OnnxType.UINT8, [blockSize, 1, blockSize], writer.tensor(packed));
				model.initializer(`${identity}.scale`, OnnxType.FLOAT, [blockSize, 1], writer.tensor(scales));
				model.int64Constant(`rows_of_${blockSize}`, [-1, blockSize]);
				this.#shared.set(identity, identity);
			}
			const width = `rows_of_${columns}`;
			if (!this.#shared.has(width)) {
				// A block as wide as the row has the same shape.
				if (columns !== blockSize) model.int64Constant(width, [-1, columns]);
				this.#shared.set(width, width);
			}
			const blocks = model.node("Reshape", [x, `rows_of_${blockSize}`]);
			const rounded = model.node("MatMulNBits", [blocks, `${identity}.q`, `${identity}.scale`], {
				domain: MICROSOFT,
				attributes: { K: blockSize, N: blockSize, bits: 8, block_size: blockSize, accuracy_level: INT8_ACTIVATIONS },
			});
			rest = model.node("Sub", [x, model.node("Reshape", [rounded, width])]);
			this.#shared.set(key, rest);
		}
		return rest;
	}

	/**
	 * Sums of an activation over each block of columns, [tokens, blocks]: a product with a matrix of zeros and ones,
	 * which is faster here than ReduceSum and, unlike it, keeps its shape when there are no tokens.
	 */
	#blockSum(x: string, blocks: number, blockSize: number): string {
		const model = this.#model;
		const key = `${x}/${blockSize}`;
		let sums = this.#shared.get(key);
		if (!sums) {
			const columns = blocks * blockSize;
			const name = `blocks_${columns}_${blockSize}`;
			if (!this.#shared.has(name)) {
				const ones = new Float32Array(blocks * columns);
				for (let block = 0; block < blocks; block++) {
					ones.fill(1, block * columns + block * blockSize, block * columns + (block + 1) * blockSize);
				}
				model.initializer(name, OnnxType.FLOAT, [blocks, columns], this.#options.writer.tensor(ones));
				this.#shared.set(name, name);
			}
			sums = model.node("Gemm", [x, name], { attributes: { transB: 1 } });
			this.#shared.set(key, sums);
		}
		return sums;
	}

	/** One product with several tensors side by side; packed into one matrix where their formats allow it. */
	#linear(x: string, name: string, tensors: readonly WeightTensor[], refine = false): string {
		const { source, writer } = this.#options;
		const formats = tensors.map((tensor) => this.#format(tensor, "layer"));
		if (formats.every((format) => sameFormat(format, formats[0]!))) {
			return this.#multiply(x, name, writeMatrix(writer, source, tensors, formats[0]!), {
				refined: refine && isAsStored(formats[0]!),
			});
		}
		const parts = tensors.map((tensor, i) =>
			this.#multiply(x, `${name}.${i}`, writeMatrix(writer, source, [tensor], formats[i]!), {
				refined: refine && isAsStored(formats[i]!),
			}),
		);
		return this.#model.node("Concat", parts, { attributes: { axis: 1 } });
	}

	/** Adds `x` to the residual and normalizes. */
	#addAndNormalize(x: string, residual: string, norm: string): { normalized: string; residual: string } {
		const normalized = `${norm}.out`;
		const sum = `${norm}.residual`;
		this.#model.node("SkipSimplifiedLayerNormalization", [x, residual, this.#vector(norm)], {
			domain: MICROSOFT,
			outputs: [normalized, "", "", sum],
			attributes: { epsilon: { float: this.#options.config.rmsNormEps } },
		});
		return { normalized, residual: sum };
	}

	/** Looks up token ids [batch, sequence] and gives [batch * sequence, hidden]. */
	#embed(matrix: StoredMatrix, ids: string): string {
		const model = this.#model;
		const { vocabSize, hiddenSize } = this.#options.config;
		const flat = model.node("Reshape", [ids, "flat_shape"]);
		const { format } = matrix;
		if (format.kind === "float") {
			const weight = model.initializer("embedding", OnnxType.FLOAT, [vocabSize, hiddenSize], matrix.data);
			return model.node("Gather", [weight, flat], { attributes: { axis: 0 } });
		}
		// The same bytes as the output matrix where that is shared, under the two-dimensional shape that this one wants.
		const width = (hiddenSize * format.bits) / 8;
		const packed = model.initializer("embedding.q", OnnxType.UINT8, [vocabSize, width], matrix.data);
		const blocks = blocksPerRow(hiddenSize, format.blockSize);
		const scales = model.initializer("embedding.scale", OnnxType.FLOAT, [vocabSize, blocks], matrix.scales!);
		return model.node("GatherBlockQuantized", [packed, flat, scales], {
			domain: MICROSOFT,
			attributes: { gather_axis: 0, quantize_axis: 1, block_size: format.blockSize, bits: format.bits },
		});
	}

	/** Formats that the embedding lookup can read; others are looked up in fp32, which is as exact. */
	#embeddingFormat(tensor: WeightTensor): MatrixFormat {
		const format = this.#format(tensor, "vocabulary");
		const readable = format.kind === "blocks" && !format.offsets && tensor.columns % format.blockSize === 0;
		return readable ? format : { kind: "float" };
	}

	build(): Uint8Array {
		const { config, source, writer } = this.#options;
		const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, vocabSize, numLayers } = config;
		const model = this.#model;
		const ids = model.input("input_ids", OnnxType.INT32, ["batch", "sequence"]);
		const seqlens = model.input("seqlens_k", OnnxType.INT32, ["batch"]);
		const total = model.input("total_sequence_length", OnnxType.INT32, [1]);
		const rows = model.input("rows", OnnxType.INT32, ["rows"]);
		const cos = model.input("cos_cache", OnnxType.FLOAT, ["positions", headDim / 2]);
		const sin = model.input("sin_cache", OnnxType.FLOAT, ["positions", headDim / 2]);
		model.output("logits", OnnxType.FLOAT, ["rows", vocabSize]);

		model.int64Constant("flat_shape", [-1]);
		const qkvWidth = (numHeads + 2 * numKvHeads) * headDim;
		const attentionWidth = numHeads * headDim;
		model.int64Constant("qkv_width", [qkvWidth]);
		model.int64Constant("attention_shape", [-1, attentionWidth]);
		const idsShape = model.node("Shape", [ids]);
		const qkvShape = model.node("Concat", [idsShape, "qkv_width"], { attributes: { axis: 0 } });

		const embedding = this.#tensor(EMBEDDING, vocabSize, hiddenSize);
		const embeddingFormat = this.#embeddingFormat(embedding);
		const embeddingMatrix = writeMatrix(writer, source, [embedding], embeddingFormat);
		let residual = this.#embed(embeddingMatrix, ids);
		let x = model.node(
			"SimplifiedLayerNormalization",
			[residual, this.#vector(`model.layers.0.${LAYER.attentionNorm}`)],
			{
				attributes: { axis: -1, epsilon: { float: config.rmsNormEps } },
			},
		);

		for (let layer = 0; layer < numLayers; layer++) {
			const prefix = `model.layers.${layer}.`;
			const at = (name: string, height: number, width: number) => this.#tensor(prefix + name, height, width);
			// Of all matrices the ones before attention suffer most from rounded activations, and they are small.
			const projections = [
				at(LAYER.q, attentionWidth, hiddenSize),
				at(LAYER.k, numKvHeads * headDim, hiddenSize),
				at(LAYER.v, numKvHeads * headDim, hiddenSize),
			];
			const qkv = this.#linear(x, `${prefix}qkv`, projections, true);
			const qkvRows = model.node("Reshape", [qkv, qkvShape]);
			const cacheShape = ["batch", numKvHeads, "max_length", headDim];
			const cache = (side: string, end: "input" | "output") =>
				model[end](`${end === "input" ? "past_key_values" : "present"}.${layer}.${side}`, OnnxType.FLOAT, cacheShape);
			const attention = model.node(
				"GroupQueryAttention",
				[qkvRows, "", "", cache("key", "input"), cache("value", "input"), seqlens, total, cos, sin],
				{
					domain: MICROSOFT,
					outputs: [`${prefix}attention`, cache("key", "output"), cache("value", "output")],
					attributes: {
						num_heads: numHeads,
						kv_num_heads: numKvHeads,
						do_rotary: 1,
						rotary_interleaved: 0,
						scale: { float: 1 / Math.sqrt(headDim) },
					},
				},
			);
			let mixed = model.node("Reshape", [attention, "attention_shape"]);
			if (layer === numLayers - 1) {
				// From here on only the tokens whose logits are wanted matter.
				mixed = model.node("Gather", [mixed, rows], { attributes: { axis: 0 } });
				residual = model.node("Gather", [residual, rows], { attributes: { axis: 0 } });
			}
			const projected = this.#linear(mixed, `${prefix}o`, [at(LAYER.o, hiddenSize, attentionWidth)]);
			const middle = this.#addAndNormalize(projected, residual, prefix + LAYER.mlpNorm);
			const gateUp = this.#linear(middle.normalized, `${prefix}gate_up`, [
				at(LAYER.gate, intermediateSize, hiddenSize),
				at(LAYER.up, intermediateSize, hiddenSize),
			]);
			const [gate, up] = [`${prefix}gate`, `${prefix}up`] as const;
			model.node("Split", [gateUp], { outputs: [gate, up], attributes: { axis: 1, num_outputs: 2 } });
			const silu = model.node("QuickGelu", [gate], { domain: MICROSOFT, attributes: { alpha: { float: 1 } } });
			const product = model.node("Mul", [silu, up]);
			const down = this.#linear(product, `${prefix}down`, [at(LAYER.down, hiddenSize, intermediateSize)]);
			const nextNorm = layer + 1 < numLayers ? `model.layers.${layer + 1}.${LAYER.attentionNorm}` : OUTPUT_NORM;
			const next = this.#addAndNormalize(down, middle.residual, nextNorm);
			residual = next.residual;
			x = next.normalized;
			this.#options.onProgress?.((layer + 1) / (numLayers + 1));
		}

		const outputTensor = outputIsEmbedding(config, source) ? embedding : this.#tensor(OUTPUT, vocabSize, hiddenSize);
		const outputFormat = this.#format(outputTensor, "vocabulary");
		const shared = outputTensor === embedding && sameFormat(outputFormat, embeddingFormat);
		const outputMatrix = shared ? embeddingMatrix : writeMatrix(writer, source, [outputTensor], outputFormat);
		this.#multiply(x, "output", outputMatrix, { output: "logits" });
		this.#options.onProgress?.(1);
		return model.serialize();
	}
}

/**
 * Builds the graph; the weights go to `options.writer`.
 * @returns the bytes of the .onnx file.
 * @throws ModelFileError when a tensor is missing, has the wrong shape or cannot be read.
 */
export function buildLlamaGraph(options: GraphOptions): Uint8Array {
	return new LlamaGraphBuilder(options).build();
}
