// SPDX-License-Identifier: Apache-2.0
// A model without weights for tests of everything around a model: the next token is a function of what is in the KV
// slot, so a mix-up of slots, positions, lengths or chunk borders changes the text.

import type { ModelConfig, ModelRunner } from "../model/model-runner.js";

export interface FakeModelOptions {
	readonly numSlots: number;
	readonly maxModelLen: number;
	/** Default 97. */
	readonly vocabSize?: number;
	/** Busy time per prefill call and per decode call, in milliseconds; default 0. */
	readonly prefillMs?: number;
	readonly decodeMs?: number;
	/** Throws from the model while this token id is among those computed. */
	readonly failOnToken?: number;
	/** Ends the thread with an uncaught error when this token id is computed. */
	readonly dieOnToken?: number;
}

/** See the head of the file. Logits are pseudo-random numbers in [0, 8) from a hash of the slot's content. */
export class FakeModelRunner implements ModelRunner {
	readonly config: ModelConfig;
	readonly numSlots: number;
	readonly maxModelLen: number;
	readonly kvBytesPerToken = 4;
	readonly weightFormats: readonly string[] = [];
	/** Calls so far, for tests that count. */
	readonly calls = { prefill: 0, decode: 0, copySlot: 0 };
	closed = false;
	private readonly options: FakeModelOptions;
	private readonly cache: Int32Array[];
	private readonly logits: Float32Array;

	constructor(options: FakeModelOptions) {
		this.options = options;
		this.numSlots = options.numSlots;
		this.maxModelLen = options.maxModelLen;
		const vocabSize = options.vocabSize ?? 97;
		this.config = {
			family: "llama",
			vocabSize,
			hiddenSize: 1,
			intermediateSize: 1,
			numLayers: 1,
			numHeads: 1,
			numKvHeads: 1,
			headDim: 1,
			rotaryDim: 0,
			rope: { theta: 10_000, scaling: null },
			localRope: null,
			layers: [{ window: null, rope: "none" }],
			attentionScale: 1,
			attentionSoftcap: null,
			logitSoftcap: null,
			embeddingScale: 1,
			rmsNormEps: 1e-5,
			normOffset: 0,
			maxPositionEmbeddings: options.maxModelLen,
			tieWordEmbeddings: true,
			bosTokenId: null,
			eosTokenIds: [],
		};
		this.cache = Array.from({ length: options.numSlots }, () => new Int32Array(options.maxModelLen));
		this.logits = new Float32Array(options.numSlots * vocabSize);
	}

	prefill(slot: number, tokenIds: Int32Array, start: number, wantLogits: boolean): Float32Array | undefined {
		this.calls.prefill++;
		this.check(slot, tokenIds, start);
		busy(this.options.prefillMs);
		const end = start + tokenIds.length;
		// The borders of the chunk are part of the value, as rounding makes them part of a real one.
		for (let i = 0; i < tokenIds.length; i++) this.write(slot, start + i, tokenIds[i]!, start * 65_537 + end);
		if (!wantLogits) return undefined;
		this.fillLogits(slot, end, 0);
		return this.logits.subarray(0, this.config.vocabSize);
	}

	prefillAllLogits(slot: number, tokenIds: Int32Array, start: number): Float32Array {
		const { vocabSize } = this.config;
		const all = new Float32Array(tokenIds.length * vocabSize);
		this.prefill(slot, tokenIds, start, false);
		for (let i = 0; i < tokenIds.length; i++) {
			this.fillLogits(slot, start + i + 1, 0);
			all.set(this.logits.subarray(0, vocabSize), i * vocabSize);
		}
		return all;
	}

	decode(batch: number, tokenIds: Int32Array, lengths: Int32Array): Float32Array {
		this.calls.decode++;
		if (tokenIds.length !== batch || lengths.length !== batch) throw new Error("arrays differ from the batch size");
		busy(this.options.decodeMs);
		for (let i = 0; i < batch; i++) {
			this.check(i, tokenIds.subarray(i, i + 1), lengths[i]!);
			this.write(i, lengths[i]!, tokenIds[i]!, -1);
			this.fillLogits(i, lengths[i]! + 1, i);
		}
		return this.logits.subarray(0, batch * this.config.vocabSize);
	}

	copySlot(from: number, to: number, length: number): void {
		this.calls.copySlot++;
		this.cache[to]!.set(this.cache[from]!.subarray(0, length));
	}

	close(): void {
		this.closed = true;
	}

	private check(slot: number, tokenIds: Int32Array, start: number): void {
		if (slot < 0 || slot >= this.numSlots) throw new Error(`no slot ${slot}`);
		if (start < 0 || start + tokenIds.length > this.maxModelLen)
			throw new Error(`position ${start} is outside the slot`);
		if (this.options.failOnToken !== undefined && tokenIds.includes(this.options.failOnToken)) {
			throw new Error("this model fails on request");
		}
		if (this.options.dieOnToken !== undefined && tokenIds.includes(this.options.dieOnToken)) {
			// Past the engine's own handling of errors, as a crash would be.
			process.exit(7);
		}
	}

	private write(slot: number, position: number, token: number, border: number): void {
		this.cache[slot]![position] = Math.imul(token + 1, 0x9e3779b1) ^ Math.imul(border + 7, 0x85ebca6b);
	}

	private fillLogits(slot: number, length: number, row: number): void {
		const { vocabSize } = this.config;
		const cache = this.cache[slot]!;
		let hash = length;
		for (let i = 0; i < length; i++) hash = mix(hash ^ cache[i]!);
		for (let i = 0; i < vocabSize; i++) this.logits[row * vocabSize + i] = (mix(hash + i) >>> 8) / 2 ** 21;
	}
}

/** The same signature as the real loader's: `model` is a JSON object of `FakeModelOptions`. */
export async function loadModelRunner(options: {
	readonly model: string;
	readonly numSlots: number;
	readonly maxModelLen?: number;
	onProgress?(stage: string, fraction: number): void;
}): Promise<ModelRunner> {
	options.onProgress?.("load", 1);
	const own = JSON.parse(options.model) as Partial<FakeModelOptions> & { loadError?: string };
	if (own.loadError !== undefined) throw new Error(own.loadError);
	return new FakeModelRunner({ ...own, numSlots: options.numSlots, maxModelLen: options.maxModelLen ?? 4096 });
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
