// SPDX-License-Identifier: Apache-2.0
// Runs the operators that our CUDA graphs are made of, in plain loops over fp32: what the wiring of a graph gives,
// without the device that its kernels need.

import { decodeF16, encodeF16, halfToFloatTable } from "../../weights/float-formats.js";
import { type ReadModel, type ReadNode, type ReadTensor, readOnnx } from "./onnx-reader.js";
import { pagedAttention } from "./paged-attention.js";

/** A value: floats of any width as fp32, integers of 32 and 64 bits as int32, and packed weights as bytes. */
export interface Value {
	readonly shape: readonly number[];
	readonly data: Float32Array | Int32Array | Uint8Array;
}

/**
 * A half-precision cache in memory that the graph changes in place. What was written last is also kept unrounded, and
 * read so as long as the memory still holds it: results then differ from fp32 by little else than wiring.
 */
export class CacheValue {
	readonly shape: readonly number[];
	readonly #halves: Uint16Array;
	readonly #exact: Float32Array;
	/** What `#halves` held when `#exact` was written. */
	readonly #written: Uint16Array;

	constructor(shape: readonly number[], memory: Uint8Array) {
		this.shape = shape;
		this.#halves = new Uint16Array(memory.buffer, memory.byteOffset, memory.length / 2);
		this.#exact = new Float32Array(this.#halves.length);
		this.#written = new Uint16Array(this.#halves.length);
	}

	read(index: number): number {
		const half = this.#halves[index]!;
		return half === this.#written[index] ? this.#exact[index]! : halfToFloatTable()[half]!;
	}

	write(index: number, values: Float32Array): void {
		this.#exact.set(values, index);
		encodeF16(values, this.#halves.subarray(index));
		this.#written.set(this.#halves.subarray(index, index + values.length), index);
	}
}

const FLOAT = 1;
const UINT8 = 2;
const INT32 = 6;
const INT64 = 7;
const FLOAT16 = 10;

/** Decodes memory of an element type. */
export function decodeValue(type: number, shape: readonly number[], bytes: Uint8Array): Value {
	const own = new Uint8Array(bytes);
	const count = shape.reduce((product, size) => product * size, 1);
	switch (type) {
		case FLOAT:
			return { shape, data: new Float32Array(own.buffer, 0, count) };
		case FLOAT16: {
			const data = new Float32Array(count);
			decodeF16(own.subarray(0, count * 2), data);
			return { shape, data };
		}
		case UINT8:
			return { shape, data: own };
		case INT32:
			return { shape, data: new Int32Array(own.buffer, 0, count) };
		case INT64:
			return { shape, data: Int32Array.from(new BigInt64Array(own.buffer, 0, count), Number) };
		default:
			throw new Error(`element type ${type} is not known to the interpreter`);
	}
}

/** Encodes a value as memory of an element type. */
export function encodeValue(type: number, { data }: Value): Uint8Array {
	const bytes = (view: ArrayBufferView) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
	if (type === FLOAT) return bytes(Float32Array.from(data));
	if (type === FLOAT16) return bytes(encodeF16(Float32Array.from(data)));
	if (type === INT32) return bytes(Int32Array.from(data));
	throw new Error(`element type ${type} is not written by the interpreter`);
}

const volume = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);
const last = (shape: readonly number[]): number => shape.at(-1)!;

function number(node: ReadNode, name: string, fallback?: number): number {
	const value = node.attributes.get(name) ?? fallback;
	if (typeof value !== "number") throw new Error(`${node.op} needs the attribute ${name}`);
	return value;
}

/** a[rows, inner] times b[columns, inner] transposed, or b[inner, columns]. */
function product(a: Value, b: Value, transposed: boolean): Value {
	const inner = last(a.shape);
	const rows = volume(a.shape) / inner;
	const columns = transposed ? b.shape[0]! : last(b.shape);
	if ((transposed ? b.shape[1] : b.shape[0]) !== inner) throw new Error(`shapes ${a.shape} and ${b.shape} do not fit`);
	const out = new Float32Array(rows * columns);
	for (let row = 0; row < rows; row++) {
		for (let column = 0; column < columns; column++) {
			let sum = 0;
			for (let i = 0; i < inner; i++) {
				sum += a.data[row * inner + i]! * b.data[transposed ? column * inner + i : i * columns + column]!;
			}
			out[row * columns + column] = sum;
		}
	}
	return { shape: [...a.shape.slice(0, -1), columns], data: out };
}

