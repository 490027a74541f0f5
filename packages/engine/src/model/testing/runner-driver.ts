// SPDX-License-Identifier: Apache-2.0
// A runner as tests of numbers want it: sequences by number, prompts and single tokens, without a scheduler. Each
// sequence has the same blocks all its life.

import type { ModelRunner, ModelShape, RunnerRow } from "../model-runner.js";

export class RunnerDriver {
	readonly runner: ModelRunner;
	private readonly tokens = new Map<number, Int32Array>();

	constructor(runner: ModelRunner) {
		this.runner = runner;
	}

	get config(): ModelShape {
		return this.runner.config;
	}

	/**
	 * Computes `ids` at position `start` .. of sequence `id`.
	 * @returns a copy of the logits of the last token, when they are wanted.
	 */
	prefill(id: number, ids: Int32Array, start: number, wantLogits: boolean): Float32Array | undefined {
		const logits = this.run([this.row(id, ids, start, wantLogits ? 1 : 0, true)]);
		return wantLogits ? logits : undefined;
	}

	/** The same with the logits of every token, [tokens * vocabSize]. */
	prefillAllLogits(id: number, ids: Int32Array, start: number): Float32Array {
		return this.run([this.row(id, ids, start, ids.length, true)]);
	}

	/** One token of each sequence 0 .. batch - 1, `ids[i]` at position `lengths[i]`. @returns logits [batch * vocabSize]. */
	decode(batch: number, ids: Int32Array, lengths: Int32Array): Float32Array {
		return this.run(
			Array.from({ length: batch }, (_, i) => this.row(i, ids.subarray(i, i + 1), lengths[i]!, 1, false)),
		);
	}

	/** Several tokens of one sequence as if they were guesses to be checked, with the logits of each. */
	check(id: number, ids: Int32Array, start: number): Float32Array {
		return this.run([this.row(id, ids, start, ids.length, false)]);
	}

	/** Forgets a sequence. */
	release(id: number): void {
		this.runner.release(id);
		this.tokens.delete(id);
	}

	private run(rows: readonly RunnerRow[]): Float32Array {
		const logits = this.runner.execute(rows);
		const count = rows.reduce((sum, row) => sum + row.wanted, 0);
		const { vocabSize } = this.config;
		const all = new Float32Array(count * vocabSize);
		for (let i = 0; i < count; i++) all.set(logits.row(i), i * vocabSize);
		return all;
	}

	private row(id: number, ids: Int32Array, start: number, wanted: number, isPrefill: boolean): RunnerRow {
		const { maxModelLen, blockSize, numBlocks } = this.runner;
		const perSequence = Math.ceil(maxModelLen / blockSize);
		const end = start + ids.length;
		let tokens = this.tokens.get(id);
		if (tokens === undefined || tokens.length < end) {
			const longer = new Int32Array(Math.max(end, maxModelLen));
			if (tokens !== undefined) longer.set(tokens);
			tokens = longer;
			this.tokens.set(id, tokens);
		}
		tokens.set(ids, start);
		const blocks = Int32Array.from({ length: perSequence }, (_, i) => (id * perSequence + i) % numBlocks);
		return { id, tokens, start, end, blocks, wanted, isPrefill };
	}
}
