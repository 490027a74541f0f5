// SPDX-License-Identifier: Apache-2.0
// A folder of onnxruntime-genai: genai_config.json says how the graph's inputs and outputs are called. Only graphs whose
// cache is one buffer that is written in place can be run with others in a batch, and so only those are taken.

import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { ModelFileError } from "../weights/model-file-error.js";
import { hasSafetensors } from "../weights/safetensors.js";
import type { ModelShape } from "./model-runner.js";
import { readModelJson, Settings } from "./settings.js";

/** Name of the file that makes a folder one of onnxruntime-genai. */
export const GENAI_CONFIG = "genai_config.json";

type Json = Record<string, unknown>;

export class ImportedModel {
	/** The .onnx file. */
	readonly modelPath: string;
	readonly config: ModelShape;
	readonly inputs: { readonly inputIds: string; readonly attentionMask: string; readonly positionIds?: string };
	readonly outputs: { readonly logits: string };
	/** All files of graph and weights. */
	readonly files: readonly string[];
	readonly #names: Readonly<Record<"pastKey" | "pastValue" | "presentKey" | "presentValue", string>>;

	/**
	 * @param folder has genai_config.json.
	 * @param json that file, parsed.
	 * @throws ModelFileError when something is missing, or the model cannot be run here.
	 */
	constructor(folder: string, json: Json) {
		const path = join(folder, GENAI_CONFIG);
		const model = section(path, json, "model");
		const decoder = section(path, model, "decoder");
		const inputs = section(path, decoder, "inputs");
		const outputs = section(path, decoder, "outputs");
		const search = (json.search ?? {}) as Json;
		if (search.past_present_share_buffer !== true) {
			throw new ModelFileError(
				path,
				"past_present_share_buffer is not true: a cache that grows with each step cannot be shared by a batch; " +
					"export the model with GroupQueryAttention, or give its safetensors or GGUF file",
			);
		}
		if (model.encoder !== undefined || model.vision !== undefined) {
			throw new ModelFileError(path, "has more than a text decoder; only text models work");
		}
		this.modelPath = join(folder, text(path, decoder, "filename"));
		if (!existsSync(this.modelPath)) throw new ModelFileError(this.modelPath, `does not exist, but ${path} names it`);
		this.files = [path, this.modelPath, `${this.modelPath}.data`].filter((file) => existsSync(file));
		const positions = inputs.position_ids;
		this.inputs = {
			inputIds: text(path, inputs, "input_ids"),
			attentionMask: text(path, inputs, "attention_mask"),
			...(typeof positions === "string" ? { positionIds: positions } : {}),
		};
		this.outputs = { logits: text(path, outputs, "logits") };
		this.#names = {
			pastKey: text(path, inputs, "past_key_names"),
			pastValue: text(path, inputs, "past_value_names"),
			presentKey: text(path, outputs, "present_key_names"),
			presentValue: text(path, outputs, "present_value_names"),
		};
		this.config = shapeOf(path, model, decoder);
	}

	/** Bytes of graph and weights. */
	get weightBytes(): number {
		return this.files.reduce((sum, file) => sum + statSync(file).size, 0);
	}

	pastKey(layer: number): string {
		return this.#names.pastKey.replace("%d", String(layer));
	}

	pastValue(layer: number): string {
		return this.#names.pastValue.replace("%d", String(layer));
	}

	presentKey(layer: number): string {
		return this.#names.presentKey.replace("%d", String(layer));
	}

	presentValue(layer: number): string {
		return this.#names.presentValue.replace("%d", String(layer));
	}

	/**
	 * Compares the graph's own inputs and outputs with what the file says.
	 * @throws ModelFileError when one is missing, or the graph wants one that nobody gives.
	 */
	checkSignature(inputs: readonly string[], outputs: readonly string[]): void {
		const layers = Array.from({ length: this.config.numLayers }, (_, i) => i);
		const given = new Set([
			...Object.values(this.inputs),
			...layers.flatMap((layer) => [this.pastKey(layer), this.pastValue(layer)]),
		]);
		const taken = [
			this.outputs.logits,
			...layers.flatMap((layer) => [this.presentKey(layer), this.presentValue(layer)]),
		];
		const unknown = inputs.find((name) => !given.has(name));
		if (unknown !== undefined) {
			throw new ModelFileError(this.modelPath, `wants the input ${unknown}, which is not one of a text decoder`);
		}
		const missing = [...given].find((name) => !inputs.includes(name)) ?? taken.find((name) => !outputs.includes(name));
		if (missing !== undefined)
			throw new ModelFileError(this.modelPath, `has no ${missing}, which ${GENAI_CONFIG} names`);
	}
}

function section(path: string, json: Json, key: string): Json {
	const value = json[key];
	if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Json;
	throw new ModelFileError(path, `${key} is missing`);
}

function text(path: string, json: Json, key: string): string {
	const value = json[key];
	if (typeof value === "string" && value !== "") return value;
	throw new ModelFileError(path, `${key} is ${JSON.stringify(value) ?? "missing"}; a name is needed`);
}

function shapeOf(path: string, model: Json, decoder: Json): ModelShape {
	const top = new Settings(path, (key) => model[key], "model.");
	const inner = new Settings(path, (key) => decoder[key], "model.decoder.");
	const ids = (value: unknown): number[] =>
		(Array.isArray(value) ? value : [value]).filter((id): id is number => Number.isInteger(id));
	return {
		vocabSize: top.size("vocab_size"),
		numLayers: inner.size("num_hidden_layers"),
		numKvHeads: inner.size("num_key_value_heads", inner.size("num_attention_heads")),
		headDim: inner.size("head_size"),
		maxPositionEmbeddings: top.size("context_length"),
		bosTokenId: ids(model.bos_token_id)[0] ?? null,
		eosTokenIds: ids(model.eos_token_id),
	};
}

/** The imported model in a folder; undefined where it is not one of onnxruntime-genai, or has weights of its own, too. */
export function findImportedModel(folder: string): ImportedModel | undefined {
	const path = join(folder, GENAI_CONFIG);
	if (!existsSync(path) || hasSafetensors(folder)) return undefined;
	return new ImportedModel(folder, readModelJson(path));
}
