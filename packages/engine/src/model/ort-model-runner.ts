// SPDX-License-Identifier: Apache-2.0
// Executes steps of a built graph on ONNX Runtime's CPU provider. All memory that ONNX Runtime reads and writes is ours
// and bound once; a step writes its few integers and runs. Generating sequences are one batch of one token each; a part
// of a prompt, or guesses to be checked, is a run of its own: the attention takes more than one new token only of one
// sequence at a time.

import { rotaryTables } from "../onnx/rope-cache.js";
import { ElementType, type OrtBinding, OrtSession, type OrtSessionOptions, OrtTensor } from "../ort/ort-session.js";
import { type CacheGeometry, type CacheSize, kvBytesPerToken } from "./cache-memory.js";
import { CpuKvCache } from "./cpu-kv-cache.js";
import type { ModelConfig, ModelRunner, RunnerRow, StepLogits } from "./model-runner.js";
import { SlotTable } from "./slot-table.js";

/** What the runner is made of. */
export interface OrtModelRunnerOptions extends OrtSessionOptions, CacheSize {
	readonly config: ModelConfig;
	/** See `ModelRunner.weightFormats`. */
	readonly weightFormats: readonly string[];
}

/** Integers whose address stays: small typed arrays may otherwise lie in the moving heap. */
function fixedInts(length: number): Int32Array {
	return new Int32Array(new ArrayBuffer(length * 4));
}

/** A binding, and for how many rows of logits it was bound last. */
interface BatchBinding {
	readonly binding: OrtBinding;
	wanted: number;
}

/** Whether a row is one new token with its logits, and so part of the batch. */
function generatesOne(row: RunnerRow): boolean {
	return !row.isPrefill && row.end - row.start === 1 && row.wanted === 1;
}

/** A ModelRunner on ONNX Runtime's CPU provider. */
export class OrtModelRunner implements ModelRunner {
	readonly config: ModelConfig;
	readonly device = "cpu";
	readonly maxNumSeqs: number;
	readonly maxModelLen: number;
	readonly blockSize: number;
	readonly numBlocks: number;
	readonly kvBytesPerToken: number;
	readonly kvCacheDtype = "fp32";
	readonly weightFormats: readonly string[];
	readonly #session: OrtSession;
	readonly #kv: CpuKvCache;
	readonly #slots: SlotTable;
	/** Rotary tables by input name, with their memory. */
	readonly #rotary: readonly { name: string; tensor: OrtTensor; values: Float32Array }[];
	/** New token ids of a run; grows to the longest chunk. */
	#ids = fixedInts(64);
	readonly #seqlens: Int32Array;
	readonly #total = fixedInts(1);
	readonly #totalTensor: OrtTensor;
	/** Tokens of a run whose logits are wanted. */
	#wanted = fixedInts(64);
	/** Logits of a step, [wanted * vocabSize], and a view of each row. */
	#logits: Float32Array;
	#logitRows: Float32Array[] = [];
	/** Where the logits of each wanted token of the step are: those of the batch come first. */
	#places = fixedInts(64);
	readonly #stepLogits: StepLogits = { row: (i) => this.#logitRows[this.#places[i]!]! };
	readonly #batch: RunnerRow[] = [];
	readonly #batchBindings: (BatchBinding | undefined)[] = [];
	readonly #chunkBindings: (OrtBinding | undefined)[] = [];

