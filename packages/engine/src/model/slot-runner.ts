// SPDX-License-Identifier: Apache-2.0
// What every runner on the CPU has in common: slots for running sequences, a pool for what outlives them, and steps cut
// into runs. Generating sequences are one batch of one token each; a part of a prompt, or guesses to be checked, is a run
// of its own: ONNX Runtime's attention takes more than one new token only of one sequence at a time. How a run is bound
// to a graph is the business of the class below.

import type { SharedBlocks } from "../kv/kv-port.js";
import { type CacheGeometry, type CacheSize, kvBytesPerToken } from "./cache-memory.js";
import { CpuKvCache } from "./cpu-kv-cache.js";
import type { KvCacheDtype, ModelRunner, ModelShape, RunnerRow, StepLogits } from "./model-runner.js";
import { SlotTable } from "./slot-table.js";

/** What the runner is made of. */
export interface SlotRunnerOptions extends CacheSize {
	readonly config: ModelShape;
	/** See `ModelRunner.weightFormats`. */
	readonly weightFormats: readonly string[];
	/** See `ModelRunner.modelSum`. */
	readonly modelSum: string;
	/** See `ModelRunner.deviceNote`. */
	readonly deviceNote?: string | undefined;
	/** "fp32", "fp16" or "int8". */
	readonly kvCacheDtype: KvCacheDtype;
	/** Bytes of a number in the cache. */
	readonly bytesPerElement: number;
	/** Whether the graph gives logits of all tokens of a run, not of wanted ones alone. */
	readonly allLogits: boolean;
}

/** Integers whose address stays: small typed arrays may otherwise lie in the moving heap. */
export function fixedInts(length: number): Int32Array {
	return new Int32Array(new ArrayBuffer(length * 4));
}

/** Whether a row is one new token with its logits, and so part of the batch. */
function generatesOne(row: RunnerRow): boolean {
	return !row.isPrefill && row.end - row.start === 1 && row.wanted === 1;
}

/**
 * The first token that is computed for a row. The attention of a lone token is computed in another order than that of a
 * chunk, so the bits of a prompt would depend on how it was cut: a lone token runs together with the one before it.
 */
function firstComputed(row: RunnerRow): number {
	return row.isPrefill && row.end - row.start === 1 && row.start > 0 ? row.start - 1 : row.start;
}

/** A ModelRunner with slots; see the head of the file. */
export abstract class SlotRunner implements ModelRunner {
	readonly config: ModelShape;
	readonly device = "cpu";
	readonly maxNumSeqs: number;
	readonly maxModelLen: number;
	readonly blockSize: number;
	readonly numBlocks: number;
	readonly kvBytesPerToken: number;
	readonly kvCacheDtype: KvCacheDtype;
	readonly weightFormats: readonly string[];
	readonly deviceNote: string | undefined;
	readonly modelSum: string;
	readonly blockOrder = "layer,side,head,token,dim";
	protected readonly kv: CpuKvCache;
	/** Token ids of a run. */
	protected ids: Int32Array = fixedInts(64);
	/** Places in the run of the tokens whose logits are wanted. */
	protected wanted: Int32Array = fixedInts(64);
	/** Per slot of a batch: valid tokens before the run. */
	protected readonly lengths: Int32Array;
	/** Logits of a step, [rows * vocabSize]. */
	protected logits: Float32Array = new Float32Array(0);
	readonly #slots: SlotTable;
	readonly #allLogits: boolean;
	/** A view of each row of logits. */
	#logitRows: Float32Array[] = [];
	/** The row of logits of each wanted token of the step. */
	#places = fixedInts(64);
	readonly #stepLogits: StepLogits = { row: (i) => this.#logitRows[this.#places[i]!]! };
	readonly #batch: RunnerRow[] = [];

	/** @throws RangeError when the cache cannot be reserved. */
	constructor(options: SlotRunnerOptions) {
		const { config } = options;
		this.config = config;
		this.maxNumSeqs = options.maxNumSeqs;
		this.maxModelLen = options.maxModelLen;
		this.blockSize = options.blockSize;
		this.numBlocks = options.numBlocks;
		this.weightFormats = options.weightFormats;
		this.deviceNote = options.deviceNote;
		this.modelSum = options.modelSum;
		this.kvCacheDtype = options.kvCacheDtype;
		const geometry: CacheGeometry = {
			numLayers: config.numLayers,
			numKvHeads: config.numKvHeads,
			headDim: config.headDim,
			bytesPerElement: options.bytesPerElement,
		};
		this.kvBytesPerToken = kvBytesPerToken(geometry);
		this.kv = new CpuKvCache({ ...geometry, ...options, numSlots: options.maxNumSeqs });
		this.lengths = fixedInts(this.maxNumSeqs);
		this.#slots = new SlotTable(options.maxNumSeqs);
		this.#allLogits = options.allLogits;
		this.#growLogits(this.maxNumSeqs);
	}

	get sharedBlocks(): SharedBlocks {
		return this.kv.shared;
	}

	get blockBytes(): number {
		return this.kv.blockBytes;
	}

	/**
	 * Runs slots 0 .. `size` - 1: token `ids[slot]` goes behind `lengths[slot]` valid ones. The logits of the slots
	 * `wanted[0 .. count - 1]` go to rows 0 .. count - 1, or those of all slots to rows 0 .. size - 1.
	 */
	protected abstract runBatch(size: number, count: number): void;

