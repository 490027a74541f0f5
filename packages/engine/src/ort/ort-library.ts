// SPDX-License-Identifier: Apache-2.0
// Finds and loads libonnxruntime, by default the one that the package onnxruntime-node carries, and turns its
// table of C functions into callable ones.

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import koffi from "koffi";
import { OrtError, ortErrorCode } from "./ort-error.js";

/** A C pointer. */
export type Pointer = bigint;
/** What a pointer argument may be given as: an address, or memory that koffi takes the address of. */
export type PointerArg = Pointer | ArrayBufferView | null;

/**
 * The table version that is asked for: ORT 1.16. Newer libraries serve it too, since entries are only ever
 * appended, and every slot below is older than that.
 */
const API_VERSION = 16;

/** Path characters are wide on Windows. */
const PATH = process.platform === "win32" ? "str16" : "str";

/** Slot in struct OrtApi (onnxruntime_c_api.h, counted from 0) and the argument types of each function used. */
const FUNCTIONS = {
	GetErrorCode: [1, "int", ["void *"]],
	GetErrorMessage: [2, "str", ["void *"]],
	CreateEnv: [3, "void *", ["int", "str", "void *"]],
	CreateSession: [7, "void *", ["void *", PATH, "void *", "void *"]],
	CreateSessionOptions: [10, "void *", ["void *"]],
	EnableProfiling: [14, "void *", ["void *", PATH]],
	DisableMemPattern: [17, "void *", ["void *"]],
	SetSessionGraphOptimizationLevel: [23, "void *", ["void *", "int"]],
	SetIntraOpNumThreads: [24, "void *", ["void *", "int"]],
	SetInterOpNumThreads: [25, "void *", ["void *", "int"]],
	SessionGetInputCount: [30, "void *", ["void *", "void *"]],
	SessionGetOutputCount: [31, "void *", ["void *", "void *"]],
	SessionGetInputTypeInfo: [33, "void *", ["void *", "size_t", "void *"]],
	SessionGetOutputTypeInfo: [34, "void *", ["void *", "size_t", "void *"]],
	SessionGetInputName: [36, "void *", ["void *", "size_t", "void *", "void *"]],
	SessionGetOutputName: [37, "void *", ["void *", "size_t", "void *", "void *"]],
	CreateRunOptions: [39, "void *", ["void *"]],
	CreateTensorWithDataAsOrtValue: [49, "void *", ["void *", "void *", "size_t", "void *", "size_t", "int", "void *"]],
	CastTypeInfoToTensorInfo: [55, "void *", ["void *", "void *"]],
	GetTensorElementType: [60, "void *", ["void *", "void *"]],
	CreateMemoryInfo: [68, "void *", ["str", "int", "int", "int", "void *"]],
	CreateCpuMemoryInfo: [69, "void *", ["int", "int", "void *"]],
	AllocatorFree: [76, "void *", ["void *", "void *"]],
	GetAllocatorWithDefaultOptions: [78, "void *", ["void *"]],
	ReleaseEnv: [92, "void", ["void *"]],
	ReleaseStatus: [93, "void", ["void *"]],
	ReleaseMemoryInfo: [94, "void", ["void *"]],
	ReleaseSession: [95, "void", ["void *"]],
	ReleaseValue: [96, "void", ["void *"]],
	ReleaseRunOptions: [97, "void", ["void *"]],
	ReleaseTypeInfo: [98, "void", ["void *"]],
	ReleaseSessionOptions: [100, "void", ["void *"]],
	AddSessionConfigEntry: [130, "void *", ["void *", "str", "str"]],
	RunWithBinding: [133, "void *", ["void *", "void *", "void *"]],
	CreateIoBinding: [134, "void *", ["void *", "void *"]],
	ReleaseIoBinding: [135, "void", ["void *"]],
	BindInput: [136, "void *", ["void *", "str", "void *"]],
	BindOutput: [137, "void *", ["void *", "str", "void *"]],
	AddRunConfigEntry: [165, "void *", ["void *", "str", "str"]],
	SessionOptionsAppendExecutionProvider_CUDA_V2: [204, "void *", ["void *", "void *"]],
	CreateCUDAProviderOptions: [205, "void *", ["void *"]],
	UpdateCUDAProviderOptions: [206, "void *", ["void *", "str *", "str *", "size_t"]],
	ReleaseCUDAProviderOptions: [208, "void", ["void *"]],
	UpdateCUDAProviderOptionsWithValue: [263, "void *", ["void *", "str", "void *"]],
} as const satisfies Record<string, readonly [number, string, readonly string[]]>;

type FunctionName = keyof typeof FUNCTIONS;
type NativeFunction = (...args: unknown[]) => unknown;

