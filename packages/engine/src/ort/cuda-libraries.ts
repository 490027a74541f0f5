// SPDX-License-Identifier: Apache-2.0
// Finds ONNX Runtime with its CUDA provider, and loads NVIDIA's libraries so that the provider finds them without
// LD_LIBRARY_PATH: a library that is loaded already serves every later one that names its soname.

import { closeSync, existsSync, openSync, readdirSync, readSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import koffi from "koffi";
import { CudaUnavailableError } from "./cuda-error.js";
import { pinLibrary } from "./ort-library.js";

/** The version of ONNX Runtime that graph and options are made for; others may load but were never tried. */
export const CUDA_ORT_VERSION = "1.30.0";

const GET_ORT = "docs/gpu.md says how to get it";
const GET_NVIDIA = "install CUDA 13 or put NVIDIA's libraries beside ONNX Runtime's (docs/gpu.md)";

/** What the provider is linked against, in the order in which they must be loaded. */
const NVIDIA_LIBRARIES = [
	"libcudart.so.13",
	"libcublasLt.so.13",
	"libcublas.so.13",
	"libcurand.so.10",
	"libcuda.so.1",
] as const;
/** NVIDIA's driver library: comes with the driver only. */
const DRIVER = "libcuda.so.1";
const PROVIDERS = ["libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"] as const;

/** The provider has hundreds of MiB; it is searched piece by piece. */
const PIECE_BYTES = 1 << 22;

/** Where ONNX Runtime with a CUDA provider lies. */
export interface CudaOrt {
	/** Folder that was given. */
	readonly root: string;
	/** Folder of the libraries: ONNX Runtime looks for its providers beside itself only. */
	readonly folder: string;
	/** The libonnxruntime file. */
	readonly library: string;
	/** The CUDA provider's file. */
	readonly provider: string;
}

/** libonnxruntime in a folder; the plain name first, as the others may be dangling links of it. */
function mainLibrary(folder: string): string | undefined {
	if (!existsSync(folder)) return undefined;
	const names = readdirSync(folder).filter(
		(name) => /^libonnxruntime\.so(\.\d+)*$/.test(name) && existsSync(join(folder, name)),
	);
	names.sort((a, b) => b.length - a.length);
	return names[0] && join(folder, names[0]);
}

/**
 * Looks for ONNX Runtime with its CUDA provider in the folders, first one first; each may also be where the wheel
 * onnxruntime-gpu was unpacked.
 * @throws CudaUnavailableError that names what is missing.
 */
export function findCudaOrt(roots: readonly string[]): CudaOrt {
	if (process.platform !== "linux") {
		throw new CudaUnavailableError(`CUDA works on Linux, not on ${process.platform}`, "use --device cpu");
	}
	for (const root of roots) {
		for (const inside of ["", "onnxruntime/capi", "lib"]) {
			const folder = resolve(root, inside);
			const library = mainLibrary(folder);
			if (library === undefined) continue;
			const missing = PROVIDERS.find((name) => !existsSync(join(folder, name)));
			if (missing) {
				throw new CudaUnavailableError(
					`${folder} holds ${library.slice(folder.length + 1)} but not ${missing}`,
					GET_ORT,
				);
			}
			return { root, folder, library, provider: join(folder, PROVIDERS[1]) };
		}
	}
	const places = roots.length === 0 ? "no folder is set (ORT_LIB_DIR)" : `looked in ${roots.join(", ")}`;
	throw new CudaUnavailableError(`ONNX Runtime with its CUDA provider was not found (${places})`, GET_ORT);
}

/** Folders that may hold NVIDIA's libraries: ONNX Runtime's own, and where NVIDIA's wheels unpack to. */
function nvidiaFolders({ root, folder }: CudaOrt): string[] {
	const folders = [folder, root];
	// Wheels put onnxruntime/capi and nvidia/ side by side.
	for (const base of [root, folder, dirname(dirname(folder))]) {
		const nvidia = join(base, "nvidia");
		if (!existsSync(nvidia)) continue;
		for (const name of readdirSync(nvidia).sort().reverse()) folders.push(join(nvidia, name, "lib"));
	}
	return folders;
}

/** Loads a library for everything that is loaded later. */
function loadGlobally(path: string): void {
	koffi.load(path, { global: true });
	pinLibrary(path);
}

/**
 * Loads NVIDIA's libraries from ONNX Runtime's folder, the folders of NVIDIA's wheels, or where the system's loader
 * finds them.
 * @returns the runtime's file or name, to call it.
 * @throws CudaUnavailableError with the loader's words for the first one that cannot be loaded.
 */
export function loadNvidiaLibraries(ort: CudaOrt): { readonly cudart: string } {
	const folders = nvidiaFolders(ort);
	let cudart = "";
	for (const name of NVIDIA_LIBRARIES) {
		const path = folders.map((folder) => join(folder, name)).find((file) => existsSync(file)) ?? name;
		try {
			loadGlobally(path);
		} catch (cause) {
			const cure =
				name === DRIVER ? "install NVIDIA's driver, 580 or newer (in a container: run it with --gpus)" : GET_NVIDIA;
			const words = (cause as Error).message.replace(/^Failed to load shared library: /, "");
			throw new CudaUnavailableError(words.includes(name) ? words : `${name}: ${words}`, cure, { cause });
		}
		if (name === NVIDIA_LIBRARIES[0]) cudart = path;
	}
	return { cudart };
}

/** True where a file holds a zero-ended string that begins after a zero. */
function holdsString(path: string, text: string): boolean {
	const wanted = Buffer.from(`\0${text}\0`);
	const piece = Buffer.alloc(PIECE_BYTES);
	const fd = openSync(path, "r");
	try {
		// Pieces overlap, so that a string on a border is met.
		for (let position = 0; ; position += PIECE_BYTES - wanted.length) {
			const read = readSync(fd, piece, 0, PIECE_BYTES, position);
			if (piece.subarray(0, read).includes(wanted)) return true;
			if (read < PIECE_BYTES) return false;
		}
	} finally {
		closeSync(fd);
	}
}

/**
 * Compares the versions of ONNX Runtime and its provider: ONNX Runtime itself loads any.
 * @throws CudaUnavailableError when they differ.
 */
export function checkProviderVersion(ort: CudaOrt, version: string): void {
	if (holdsString(ort.provider, version)) return;
	throw new CudaUnavailableError(
		`${ort.provider} is not of version ${version}, as ${ort.library} is`,
		`take both from one package of version ${CUDA_ORT_VERSION} (docs/gpu.md)`,
	);
}