	/** @throws OrtError when the graph cannot be loaded, RangeError when the cache cannot be reserved. */
	constructor(modelPath: string, options: OrtModelRunnerOptions) {
		const { config } = options;
		this.config = config;
		this.maxNumSeqs = options.maxNumSeqs;
		this.maxModelLen = options.maxModelLen;
		this.blockSize = options.blockSize;
		this.numBlocks = options.numBlocks;
		this.weightFormats = options.weightFormats;
		const geometry: CacheGeometry = {
			numLayers: config.numLayers,
			numKvHeads: config.numKvHeads,
			headDim: config.headDim,
			bytesPerElement: 4,
		};
		this.kvBytesPerToken = kvBytesPerToken(geometry);
		this.#kv = new CpuKvCache({ ...geometry, ...options, numSlots: options.maxNumSeqs });
		this.#slots = new SlotTable(options.maxNumSeqs);
		this.#session = new OrtSession(modelPath, options);
		this.#rotary = rotaryTables(config, this.maxModelLen).map(({ name, width, values }) => ({
			name,
			values,
			tensor: this.#floats(values, [this.maxModelLen, width]),
		}));
		this.#totalTensor = this.#ints(this.#total, [1]);
		this.#seqlens = fixedInts(this.maxNumSeqs);
		this.#logits = new Float32Array(0);
		this.#reserveLogits(this.maxNumSeqs);
	}

	get blockBytes(): number {
		return this.#kv.blockBytes;
	}

	execute(rows: readonly RunnerRow[]): StepLogits {
		const batch = this.#batch;
		batch.length = 0;
		let wanted = 0;
		for (const row of rows) {
			this.#check(row);
			this.#enter(row);
			wanted += row.wanted;
			if (generatesOne(row)) batch.push(row);
		}
		this.#reserveLogits(wanted);
		if (batch.length > 0) this.#decode(batch);
		let inBatch = 0;
		let behind = batch.length;
		let place = 0;
		for (const row of rows) {
			if (generatesOne(row)) {
				this.#places[place++] = inBatch++;
				continue;
			}
			this.#chunk(row, behind);
			for (let i = 0; i < row.wanted; i++) this.#places[place++] = behind++;
		}
		return this.#stepLogits;
	}

	persist(id: number, index: number, block: number): void {
		const slot = this.#slots.find(id);
		if (slot === undefined) throw new Error(`sequence ${id} has no slot`);
		this.#kv.store(slot, index, block);
	}

	release(id: number): void {
		this.#slots.release(id);
	}

	readBlock(block: number, into: Uint8Array): void {
		into.set(this.#kv.block(block));
	}

	writeBlock(block: number, content: Uint8Array): void {
		if (content.length !== this.blockBytes) {
			throw new RangeError(`a block has ${this.blockBytes} bytes, not ${content.length}`);
		}
		this.#kv.block(block).set(content);
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

	#check(row: RunnerRow): void {
		const { start, end, tokens, wanted } = row;
		if (!(start >= 0 && start < end && end <= this.maxModelLen && end <= tokens.length)) {
			throw new RangeError(`tokens ${start} to ${end} do not fit a sequence of ${this.maxModelLen}`);
		}
		if (!(wanted >= 0 && wanted <= end - start)) throw new RangeError(`${wanted} logits of ${end - start} tokens`);
		const { vocabSize } = this.config;
		for (let i = start; i < end; i++) {
			const token = tokens[i]!;
			if (!(token >= 0 && token < vocabSize)) {
				throw new RangeError(`token ${token} is not in the vocabulary of ${vocabSize}`);
			}
		}
	}

	/** Gives a sequence that has none a slot, with what the pool holds of it. */
	#enter(row: RunnerRow): void {
		const found = this.#slots.find(row.id);
		if (found !== undefined) {
			// Guesses that turned out wrong are forgotten.
			this.#slots.setLength(found, row.start);
			return;
		}
		const count = row.start / this.blockSize;
		if (!Number.isInteger(count))
			throw new RangeError(`a sequence begins behind ${row.start} tokens: not whole blocks`);
		const slot = this.#slots.take(row.id);
		for (let i = 0; i < count; i++) this.#kv.load(row.blocks[i]!, slot, i);
		this.#slots.setLength(slot, row.start);
	}

	/** One token of each sequence. Slots in between that take no part compute a token that nobody reads. */
	#decode(batch: readonly RunnerRow[]): void {
		const move = this.#slots.closeGap(batch);
		if (move !== undefined) this.#kv.copySlot(move.from, move.to, move.length);
		let size = 0;
		for (const row of batch) size = Math.max(size, this.#slots.find(row.id)! + 1);
		this.#reserveRun(size, batch.length);
		for (let slot = 0; slot < size; slot++) {
			this.#ids[slot] = 0;
			// Written behind what is valid, where the next token of that slot goes anyway.
			this.#seqlens[slot] = Math.min(this.#slots.length(slot), this.maxModelLen - 1);
		}
		let longest = 0;
		for (let i = 0; i < batch.length; i++) {
			const row = batch[i]!;
			const slot = this.#slots.find(row.id)!;
			this.#ids[slot] = row.tokens[row.start]!;
			this.#wanted[i] = slot;
			this.#slots.setLength(slot, row.end);
		}
		for (let slot = 0; slot < size; slot++) longest = Math.max(longest, this.#seqlens[slot]!);
		this.#total[0] = longest + 1;
		let bound = this.#batchBindings[size];
		if (bound === undefined) {
			bound = { binding: this.#createBinding(0, size), wanted: 0 };
			this.#batchBindings[size] = bound;
		}
		if (bound.wanted !== batch.length) {
			this.#bindTokens(bound.binding, size, 1, batch.length, 0);
			bound.wanted = batch.length;
		}
		this.#session.run(bound.binding);
	}

	/** Several tokens of one sequence, the logits of the last `wanted` to rows `firstLogits`.. of the step. */
	#chunk(row: RunnerRow, firstLogits: number): void {
		const { start, end, wanted, tokens } = row;
		const slot = this.#slots.find(row.id)!;
		// The attention of a lone token is computed in another order than that of a chunk, so the bits of a prompt would
		// depend on how it was cut: a lone token runs together with the one before it.
		const first = row.isPrefill && end - start === 1 && start > 0 ? start - 1 : start;
		const count = end - first;
		this.#reserveRun(count, wanted);
		this.#ids.set(tokens.subarray(first, end));
		for (let i = 0; i < wanted; i++) this.#wanted[i] = count - wanted + i;
		this.#seqlens[0] = end - 1;
		this.#total[0] = end;
		let binding = this.#chunkBindings[slot];
		if (binding === undefined) {
			binding = this.#createBinding(slot, 1);
			this.#chunkBindings[slot] = binding;
		}
		this.#bindTokens(binding, 1, count, wanted, firstLogits);
		this.#session.run(binding);
		this.#slots.setLength(slot, end);
	}

	#floats(memory: Float32Array | Uint8Array, shape: readonly number[]): OrtTensor {
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
		const { slotBytes } = this.#kv;
		for (let i = 0; i < numLayers * 2; i++) {
			const side = i % 2 === 0 ? "key" : "value";
			const view = this.#kv.slots[i]!.subarray(slot * slotBytes, (slot + count) * slotBytes);
			const tensor = this.#floats(view, shape);
			bound("input", `past_key_values.${i >> 1}.${side}`, tensor, true);
			bound("output", `present.${i >> 1}.${side}`, tensor);
		}
		for (const { name, tensor } of this.#rotary) bound("input", name, tensor, true);
		bound("input", "total_sequence_length", this.#totalTensor, true);
		bound("input", "seqlens_k", this.#ints(this.#seqlens.subarray(0, count), [count]));
		return binding;
	}

	/** Binds the parts of a run that depend on its number of tokens and wanted logits. */
	#bindTokens(binding: OrtBinding, count: number, length: number, wanted: number, firstLogits: number): void {
		const ids = this.#ints(this.#ids.subarray(0, count * length), [count, length]);
		binding.input("input_ids", ids);
		ids.release();
		const rows = this.#ints(this.#wanted.subarray(0, wanted), [wanted]);
		binding.input("rows", rows);
		rows.release();
		const { vocabSize } = this.config;
		const view = this.#logits.subarray(firstLogits * vocabSize, (firstLogits + wanted) * vocabSize);
		const logits = this.#floats(view, [wanted, vocabSize]);
		binding.output("logits", logits);
		logits.release();
	}

	/** Grows the memory of token ids and wanted rows; batches are bound to it anew. */
	#reserveRun(tokens: number, wanted: number): void {
		if (tokens <= this.#ids.length && wanted <= this.#wanted.length) return;
		this.#ids = fixedInts(Math.max(tokens, this.#ids.length));
		this.#wanted = fixedInts(Math.max(wanted, this.#wanted.length));
		for (const bound of this.#batchBindings) if (bound) bound.wanted = 0;
	}

	/** Grows the memory of logits. */
	#reserveLogits(rows: number): void {
		const { vocabSize } = this.config;
		if (rows <= this.#logitRows.length) return;
		if (rows > this.#places.length) this.#places = fixedInts(rows);
		this.#logits = new Float32Array(rows * vocabSize);
		this.#logitRows = Array.from({ length: rows }, (_, i) => this.#logits.subarray(i * vocabSize, (i + 1) * vocabSize));
		for (const bound of this.#batchBindings) if (bound) bound.wanted = 0;
	}
}
