// SPDX-License-Identifier: Apache-2.0
// Executes graphs of our own on ONNX Runtime's CPU provider. All memory that ONNX Runtime reads and writes is ours and
// bound once; a step writes its few integers and runs.

import { rotaryTables } from "../onnx/rope-cache.js";
import { ElementType, type OrtBinding, OrtSession, type OrtSessionOptions, OrtTensor } from "../ort/ort-session.js";
import { BYTES_PER_ELEMENT, type CacheSize } from "./cache-memory.js";
import type { KvCacheDtype, ModelConfig } from "./model-runner.js";
import { fixedInts, SlotRunner } from "./slot-runner.js";

/** What the runner is made of. */
export interface OrtModelRunnerOptions extends OrtSessionOptions, CacheSize {
	readonly config: ModelConfig;
	/** See `ModelRunner.weightFormats`. */
	readonly weightFormats: readonly string[];
	/** See `ModelRunner.modelSum`. */
	readonly modelSum: string;
	/** See `ModelRunner.deviceNote`. */
	readonly deviceNote?: string | undefined;
	/** Of the graph's cache; default fp32. */
	readonly kvCacheDtype?: KvCacheDtype;
}

const CACHE_ELEMENTS = { fp32: ElementType.FLOAT, fp16: ElementType.FLOAT16, int8: ElementType.INT8 } as const;

/** A binding, and for how many rows of logits it was bound last. */
interface BatchBinding {
	readonly binding: OrtBinding;
	wanted: number;
}

/** A ModelRunner for the graphs of `decoder-graph.ts`. */
export class OrtModelRunner extends SlotRunner {
	readonly #session: OrtSession;
	/** Rotary tables by input name, with their memory. */
	readonly #rotary: readonly { name: string; tensor: OrtTensor; values: Float32Array }[];
	/** Index of each row's last token. */
	readonly #seqlens: Int32Array;
	/** The longest row with its new tokens. */
	readonly #total = fixedInts(1);
	readonly #totalTensor: OrtTensor;
	/** By number of slots. */
	readonly #batchBindings: (BatchBinding | undefined)[] = [];
	/** By slot. */
	readonly #chunkBindings: (OrtBinding | undefined)[] = [];

	/** @throws OrtError when the graph cannot be loaded, RangeError when the cache cannot be reserved. */
	constructor(modelPath: string, options: OrtModelRunnerOptions) {
		const kvCacheDtype = options.kvCacheDtype ?? "fp32";
		super({ ...options, kvCacheDtype, bytesPerElement: BYTES_PER_ELEMENT[kvCacheDtype], allLogits: false });
		this.#session = new OrtSession(modelPath, options);
		this.#rotary = rotaryTables(options.config, this.maxModelLen).map(({ name, width, values }) => ({
			name,
			values,
			tensor: this.#floats(values, [this.maxModelLen, width]),
		}));
		this.#totalTensor = this.#ints(this.#total, [1]);
		this.#seqlens = fixedInts(this.maxNumSeqs);
	}

	close(): void {
		for (const bound of this.#batchBindings) bound?.binding.release();
		for (const binding of this.#chunkBindings) binding?.release();
		this.#batchBindings.length = 0;
		this.#chunkBindings.length = 0;
		for (const { tensor } of this.#rotary) tensor.release();
		this.#totalTensor.release();
		this.#session.close();
	}

	protected runBatch(size: number, count: number): void {
		let longest = 0;
		for (let slot = 0; slot < size; slot++) {
			const length = this.lengths[slot]!;
			this.#seqlens[slot] = length;
			if (length > longest) longest = length;
		}
		this.#total[0] = longest + 1;
		let bound = this.#batchBindings[size];
		if (bound === undefined) {
			bound = { binding: this.#createBinding(0, size), wanted: 0 };
			this.#batchBindings[size] = bound;
		}
		if (bound.wanted !== count) {
			this.#bindTokens(bound.binding, size, 1, count, 0);
			bound.wanted = count;
		}
		this.#session.run(bound.binding);
	}

	protected runChunk(slot: number, start: number, count: number, wanted: number, firstRow: number): void {
		this.#seqlens[0] = start + count - 1;
		this.#total[0] = start + count;
		let binding = this.#chunkBindings[slot];
		if (binding === undefined) {
			binding = this.#createBinding(slot, 1);
			this.#chunkBindings[slot] = binding;
		}
		this.#bindTokens(binding, 1, count, wanted, firstRow);
		this.#session.run(binding);
	}

	protected memoryMoved(): void {
		for (const bound of this.#batchBindings) if (bound) bound.wanted = 0;
	}

	#floats(memory: Float32Array, shape: readonly number[]): OrtTensor {
		return new OrtTensor(ElementType.FLOAT, shape, memory, memory.byteLength);
	}

	#ints(memory: Int32Array, shape: readonly number[]): OrtTensor {
		return new OrtTensor(ElementType.INT32, shape, memory, memory.byteLength);
	}

	/** Binds what stays the same for `count` slots from `slot` on: cache in place, rotary tables, lengths. */
	#createBinding(slot: number, count: number): OrtBinding {
		const binding = this.#session.createBinding();
		const bound = (side: "input" | "output", name: string, tensor: OrtTensor, keep = false) => {
			binding[side](name, tensor);
			if (!keep) tensor.release();
		};
		const { numKvHeads, headDim, numLayers } = this.config;
		const shape = [count, numKvHeads, this.maxModelLen, headDim];
		const { slotBytes } = this.kv;
		for (let i = 0; i < numLayers * 2; i++) {
			const side = i % 2 === 0 ? "key" : "value";
			const view = this.kv.slots[i]!.subarray(slot * slotBytes, (slot + count) * slotBytes);
			const tensor = new OrtTensor(CACHE_ELEMENTS[this.kvCacheDtype], shape, view, view.byteLength);
			bound("input", `past_key_values.${i >> 1}.${side}`, tensor, true);
			bound("output", `present.${i >> 1}.${side}`, tensor);
		}
		for (const { name, tensor } of this.#rotary) bound("input", name, tensor, true);
		bound("input", "total_sequence_length", this.#totalTensor, true);
		bound("input", "seqlens_k", this.#ints(this.#seqlens.subarray(0, count), [count]));
		return binding;
	}

	/** Binds the parts of a run that depend on its number of tokens and wanted logits. */
	#bindTokens(binding: OrtBinding, count: number, length: number, wanted: number, firstRow: number): void {
		const ids = this.#ints(this.ids.subarray(0, count * length), [count, length]);
		binding.input("input_ids", ids);
		ids.release();
		const rows = this.#ints(this.wanted.subarray(0, wanted), [wanted]);
		binding.input("rows", rows);
		rows.release();
		const { vocabSize } = this.config;
		const view = this.logits.subarray(firstRow * vocabSize, (firstRow + wanted) * vocabSize);
		const logits = this.#floats(view, [wanted, vocabSize]);
		binding.output("logits", logits);
		logits.release();
	}
}