/** The loaded library: its version and the functions that this engine calls. */
export interface OrtLibrary {
	/** Version that the library reports, e.g. "1.30.0". */
	readonly version: string;
	/** The file that was loaded. */
	readonly path: string;
	readonly api: { readonly [K in FunctionName]: NativeFunction };
	/** Calls a function that returns a status, and throws what the status says. */
	check(call: FunctionName, ...args: unknown[]): void;
	/** Throws what a status says, and frees the status. */
	throwStatus(call: FunctionName, status: unknown): never;
	/** Calls a function whose last argument receives a new object, and returns that object. */
	create(call: FunctionName, ...args: unknown[]): Pointer;
}

/**
 * Where the library of this platform lies inside onnxruntime-node.
 * @throws OrtError when the package is absent or carries nothing for this platform.
 */
export function findOrtLibrary(platform: string = process.platform, arch: string = process.arch): string {
	const names: Record<string, string> = {
		linux: "libonnxruntime.so.1",
		darwin: "libonnxruntime.1.dylib",
		win32: "onnxruntime.dll",
	};
	let root: string;
	try {
		root = dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json"));
	} catch (cause) {
		throw new OrtError("LIBRARY", "load", "the package onnxruntime-node is not installed; run `npm run setup`", {
			cause,
		});
	}
	const name = names[platform];
	const path = name && join(root, "bin", "napi-v6", platform, arch, name);
	if (!path || !existsSync(path)) {
		throw new OrtError(
			"LIBRARY",
			"load",
			`onnxruntime-node carries no library for ${platform}/${arch} (looked for ${path ?? "none"})`,
		);
	}
	return path;
}

/**
 * Takes one more reference to a library that nothing ever gives back. Without it the library would be unloaded
 * when the koffi handle is collected or its worker thread ends, and the process would crash in its threads.
 */
export function pinLibrary(path: string): void {
	if (process.platform === "win32") {
		koffi.load("kernel32.dll").func("LoadLibraryW", "void *", ["str16"])(path);
		return;
	}
	const RTLD_NOW = 2;
	koffi.load(null).func("dlopen", "void *", ["str", "int"])(path, RTLD_NOW);
}

const loaded = new Map<string, OrtLibrary>();

/**
 * Loads the library, once per thread and file.
 * @throws OrtError when it cannot be loaded or is too old.
 */
export function loadOrtLibrary(path = findOrtLibrary()): OrtLibrary {
	const known = loaded.get(path);
	if (known) return known;
	let getApiBase: () => Pointer | null;
	try {
		const library = koffi.load(path);
		pinLibrary(path);
		getApiBase = library.func("OrtGetApiBase", "void *", []) as typeof getApiBase;
	} catch (cause) {
		throw new OrtError("LIBRARY", "load", `${path} cannot be loaded: ${(cause as Error).message}`, { cause });
	}
	const base = getApiBase();
	if (!base) throw new OrtError("LIBRARY", "load", `${path}: OrtGetApiBase gave nothing`);
	const [getApi, getVersion] = koffi.decode(base, "void *", 2) as [Pointer, Pointer];
	const version = koffi.call(getVersion, koffi.proto("str", []), ...[]) as string;
	const table = koffi.call(getApi, koffi.proto("void *", ["uint32_t"]), API_VERSION) as Pointer | null;
	if (!/^\d+\.\d+\.\d+/.test(version) || !table) {
		throw new OrtError("LIBRARY", "load", `${path} is version ${version}; 1.${API_VERSION} or newer is needed`);
	}
	const slots = Math.max(...Object.values(FUNCTIONS).map(([slot]) => slot)) + 1;
	const pointers = koffi.decode(table, "void *", slots) as Pointer[];
	const api = {} as Record<FunctionName, NativeFunction>;
	for (const [name, [slot, result, args]] of Object.entries(FUNCTIONS)) {
		api[name as FunctionName] = koffi.decode(pointers[slot]!, koffi.proto(result, [...args])) as NativeFunction;
	}
	const fail = (call: FunctionName, status: unknown): never => {
		const code = api.GetErrorCode(status) as number;
		const message = (api.GetErrorMessage(status) as string).trim();
		api.ReleaseStatus(status);
		throw new OrtError(ortErrorCode(code), call, message);
	};
	const library: OrtLibrary = {
		version,
		path,
		api,
		throwStatus: fail,
		check(call, ...args) {
			const status = api[call](...args);
			if (status) fail(call, status);
		},
		create(call, ...args) {
			const out = new BigUint64Array(1);
			const status = api[call](...args, out);
			if (status) fail(call, status);
			return out[0]!;
		},
	};
	checkTable(library);
	loaded.set(path, library);
	return library;
}

/** Proves that slots mean what we think: a session option that ORT must refuse, by its known words. */
function checkTable(library: OrtLibrary): void {
	const options = library.create("CreateSessionOptions");
	try {
		library.check("AddSessionConfigEntry", options, "", "x");
	} catch (error) {
		if (error instanceof OrtError && /config/i.test(error.message)) return;
		throw error;
	} finally {
		library.api.ReleaseSessionOptions(options);
	}
	throw new OrtError("LIBRARY", "load", `${library.path} does not have the expected function table`);
}
