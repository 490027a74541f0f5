// SPDX-License-Identifier: Apache-2.0
// Sessions, tensors and bindings of ONNX Runtime. Everything is synchronous: the engine has a thread of its own.

import koffi from "koffi";
import { loadOrtLibrary, type OrtLibrary, type Pointer, type PointerArg } from "./ort-library.js";

/** Tensor element types, as ONNXTensorElementDataType numbers them. */
export const ElementType = { FLOAT: 1, INT8: 3, INT32: 6, INT64: 7, FLOAT16: 10 } as const;
export type ElementType = (typeof ElementType)[keyof typeof ElementType];

/** How a session runs. */
export interface OrtSessionOptions {
	/** Threads that share one operator, the caller's included. */
	readonly intraOpThreads: number;
	/** Whether those threads spin while they wait for work. */
	readonly spinning: boolean;
	/** Writes a profile to files that begin with this path. */
	readonly profilePrefix?: string;
}

const LOG_ERRORS = 3;
const ENABLE_ALL = 99;
const ARENA_ALLOCATOR = 1;
const DEFAULT_MEMORY = 0;

/** Where the memory of a tensor lies, in the words of the library that is to use it. */
export interface TensorPlace {
	readonly library: OrtLibrary;
	/** An OrtMemoryInfo. */
	readonly memoryInfo: Pointer;
}

interface Environment extends TensorPlace {
	/** Keeps ORT's process-wide state alive; never released, since other threads may hold it too. */
	readonly env: Pointer;
}

let environment: Environment | undefined;

function ortEnvironment(): Environment {
	if (!environment) {
		const library = loadOrtLibrary();
		environment = {
			library,
			env: library.create("CreateEnv", LOG_ERRORS, "dynamo"),
			memoryInfo: library.create("CreateCpuMemoryInfo", ARENA_ALLOCATOR, DEFAULT_MEMORY),
		};
	}
	return environment;
}

/** A tensor over memory of ours. The memory must outlive the tensor and every binding that took it. */
export class OrtTensor {
	readonly #release: OrtLibrary["api"]["ReleaseValue"];
	/** The OrtValue. */
	handle: Pointer;

	/**
	 * @param memory the elements; a view keeps its place as long as it is referenced.
	 * @param bytes size of the memory that the shape covers.
	 * @param place where the memory lies; by default in the host's.
	 */
	constructor(
		type: ElementType,
		shape: readonly number[],
		memory: PointerArg,
		bytes: number,
		place: TensorPlace = ortEnvironment(),
	) {
		const { library, memoryInfo } = place;
		const dimensions = BigInt64Array.from(shape, BigInt);
		this.#release = library.api.ReleaseValue;
		this.handle = library.create(
			"CreateTensorWithDataAsOrtValue",
			memoryInfo,
			memory,
			bytes,
			dimensions,
			shape.length,
			type,
		);
	}

	release(): void {
		if (this.handle === 0n) return;
		this.#release(this.handle);
		this.handle = 0n;
	}
}

/** Inputs and outputs bound to tensors, ready to run any number of times. */
export class OrtBinding {
	readonly #library: OrtLibrary;
	/** The OrtIoBinding. */
	handle: Pointer;

	constructor(library: OrtLibrary, session: Pointer) {
		this.#library = library;
		this.handle = library.create("CreateIoBinding", session);
	}

	/** Binds an input; what was bound under that name is replaced. The binding keeps a reference of its own. */
	input(name: string, tensor: OrtTensor): void {
		this.#library.check("BindInput", this.handle, name, tensor.handle);
	}

	/** Binds an output to the memory that it shall be written to. */
	output(name: string, tensor: OrtTensor): void {
		this.#library.check("BindOutput", this.handle, name, tensor.handle);
	}

	release(): void {
		if (this.handle === 0n) return;
		this.#library.api.ReleaseIoBinding(this.handle);
		this.handle = 0n;
	}
}

/** A loaded model. */
export class OrtSession {
	readonly #library: OrtLibrary;
	readonly #run: OrtLibrary["api"]["RunWithBinding"];
	#handle: Pointer;

	/**
	 * Loads a model file; external weights are looked for beside it.
	 * @throws OrtError when the file or an operator is not usable.
	 */
	constructor(modelPath: string, options: OrtSessionOptions) {
		const { library, env } = ortEnvironment();
		this.#library = library;
		this.#run = library.api.RunWithBinding;
		const settings = library.create("CreateSessionOptions");
		try {
			library.check("SetIntraOpNumThreads", settings, options.intraOpThreads);
			library.check("SetInterOpNumThreads", settings, 1);
			library.check("SetSessionGraphOptimizationLevel", settings, ENABLE_ALL);
			// Memory patterns are kept per set of input shapes: prefill lengths would pile them up.
			library.check("DisableMemPattern", settings);
			const spinning = options.spinning ? "1" : "0";
			library.check("AddSessionConfigEntry", settings, "session.intra_op.allow_spinning", spinning);
			if (options.profilePrefix) library.check("EnableProfiling", settings, options.profilePrefix);
			this.#handle = library.create("CreateSession", env, modelPath, settings);
		} finally {
			library.api.ReleaseSessionOptions(settings);
		}
	}

	/** Element types of the inputs and outputs, by name. */
	signature(): { readonly inputs: ReadonlyMap<string, number>; readonly outputs: ReadonlyMap<string, number> } {
		return { inputs: this.#types("Input"), outputs: this.#types("Output") };
	}

	#types(side: "Input" | "Output"): Map<string, number> {
		const library = this.#library;
		const allocator = library.create("GetAllocatorWithDefaultOptions");
		const count = new BigUint64Array(1);
		library.check(`SessionGet${side}Count`, this.#handle, count);
		const types = new Map<string, number>();
		for (let i = 0; i < count[0]!; i++) {
			const text = library.create(`SessionGet${side}Name`, this.#handle, i, allocator);
			const name = koffi.decode(text, "char", -1) as string;
			library.check("AllocatorFree", allocator, text);
			const info = library.create(`SessionGet${side}TypeInfo`, this.#handle, i);
			const type = new Int32Array(1);
			// Belongs to the type's information; a null pointer for what is no tensor.
			const tensor = library.create("CastTypeInfoToTensorInfo", info);
			if (tensor) library.check("GetTensorElementType", tensor, type);
			library.api.ReleaseTypeInfo(info);
			types.set(name, type[0]!);
		}
		return types;
	}

	createBinding(): OrtBinding {
		return new OrtBinding(this.#library, this.#handle);
	}

	/**
	 * Runs the model once.
	 * @throws OrtError when an operator fails.
	 */
	run(binding: OrtBinding): void {
		const status = this.#run(this.#handle, null, binding.handle);
		if (status) this.#library.throwStatus("RunWithBinding", status);
	}

	/** Frees the session. Bindings must be released before. */
	close(): void {
		if (this.#handle === 0n) return;
		this.#library.api.ReleaseSession(this.#handle);
		this.#handle = 0n;
	}
}
