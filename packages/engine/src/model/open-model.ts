// SPDX-License-Identifier: Apache-2.0
// Opens a model on disk: a folder in Hugging Face form or one GGUF file.

import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import type { GgufValue } from "../weights/gguf-header.js";
import { GgufWeights } from "../weights/gguf-weights.js";
import { ModelFileError } from "../weights/model-file-error.js";
import { SafetensorsWeights, safetensorsFiles } from "../weights/safetensors.js";
import type { WeightSource, WeightType } from "../weights/weight-source.js";
import { checkGgufFamily, configFromGguf } from "./gguf-config.js";
import { configFromJson } from "./model-config.js";
import type { ModelConfig } from "./model-runner.js";
import { readModelJson } from "./settings.js";

/** What a model is, without its weights. */
export interface ModelDescription {
	/** As it was given. */
	readonly path: string;
	readonly format: "safetensors" | "gguf";
	readonly config: ModelConfig;
	/** How many tensors have each type. */
	readonly weightTypes: Readonly<Partial<Record<WeightType, number>>>;
	/** All files that the model's weights and architecture come from. */
	readonly files: readonly string[];
	/** Metadata of a GGUF file (tokenizer, chat template ...); absent for safetensors. */
	readonly gguf?: ReadonlyMap<string, GgufValue>;
}

/** An open model; `weights` must be closed. */
export interface OpenModel {
	readonly description: ModelDescription;
	readonly weights: WeightSource;
}

function weightTypes(weights: WeightSource): Partial<Record<WeightType, number>> {
	const counts: Partial<Record<WeightType, number>> = {};
	for (const { type } of weights.tensors.values()) counts[type] = (counts[type] ?? 0) + 1;
	return counts;
}

function openGguf(path: string): OpenModel {
	const weights = new GgufWeights(path, (header) => checkGgufFamily(path, header));
	try {
		const factors = (name: string) =>
			weights.tensors.has(`${name}.weight`) ? weights.readRows(`${name}.weight`, 0, 1) : undefined;
		const config = configFromGguf(path, weights.header, {
			all: factors("rope_freqs"),
			short: factors("rope_factors_short"),
			long: factors("rope_factors_long"),
		});
		const { metadata } = weights.header;
		return {
			description: { path, format: "gguf", config, weightTypes: weightTypes(weights), files: [path], gguf: metadata },
			weights,
		};
	} catch (error) {
		weights.close();
		throw error;
	}
}

function openFolder(path: string): OpenModel {
	const configPath = join(path, "config.json");
	if (!existsSync(configPath)) {
		throw new ModelFileError(path, "has no config.json; give a folder in Hugging Face form or a .gguf file");
	}
	const generationPath = join(path, "generation_config.json");
	const generation = existsSync(generationPath) ? readModelJson(generationPath) : undefined;
	const config = configFromJson(configPath, readModelJson(configPath), generation);
	const weights = new SafetensorsWeights(path);
	const files = [configPath, ...safetensorsFiles(path)];
	return {
		description: { path, format: "safetensors", config, weightTypes: weightTypes(weights), files },
		weights,
	};
}

/**
 * Opens a model and checks its tables.
 * @throws ModelFileError when there is nothing, or nothing that works, at `path`.
 */
export function openModel(path: string): OpenModel {
	const stats = statSync(path, { throwIfNoEntry: false });
	if (!stats) throw new ModelFileError(path, "does not exist; give a model folder or a .gguf file");
	return stats.isDirectory() ? openFolder(path) : openGguf(path);
}

/**
 * Tells what a model is. Cheap: reads headers, no weights.
 * @throws ModelFileError when there is nothing, or nothing that works, at `path`.
 */
export function describeModel(path: string): ModelDescription {
	const { description, weights } = openModel(path);
	weights.close();
	return description;
}
