// SPDX-License-Identifier: Apache-2.0
// Scales of an int8 cache: how large keys and values of each layer get in a run over tokens of all kinds.

import type { CacheFormat } from "../onnx/attention-emitter.js";
import { DEFAULT_BLOCK_SIZE } from "./cache-memory.js";
import type { ModelConfig } from "./model-runner.js";
import { OrtModelRunner } from "./ort-model-runner.js";

/** Tokens of the run. More hardly change the largest magnitudes. */
const CALIBRATION_TOKENS = 256;
/** Room above what was seen; larger numbers are cut off. */
const HEADROOM = 1.1;

/** Token ids all over the vocabulary, the same every time; the first is the model's beginning of a text. */
function calibrationTokens(config: ModelConfig, count: number): Int32Array {
	const tokens = new Int32Array(count);
	// The golden ratio's multiples spread evenly whatever the size of the vocabulary.
	for (let i = 0; i < count; i++) tokens[i] = Math.floor(((i * 0.6180339887498949) % 1) * config.vocabSize);
	if (config.bosTokenId !== null && config.bosTokenId < config.vocabSize) tokens[0] = config.bosTokenId;
	return tokens;
}

/**
 * Runs the graph at `modelPath`, whose cache is fp32, and finds the scales for an int8 cache.
 * @throws OrtError when the graph cannot be run.
 */
export function calibrateCache(
	modelPath: string,
	config: ModelConfig,
): Extract<CacheFormat, { dtype: "int8" }>["scales"] {
	const blockSize = DEFAULT_BLOCK_SIZE;
	const numBlocks = Math.max(1, Math.floor(Math.min(CALIBRATION_TOKENS, config.maxPositionEmbeddings) / blockSize));
	const count = Math.min(numBlocks * blockSize, config.maxPositionEmbeddings);
	const runner = new OrtModelRunner(modelPath, {
		config,
		weightFormats: [],
		modelSum: "trial",
		maxNumSeqs: 1,
		maxModelLen: numBlocks * blockSize,
		blockSize,
		numBlocks: 1,
		intraOpThreads: 1,
		spinning: false,
	});
	try {
		const tokens = calibrationTokens(config, count);
		const blocks = new Int32Array(numBlocks);
		runner.execute([{ id: 0, tokens, start: 0, end: count, blocks, wanted: 1, isPrefill: true }]);
		// A block is [layers, 2, kvHeads, blockSize, headDim] fp32.
		const content = new Float32Array(runner.blockBytes / 4);
		const sideSize = config.numKvHeads * blockSize * config.headDim;
		const largest = new Float32Array(config.numLayers * 2);
		for (let index = 0; index < numBlocks; index++) {
			runner.persist(0, index, 0);
			runner.readBlock(0, new Uint8Array(content.buffer));
			for (let side = 0; side < largest.length; side++) {
				for (let i = side * sideSize; i < (side + 1) * sideSize; i++) {
					largest[side] = Math.max(largest[side]!, Math.abs(content[i]!));
				}
			}
		}
		const scale = (side: number) => Math.max((largest[side]! * HEADROOM) / 127, Number.EPSILON);
		return Array.from({ length: config.numLayers }, (_, layer) => ({
			key: scale(layer * 2),
			value: scale(layer * 2 + 1),
		}));
	} finally {
		runner.close();
	}
}
