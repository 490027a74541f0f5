// SPDX-License-Identifier: Apache-2.0
// From an open model to a runner on a CUDA device.

import { weightFormats } from "../onnx/decoder-graph.js";
import { openCuda } from "../ort/cuda-device.js";
import { DEFAULT_BATCHED_TOKENS, DEFAULT_MAX_NUM_SEQS } from "./cache-memory.js";
import { CudaModelRunner } from "./cuda-model-runner.js";
import { CudaPagedDevice } from "./cuda-paged-device.js";
import { cachedGraph } from "./graph-cache.js";
import type { ModelRunner, ModelRunnerOptions } from "./model-runner.js";
import { sumOfGraph } from "./model-sum.js";
import type { OpenModel } from "./open-model.js";

/** Share of the device's memory that is used unless another is asked for. */
const DEFAULT_UTILIZATION = 0.9;

/**
 * Loads a model onto device 0 of those that CUDA_VISIBLE_DEVICES leaves. The thread that calls must be the one that
 * runs the steps.
 * @throws CudaUnavailableError with reason and cure, RangeError for sizes that do not fit, OrtError, CudaError.
 */
export function loadCudaRunner(model: OpenModel, options: ModelRunnerOptions): ModelRunner {
	const { quantization, cacheDir, onProgress } = options;
	const { config } = model.description;
	if (options.maxModelLen !== undefined && options.maxModelLen > config.maxPositionEmbeddings) {
		throw new RangeError(
			`maxModelLen is ${options.maxModelLen}; the model was made for ${config.maxPositionEmbeddings} tokens`,
		);
	}
	// Before the graph is built, which takes a while.
	const cuda = openCuda(options.cudaLibraryDirs ?? []);
	const built = (fraction: number) => onProgress?.("build", fraction);
	const graph = cachedGraph(model, quantization, cacheDir, built, "cuda");
	onProgress?.("load", 0);
	const device = new CudaPagedDevice(cuda, graph.modelPath);
	try {
		return new CudaModelRunner({
			config,
			device,
			maxModelLen: options.maxModelLen,
			maxNumSeqs: options.maxNumSeqs ?? DEFAULT_MAX_NUM_SEQS.cuda,
			maxNumBatchedTokens: options.maxNumBatchedTokens ?? DEFAULT_BATCHED_TOKENS.cuda,
			blockSize: options.blockSize,
			kvCacheMemory: options.kvCacheMemory,
			gpuMemoryUtilization: options.gpuMemoryUtilization ?? DEFAULT_UTILIZATION,
			capture: options.enforceEager !== true,
			modelSum: (maxModelLen) => sumOfGraph(graph.modelPath, config, maxModelLen),
			weightFormats: weightFormats(config, model.weights, quantization, "cuda"),
			onCapture: (fraction) => onProgress?.("load", fraction),
		});
	} catch (error) {
		device.close();
		throw error;
	}
}
