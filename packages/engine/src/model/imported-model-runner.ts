// SPDX-License-Identifier: Apache-2.0
// Executes decoders that others exported (folders of onnxruntime-genai): the same slots, with the inputs that those
// graphs have, and logits of every token.

import { ElementType, type OrtBinding, OrtSession, type OrtSessionOptions, OrtTensor } from "../ort/ort-session.js";
import { halfToFloatTable } from "../weights/float-formats.js";
import { ModelFileError } from "../weights/model-file-error.js";
import type { CacheSize } from "./cache-memory.js";
import type { ImportedModel } from "./imported-model.js";
import { SlotRunner } from "./slot-runner.js";

/** Most tokens of a run, which bounds the memory of its activations and half-precision logits. */
const CHUNK_TOKENS = 32;

/** What the runner is made of. */
export interface ImportedModelRunnerOptions extends OrtSessionOptions, CacheSize {
	/** See `ModelRunner.deviceNote`. */
	readonly deviceNote?: string | undefined;
	/** See `ModelRunner.modelSum`. */
	readonly modelSum: string;
	readonly model: ImportedModel;
}

const BYTES: Readonly<Record<number, number>> = { [ElementType.FLOAT]: 4, [ElementType.FLOAT16]: 2 };

/** A ModelRunner for a folder of onnxruntime-genai. */
export class ImportedModelRunner extends SlotRunner {
	readonly #model: ImportedModel;
	readonly #session: OrtSession;
	readonly #kvType: ElementType;
	readonly #logitsType: ElementType;
	readonly #idsType: ElementType;
	readonly #binding: OrtBinding;
	/** Where half-precision logits arrive. */
	readonly #halfLogits: Uint16Array;

	/**
	 * @throws OrtError when the graph cannot be loaded, ModelFileError when it wants inputs that are not known, RangeError
	 *   when the cache cannot be reserved.
	 */
	static load(options: ImportedModelRunnerOptions): ImportedModelRunner {
		const { model } = options;
		const session = new OrtSession(model.modelPath, options);
		try {
			const { inputs, outputs } = session.signature();
			model.checkSignature([...inputs.keys()], [...outputs.keys()]);
			const kvType = inputs.get(model.pastKey(0));
			const logitsType = outputs.get(model.outputs.logits);
			for (const type of [kvType, logitsType]) {
				if (type === undefined || BYTES[type] === undefined) {
					throw new ModelFileError(model.modelPath, "has a cache or logits that are neither float32 nor float16");
				}
			}
			return new ImportedModelRunner(options, session, inputs, kvType as ElementType, logitsType as ElementType);
		} catch (error) {
			session.close();
			throw error;
		}
	}

	private constructor(
		options: ImportedModelRunnerOptions,
		session: OrtSession,
		inputs: ReadonlyMap<string, number>,
		kvType: ElementType,
		logitsType: ElementType,
	) {
		super({
			...options,
			config: options.model.config,
			weightFormats: ["as imported"],
			kvCacheDtype: kvType === ElementType.FLOAT ? "fp32" : "fp16",
			bytesPerElement: BYTES[kvType]!,
			allLogits: true,
		});
		this.#model = options.model;
		this.#session = session;
		this.#kvType = kvType;
		this.#logitsType = logitsType;
		this.#idsType = inputs.get(options.model.inputs.inputIds) as ElementType;
		this.#binding = session.createBinding();
		const rows = Math.max(CHUNK_TOKENS, options.maxNumSeqs);
		this.#halfLogits = new Uint16Array(logitsType === ElementType.FLOAT16 ? rows * this.config.vocabSize : 0);
	}

	close(): void {
		this.#binding.release();
		this.#session.close();
	}

	protected runBatch(size: number): void {
		this.#run(0, size, 1, 0, 0, this.lengths);
	}

