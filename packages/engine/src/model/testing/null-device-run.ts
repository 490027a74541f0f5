// SPDX-License-Identifier: Apache-2.0
// A process of its own for the test on the null device: loads a model as `--device cuda` does and runs a few steps.
// Arguments: folder of the libraries, model, quantization, graph cache. Parts of the log on stderr begin with "== ".

import { writeSync } from "node:fs";
import { openCuda } from "../../ort/cuda-device.js";
import { CudaModelRunner } from "../cuda-model-runner.js";
import { CudaPagedDevice } from "../cuda-paged-device.js";
import { cachedGraph } from "../graph-cache.js";
import type { Quantization, RunnerRow } from "../model-runner.js";
import { openModel } from "../open-model.js";

const [libraries, path, quantization, cacheDir] = process.argv.slice(2) as [string, string, Quantization, string];
const model = openModel(path);
const graph = cachedGraph(model, quantization, cacheDir, undefined, "cuda");
model.weights.close();
const cuda = openCuda([libraries]);
const before = cuda.cudart.memoryInfo().free;
const device = new CudaPagedDevice(cuda, graph.modelPath);
const { config } = model.description;
let runner: CudaModelRunner;
try {
	runner = new CudaModelRunner({
		config,
		device,
		maxNumSeqs: 4,
		maxNumBatchedTokens: 64,
		gpuMemoryUtilization: 0.9,
		weightFormats: [],
		modelSum: () => "test",
	});
} catch (error) {
	device.close();
	throw error;
}
const row = (start: number, end: number, wanted: number): RunnerRow => ({
	id: 1,
	tokens: new Int32Array(end),
	start,
	end,
	blocks: Int32Array.of(0),
	wanted,
	isPrefill: end - start > 1,
});
writeSync(2, "== prefill\n");
runner.execute([row(0, 20, 1)]);
writeSync(2, "== decode\n");
runner.execute([row(20, 21, 1)]);
writeSync(2, "== mixed\n");
runner.execute([row(21, 22, 1), row(0, 10, 2), row(0, 3, 0)]).row(2);
writeSync(2, "== blocks\n");
const block = new Uint8Array(runner.kvBytesPerToken * runner.blockSize);
runner.readBlock(0, block);
runner.writeBlock(runner.numBlocks - 1, block);
writeSync(2, "== close\n");
runner.close();
const leaked = before - cuda.cudart.memoryInfo().free;
const { blockSize, maxModelLen, numBlocks } = runner;
writeSync(1, JSON.stringify({ device: runner.device, blockSize, maxModelLen, numBlocks, leaked }));
