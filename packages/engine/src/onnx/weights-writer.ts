// SPDX-License-Identifier: Apache-2.0
// Appends tensors to the file of external weights.

import { closeSync, fsyncSync, openSync, writeSync } from "node:fs";
import type { ExternalLocation } from "./onnx-model.js";

/** Page size: tensors that begin on one are mapped in place by ONNX Runtime. */
const ALIGNMENT = 4096;

/** One file that is written front to back. */
export class WeightsWriter {
	readonly #fd: number;
	#position = 0;
	#begin = 0;

	constructor(path: string) {
		this.#fd = openSync(path, "wx");
	}

	/** Begins a tensor: what is written next starts at an aligned offset. */
	begin(): void {
		const padding = (ALIGNMENT - (this.#position % ALIGNMENT)) % ALIGNMENT;
		if (padding) this.write(new Uint8Array(padding));
		this.#begin = this.#position;
	}

	/** Appends bytes of the current tensor. */
	write(data: ArrayBufferView): void {
		const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
		let done = 0;
		while (done < bytes.length) done += writeSync(this.#fd, bytes, done, bytes.length - done);
		this.#position += bytes.length;
	}

	/** Ends the current tensor and says where it lies. */
	end(): ExternalLocation {
		return { offset: this.#begin, length: this.#position - this.#begin };
	}

	/** Writes one whole tensor. */
	tensor(data: ArrayBufferView): ExternalLocation {
		this.begin();
		this.write(data);
		return this.end();
	}

	/** Makes the file durable and closes it. */
	close(): void {
		fsyncSync(this.#fd);
		closeSync(this.#fd);
	}
}
