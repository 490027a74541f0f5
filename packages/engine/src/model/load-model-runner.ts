// SPDX-License-Identifier: Apache-2.0
// From a model on disk to a ModelRunner.

import { cachedGraph } from "./graph-cache.js";
import type { ModelRunner, ModelRunnerOptions } from "./model-runner.js";
import { openModel } from "./open-model.js";
import { OrtModelRunner } from "./ort-model-runner.js";

/**
 * Loads a model; its graph is built on the first use and found on disk later. Computes on the calling thread,
 * about a second per 100 million weights when building.
 * @throws ModelFileError for a model that does not work, OrtError when ONNX Runtime refuses it, RangeError for
 *   sizes that do not fit.
 */
export async function loadModelRunner(options: ModelRunnerOptions): Promise<ModelRunner> {
	for (const key of ["numSlots", "maxModelLen"] as const) {
		if (!Number.isInteger(options[key]) || options[key] < 1) throw new RangeError(`${key} is ${options[key]}`);
	}
	const model = openModel(options.model);
	const { config } = model.description;
	try {
		if (options.maxModelLen > config.maxPositionEmbeddings) {
			throw new RangeError(
				`maxModelLen is ${options.maxModelLen}; the model was made for ${config.maxPositionEmbeddings} tokens`,
			);
		}
		const graph = cachedGraph(model, options.quantization, options.cacheDir, (fraction) =>
			options.onProgress?.("build", fraction),
		);
		options.onProgress?.("load", 0);
		const runner = new OrtModelRunner(graph.modelPath, {
			config,
			numSlots: options.numSlots,
			maxModelLen: options.maxModelLen,
			intraOpThreads: options.intraOpThreads ?? 1,
			spinning: options.spinning ?? false,
		});
		options.onProgress?.("load", 1);
		return runner;
	} finally {
		model.weights.close();
	}
}
