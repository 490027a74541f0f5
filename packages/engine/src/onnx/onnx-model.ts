// SPDX-License-Identifier: Apache-2.0
// An ONNX model in the making: nodes, initializers, inputs and outputs, serialized as onnx.proto has it.

import { encodeF16 } from "../weights/float-formats.js";
import { ProtobufWriter } from "./protobuf-writer.js";

/** Numbers of TensorProto.DataType. */
export const OnnxType = { FLOAT: 1, UINT8: 2, INT8: 3, INT32: 6, INT64: 7, FLOAT16: 10 } as const;
export type OnnxType = (typeof OnnxType)[keyof typeof OnnxType];

/** What weights and activations may be. */
export type FloatType = typeof OnnxType.FLOAT | typeof OnnxType.FLOAT16;

/**
 * Numbers in the form of a type.
 * @throws RangeError for a number that half precision cannot hold.
 */
export function encodeFloats(type: FloatType, values: Float32Array): Float32Array | Uint16Array {
	if (type === OnnxType.FLOAT) return values;
	const halves = encodeF16(values);
	for (let i = 0; i < halves.length; i++) {
		if ((halves[i]! & 0x7c00) === 0x7c00) throw new RangeError(`${values[i]} is beyond the range of half precision`);
	}
	return halves;
}

/** Domain of ONNX Runtime's own operators. */
export const MICROSOFT = "com.microsoft";

/** An attribute: a whole number, whole numbers, a text, or a float marked as such. */
export type OnnxAttribute = number | string | readonly number[] | { readonly float: number };

/** Where the bytes of a tensor lie in the file of weights. */
export interface ExternalLocation {
	readonly offset: number;
	readonly length: number;
}

/** A dimension: a size, or the name of one that is known at run time. */
export type Dimension = number | string;

const IR_VERSION = 10;
const OPSET = 21;
const MICROSOFT_OPSET = 1;

/** Collects a graph. Names of values are the caller's; `node` returns the name of its first output. */
export class OnnxModel {
	readonly #graph = new ProtobufWriter();
	readonly #weightsFile: string;
	/** What weights and activations are. */
	readonly floatType: FloatType;
	#nodes = 0;

	/** @param weightsFile name of the file of external tensors, relative to the model's folder. */
	constructor(name: string, weightsFile: string, floatType: FloatType = OnnxType.FLOAT) {
		this.#weightsFile = weightsFile;
		this.floatType = floatType;
		this.#graph.string(2, name);
	}

	/**
	 * Adds a node. An empty input name stands for an optional input that is left out.
	 * @returns the first output: `outputs[0]`, or a fresh name.
	 */
	node(
		op: string,
		inputs: readonly string[],
		options: {
			readonly domain?: string;
			readonly outputs?: readonly string[];
			readonly attributes?: Readonly<Record<string, OnnxAttribute>>;
		} = {},
	): string {
		const name = `${op}_${this.#nodes++}`;
		const outputs = options.outputs ?? [name];
		this.#graph.message(1, (node) => {
			for (const input of inputs) node.string(1, input);
			for (const output of outputs) node.string(2, output);
			node.string(3, name).string(4, op);
			for (const [key, value] of Object.entries(options.attributes ?? {})) {
				node.message(5, (attribute) => {
					attribute.string(1, key);
					if (typeof value === "number") attribute.int(3, value).int(20, 2);
					else if (typeof value === "string") attribute.string(4, value).int(20, 3);
					else if ("float" in value) attribute.float(2, value.float).int(20, 1);
					else {
						for (const item of value) attribute.int(8, item);
						attribute.int(20, 7);
					}
				});
			}
			if (options.domain) node.string(7, options.domain);
		});
		return outputs[0]!;
	}

	/** Adds a constant, its bytes in the model or in the file of weights. */
	initializer(name: string, type: OnnxType, shape: readonly number[], data: Uint8Array | ExternalLocation): string {
		this.#graph.message(5, (tensor) => {
			for (const size of shape) tensor.int(1, size);
			tensor.int(2, type).string(8, name);
			if (data instanceof Uint8Array) {
				tensor.bytes(9, data);
				return;
			}
			const entry = (key: string, value: string) => {
				tensor.message(13, (pair) => pair.string(1, key).string(2, value));
			};
			entry("location", this.#weightsFile);
			entry("offset", String(data.offset));
			entry("length", String(data.length));
			tensor.int(14, 1);
		});
		return name;
	}

	/** Adds a small constant of int64 numbers, e.g. a shape. */
	int64Constant(name: string, values: readonly number[], scalar = false): string {
		const data = new BigInt64Array(values.map(BigInt));
		return this.initializer(name, OnnxType.INT64, scalar ? [] : [values.length], new Uint8Array(data.buffer));
	}

	#value(field: number, name: string, type: OnnxType, shape: readonly Dimension[]): string {
		this.#graph.message(field, (value) =>
			value.string(1, name).message(2, (typeProto) =>
				typeProto.message(1, (tensor) =>
					tensor.int(1, type).message(2, (dimensions) => {
						for (const size of shape) {
							dimensions.message(1, (dimension) =>
								typeof size === "number" ? dimension.int(1, size) : dimension.string(2, size),
							);
						}
					}),
				),
			),
		);
		return name;
	}

	/** Declares an input. */
	input(name: string, type: OnnxType, shape: readonly Dimension[]): string {
		return this.#value(11, name, type, shape);
	}

	/** Declares an output. */
	output(name: string, type: OnnxType, shape: readonly Dimension[]): string {
		return this.#value(12, name, type, shape);
	}

	/** The whole ModelProto. */
	serialize(): Uint8Array {
		const model = new ProtobufWriter();
		model.int(1, IR_VERSION).string(2, "dynamo-ts");
		model.bytes(7, this.#graph.finish());
		model.message(8, (opset) => opset.string(1, "").int(2, OPSET));
		model.message(8, (opset) => opset.string(1, MICROSOFT).int(2, MICROSOFT_OPSET));
		return model.finish();
	}
}
