// SPDX-License-Identifier: Apache-2.0
// A device that interprets its graph: what a CUDA device would compute, at the pace of plain loops. Memory that was
// never written holds no numbers, so that a result tells when it was read.

import { CacheValue, decodeValue, encodeValue, Interpreter, type Value } from "../../onnx/testing/interpreter.js";
import type { PinnedMemory } from "../../ort/cudart.js";
import type { Pointer } from "../../ort/ort-library.js";
import type { PagedBinding, PagedDevice, PagedTensor } from "../paged-device.js";

/** Half and single precision patterns of this byte are not numbers; as an integer it is no index. */
const GARBAGE = 0xff;
/** Allocations begin at multiples of this, bytes. */
const GRAIN = 256n;

class Binding implements PagedBinding {
	readonly inputs = new Map<string, PagedTensor>();
	readonly outputs = new Map<string, PagedTensor>();

	input(name: string, tensor: PagedTensor): void {
		this.inputs.set(name, tensor);
	}

	output(name: string, tensor: PagedTensor): void {
		this.outputs.set(name, tensor);
	}

	release(): void {
		this.inputs.clear();
		this.outputs.clear();
	}
}

/** A PagedDevice for tests. */
export class InterpretedDevice implements PagedDevice {
	readonly name = "interpreter";
	/** Graph numbers of all runs, in order. */
	readonly runs: number[] = [];
	/** Bytes that count as the device's. */
	readonly total: number;
	closed = false;
	readonly #interpreter: Interpreter;
	readonly #memory = new Map<Pointer, Uint8Array>();
	readonly #caches = new Map<unknown, CacheValue>();
	#next = 1n << 20n;
	/** What a graph was captured with. */
	readonly #captured = new Map<number, { readonly binding: PagedBinding; readonly text: string }>();

	constructor(modelPath: string, total = 2 ** 30) {
		this.#interpreter = new Interpreter(modelPath);
		this.total = total;
	}

	/** Operators of the graph. */
	get operators(): string[] {
		return this.#interpreter.model.nodes.map((node) => node.op);
	}

	memoryInfo(): { free: number; total: number } {
		const used = [...this.#memory.values()].reduce((sum, bytes) => sum + bytes.length, 0);
		return { free: this.total - used, total: this.total };
	}

	allocate(bytes: number): Pointer {
		const pointer = this.#next;
		this.#next += ((BigInt(bytes) + GRAIN) / GRAIN + 1n) * GRAIN;
		this.#memory.set(pointer, new Uint8Array(bytes).fill(GARBAGE));
		return pointer;
	}

	free(memory: Pointer): void {
		if (!this.#memory.delete(memory)) throw new Error("memory is freed that was not allocated");
	}

	allocatePinned(bytes: number): PinnedMemory {
		return { pointer: 0n, bytes: new Uint8Array(bytes).fill(GARBAGE) };
	}

	freePinned(): void {}

	/** Memory at an address. @throws Error where an access reaches beyond an allocation. */
	#at(pointer: Pointer, bytes: number): Uint8Array {
		for (const [begin, memory] of this.#memory) {
			const offset = Number(pointer - begin);
			if (offset >= 0 && offset < memory.length) {
				if (offset + bytes > memory.length) throw new Error(`${bytes} bytes at ${offset} of ${memory.length}`);
				return memory.subarray(offset, offset + bytes);
			}
		}
		throw new Error(`no memory at ${pointer}`);
	}

	upload(to: Pointer, from: PinnedMemory, bytes: number, offset = 0): void {
		this.#at(to, bytes).set(from.bytes.subarray(offset, offset + bytes));
	}

	download(to: PinnedMemory, offset: number, from: Pointer, bytes: number): void {
		to.bytes.set(this.#at(from, bytes), offset);
	}

	createBinding(): PagedBinding {
		return new Binding();
	}

	#bytes(tensor: PagedTensor): Uint8Array {
		if (typeof tensor.memory === "bigint") return this.#at(tensor.memory, tensor.bytes);
		const { buffer, byteOffset } = tensor.memory as ArrayBufferView;
		return new Uint8Array(buffer, byteOffset, tensor.bytes);
	}

	/** What a replay keeps of a binding: addresses and shapes, and values in host memory. */
	#describe({ inputs, outputs }: Binding): string {
		const describe = ([name, tensor]: [string, PagedTensor]) =>
			`${name} ${tensor.shape} ${tensor.onHost ? this.#bytes(tensor) : tensor.memory}`;
		return [...[...inputs].map(describe), ...[...outputs].map(describe)].join("\n");
	}

	run(bound: PagedBinding, graph: number): void {
		const binding = bound as Binding;
		this.runs.push(graph);
		if (graph >= 0) {
			const text = this.#describe(binding);
			const captured = this.#captured.get(graph) ?? { binding, text };
			this.#captured.set(graph, captured);
			if (captured.binding !== binding || captured.text !== text)
				throw new Error(`graph ${graph} was captured otherwise`);
		}
		const values = new Map<string, Value>();
		const caches = new Map<string, CacheValue>();
		const { inputs, outputs } = this.#interpreter.model;
		for (const { name, type } of inputs) {
			const tensor = binding.inputs.get(name);
			if (!tensor) throw new Error(`the input ${name} is not bound`);
			if (tensor.type !== type) throw new Error(`the input ${name} has the type ${tensor.type}, not ${type}`);
			const bytes = this.#bytes(tensor);
			const side = /^(key|value)_cache\.(\d+)$/.exec(name);
			if (!side) values.set(name, decodeValue(type, tensor.shape, bytes));
			else {
				const output = binding.outputs.get(`${side[1]}_cache_out.${side[2]}`);
				if (output?.memory !== tensor.memory) throw new Error(`${name} is not changed in place`);
				const cache = this.#caches.get(tensor.memory) ?? new CacheValue(tensor.shape, bytes);
				this.#caches.set(tensor.memory, cache);
				caches.set(name, cache);
			}
		}
		const results = this.#interpreter.run(values, caches);
		for (const { name, type } of outputs) {
			if (/_cache_out\./.test(name)) continue;
			const tensor = binding.outputs.get(name);
			if (!tensor) throw new Error(`the output ${name} is not bound`);
			const value = results.get(name)!;
			if (`${value.shape}` !== `${tensor.shape}`)
				throw new Error(`${name} is ${value.shape}, bound as ${tensor.shape}`);
			this.#bytes(tensor).set(encodeValue(type, value));
		}
	}

	synchronize(): void {}

	close(): void {
		this.#memory.clear();
		this.closed = true;
	}
}
