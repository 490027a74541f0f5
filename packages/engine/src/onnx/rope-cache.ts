// SPDX-License-Identifier: Apache-2.0
// Cosines and sines of the rotary embeddings, as the graph takes them.

import type { ModelConfig, RopeScaling, RotarySettings } from "../model/model-runner.js";

/** A rotary table: one input of the graph. */
export interface RotaryTable {
	/** Name of the input. */
	readonly name: string;
	/** Numbers per position: half of the part of a head that turns. */
	readonly width: number;
	/** [positions, width] */
	readonly values: Float32Array;
}

/** Which embedding a layer may use; each has inputs of its own. */
export type RotaryKind = "global" | "local";

/** Names of the inputs of an embedding. */
export const ROTARY_INPUTS: Readonly<Record<RotaryKind, { readonly cos: string; readonly sin: string }>> = {
	global: { cos: "cos_cache", sin: "sin_cache" },
	local: { cos: "cos_cache_local", sin: "sin_cache_local" },
};

/** The embeddings that layers of a model use. */
export function rotaryKinds(config: ModelConfig): RotaryKind[] {
	return (["global", "local"] as const).filter((kind) => config.layers.some((layer) => layer.rope === kind));
}

/**
 * Borders of the pairs that YaRN blends: the pairs that turn `turns` times over the original context.
 * Formula: https://arxiv.org/abs/2309.00071, section 3.2, as PyTorch models compute it.
 */
function yarnBorder(turns: number, original: number, theta: number, dimensions: number): number {
	return (dimensions * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
}

function yarnFrequency(
	i: number,
	frequency: number,
	scaling: RopeScaling & { type: "yarn" },
	theta: number,
	dimensions: number,
): number {
	const border = (turns: number) => yarnBorder(turns, scaling.originalMaxPositionEmbeddings, theta, dimensions);
	let low = border(scaling.betaFast);
	let high = border(scaling.betaSlow);
	if (scaling.truncate) {
		low = Math.floor(low);
		high = Math.ceil(high);
	}
	low = Math.max(low, 0);
	high = Math.min(high, dimensions - 1);
	if (low === high) high += 0.001;
	const slowed = Math.max(0, Math.min(1, (i - low) / (high - low)));
	return (frequency / scaling.factor) * slowed + frequency * (1 - slowed);
}

/**
 * Turning speed of each rotary pair in radians per token, after scaling [dimensions / 2], fp32.
 * @param positions the longest context that is served, in tokens: some scalings depend on it
 */
export function rotaryFrequencies(settings: RotarySettings, dimensions: number, positions: number): Float32Array {
	const pairs = dimensions / 2;
	const { scaling } = settings;
	let { theta } = settings;
	if (scaling?.type === "dynamic") {
		// NTK-aware scaling; at the original length and below it changes nothing.
		const { factor, originalMaxPositionEmbeddings: original } = scaling;
		const length = Math.max(positions, original);
		theta *= ((factor * length) / original - (factor - 1)) ** (dimensions / (dimensions - 2));
	}
	const frequencies = new Float32Array(pairs);
	for (let i = 0; i < pairs; i++) {
		let frequency = 1 / theta ** (i / pairs);
		switch (scaling?.type) {
			case "linear":
				frequency /= scaling.factor;
				break;
			case "factors":
				frequency /= scaling.factors[i]!;
				break;
			case "llama3": {
				// Llama 3.1: slow pairs are slowed down by the factor, fast ones are kept, those between are blended.
				const turns = (scaling.originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
				const { lowFreqFactor: low, highFreqFactor: high, factor } = scaling;
				const smooth = Math.max(0, Math.min(1, (turns - low) / (high - low)));
				frequency = (1 - smooth) * (frequency / factor) + smooth * frequency;
				break;
			}
			case "yarn":
				frequency = yarnFrequency(i, frequency, scaling, theta, dimensions);
				break;
			case "longrope": {
				const long = positions > scaling.originalMaxPositionEmbeddings;
				frequency /= (long ? scaling.longFactors : scaling.shortFactors)[i]!;
				break;
			}
		}
		frequencies[i] = frequency;
	}
	return frequencies;
}

/** What multiplies cosines and sines. */
function magnitude(scaling: RopeScaling | null): number {
	return scaling?.type === "yarn" || scaling?.type === "longrope" ? scaling.attentionFactor : 1;
}

/**
 * The rotary inputs of a model's graph with their values for positions 0..positions-1. The angle is rounded to
 * fp32 before the cosine, as models were trained.
 * @param positions the longest context that is served, in tokens; scalings that depend on the length take it as the
 *   length of every text
 */
export function rotaryTables(config: ModelConfig, positions: number): RotaryTable[] {
	return rotaryKinds(config).flatMap((kind) => {
		const settings = kind === "global" ? config.rope : config.localRope!;
		const frequencies = rotaryFrequencies(settings, config.rotaryDim, positions);
		const scale = magnitude(settings.scaling);
		const width = frequencies.length;
		const cos = new Float32Array(positions * width);
		const sin = new Float32Array(positions * width);
		for (let position = 0; position < positions; position++) {
			for (let i = 0; i < width; i++) {
				const angle = Math.fround(position * frequencies[i]!);
				cos[position * width + i] = Math.cos(angle) * scale;
				sin[position * width + i] = Math.sin(angle) * scale;
			}
		}
		const names = ROTARY_INPUTS[kind];
		return [
			{ name: names.cos, width, values: cos },
			{ name: names.sin, width, values: sin },
		];
	});
}