/** Block-quantized rows [rows, columns] as floats. */
function unpack(
	{ packed, scales, zeros }: { packed: Value; scales: Value; zeros?: Value | undefined },
	{ rows, columns, bits, blockSize }: { rows: number; columns: number; bits: number; blockSize: number },
): Value {
	const blocks = Math.ceil(columns / blockSize);
	const rowBytes = (blocks * blockSize * bits) / 8;
	const nibble = (bytes: Value["data"], row: number, index: number, perRow: number): number =>
		bits === 8 ? bytes[row * perRow + index]! : (bytes[row * perRow + (index >> 1)]! >> ((index & 1) * 4)) & 15;
	const out = new Float32Array(rows * columns);
	const zeroBytes = Math.ceil((blocks * bits) / 8);
	for (let row = 0; row < rows; row++) {
		for (let column = 0; column < columns; column++) {
			const block = Math.floor(column / blockSize);
			const zero = zeros ? nibble(zeros.data, row, block, zeroBytes) : 2 ** (bits - 1);
			const q = nibble(packed.data, row, column, rowBytes);
			out[row * columns + column] = (q - zero) * scales.data[row * blocks + block]!;
		}
	}
	return { shape: [rows, columns], data: out };
}

function gatherRows(data: Value, indices: Value): Value {
	const width = volume(data.shape.slice(1));
	const out = new Float32Array(indices.data.length * width);
	indices.data.forEach((index, i) => {
		if (!(index >= 0 && index < data.shape[0]!)) throw new Error(`row ${index} of ${data.shape[0]}`);
		out.set(data.data.subarray(index * width, (index + 1) * width), i * width);
	});
	return { shape: [...indices.shape, ...data.shape.slice(1)], data: out };
}

function normalize(x: Value, weight: Value, epsilon: number): Value {
	const width = last(x.shape);
	const out = new Float32Array(x.data.length);
	for (let from = 0; from < out.length; from += width) {
		let sum = 0;
		for (let i = 0; i < width; i++) sum += x.data[from + i]! ** 2;
		const scale = 1 / Math.sqrt(sum / width + epsilon);
		for (let i = 0; i < width; i++) out[from + i] = x.data[from + i]! * scale * weight.data[i]!;
	}
	return { shape: x.shape, data: out };
}

/** Element by element; the smaller one is repeated along the leading dimensions. */
function combine(a: Value, b: Value, operation: (a: number, b: number) => number): Value {
	const [large, small] = a.data.length >= b.data.length ? [a, b] : [b, a];
	if (large.data.length % small.data.length !== 0) throw new Error(`shapes ${a.shape} and ${b.shape} do not fit`);
	const out = Float32Array.from(large.data, (_, i) =>
		operation(a.data[i % a.data.length]!, b.data[i % b.data.length]!),
	);
	return { shape: large.shape, data: out };
}

function map(x: Value, operation: (value: number) => number): Value {
	return { shape: x.shape, data: Float32Array.from(x.data, operation) };
}

/** The largest `count` of each row, largest first, and their places. */
function topK(x: Value, count: number): [Value, Value] {
	const width = last(x.shape);
	const rows = volume(x.shape) / width;
	const shape = [...x.shape.slice(0, -1), count];
	const values = new Float32Array(rows * count);
	const places = new Int32Array(rows * count);
	for (let row = 0; row < rows; row++) {
		const order = Array.from({ length: width }, (_, i) => i).sort(
			(a, b) => x.data[row * width + b]! - x.data[row * width + a]! || a - b,
		);
		for (let i = 0; i < count; i++) {
			places[row * count + i] = order[i]!;
			values[row * count + i] = x.data[row * width + order[i]!]!;
		}
	}
	return [
		{ shape, data: values },
		{ shape, data: places },
	];
}

function logSoftmax(x: Value): Value {
	const width = last(x.shape);
	const out = new Float32Array(x.data.length);
	for (let from = 0; from < out.length; from += width) {
		const row = x.data.subarray(from, from + width) as Float32Array;
		const top = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
		const sum = row.reduce((total, value) => total + Math.exp(value - top), 0);
		for (let i = 0; i < width; i++) out[from + i] = row[i]! - top - Math.log(sum);
	}
	return { shape: x.shape, data: out };
}

function split(x: Value, sizes: readonly number[]): Value[] {
	const width = last(x.shape);
	const rows = volume(x.shape) / width;
	let begin = 0;
	return sizes.map((size) => {
		const out = new Float32Array(rows * size);
		for (let row = 0; row < rows; row++) {
			out.set(x.data.subarray(row * width + begin, row * width + begin + size), row * size);
		}
		begin += size;
		return { shape: [...x.shape.slice(0, -1), size], data: out };
	});
}

function concat(parts: readonly Value[]): Value {
	const widths = parts.map(({ shape }) => last(shape));
	const width = widths.reduce((a, b) => a + b);
	const rows = volume(parts[0]!.shape) / widths[0]!;
	const out = new Float32Array(rows * width);
	let begin = 0;
	parts.forEach((part, p) => {
		for (let row = 0; row < rows; row++) {
			out.set(part.data.subarray(row * widths[p]!, (row + 1) * widths[p]!), row * width + begin);
		}
		begin += widths[p]!;
	});
	return { shape: [...parts[0]!.shape.slice(0, -1), width], data: out };
}

const gelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

