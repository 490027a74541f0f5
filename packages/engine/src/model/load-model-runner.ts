// SPDX-License-Identifier: Apache-2.0
// From a model on disk to a ModelRunner.

import { statSync } from "node:fs";
import { weightFormats } from "../onnx/decoder-graph.js";
import { BYTES_PER_ELEMENT, sizeCpuCache } from "./cache-memory.js";
import { chooseDevice, cudaObstacle } from "./choose-device.js";
import { chooseQuantization, floatBytes } from "./choose-quantization.js";
import { cachedGraph } from "./graph-cache.js";
import { findImportedModel, type ImportedModel } from "./imported-model.js";
import { ImportedModelRunner } from "./imported-model-runner.js";
import type { ModelRunner, ModelRunnerOptions } from "./model-runner.js";
import { sumOfFiles, sumOfGraph } from "./model-sum.js";
import { openModel } from "./open-model.js";
import { OrtModelRunner } from "./ort-model-runner.js";

/**
 * Loads a model; its graph is built on the first use and found on disk later. Computes on the calling thread,
 * about a second per 100 million weights when building.
 * @throws ModelFileError for a model that does not work, OrtError when ONNX Runtime refuses it, RangeError for
 *   sizes that do not fit, CudaUnavailableError when CUDA is asked for and cannot be used.
 */
export async function loadModelRunner(options: ModelRunnerOptions): Promise<ModelRunner> {
	for (const key of ["maxNumSeqs", "maxModelLen", "blockSize", "kvCacheMemory"] as const) {
		const value = options[key];
		if (value !== undefined && !(Number.isInteger(value) && value >= 1)) throw new RangeError(`${key} is ${value}`);
	}
	const imported = statSync(options.model, { throwIfNoEntry: false })?.isDirectory()
		? findImportedModel(options.model)
		: undefined;
	if (imported !== undefined) return loadImported(imported, options);
	const model = openModel(options.model);
	const { config, files } = model.description;
	try {
		const { device, note } = await chooseDevice({
			asked: options.device ?? "cpu",
			obstacle: cudaObstacle(config.family),
			roots: options.cudaLibraryDirs ?? [],
		});
		const asked = options.kvCacheDtype ?? "auto";
		if (device === "cuda" && asked !== "auto" && asked !== "fp16") {
			throw new RangeError(`kvCacheDtype is ${asked}; on CUDA keys and values are held in fp16`);
		}
		// Lazily, so that a process on a CPU loads no code for CUDA.
		if (device === "cuda") return (await import("./load-cuda-runner.js")).loadCudaRunner(model, options);
		const quantization = chooseQuantization(options.quantization, {
			weights: model.weights,
			maxNumSeqs: options.maxNumSeqs,
		});
		const weightBytes =
			quantization === "none" ? floatBytes(model.weights) : files.reduce((sum, file) => sum + statSync(file).size, 0);
		const kvCacheDtype = asked === "auto" ? "fp32" : asked;
		const { numLayers, numKvHeads, headDim, maxPositionEmbeddings } = config;
		const size = sizeCpuCache({
			...options,
			geometry: { numLayers, numKvHeads, headDim, bytesPerElement: BYTES_PER_ELEMENT[kvCacheDtype] },
			maxPositionEmbeddings,
			weightBytes,
		});
		const onProgress = (fraction: number) => options.onProgress?.("build", fraction);
		const graph = cachedGraph(model, quantization, options.cacheDir, onProgress, "cpu", kvCacheDtype);
		options.onProgress?.("load", 0);
		const runner = new OrtModelRunner(graph.modelPath, {
			...size,
			config,
			weightFormats: weightFormats(config, model.weights, quantization),
			modelSum: sumOfGraph(graph.modelPath, config, size.maxModelLen),
			kvCacheDtype,
			intraOpThreads: options.intraOpThreads ?? 1,
			spinning: options.spinning ?? false,
			deviceNote: note,
		});
		options.onProgress?.("load", 1);
		return runner;
	} finally {
		model.weights.close();
	}
}

/** Loads a graph that somebody else made, as it is. */
async function loadImported(model: ImportedModel, options: ModelRunnerOptions): Promise<ModelRunner> {
	const { note } = await chooseDevice({
		asked: options.device ?? "cpu",
		obstacle: "a graph that was made elsewhere runs on the CPU only",
		roots: options.cudaLibraryDirs ?? [],
	});
	const { weightBytes, config } = model;
	const { numLayers, numKvHeads, headDim, maxPositionEmbeddings } = config;
	options.onProgress?.("load", 0);
	const size = sizeCpuCache({
		...options,
		// Whether it is fp16 the graph tells when it is loaded; counting it as fp32 errs on the safe side.
		geometry: { numLayers, numKvHeads, headDim, bytesPerElement: 4 },
		maxPositionEmbeddings,
		weightBytes,
	});
	const runner = ImportedModelRunner.load({
		...size,
		model,
		modelSum: sumOfFiles(model.files),
		deviceNote: note,
		intraOpThreads: options.intraOpThreads ?? 1,
		spinning: options.spinning ?? false,
	});
	const asked = options.kvCacheDtype ?? "auto";
	if (asked !== "auto" && asked !== runner.kvCacheDtype) {
		runner.close();
		throw new RangeError(
			`kvCacheDtype is ${asked}; the graph in ${options.model} holds its cache in ${runner.kvCacheDtype}`,
		);
	}
	options.onProgress?.("load", 1);
	return runner;
}
