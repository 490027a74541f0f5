// SPDX-License-Identifier: Apache-2.0
// Executes prefill chunks and decode steps of a built graph. All memory that ONNX Runtime reads and writes is
// ours and bound once; a step writes its few integers and runs.

import { rotaryTables } from "../onnx/rope-cache.js";
import { ElementType, type OrtBinding, OrtSession, type OrtSessionOptions, OrtTensor } from "../ort/ort-session.js";
import { KvMemory } from "./kv-memory.js";
import type { ModelConfig, ModelRunner } from "./model-runner.js";

/** What the runner is made of. */
export interface OrtModelRunnerOptions extends OrtSessionOptions {
	readonly config: ModelConfig;
	readonly numSlots: number;
	/** Tokens per slot. */
	readonly maxModelLen: number;
	/** See `ModelRunner.weightFormats`. */
	readonly weightFormats: readonly string[];
}

/** Integers whose address stays: small typed arrays may otherwise lie in the moving heap. */
function fixedInts(length: number): Int32Array {
	return new Int32Array(new ArrayBuffer(length * 4));
}

/** Row numbers 0..length-1. */
function rowNumbers(length: number): Int32Array {
	const rows = fixedInts(length);
	for (let i = 0; i < length; i++) rows[i] = i;
	return rows;
}

/** A ModelRunner on ONNX Runtime's CPU provider. */
export class OrtModelRunner implements ModelRunner {
	readonly config: ModelConfig;
	readonly numSlots: number;
	readonly maxModelLen: number;
	readonly kvBytesPerToken: number;
	readonly weightFormats: readonly string[];
	readonly #session: OrtSession;
	readonly #kv: KvMemory;
	/** Rotary tables by input name, with their memory. */
	readonly #rotary: readonly { name: string; tensor: OrtTensor; values: Float32Array }[];
	/** New token ids of a call; grows to the longest chunk. */
	#ids = fixedInts(64);
	readonly #seqlens: Int32Array;
	readonly #total = fixedInts(1);
	readonly #totalTensor: OrtTensor;
	/** Row numbers of wanted logits; decode wants 0..batch-1. */
	#rows: Int32Array;
	#logits: Float32Array;
	/** Token ids in the cache, [slots * maxModelLen]; what was never written reads -1. */
	readonly #history: Int32Array;
	readonly #decodeBindings: (OrtBinding | undefined)[] = [];
	readonly #prefillBindings: (OrtBinding | undefined)[] = [];