/** A graph with its constants. */
export class Interpreter {
	readonly model: ReadModel;
	readonly #constants = new Map<string, Value>();

	constructor(path: string) {
		this.model = readOnnx(path);
		for (const [name, { type, shape, bytes }] of this.model.initializers as Map<string, ReadTensor>) {
			this.#constants.set(name, decodeValue(type, shape, bytes));
		}
	}

	/** Computes all values of the graph; caches are changed in place. */
	run(inputs: ReadonlyMap<string, Value>, caches: ReadonlyMap<string, CacheValue>): ReadonlyMap<string, Value> {
		const values = new Map<string, Value>([...this.#constants, ...inputs]);
		for (const node of this.model.nodes) {
			const outputs = this.#node(node, values, caches);
			node.outputs.forEach((name, i) => {
				if (name && outputs[i]) values.set(name, outputs[i]);
			});
		}
		return values;
	}

	#node(
		node: ReadNode,
		values: ReadonlyMap<string, Value>,
		caches: ReadonlyMap<string, CacheValue>,
	): (Value | undefined)[] {
		const optional = (i: number): Value | undefined => (node.inputs[i] ? values.get(node.inputs[i]) : undefined);
		const input = (i: number): Value => {
			const value = optional(i);
			if (!value) throw new Error(`${node.op} has no input ${i} (${node.inputs[i]})`);
			return value;
		};
		switch (node.op) {
			case "Gather":
				return [gatherRows(input(0), input(1))];
			case "GatherBlockQuantized": {
				const scales = input(2);
				const blockSize = number(node, "block_size");
				const rows = scales.shape[0]!;
				const bits = number(node, "bits");
				const columns = (last(input(0).shape) * 8) / bits;
				return [gatherRows(unpack({ packed: input(0), scales }, { rows, columns, bits, blockSize }), input(1))];
			}
			case "SimplifiedLayerNormalization":
				return [normalize(input(0), input(1), number(node, "epsilon"))];
			case "SkipSimplifiedLayerNormalization": {
				const sum = combine(input(0), input(1), (a, b) => a + b);
				return [normalize(sum, input(2), number(node, "epsilon")), undefined, undefined, sum];
			}
			case "Gemm": {
				const result = product(input(0), input(1), number(node, "transB", 0) === 1);
				const bias = optional(2);
				return [bias ? combine(result, bias, (a, b) => a + b) : result];
			}
			case "MatMul":
				return [product(input(0), input(1), false)];
			case "MatMulNBits": {
				const rows = number(node, "N");
				const columns = number(node, "K");
				const layout = { rows, columns, bits: number(node, "bits"), blockSize: number(node, "block_size") };
				const weight = unpack({ packed: input(1), scales: input(2), zeros: optional(3) }, layout);
				return [product(input(0), weight, true)];
			}
			case "PagedAttention": {
				const cache = (i: number): CacheValue => caches.get(node.inputs[i]!)!;
				const output = pagedAttention(node, { input, optional, keys: cache(3), values: cache(4) });
				return [output];
			}
			case "Split": {
				const width = last(input(0).shape);
				const sizes =
					optional(1)?.data ?? Array<number>(number(node, "num_outputs")).fill(width / number(node, "num_outputs"));
				return split(input(0), [...sizes]);
			}
			case "Concat":
				return [concat(node.inputs.map((_, i) => input(i)))];
			case "Add":
				return [combine(input(0), input(1), (a, b) => a + b)];
			case "Sub":
				return [combine(input(0), input(1), (a, b) => a - b)];
			case "Mul":
				return [combine(input(0), input(1), (a, b) => a * b)];
			case "Div":
				return [combine(input(0), input(1), (a, b) => a / b)];
			case "QuickGelu": {
				const alpha = number(node, "alpha");
				return [map(input(0), (x) => x / (1 + Math.exp(-alpha * x)))];
			}
			case "Gelu":
			case "FastGelu":
				return [map(input(0), gelu)];
			case "Tanh":
				return [map(input(0), Math.tanh)];
			case "Cast":
				return [
					number(node, "to") === INT32 ? { shape: input(0).shape, data: Int32Array.from(input(0).data) } : input(0),
				];
			case "TopK":
				return topK(input(0), input(1).data[0]!);
			case "LogSoftmax":
				return [logSoftmax(input(0))];
			case "GatherElements": {
				const [x, places] = [input(0), input(1)];
				const count = last(places.shape);
				const data = Float32Array.from(
					places.data,
					(place, i) => x.data[Math.floor(i / count) * last(x.shape) + place]!,
				);
				return [{ shape: places.shape, data }];
			}
			case "Reshape": {
				const { data } = input(0);
				const sizes = [...input(1).data];
				const known = sizes.reduce((a, b) => (b === -1 ? a : a * b), 1);
				return [{ shape: sizes.map((size) => (size === -1 ? data.length / known : size)), data }];
			}
			default:
				throw new Error(`the interpreter does not know ${node.op}`);
		}
	}
}