	protected runChunk(slot: number, start: number, count: number, _wanted: number, firstRow: number): void {
		// Pieces of about the same length, so that none is a lone token.
		let pieces = Math.ceil(count / CHUNK_TOKENS);
		for (let from = 0; from < count; pieces--) {
			const length = Math.ceil((count - from) / pieces);
			this.#run(slot, 1, length, from, firstRow + from, Int32Array.of(start + from));
			from += length;
		}
	}

	protected memoryMoved(): void {
		// Everything is bound anew for each run.
	}

	/** One run of `length` tokens, `ids[from ..]`, of each of `count` slots behind `lengths` valid ones. */
	#run(slot: number, count: number, length: number, from: number, firstRow: number, lengths: Int32Array): void {
		const { inputs, outputs } = this.#model;
		const { vocabSize } = this.config;
		const tokens = count * length;
		this.#bindInts(inputs.inputIds, [count, length], (i) => this.ids[from + i]!);
		let total = 0;
		for (let i = 0; i < count; i++) total = Math.max(total, lengths[i]! + length);
		// The graph counts the ones of each row, and takes the width as the longest.
		const mask = this.#ints(count * total);
		for (let i = 0; i < count; i++) {
			const row = i * total;
			const end = row + lengths[i]! + length;
			if (mask instanceof Int32Array) mask.fill(1, row, end);
			else mask.fill(1n, row, end);
		}
		this.#bind(inputs.attentionMask, [count, total], mask);
		if (inputs.positionIds !== undefined) {
			this.#bindInts(inputs.positionIds, [count, length], (i) => lengths[Math.floor(i / length)]! + (i % length));
		}
		this.#bindCache(slot, count);
		const half = this.#logitsType === ElementType.FLOAT16;
		const target = this.logits.subarray(firstRow * vocabSize, (firstRow + tokens) * vocabSize);
		const memory = half ? this.#halfLogits.subarray(0, tokens * vocabSize) : target;
		const logits = new OrtTensor(this.#logitsType, [count, length, vocabSize], memory, memory.byteLength);
		this.#binding.output(outputs.logits, logits);
		logits.release();
		this.#session.run(this.#binding);
		if (!half) return;
		const table = halfToFloatTable();
		for (let i = 0; i < memory.length; i++) target[i] = table[memory[i]!]!;
	}

	#bindInts(name: string, shape: readonly number[], value: (index: number) => number): void {
		const size = shape.reduce((product, length) => product * length, 1);
		const memory = this.#ints(size);
		if (memory instanceof Int32Array) for (let i = 0; i < size; i++) memory[i] = value(i);
		else for (let i = 0; i < size; i++) memory[i] = BigInt(value(i));
		this.#bind(name, shape, memory);
	}

	/** Integers of the width that the graph takes. */
	#ints(size: number): Int32Array | BigInt64Array {
		return this.#idsType === ElementType.INT32 ? new Int32Array(size) : new BigInt64Array(size);
	}

	#bind(name: string, shape: readonly number[], memory: Int32Array | BigInt64Array): void {
		const tensor = new OrtTensor(this.#idsType, shape, memory, memory.byteLength);
		this.#binding.input(name, tensor);
		tensor.release();
		// ONNX Runtime reads it during the run, so it must not be collected before.
		this.#held.set(name, memory);
	}

	readonly #held = new Map<string, ArrayBufferView>();

	#bindCache(slot: number, count: number): void {
		const { numKvHeads, headDim, numLayers } = this.config;
		const shape = [count, numKvHeads, this.maxModelLen, headDim];
		const { slotBytes } = this.kv;
		for (let i = 0; i < numLayers * 2; i++) {
			const layer = i >> 1;
			const view = this.kv.slots[i]!.subarray(slot * slotBytes, (slot + count) * slotBytes);
			const tensor = new OrtTensor(this.#kvType, shape, view, view.byteLength);
			const model = this.#model;
			this.#binding.input(i % 2 === 0 ? model.pastKey(layer) : model.pastValue(layer), tensor);
			this.#binding.output(i % 2 === 0 ? model.presentKey(layer) : model.presentValue(layer), tensor);
			tensor.release();
		}
	}
}
