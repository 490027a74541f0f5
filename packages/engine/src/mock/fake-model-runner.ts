// SPDX-License-Identifier: Apache-2.0
// A model without weights for tests of everything around a model: the next token is a function of all keys that the
// sequence has in the cache, so a mix-up of blocks, positions or lengths changes the text. It keeps the cache both ways
// that real runners do, in blocks and by sequence, and finds out when the two disagree.

import type { ModelRunner, ModelShape, RunnerRow, StepLogits } from "../model/model-runner.js";

export interface FakeModelOptions {
	/** Default 4. */
	readonly maxNumSeqs?: number | undefined;
	readonly maxModelLen: number;
	/** Tokens per block; default 4. */
	readonly blockSize?: number | undefined;
	/** Default: room for all sequences, and as much again. */
	readonly numBlocks?: number | undefined;
	/** Default 97. */
	readonly vocabSize?: number;
	/** Busy time per run of prompt tokens and per run of generating rows, in milliseconds; default 0. */
	readonly prefillMs?: number;
	readonly decodeMs?: number;
	/** Throws from the model while this token id is among those computed. */
	readonly failOnToken?: number;
	/** Ends the thread with an uncaught error when this token id is computed. */
	readonly dieOnToken?: number;
	/** Every third row's likeliest token is the one after its last, so that texts copy from themselves; default false. */
	readonly repetitive?: boolean;
}

/** See the head of the file. Logits are pseudo-random numbers in [0, 8) from a hash of the cache's content. */
export class FakeModelRunner implements ModelRunner {
	readonly config: ModelShape;
	readonly device = "cpu";
	readonly maxNumSeqs: number;
	readonly maxModelLen: number;
	readonly blockSize: number;
	readonly numBlocks: number;
	readonly blockBytes: number;
	readonly kvBytesPerToken = 4;
	readonly kvCacheDtype = "fp32";
	readonly weightFormats: readonly string[] = [];
	readonly modelSum = "fake";
	readonly blockOrder = "token";
	/** Rows so far, for tests that count. */
	readonly calls = { prefill: 0, decode: 0, guessed: 0, persist: 0 };
	/** Sequences that have not been released. */
	readonly live = new Map<number, Int32Array>();
	closed = false;
	private readonly options: FakeModelOptions;
	/** Keys by block, written as rows say. */
	private readonly paged: Int32Array;
	/** Keys that were persisted. */
	private readonly pool: Int32Array;
	private logits: Float32Array[] = [];

	constructor(options: FakeModelOptions) {
		this.options = options;
		this.maxNumSeqs = options.maxNumSeqs ?? 4;
		this.maxModelLen = options.maxModelLen;
		this.blockSize = options.blockSize ?? 4;
		this.numBlocks = options.numBlocks ?? 2 * this.maxNumSeqs * Math.ceil(this.maxModelLen / this.blockSize);
		this.blockBytes = this.blockSize * 4;
		this.config = {
			vocabSize: options.vocabSize ?? 97,
			numLayers: 1,
			numKvHeads: 1,
			headDim: 1,
			maxPositionEmbeddings: options.maxModelLen,
			bosTokenId: null,
			eosTokenIds: [],
		};
		this.paged = new Int32Array(this.numBlocks * this.blockSize);
		this.pool = new Int32Array(this.numBlocks * this.blockSize);
	}

	execute(rows: readonly RunnerRow[]): StepLogits {
		this.logits = [];
		if (rows.some((row) => row.isPrefill)) busy(this.options.prefillMs);
		if (rows.some((row) => !row.isPrefill)) busy(this.options.decodeMs);
		for (const row of rows) this.run(row);
		return { row: (i) => this.logits[i]! };
	}

	persist(id: number, index: number, block: number): void {
		this.calls.persist++;
		const keys = this.live.get(id);
		if (keys === undefined) throw new Error(`sequence ${id} is not live`);
		this.pool.set(keys.subarray(index * this.blockSize, (index + 1) * this.blockSize), block * this.blockSize);
	}

	release(id: number): void {
		this.live.delete(id);
	}

