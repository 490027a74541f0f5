// SPDX-License-Identifier: Apache-2.0
// Opens a CUDA device for ONNX Runtime, step by step in the order in which each failure can still be explained.

import { CudaError, CudaUnavailableError } from "./cuda-error.js";
import {
	CUDA_ORT_VERSION,
	type CudaOrt,
	checkProviderVersion,
	findCudaOrt,
	loadNvidiaLibraries,
} from "./cuda-libraries.js";
import { type CudaDeviceInfo, Cudart } from "./cudart.js";
import { loadOrtLibrary, type OrtLibrary } from "./ort-library.js";

/** What the provider was built for. */
const CUDA_VERSION = 13_000;
const OLD_DRIVER_CURE = "install NVIDIA's driver 580 or newer, which serves CUDA 13";

/** An open device. */
export interface OpenCuda {
	readonly ort: CudaOrt;
	readonly library: OrtLibrary;
	readonly cudart: Cudart;
	readonly device: number;
	readonly info: CudaDeviceInfo;
}

/** A step that went well, in words. */
export type ProbeNote = (text: string) => void;

function versionText(version: number): string {
	return `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
}

/** Asks the runtime for devices. ONNX Runtime's provider is not touched, so that nothing can go wrong at exit. */
function askForDevices(cudart: Cudart): number {
	const driver = cudart.driverVersion();
	if (driver === 0) {
		throw new CudaUnavailableError("there is no NVIDIA driver", "install it, or run the container with --gpus");
	}
	if (driver < CUDA_VERSION) {
		throw new CudaUnavailableError(`the driver serves CUDA ${versionText(driver)}, 13 is needed`, OLD_DRIVER_CURE);
	}
	try {
		const count = cudart.deviceCount();
		if (count > 0) return count;
	} catch (cause) {
		if (!(cause instanceof CudaError)) throw cause;
		const cure = "check nvidia-smi and CUDA_VISIBLE_DEVICES; a container needs --gpus";
		throw new CudaUnavailableError(`${cause.message}`, cure, { cause });
	}
	throw new CudaUnavailableError("the CUDA runtime finds no device", "check nvidia-smi and CUDA_VISIBLE_DEVICES");
}

/**
 * Loads the libraries and makes a device the calling thread's.
 * @param roots folders in which ONNX Runtime with its CUDA provider is looked for.
 * @throws CudaUnavailableError with reason and cure.
 */
export function openCuda(roots: readonly string[], device = 0, note: ProbeNote = () => {}): OpenCuda {
	const ort = findCudaOrt(roots);
	note(`ONNX Runtime: ${ort.library}`);
	const { cudart: path } = loadNvidiaLibraries(ort);
	note(`CUDA runtime: ${path}`);
	const cudart = new Cudart(path);
	const count = askForDevices(cudart);
	note(`driver for CUDA ${versionText(cudart.driverVersion())}, ${count} ${count === 1 ? "device" : "devices"}`);
	if (device >= count) {
		throw new CudaUnavailableError(`there is no device ${device}; ${count} can be seen`, "check CUDA_VISIBLE_DEVICES");
	}
	cudart.setDevice(device);
	const info = cudart.deviceInfo(device);
	const { free, total } = cudart.memoryInfo();
	const gib = (bytes: number) => (bytes / 2 ** 30).toFixed(1);
	note(
		`device ${device}: ${info.name}, compute capability ${info.computeCapability}, ${gib(free)} of ${gib(total)} GiB free`,
	);
	const library = loadOrtLibrary(ort.library);
	if (library.version !== CUDA_ORT_VERSION) {
		throw new CudaUnavailableError(
			`${ort.library} is version ${library.version}; the graph is made for ${CUDA_ORT_VERSION}`,
			`put version ${CUDA_ORT_VERSION} there (docs/gpu.md)`,
		);
	}
	checkProviderVersion(ort, library.version);
	note(`ONNX Runtime ${library.version} and its CUDA provider agree`);
	return { ort, library, cudart, device, info };
}