	/**
	 * Runs tokens `ids[0 .. count - 1]` of one slot behind `start` valid ones. The logits of the last `wanted` tokens go to
	 * rows `firstRow` .., or those of all tokens.
	 */
	protected abstract runChunk(slot: number, start: number, count: number, wanted: number, firstRow: number): void;

	/** Called when `ids`, `wanted` or `logits` have moved: what is bound to them must be bound anew. */
	protected abstract memoryMoved(): void;

	abstract close(): void;

	execute(rows: readonly RunnerRow[]): StepLogits {
		const batch = this.#batch;
		batch.length = 0;
		for (const row of rows) {
			this.#check(row);
			this.#enter(row);
			if (generatesOne(row)) batch.push(row);
		}
		const size = this.#batchSize(batch);
		let next = this.#allLogits ? size : batch.length;
		let tokens = size;
		let needed = next;
		for (const row of rows) {
			if (generatesOne(row)) continue;
			const count = row.end - firstComputed(row);
			tokens = Math.max(tokens, count);
			needed += this.#allLogits ? count : row.wanted;
		}
		this.#reserveRun(tokens);
		this.#reserveLogits(needed);
		if (batch.length > 0) this.#decode(batch, size);
		let inBatch = 0;
		let place = 0;
		for (const row of rows) {
			if (generatesOne(row)) {
				this.#places[place++] = this.#allLogits ? this.#slots.find(row.id)! : inBatch;
				inBatch++;
				continue;
			}
			const count = this.#chunk(row, next);
			if (this.#allLogits) next += count - row.wanted;
			for (let i = 0; i < row.wanted; i++) this.#places[place++] = next++;
		}
		return this.#stepLogits;
	}

	persist(id: number, index: number, block: number): void {
		const slot = this.#slots.find(id);
		if (slot === undefined) throw new Error(`sequence ${id} has no slot`);
		this.kv.store(slot, index, block);
	}

	release(id: number): void {
		this.#slots.release(id);
	}

	readBlock(block: number, into: Uint8Array): void {
		into.set(this.kv.block(block));
	}

	writeBlock(block: number, content: Uint8Array): void {
		if (content.length !== this.blockBytes) {
			throw new RangeError(`a block has ${this.blockBytes} bytes, not ${content.length}`);
		}
		this.kv.block(block).set(content);
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
		// The last one may be filled in part; what is behind is written over.
		const count = Math.ceil(row.start / this.blockSize);
		const slot = this.#slots.take(row.id);
		for (let i = 0; i < count; i++) this.kv.load(row.blocks[i]!, slot, i);
		this.#slots.setLength(slot, row.start);
	}

	/** Slots that a batch reaches over, after a gap was closed if that pays. */
	#batchSize(batch: readonly RunnerRow[]): number {
		if (batch.length === 0) return 0;
		const move = this.#slots.closeGap(batch);
		if (move !== undefined) this.kv.copySlot(move.from, move.to, move.length);
		let size = 0;
		for (const row of batch) size = Math.max(size, this.#slots.find(row.id)! + 1);
		return size;
	}

	/** One token of each sequence. Slots in between that take no part compute a token that nobody reads. */
	#decode(batch: readonly RunnerRow[], size: number): void {
		for (let slot = 0; slot < size; slot++) {
			this.ids[slot] = 0;
			// Written behind what is valid, where the next token of that slot goes anyway.
			this.lengths[slot] = Math.min(this.#slots.length(slot), this.maxModelLen - 1);
		}
		for (let i = 0; i < batch.length; i++) {
			const row = batch[i]!;
			const slot = this.#slots.find(row.id)!;
			this.ids[slot] = row.tokens[row.start]!;
			this.wanted[i] = slot;
			this.#slots.setLength(slot, row.end);
		}
		this.runBatch(size, batch.length);
	}

	/** Several tokens of one sequence. @returns how many were computed. */
	#chunk(row: RunnerRow, firstRow: number): number {
		const { end, wanted, tokens } = row;
		const slot = this.#slots.find(row.id)!;
		const first = firstComputed(row);
		const count = end - first;
		this.ids.set(tokens.subarray(first, end));
		for (let i = 0; i < wanted; i++) this.wanted[i] = count - wanted + i;
		this.runChunk(slot, first, count, wanted, firstRow);
		this.#slots.setLength(slot, end);
		return count;
	}

	/** Grows the memory of token ids and wanted rows. */
	#reserveRun(tokens: number): void {
		if (tokens <= this.ids.length) return;
		this.ids = fixedInts(tokens);
		this.wanted = fixedInts(tokens);
		this.memoryMoved();
	}

	#reserveLogits(rows: number): void {
		if (rows <= this.#logitRows.length) return;
		this.#growLogits(rows);
		this.memoryMoved();
	}

	#growLogits(rows: number): void {
		const { vocabSize } = this.config;
		if (rows > this.#places.length) this.#places = fixedInts(rows);
		this.logits = new Float32Array(rows * vocabSize);
		this.#logitRows = Array.from({ length: rows }, (_, i) => this.logits.subarray(i * vocabSize, (i + 1) * vocabSize));
	}
}
