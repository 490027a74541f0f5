// SPDX-License-Identifier: Apache-2.0
// The tensors of a model as a graph is built from them: looked up with their shapes checked, vectors written to the
// file of weights, and what the graph did not use noticed.

import { ModelFileError } from "../weights/model-file-error.js";
import { READABLE_WEIGHT_TYPES, type WeightSource, type WeightTensor } from "../weights/weight-source.js";
import { encodeFloats, type OnnxModel } from "./onnx-model.js";
import type { WeightsWriter } from "./weights-writer.js";

/** Layer tensors that hold nothing a graph needs: buffers that older files saved. */
const IGNORED = /\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$/;

/** Name of the bias that belongs to a weight. */
export function biasName(weight: string): string {
	return weight.replace(/\.weight$/, ".bias");
}

/** Checked access to tensors. */
export class GraphTensors {
	readonly source: WeightSource;
	readonly writer: WeightsWriter;
	readonly #model: OnnxModel;
	readonly #used = new Set<string>();

	constructor(model: OnnxModel, source: WeightSource, writer: WeightsWriter) {
		this.#model = model;
		this.source = source;
		this.writer = writer;
	}

	/** Whether the model has a tensor of this name, readable or not. */
	has(name: string): boolean {
		return this.source.tensors.has(name) || this.source.unreadable.has(name);
	}

	/**
	 * A tensor of a known shape; a vector has one row.
	 * @throws ModelFileError when it is missing, has another shape or cannot be read.
	 */
	matrix(name: string, rows: number, columns: number): WeightTensor {
		const tensor = this.source.tensors.get(name);
		if (!tensor) {
			const type = this.source.unreadable.get(name);
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
		this.#used.add(name);
		return tensor;
	}

	/** Values of a vector. */
	values(name: string, width: number): Float32Array {
		this.matrix(name, 1, width);
		return this.source.readRows(name, 0, 1);
	}

	/** Writes numbers of ours as a constant of the graph. */
	constant(name: string, shape: readonly number[], values: Float32Array): string {
		const { floatType } = this.#model;
		return this.#model.initializer(name, floatType, shape, this.writer.tensor(encodeFloats(floatType, values)));
	}

	/** The weights of a norm as a constant; `offset` is added to each. */
	norm(name: string, width: number, offset: number): string {
		const values = this.values(name, width);
		if (offset !== 0) for (let i = 0; i < width; i++) values[i]! += offset;
		return this.constant(name, [width], values);
	}

	/** The biases of matrices that lie one below the other as one constant; undefined where none has any. */
	bias(name: string, matrices: readonly WeightTensor[]): string | undefined {
		if (!matrices.some((matrix) => this.has(biasName(matrix.name)))) return undefined;
		const all = new Float32Array(matrices.reduce((sum, matrix) => sum + matrix.rows, 0));
		let at = 0;
		for (const matrix of matrices) {
			const bias = biasName(matrix.name);
			if (this.has(bias)) all.set(this.values(bias, matrix.rows), at);
			at += matrix.rows;
		}
		return this.constant(`${name}.bias`, [all.length], all);
	}

	/**
	 * A layer's tensor that the graph has no place for would change what the model computes.
	 * @throws ModelFileError that names one.
	 */
	checkAllUsed(numLayers: number, family: string): void {
		for (const name of [...this.source.tensors.keys(), ...this.source.unreadable.keys()]) {
			const layer = /^model\.layers\.(\d+)\./.exec(name);
			// Layers after the last one predict further tokens; they can be left out.
			if (!layer || Number(layer[1]) >= numLayers || this.#used.has(name) || IGNORED.test(name)) continue;
			throw new ModelFileError("model", `the tensor ${name} has no place in the layers of the family ${family}`);
		}
	}
}
