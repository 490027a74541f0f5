// SPDX-License-Identifier: Apache-2.0
// What a runner with paged cache needs of a device: memory, copies, and runs of the loaded graph. The CUDA device is
// one; tests have another, which interprets the graph.

import type { PinnedMemory } from "../ort/cudart.js";
import type { Pointer, PointerArg } from "../ort/ort-library.js";
import type { ElementType } from "../ort/ort-session.js";

/** A tensor for an input or output of the graph. */
export interface PagedTensor {
	readonly type: ElementType;
	readonly shape: readonly number[];
	/** Memory of the device, or of the host for an input that is read there. */
	readonly memory: PointerArg;
	/** Size of the memory that the shape covers. */
	readonly bytes: number;
	readonly onHost?: boolean;
}

/** Inputs and outputs by name, bound to memory; what is bound under a name is replaced by the next. */
export interface PagedBinding {
	input(name: string, tensor: PagedTensor): void;
	output(name: string, tensor: PagedTensor): void;
	release(): void;
}

/** A device with a loaded graph. Work is queued in order; `synchronize` waits for all of it. */
export interface PagedDevice {
	/** E.g. "NVIDIA H100 80GB HBM3". */
	readonly name: string;
	/** Bytes of device memory. */
	memoryInfo(): { readonly free: number; readonly total: number };
	/** Zeroed memory of the device. @throws CudaError when it is not free. */
	allocate(bytes: number): Pointer;
	free(memory: Pointer): void;
	/** Host memory for copies. */
	allocatePinned(bytes: number): PinnedMemory;
	freePinned(memory: PinnedMemory): void;
	/** Queues a copy of `bytes` from host memory, from its byte `offset` on (default 0). */
	upload(to: Pointer, from: PinnedMemory, bytes: number, offset?: number): void;
	/** Queues a copy to host memory from its byte `offset` on. */
	download(to: PinnedMemory, offset: number, from: Pointer, bytes: number): void;
	createBinding(): PagedBinding;
	/**
	 * Queues a run of the graph.
	 * @param graph -1, or the number of a captured graph: its first run captures, and later runs replay with what was
	 *   bound and what host inputs held then.
	 */
	run(binding: PagedBinding, graph: number): void;
	synchronize(): void;
	/** Frees the graph and all memory; bindings must be released before. */
	close(): void;
}
