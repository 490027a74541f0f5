// SPDX-License-Identifier: Apache-2.0
// A CudaModelRunner whose device interprets its graph, on any model on disk.

import { CudaModelRunner, type CudaModelRunnerOptions } from "../cuda-model-runner.js";
import { cachedGraph } from "../graph-cache.js";
import type { Quantization } from "../model-runner.js";
import { openModel } from "../open-model.js";
import { pagedBlockBytes } from "../paged-cache-memory.js";
import { InterpretedDevice } from "./interpreted-device.js";

/** What may be set; sizes are small by default, so that steps have several runs and rows several blocks. */
export interface InterpretedRunnerOptions extends Partial<Omit<CudaModelRunnerOptions, "device" | "config">> {
	readonly quantization?: Quantization;
	readonly cacheDir: string;
}

/** Opens a model for CUDA and interprets its graph. */
export function interpretedRunner(
	model: string,
	options: InterpretedRunnerOptions,
): { runner: CudaModelRunner; device: InterpretedDevice } {
	const { quantization = "auto", cacheDir, ...rest } = options;
	const opened = openModel(model);
	const graph = cachedGraph(opened, quantization, cacheDir, undefined, "cuda");
	opened.weights.close();
	const device = new InterpretedDevice(graph.modelPath);
	const runner = new CudaModelRunner({
		config: opened.description.config,
		device,
		maxNumSeqs: 4,
		maxNumBatchedTokens: 24,
		blockSize: 16,
		kvCacheMemory: 25 * pagedBlockBytes(opened.description.config, 16),
		gpuMemoryUtilization: 0.9,
		weightFormats: [],
		modelSum: () => "test",
		...rest,
	});
	return { runner, device };
}
