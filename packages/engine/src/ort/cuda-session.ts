// SPDX-License-Identifier: Apache-2.0
// Sessions of ONNX Runtime on a CUDA device. Inputs and outputs are device memory of ours: ONNX Runtime copies nothing,
// since a host tensor bound to a CUDA input would be copied once, when it is bound, and never again.

import type { OrtLibrary, Pointer, PointerArg } from "./ort-library.js";
import { type ElementType, OrtBinding, OrtTensor, type TensorPlace } from "./ort-session.js";

const LOG_ERRORS = 3;
const ENABLE_ALL = 99;
const DEVICE_ALLOCATOR = 0;
const ARENA_ALLOCATOR = 1;
const DEFAULT_MEMORY = 0;

/** The graph id of runs that belong to no captured graph. */
export const NO_GRAPH = -1;

/** How a session is made. */
export interface CudaSessionOptions {
	readonly library: OrtLibrary;
	readonly device: number;
	/** All work of the session is queued on this stream. */
	readonly stream: Pointer;
	/** Whether runs may be captured and replayed; every node must then be on the device. */
	readonly cudaGraphs: boolean;
}

/** Settings of the CUDA provider. */
function providerOptions(options: CudaSessionOptions): Record<string, string> {
	return {
		device_id: String(options.device),
		enable_cuda_graph: options.cudaGraphs ? "1" : "0",
		// Nothing in our graphs needs cuDNN, and loading it takes half a gigabyte.
		enable_cudnn: "0",
		arena_extend_strategy: "kSameAsRequested",
	};
}

/**
 * A model on a device. One thread makes, runs and closes it: captured graphs belong to the thread that captured them.
 * The CUDA runtime must have said that there is a device before: a process that loads the provider and then makes no
 * session dies at its end, unless the environment is released, as is done here.
 */
export class CudaSession {
	readonly #library: OrtLibrary;
	readonly #env: Pointer;
	readonly #device: TensorPlace;
	readonly #host: TensorPlace;
	readonly #runOptions = new Map<number, Pointer>();
	#session = 0n;
	#closed = false;

	/**
	 * Loads a model; external weights are looked for beside it.
	 * @param model path of the file, or the bytes of a small model without external weights.
	 * @throws OrtError when the provider cannot be loaded or the model not be placed on the device as a whole.
	 */
	constructor(model: string, options: CudaSessionOptions) {
		const { library } = options;
		this.#library = library;
		this.#env = library.create("CreateEnv", LOG_ERRORS, "dynamo");
		const memory = (name: string, allocator: number) =>
			library.create("CreateMemoryInfo", name, allocator, options.device, DEFAULT_MEMORY);
		this.#device = { library, memoryInfo: memory("Cuda", DEVICE_ALLOCATOR) };
		this.#host = { library, memoryInfo: library.create("CreateCpuMemoryInfo", ARENA_ALLOCATOR, DEFAULT_MEMORY) };
		try {
			this.#session = this.#create(model, options);
		} catch (error) {
			this.close();
			throw error;
		}
	}

	#create(model: string, options: CudaSessionOptions): Pointer {
		const library = this.#library;
		const settings = library.create("CreateSessionOptions");
		try {
			library.check("SetSessionGraphOptimizationLevel", settings, ENABLE_ALL);
			library.check("SetIntraOpNumThreads", settings, 1);
			library.check("SetInterOpNumThreads", settings, 1);
			// Memory patterns are kept per set of input shapes: prefill lengths would pile them up.
			library.check("DisableMemPattern", settings);
			library.check("AddSessionConfigEntry", settings, "session.disable_cpu_ep_fallback", "1");
			const provider = library.create("CreateCUDAProviderOptions");
			try {
				const entries = Object.entries(providerOptions(options));
				const keys = entries.map(([key]) => key);
				const values = entries.map(([, value]) => value);
				// The first call that loads the provider: a failure to load it is told here and nowhere else.
				library.check("UpdateCUDAProviderOptions", provider, keys, values, entries.length);
				library.check("UpdateCUDAProviderOptionsWithValue", provider, "user_compute_stream", options.stream);
				library.check("SessionOptionsAppendExecutionProvider_CUDA_V2", settings, provider);
			} finally {
				library.api.ReleaseCUDAProviderOptions(provider);
			}
			return library.create("CreateSession", this.#env, model, settings);
		} finally {
			library.api.ReleaseSessionOptions(settings);
		}
	}

	createBinding(): OrtBinding {
		return new OrtBinding(this.#library, this.#session);
	}

	/** A tensor over memory of the device. */
	deviceTensor(type: ElementType, shape: readonly number[], memory: Pointer, bytes: number): OrtTensor {
		return new OrtTensor(type, shape, memory, bytes, this.#device);
	}

	/** A tensor over memory of the host, for the few inputs that operators read there. */
	hostTensor(type: ElementType, shape: readonly number[], memory: PointerArg, bytes: number): OrtTensor {
		return new OrtTensor(type, shape, memory, bytes, this.#host);
	}

	/**
	 * Queues one run on the stream, without waiting for it. The first run of a graph id computes, captures, and takes
	 * about three times as long; later ones replay what was captured, with the same addresses and host values.
	 * @param graph `NO_GRAPH`, or a number from 1 on that names one binding's captured graph.
	 * @throws OrtError when an operator refuses its inputs.
	 */
	run(binding: OrtBinding, graph: number): void {
		let options = this.#runOptions.get(graph);
		if (options === undefined) {
			options = this.#library.create("CreateRunOptions");
			this.#runOptions.set(graph, options);
			this.#library.check("AddRunConfigEntry", options, "gpu_graph_id", String(graph));
			// Our own copy of the results waits for the stream.
			this.#library.check("AddRunConfigEntry", options, "disable_synchronize_execution_providers", "1");
		}
		const status = this.#library.api.RunWithBinding(this.#session, options, binding.handle);
		if (status) this.#library.throwStatus("RunWithBinding", status);
	}

	/** Frees session and environment. Bindings must be released before; may be called twice. */
	close(): void {
		if (this.#closed) return;
		this.#closed = true;
		const { api } = this.#library;
		for (const options of this.#runOptions.values()) api.ReleaseRunOptions(options);
		if (this.#session !== 0n) api.ReleaseSession(this.#session);
		for (const { memoryInfo } of [this.#device, this.#host]) api.ReleaseMemoryInfo(memoryInfo);
		api.ReleaseEnv(this.#env);
	}
}