	/** @throws OrtError when the graph cannot be loaded, RangeError when the cache does not fit. */
	constructor(modelPath: string, options: OrtModelRunnerOptions) {
		this.config = options.config;
		this.numSlots = options.numSlots;
		this.maxModelLen = options.maxModelLen;
		this.weightFormats = options.weightFormats;
		this.#kv = new KvMemory(options.config, options.numSlots, options.maxModelLen);
		this.kvBytesPerToken = this.#kv.bytesPerToken;
		this.#session = new OrtSession(modelPath, options);
		this.#rotary = rotaryTables(this.config, this.maxModelLen).map(({ name, width, values }) => ({
			name,
			values,
			tensor: this.#floats(values, [this.maxModelLen, width]),
		}));
		this.#totalTensor = this.#ints(this.#total, [1]);
		this.#seqlens = fixedInts(this.numSlots);
		this.#history = new Int32Array(this.numSlots * this.maxModelLen).fill(-1);
		this.#rows = rowNumbers(this.numSlots);
		this.#logits = new Float32Array(this.numSlots * this.config.vocabSize);
	}

	#floats(memory: Float32Array, shape: readonly number[]): OrtTensor {
		return new OrtTensor(ElementType.FLOAT, shape, memory, memory.byteLength);
	}

	#ints(memory: Int32Array, shape: readonly number[]): OrtTensor {
		return new OrtTensor(ElementType.INT32, shape, memory, memory.byteLength);
	}

	/** Binds what stays the same for `batch` slots from `slot` on: cache in place, rotary tables, lengths. */
	#createBinding(slot: number, batch: number): OrtBinding {
		const binding = this.#session.createBinding();
		const bound = (side: "input" | "output", name: string, tensor: OrtTensor, keep = false) => {
			binding[side](name, tensor);
			if (!keep) tensor.release();
		};
		const { numKvHeads, headDim, numLayers } = this.config;
		const shape = [batch, numKvHeads, this.maxModelLen, headDim];
		const { slotSize } = this.#kv;
		for (let i = 0; i < numLayers * 2; i++) {
			const side = i % 2 === 0 ? "key" : "value";
			const view = this.#kv.arrays[i]!.subarray(slot * slotSize, (slot + batch) * slotSize);
			const tensor = this.#floats(view, shape);
			bound("input", `past_key_values.${i >> 1}.${side}`, tensor, true);
			bound("output", `present.${i >> 1}.${side}`, tensor);
		}
		for (const { name, tensor } of this.#rotary) bound("input", name, tensor, true);
		bound("input", "total_sequence_length", this.#totalTensor, true);
		bound("input", "seqlens_k", this.#ints(this.#seqlens.subarray(0, batch), [batch]));
		return binding;
	}

	/** Binds the parts of a call that depend on its number of tokens and wanted logits. */
	#bindTokens(binding: OrtBinding, batch: number, sequence: number, firstRow: number, rows: number): void {
		const ids = this.#ints(this.#ids.subarray(0, batch * sequence), [batch, sequence]);
		binding.input("input_ids", ids);
		ids.release();
		const wanted = this.#ints(this.#rows.subarray(firstRow, firstRow + rows), [rows]);
		binding.input("rows", wanted);
		wanted.release();
		const { vocabSize } = this.config;
		const logits = this.#floats(this.#logits.subarray(0, rows * vocabSize), [rows, vocabSize]);
		binding.output("logits", logits);
		logits.release();
	}

	#decodeBinding(batch: number): OrtBinding {
		let binding = this.#decodeBindings[batch];
		if (!binding) {
			binding = this.#createBinding(0, batch);
			this.#bindTokens(binding, batch, 1, 0, batch);
			this.#decodeBindings[batch] = binding;
		}
		return binding;
	}

	#checkToken(id: number): void {
		if (!(id >= 0 && id < this.config.vocabSize)) {
			throw new RangeError(`token ${id} is not in the vocabulary of ${this.config.vocabSize}`);
		}
	}

	/** Runs one chunk with the logits of its last `wanted` tokens. */
	#prefill(slot: number, tokenIds: Int32Array, start: number, wanted: number): void {
		const count = tokenIds.length;
		if (!(slot >= 0 && slot < this.numSlots)) throw new RangeError(`slot ${slot} is not one of ${this.numSlots}`);
		if (count === 0 || start < 0 || start + count > this.maxModelLen) {
			throw new RangeError(`${count} tokens at position ${start} do not fit a slot of ${this.maxModelLen}`);
		}
		for (const id of tokenIds) this.#checkToken(id);
		// ORT computes the attention of a lone token in another order than that of a chunk, so the bits of a prompt
		// would depend on how it was cut: a lone token runs together with the one before it.
		const end = start + count;
		const history = this.#history.subarray(slot * this.maxModelLen, (slot + 1) * this.maxModelLen);
		const first = count === 1 && start > 0 && history[start - 1]! >= 0 ? start - 1 : start;
		history.set(tokenIds, start);
		const sequence = end - first;
		this.#reserve(sequence, wanted);
		this.#ids.set(history.subarray(first, end));
		this.#seqlens[0] = end - 1;
		this.#total[0] = end;
		let binding = this.#prefillBindings[slot];
		if (!binding) {
			binding = this.#createBinding(slot, 1);
			this.#prefillBindings[slot] = binding;
		}
		this.#bindTokens(binding, 1, sequence, sequence - wanted, wanted);
		this.#session.run(binding);
	}

	/** Grows the memory of token ids, row numbers and logits; decode bindings point into it and are made anew. */
	#reserve(tokens: number, rows: number): void {
		const { vocabSize } = this.config;
		if (tokens <= this.#ids.length && tokens <= this.#rows.length && rows * vocabSize <= this.#logits.length) return;
		for (const binding of this.#decodeBindings) binding?.release();
		this.#decodeBindings.length = 0;
		const length = Math.max(tokens, this.#ids.length, this.#rows.length);
		this.#ids = fixedInts(length);
		this.#rows = rowNumbers(length);
		if (rows * vocabSize > this.#logits.length) this.#logits = new Float32Array(rows * vocabSize);
	}

	prefill(slot: number, tokenIds: Int32Array, start: number, wantLogits: boolean): Float32Array | undefined {
		this.#prefill(slot, tokenIds, start, wantLogits ? 1 : 0);
		return wantLogits ? this.#logits.subarray(0, this.config.vocabSize) : undefined;
	}

	prefillAllLogits(slot: number, tokenIds: Int32Array, start: number): Float32Array {
		this.#prefill(slot, tokenIds, start, tokenIds.length);
		return this.#logits.subarray(0, tokenIds.length * this.config.vocabSize);
	}

	decode(batch: number, tokenIds: Int32Array, lengths: Int32Array): Float32Array {
		if (!(batch >= 1 && batch <= this.numSlots)) throw new RangeError(`a batch of ${batch} does not fit`);
		if (this.#ids.length < batch) this.#reserve(batch, batch);
		let longest = 0;
		for (let i = 0; i < batch; i++) {
			const length = lengths[i]!;
			if (!(length >= 0 && length < this.maxModelLen)) {
				throw new RangeError(`slot ${i} has ${length} tokens: no room for one more in ${this.maxModelLen}`);
			}
			this.#checkToken(tokenIds[i]!);
			this.#ids[i] = tokenIds[i]!;
			this.#history[i * this.maxModelLen + length] = tokenIds[i]!;
			this.#seqlens[i] = length;
			if (length > longest) longest = length;
		}
		this.#total[0] = longest + 1;
		this.#session.run(this.#decodeBinding(batch));
		return this.#logits.subarray(0, batch * this.config.vocabSize);
	}

	copySlot(from: number, to: number, length: number): void {
		this.#kv.copySlot(from, to, length);
		const base = from * this.maxModelLen;
		this.#history.copyWithin(to * this.maxModelLen, base, base + length);
	}

	close(): void {
		for (const binding of [...this.#decodeBindings, ...this.#prefillBindings]) binding?.release();
		this.#decodeBindings.length = 0;
		this.#prefillBindings.length = 0;
		for (const { tensor } of this.#rotary) tensor.release();
		this.#totalTensor.release();
		this.#session.close();
	}
}
