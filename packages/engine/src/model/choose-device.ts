// SPDX-License-Identifier: Apache-2.0
// Where a model runs: on the CPU, or on CUDA where that can be used.

import { CudaUnavailableError } from "../ort/cuda-error.js";
import { findCudaOrt } from "../ort/cuda-libraries.js";
import { type CudaProbe, probeCuda } from "../ort/cuda-probe.js";
import { FAMILIES, type ModelFamily } from "./families.js";

/** What may be asked for. */
export type DeviceChoice = "auto" | "cpu" | "cuda";

/** Why a family does not run on CUDA. */
const NOT_ON_CUDA: Readonly<Partial<Record<ModelFamily, string>>> = {
	gemma2: "its activations go beyond half precision",
	gemma3: "its activations go beyond half precision",
};

/** Why a model of a family cannot run on CUDA; undefined where it can. */
export function cudaObstacle(family: ModelFamily): string | undefined {
	const why = NOT_ON_CUDA[family];
	return why && `${FAMILIES[family].title} does not run on CUDA: ${why}`;
}

/** The device, and why it is not CUDA where that was not excluded. */
export interface ChosenDevice {
	readonly device: "cpu" | "cuda";
	readonly note?: string;
}

/** What the choice depends on. */
export interface DeviceQuestion {
	readonly asked: DeviceChoice;
	/** Why the model cannot run on CUDA, whatever there is; see `cudaObstacle`. */
	readonly obstacle: string | undefined;
	/** Folders in which ONNX Runtime with its CUDA provider is looked for. */
	readonly roots: readonly string[];
}

/**
 * Chooses the device. "auto" asks the CUDA runtime for devices in a process of its own, since a broken driver or
 * library may end the process that asks.
 * @throws CudaUnavailableError when "cuda" is asked for a model that does not run there.
 */
export async function chooseDevice(
	{ asked, obstacle, roots }: DeviceQuestion,
	probe: (roots: readonly string[]) => Promise<CudaProbe> = probeCuda,
): Promise<ChosenDevice> {
	if (asked === "cpu") return { device: "cpu" };
	if (asked === "cuda") {
		if (obstacle === undefined) return { device: "cuda" };
		throw new CudaUnavailableError(obstacle, "use --device cpu");
	}
	try {
		// Where nothing is installed, no process is started.
		findCudaOrt(roots);
	} catch (error) {
		if (error instanceof CudaUnavailableError) return { device: "cpu", note: error.reason };
		throw error;
	}
	if (obstacle !== undefined) return { device: "cpu", note: obstacle };
	const { usable, reason, cure } = await probe(roots);
	return usable ? { device: "cuda" } : { device: "cpu", note: `${reason}; ${cure}` };
}
