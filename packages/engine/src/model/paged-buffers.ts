// SPDX-License-Identifier: Apache-2.0
// The memory that steps of a paged graph pass through: one block of integers in, the likeliest tokens out. Sized once
// for the largest step, since captured graphs keep the addresses.

import type { PinnedMemory } from "../ort/cudart.js";
import type { Pointer } from "../ort/ort-library.js";
import { ElementType } from "../ort/ort-session.js";
import type { PagedBinding, PagedDevice, PagedTensor } from "./paged-device.js";
import { type RunLimits, type RunShape, runLayout } from "./paged-step.js";

/** Where device memory is best read and written. */
const ALIGNMENT_BYTES = 256;

/** Inputs of a run and where they lie; see `runLayout`. */
const INT_INPUTS = [
	["input_ids", "ids", ({ tokens }: RunShape) => [tokens]],
	["cumulative_sequence_length", "cumulative", ({ batch }: RunShape) => [batch + 1]],
	["past_seqlens", "past", ({ batch }: RunShape) => [batch]],
	["block_table", "table", ({ batch, columns }: RunShape) => [batch, columns]],
	["rows", "rows", ({ wanted }: RunShape) => [wanted]],
] as const;

/** Memory for the inputs and outputs of every run. */
export class PagedBuffers {
	/** The integers of the next run, to be written before `upload`. */
	readonly inputs: Int32Array;
	readonly #device: PagedDevice;
	readonly #vocabSize: number;
	readonly #k: number;
	readonly #hostInputs: PinnedMemory;
	readonly #deviceInputs: Pointer;
	/** Logits, ids and log-probabilities of the likeliest tokens, one after the other. */
	readonly #hostTop: PinnedMemory;
	readonly #deviceTop: Pointer;
	readonly #logits: Pointer;
	readonly #hostRow: PinnedMemory;

	/**
	 * @param columns of the block table of the largest step
	 * @param k likeliest tokens per wanted one
	 */
	constructor(device: PagedDevice, limits: RunLimits, columns: number, vocabSize: number, k: number) {
		this.#device = device;
		this.#vocabSize = vocabSize;
		this.#k = k;
		const bytes = runLayout({ ...limits, columns }).length * 4;
		this.#hostInputs = device.allocatePinned(bytes);
		this.inputs = new Int32Array(this.#hostInputs.bytes.buffer, this.#hostInputs.bytes.byteOffset, bytes / 4);
		this.#deviceInputs = device.allocate(bytes);
		const topBytes = 3 * this.#topBytes(limits.wanted);
		this.#hostTop = device.allocatePinned(topBytes);
		this.#deviceTop = device.allocate(topBytes);
		this.#logits = device.allocate(limits.wanted * vocabSize * 4);
		this.#hostRow = device.allocatePinned(vocabSize * 4);
	}

	/** Binds what depends on the sizes of a run. @param metadata three numbers in host memory. */
	bind(binding: PagedBinding, shape: RunShape, metadata: Int32Array): void {
		const layout = runLayout(shape);
		for (const [name, place, dimensions] of INT_INPUTS) {
			binding.input(name, this.#tensor(ElementType.INT32, dimensions(shape), this.#deviceInputs, layout[place] * 4));
		}
		binding.input("attention_metadata", {
			type: ElementType.INT32,
			shape: [3],
			memory: metadata,
			bytes: 12,
			onHost: true,
		});
		const top = [shape.wanted, this.#k];
		const bytes = this.#topBytes(shape.wanted);
		binding.output("top_logits", this.#tensor(ElementType.FLOAT, top, this.#deviceTop, 0));
		binding.output("top_ids", this.#tensor(ElementType.INT32, top, this.#deviceTop, bytes));
		binding.output("top_logprobs", this.#tensor(ElementType.FLOAT, top, this.#deviceTop, 2 * bytes));
		binding.output("logits", this.#tensor(ElementType.FLOAT, [shape.wanted, this.#vocabSize], this.#logits, 0));
	}

	/** Room for one kind of [wanted, k] numbers. */
	#topBytes(wanted: number): number {
		return Math.ceil((wanted * this.#k * 4) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
	}

	#tensor(type: ElementType, shape: readonly number[], base: Pointer, offset: number): PagedTensor {
		const bytes = shape.reduce((product, size) => product * size, 4);
		return { type, shape, memory: base + BigInt(offset), bytes };
	}

	/** Queues the copy of a run's integers. */
	upload(shape: RunShape): void {
		this.#device.upload(this.#deviceInputs, this.#hostInputs, runLayout(shape).length * 4);
	}

	/** Queues the copy of a run's likeliest tokens. */
	download(shape: RunShape): void {
		if (shape.wanted > 0) this.#device.download(this.#hostTop, 0, this.#deviceTop, 3 * this.#topBytes(shape.wanted));
	}

	/** Likeliest tokens of the first `count` wanted ones of a run, [count, k] each, once the stream is there. */
	top(shape: RunShape, count: number): { logits: Float32Array; ids: Int32Array; logprobs: Float32Array } {
		const { buffer, byteOffset } = this.#hostTop.bytes;
		const bytes = this.#topBytes(shape.wanted);
		const length = count * this.#k;
		return {
			logits: new Float32Array(buffer, byteOffset, length),
			ids: new Int32Array(buffer, byteOffset + bytes, length),
			logprobs: new Float32Array(buffer, byteOffset + 2 * bytes, length),
		};
	}

	/** Waits for the stream and copies the logits of wanted token i of the last run. */
	readLogits(i: number, into: Float32Array): void {
		const bytes = this.#vocabSize * 4;
		this.#device.download(this.#hostRow, 0, this.#logits + BigInt(i * bytes), bytes);
		this.#device.synchronize();
		into.set(new Float32Array(this.#hostRow.bytes.buffer, this.#hostRow.bytes.byteOffset, this.#vocabSize));
	}
}
