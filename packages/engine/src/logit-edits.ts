// SPDX-License-Identifier: Apache-2.0
// What is done to single logits before a draw: masked ids, bias, penalties, in vLLM's order. The logits are edited in
// place and restored, so that nothing is copied and several choices can draw from the same ones.

import type { SamplerInput } from "./sampler.js";

/** Reusable scratch. */
export class LogitEdits {
	private ids = new Int32Array(1024);
	private values = new Float32Array(1024);
	private size = 0;
	private readonly vocabSize: number;

	constructor(vocabSize: number) {
		this.vocabSize = vocabSize;
	}

	/** Edits `logits[offset ..]`; `undo` on the same ones comes next. */
	apply(logits: Float32Array, offset: number, input: SamplerInput): void {
		this.size = 0;
		const { params, tokenCounts, maskedIds } = input;
		for (let i = 0; i < maskedIds.length; i++) this.write(logits, offset, maskedIds[i]!, Number.NEGATIVE_INFINITY);
		const { biasIds, biasValues } = params;
		for (let i = 0; i < biasIds.length; i++) {
			const id = biasIds[i]!;
			this.write(logits, offset, id, logits[offset + id]! + biasValues[i]!);
		}
		if (tokenCounts === undefined) return;
		const { ids, counts } = tokenCounts;
		for (let i = 0; i < ids.length; i++) {
			const id = ids[i]!;
			this.write(logits, offset, id, penalized(logits[offset + id]!, counts[i]!, input));
		}
	}

	/** In reverse, because an id may have been edited twice. */
	undo(logits: Float32Array, offset: number): void {
		for (let i = this.size - 1; i >= 0; i--) logits[offset + this.ids[i]!] = this.values[i]!;
	}

	private write(logits: Float32Array, offset: number, id: number, value: number): void {
		if (id < 0 || id >= this.vocabSize) return;
		if (this.size === this.ids.length) {
			const ids = new Int32Array(this.size * 2);
			const values = new Float32Array(this.size * 2);
			ids.set(this.ids);
			values.set(this.values);
			this.ids = ids;
			this.values = values;
		}
		this.ids[this.size] = id;
		this.values[this.size++] = logits[offset + id]!;
		logits[offset + id] = value;
	}
}

/** Repetition looks at prompt and output, presence and frequency at the output only: `count` is that of the output. */
function penalized(logit: number, count: number, { params }: SamplerInput): number {
	const { repetitionPenalty, frequencyPenalty, presencePenalty } = params;
	const value = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
	return count > 0 ? value - (frequencyPenalty * count + presencePenalty) : value;
}

/** Whether any logit can be edited for the next draw. */
export function hasEdits({ params, tokenCounts, maskedIds }: SamplerInput): boolean {
	return maskedIds.length > 0 || params.biasIds.length > 0 || (tokenCounts !== undefined && tokenCounts.ids.length > 0);
}

/** The value that one token's logit has for the draw, bit for bit as `LogitEdits` makes it. */
export function editedLogit(logit: number, id: number, input: SamplerInput): number {
	const { params, tokenCounts, maskedIds } = input;
	let value = maskedIds.includes(id) ? Number.NEGATIVE_INFINITY : logit;
	const { biasIds, biasValues } = params;
	for (let i = 0; i < biasIds.length; i++) if (biasIds[i] === id) value = Math.fround(value + biasValues[i]!);
	const count = tokenCounts?.countOf(id);
	return count === undefined ? value : Math.fround(penalized(value, count, input));
}
