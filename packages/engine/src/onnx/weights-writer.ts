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
	readonly #tensors: ExternalLocation[] = [];
	/** Number of the next tensor when the same ones are written again; undefined the first time. */
	#again: number | undefined;

	constructor(path: string) {
		this.#fd = openSync(path, "wx");
	}

	/** Begins a tensor: what is written next starts at an aligned offset. */
	begin(): void {
		if (this.#again !== undefined) return;
		const padding = (ALIGNMENT - (this.#position % ALIGNMENT)) % ALIGNMENT;
		if (padding) this.write(new Uint8Array(padding));
		this.#begin = this.#position;
	}

	/** Appends bytes of the current tensor. */
	write(data: ArrayBufferView): void {
		if (this.#again !== undefined) return;
		const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
		let done = 0;
		while (done < bytes.length) done += writeSync(this.#fd, bytes, done, bytes.length - done);
		this.#position += bytes.length;
	}

	/** Ends the current tensor and says where it lies. */
	end(): ExternalLocation {
		if (this.#again !== undefined) return this.#tensors[this.#again++]!;
		const location = { offset: this.#begin, length: this.#position - this.#begin };
		this.#tensors.push(location);
		return location;
	}

	/** Writes one whole tensor. */
	tensor(data: ArrayBufferView): ExternalLocation {
		this.begin();
		this.write(data);
		return this.end();
	}

	/** From now on the same tensors come again, in the same order: nothing is written, each lies where it was put. */
	repeat(): void {
		this.#again = 0;
	}

	/** Makes the file durable and closes it. */
	close(): void {
		fsyncSync(this.#fd);
		closeSync(this.#fd);
	}
}
