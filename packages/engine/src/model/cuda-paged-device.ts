// SPDX-License-Identifier: Apache-2.0
// A graph on a CUDA device: ONNX Runtime's session and our own memory and copies, all on one stream.

import type { OpenCuda } from "../ort/cuda-device.js";
import { CudaSession } from "../ort/cuda-session.js";
import { CopyKind, type PinnedMemory } from "../ort/cudart.js";
import type { Pointer } from "../ort/ort-library.js";
import type { OrtBinding } from "../ort/ort-session.js";
import type { PagedBinding, PagedDevice, PagedTensor } from "./paged-device.js";

class CudaBinding implements PagedBinding {
	readonly #session: CudaSession;
	readonly binding: OrtBinding;
	/** Keeps host memory that is bound. */
	readonly #kept = new Map<string, PagedTensor>();

	constructor(session: CudaSession) {
		this.#session = session;
		this.binding = session.createBinding();
	}

	#bind(side: "input" | "output", name: string, tensor: PagedTensor): void {
		const { type, shape, memory, bytes, onHost } = tensor;
		const value = onHost
			? this.#session.hostTensor(type, shape, memory, bytes)
			: this.#session.deviceTensor(type, shape, memory as Pointer, bytes);
		// The binding takes a reference of its own.
		this.binding[side](name, value);
		value.release();
		if (onHost) this.#kept.set(name, tensor);
	}

	input(name: string, tensor: PagedTensor): void {
		this.#bind("input", name, tensor);
	}

	output(name: string, tensor: PagedTensor): void {
		this.#bind("output", name, tensor);
	}

	release(): void {
		this.binding.release();
		this.#kept.clear();
	}
}

/** A PagedDevice on CUDA. Made, used and closed by one thread. */
export class CudaPagedDevice implements PagedDevice {
	readonly name: string;
	readonly #cuda: OpenCuda;
	readonly #stream: Pointer;
	readonly #session: CudaSession;
	readonly #memory = new Set<Pointer>();
	readonly #pinned = new Set<PinnedMemory>();

	/** @throws OrtError when the graph cannot be loaded or placed on the device as a whole. */
	constructor(cuda: OpenCuda, modelPath: string) {
		this.name = cuda.info.name;
		this.#cuda = cuda;
		const { library, device, cudart } = cuda;
		this.#stream = cudart.createStream();
		try {
			this.#session = new CudaSession(modelPath, { library, device, stream: this.#stream, cudaGraphs: true });
		} catch (error) {
			cudart.destroyStream(this.#stream);
			throw error;
		}
	}

	memoryInfo(): { free: number; total: number } {
		return this.#cuda.cudart.memoryInfo();
	}

	allocate(bytes: number): Pointer {
		const { cudart } = this.#cuda;
		const memory = cudart.allocate(bytes);
		this.#memory.add(memory);
		cudart.fillAsync(memory, 0, bytes, this.#stream);
		return memory;
	}

	free(memory: Pointer): void {
		if (this.#memory.delete(memory)) this.#cuda.cudart.free(memory);
	}

	allocatePinned(bytes: number): PinnedMemory {
		const memory = this.#cuda.cudart.allocatePinned(bytes);
		this.#pinned.add(memory);
		return memory;
	}

	freePinned(memory: PinnedMemory): void {
		if (this.#pinned.delete(memory)) this.#cuda.cudart.freePinned(memory);
	}

	upload(to: Pointer, from: PinnedMemory, bytes: number, offset = 0): void {
		this.#cuda.cudart.copyAsync(to, from.pointer + BigInt(offset), bytes, CopyKind.hostToDevice, this.#stream);
	}

	download(to: PinnedMemory, offset: number, from: Pointer, bytes: number): void {
		this.#cuda.cudart.copyAsync(to.pointer + BigInt(offset), from, bytes, CopyKind.deviceToHost, this.#stream);
	}

	createBinding(): PagedBinding {
		return new CudaBinding(this.#session);
	}

	run(binding: PagedBinding, graph: number): void {
		this.#session.run((binding as CudaBinding).binding, graph);
	}

	synchronize(): void {
		this.#cuda.cudart.synchronize(this.#stream);
	}

	close(): void {
		this.synchronize();
		this.#session.close();
		for (const memory of this.#memory) this.free(memory);
		for (const memory of this.#pinned) this.freePinned(memory);
		this.#cuda.cudart.destroyStream(this.#stream);
	}
}