	readBlock(block: number, into: Uint8Array): void {
		into.set(new Uint8Array(this.pool.buffer, block * this.blockBytes, this.blockBytes));
	}

	writeBlock(block: number, content: Uint8Array): void {
		new Uint8Array(this.pool.buffer, block * this.blockBytes, this.blockBytes).set(content);
		new Uint8Array(this.paged.buffer, block * this.blockBytes, this.blockBytes).set(content);
	}

	close(): void {
		this.closed = true;
	}

	private run(row: RunnerRow): void {
		const { id, start, end, blocks, tokens, wanted } = row;
		if (start < 0 || start >= end || end > this.maxModelLen) throw new Error(`tokens ${start} to ${end} do not fit`);
		if (row.isPrefill) this.calls.prefill++;
		else if (end - start > 1) this.calls.guessed++;
		else this.calls.decode++;
		const chunk = tokens.subarray(start, end);
		if (this.options.failOnToken !== undefined && chunk.includes(this.options.failOnToken)) {
			throw new Error("this model fails on request");
		}
		if (this.options.dieOnToken !== undefined && chunk.includes(this.options.dieOnToken)) {
			// Past the engine's own handling of errors, as a crash would be.
			process.exit(7);
		}
		let keys = this.live.get(id);
		if (keys === undefined) {
			if (this.live.size === this.maxNumSeqs) throw new Error(`more than ${this.maxNumSeqs} sequences`);
			keys = new Int32Array(this.maxModelLen);
			for (let i = 0; i < start; i++) keys[i] = this.pool[this.place(blocks, i)]!;
			this.live.set(id, keys);
		}
		for (let i = start; i < end; i++) {
			keys[i] = Math.imul(tokens[i]! + 1, 0x9e3779b1);
			this.paged[this.place(blocks, i)] = keys[i]!;
		}
		for (let i = 0; i < end; i++) {
			if (this.paged[this.place(blocks, i)] !== keys[i]) throw new Error(`the block of token ${i} was overwritten`);
		}
		for (let i = wanted - 1; i >= 0; i--) this.logits.push(this.logitsOf(keys, end - i, tokens));
	}

	private place(blocks: Int32Array, position: number): number {
		const block = blocks[Math.floor(position / this.blockSize)]!;
		return block * this.blockSize + (position % this.blockSize);
	}

	private logitsOf(keys: Int32Array, length: number, tokens: Int32Array): Float32Array {
		const { vocabSize } = this.config;
		let hash = length;
		for (let i = 0; i < length; i++) hash = mix(hash ^ keys[i]!);
		const logits = new Float32Array(vocabSize);
		for (let i = 0; i < vocabSize; i++) logits[i] = (mix(hash + i) >>> 8) / 2 ** 21;
		if (this.options.repetitive === true && hash % 16 !== 0) logits[(tokens[length - 1]! + 1) % 7] = 9;
		return logits;
	}
}

/** The same signature as the real loader's: `model` is a JSON object of `FakeModelOptions`. */
export async function loadModelRunner(options: {
	readonly model: string;
	readonly maxNumSeqs?: number | undefined;
	readonly maxModelLen?: number | undefined;
	readonly blockSize?: number | undefined;
	onProgress?(stage: string, fraction: number): void;
}): Promise<ModelRunner> {
	options.onProgress?.("load", 1);
	const own = JSON.parse(options.model) as Partial<FakeModelOptions> & { loadError?: string };
	if (own.loadError !== undefined) throw new Error(own.loadError);
	return new FakeModelRunner({
		maxNumSeqs: options.maxNumSeqs ?? 8,
		maxModelLen: options.maxModelLen ?? 4096,
		blockSize: options.blockSize ?? 16,
		...own,
	});
}

function mix(value: number): number {
	let h = Math.imul(value ^ (value >>> 16), 0x7feb352d);
	h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
	return h ^ (h >>> 16);
}

function busy(milliseconds: number | undefined): void {
	if (milliseconds === undefined) return;
	const end = performance.now() + milliseconds;
	while (performance.now() < end);
}
