// SPDX-License-Identifier: Apache-2.0
// Cosines and sines of the rotary embedding, as the graph takes them.

import type { ModelConfig } from "../model/model-runner.js";

/** Turning speed of each rotary pair in radians per token, after scaling [headDim / 2], fp32. */
export function rotaryFrequencies(config: ModelConfig): Float32Array {
	const pairs = config.headDim / 2;
	const scaling = config.ropeScaling;
	const frequencies = new Float32Array(pairs);
	for (let i = 0; i < pairs; i++) {
		let frequency = 1 / config.ropeTheta ** (i / pairs);
		if (scaling?.type === "linear") frequency /= scaling.factor;
		else if (scaling?.type === "factors") frequency /= scaling.factors[i]!;
		else if (scaling?.type === "llama3") {
			// Llama 3.1: slow pairs are slowed down by the factor, fast ones are kept, those between are blended.
			const turns = (scaling.originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
			const { lowFreqFactor: low, highFreqFactor: high, factor } = scaling;
			const smooth = Math.max(0, Math.min(1, (turns - low) / (high - low)));
			frequency = (1 - smooth) * (frequency / factor) + smooth * frequency;
		}
		frequencies[i] = frequency;
	}
	return frequencies;
}

/**
 * Cosines and sines for positions 0..positions-1, each [positions, headDim / 2]. The angle is rounded to fp32
 * before the cosine, as models were trained.
 */
export function rotaryCaches(config: ModelConfig, positions: number): { cos: Float32Array; sin: Float32Array } {
	const frequencies = rotaryFrequencies(config);
	const pairs = frequencies.length;
	const cos = new Float32Array(positions * pairs);
	const sin = new Float32Array(positions * pairs);
	for (let position = 0; position < positions; position++) {
		for (let i = 0; i < pairs; i++) {
			const angle = Math.fround(position * frequencies[i]!);
			cos[position * pairs + i] = Math.cos(angle);
			sin[position * pairs + i] = Math.sin(angle);
		}
	}
	return { cos, sin };
}
