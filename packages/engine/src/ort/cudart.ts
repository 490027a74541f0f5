// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime: devices, memory, copies and streams, called through koffi.

import koffi from "koffi";
import { CudaError } from "./cuda-error.js";
import type { Pointer, PointerArg } from "./ort-library.js";

/** Which way a copy goes, as cudaMemcpyKind numbers it. */
export const CopyKind = { hostToDevice: 1, deviceToHost: 2, deviceToDevice: 3 } as const;
export type CopyKind = (typeof CopyKind)[keyof typeof CopyKind];

/** A stream that does not wait for the default stream. */
const NON_BLOCKING = 1;
/** cudaDeviceProp is about 1 KiB; room for later versions. */
const PROPERTIES_BYTES = 8192;
/** Offset of the name, a string of at most 256 bytes. */
const NAME_BYTES = 256;
const COMPUTE_CAPABILITY_MAJOR = 75;
const COMPUTE_CAPABILITY_MINOR = 76;

const FUNCTIONS = {
	cudaGetDeviceCount: ["void *"],
	cudaSetDevice: ["int"],
	cudaDriverGetVersion: ["void *"],
	cudaRuntimeGetVersion: ["void *"],
	cudaGetDeviceProperties: ["void *", "int"],
	cudaDeviceGetAttribute: ["void *", "int", "int"],
	cudaMemGetInfo: ["void *", "void *"],
	cudaMalloc: ["void *", "size_t"],
	cudaFree: ["void *"],
	cudaMallocHost: ["void *", "size_t"],
	cudaFreeHost: ["void *"],
	cudaMemcpyAsync: ["void *", "void *", "size_t", "int", "void *"],
	cudaMemsetAsync: ["void *", "int", "size_t", "void *"],
	cudaStreamCreateWithFlags: ["void *", "uint"],
	cudaStreamDestroy: ["void *"],
	cudaStreamSynchronize: ["void *"],
} as const satisfies Record<string, readonly string[]>;

type FunctionName = keyof typeof FUNCTIONS;

/** What a device is. */
export interface CudaDeviceInfo {
	readonly name: string;
	/** E.g. "9.0". */
	readonly computeCapability: string;
	/** Bytes. */
	readonly totalMemory: number;
}

/** Memory of the host that the device reads without a detour. */
export interface PinnedMemory {
	readonly pointer: Pointer;
	readonly bytes: Uint8Array;
}

/** The loaded runtime. All calls are of the calling thread; call `setDevice` first. */
export class Cudart {
	readonly #functions: { readonly [K in FunctionName]: (...args: unknown[]) => number };
	readonly #errorString: (code: number) => string;

	/** @param path file or name of libcudart; it must be loaded and pinned already. */
	constructor(path: string) {
		const library = koffi.load(path);
		const functions = {} as Record<FunctionName, (...args: unknown[]) => number>;
		for (const [name, args] of Object.entries(FUNCTIONS)) {
			functions[name as FunctionName] = library.func(name, "int", [...args]) as (...args: unknown[]) => number;
		}
		this.#functions = functions;
		this.#errorString = library.func("cudaGetErrorString", "str", ["int"]) as (code: number) => string;
	}

	#call(name: FunctionName, ...args: unknown[]): void {
		const code = this.#functions[name](...args);
		if (code !== 0) throw new CudaError(code, name, this.#errorString(code));
	}

	#int(name: FunctionName, ...args: unknown[]): number {
		const out = new Int32Array(1);
		this.#call(name, out, ...args);
		return out[0]!;
	}

	#pointer(name: FunctionName, ...args: unknown[]): Pointer {
		const out = new BigUint64Array(1);
		this.#call(name, out, ...args);
		return out[0]!;
	}

	/** Version of CUDA that the driver serves, e.g. 13000; 0 without a driver. */
	driverVersion(): number {
		return this.#int("cudaDriverGetVersion");
	}

	runtimeVersion(): number {
		return this.#int("cudaRuntimeGetVersion");
	}

	/** @throws CudaError 100 where there is no device, 35 where the driver is too old. */
	deviceCount(): number {
		return this.#int("cudaGetDeviceCount");
	}

	/** Makes a device the calling thread's. */
	setDevice(device: number): void {
		this.#call("cudaSetDevice", device);
	}

	/** Of the thread's device. */
	memoryInfo(): { readonly free: number; readonly total: number } {
		const out = new BigUint64Array(2);
		this.#call("cudaMemGetInfo", out.subarray(0, 1), out.subarray(1));
		return { free: Number(out[0]), total: Number(out[1]) };
	}

	/** What the thread's device is; it must be `device`. */
	deviceInfo(device: number): CudaDeviceInfo {
		const properties = Buffer.alloc(PROPERTIES_BYTES);
		this.#call("cudaGetDeviceProperties", properties, device);
		const end = properties.indexOf(0);
		const major = this.#int("cudaDeviceGetAttribute", COMPUTE_CAPABILITY_MAJOR, device);
		const minor = this.#int("cudaDeviceGetAttribute", COMPUTE_CAPABILITY_MINOR, device);
		return {
			name: properties.toString("utf8", 0, Math.min(end, NAME_BYTES)),
			computeCapability: `${major}.${minor}`,
			totalMemory: this.memoryInfo().total,
		};
	}

	/** @throws CudaError 2 when the device has not so many bytes free. */
	allocate(bytes: number): Pointer {
		return this.#pointer("cudaMalloc", bytes);
	}

	free(pointer: Pointer): void {
		this.#call("cudaFree", pointer);
	}

	/** Host memory that copies need not stage; the view must not be used after `freePinned`. */
	allocatePinned(bytes: number): PinnedMemory {
		const pointer = this.#pointer("cudaMallocHost", bytes);
		return { pointer, bytes: new Uint8Array(koffi.view(pointer, bytes)) };
	}

	freePinned(memory: PinnedMemory): void {
		this.#call("cudaFreeHost", memory.pointer);
	}

	/** Queues a copy; memory of the host must stay until the stream got there. */
	copyAsync(to: PointerArg, from: PointerArg, bytes: number, kind: CopyKind, stream: Pointer): void {
		this.#call("cudaMemcpyAsync", to, from, bytes, kind, stream);
	}

	/** Queues filling with a byte. */
	fillAsync(to: Pointer, byte: number, bytes: number, stream: Pointer): void {
		this.#call("cudaMemsetAsync", to, byte, bytes, stream);
	}

	createStream(): Pointer {
		return this.#pointer("cudaStreamCreateWithFlags", NON_BLOCKING);
	}

	destroyStream(stream: Pointer): void {
		this.#call("cudaStreamDestroy", stream);
	}

	/** Waits until the stream has done all that was queued; errors of kernels surface here. */
	synchronize(stream: Pointer): void {
		this.#call("cudaStreamSynchronize", stream);
	}
}
