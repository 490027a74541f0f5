// SPDX-License-Identifier: Apache-2.0
// Rotary settings of a config.json: `rope_theta` and `rope_scaling` of older files, `rope_parameters` of newer ones,
// where it may hold one object per kind of layer. Formulas of defaults: transformers, modeling_rope_utils.py.

import { ModelFileError } from "../weights/model-file-error.js";
import type { ModelFamily } from "./families.js";
import type { RopeScaling, RotarySettings } from "./model-runner.js";
import { Settings } from "./settings.js";

type Json = Record<string, unknown>;

const WORKING_TYPES = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];

/** What the scaling of a model depends on beside its own settings. */
interface ScalingContext {
	readonly path: string;
	readonly family: ModelFamily;
	readonly rotaryDim: number;
	readonly maxPositionEmbeddings: number;
	/** Set where the original length stands outside of the scaling's settings; it wins. */
	readonly originalMaxPositionEmbeddings: number | undefined;
}

/** How much larger attention's scores are made for a context that is `factor` times the original. */
function yarnMagnitude(factor: number, weight = 1): number {
	return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
}

function yarnScaling(settings: Settings, context: ScalingContext, original: number): RopeScaling {
	const factor = settings.number("factor", context.maxPositionEmbeddings / original);
	const mscale = settings.optionalNumber("mscale");
	const mscaleAllDim = settings.optionalNumber("mscale_all_dim");
	const inferred =
		mscale && mscaleAllDim
			? yarnMagnitude(factor, mscale) / yarnMagnitude(factor, mscaleAllDim)
			: yarnMagnitude(factor);
	return {
		type: "yarn",
		factor,
		originalMaxPositionEmbeddings: original,
		betaFast: settings.optionalNumber("beta_fast") ?? 32,
		betaSlow: settings.optionalNumber("beta_slow") ?? 1,
		truncate: settings.get("truncate") !== false,
		attentionFactor: settings.number("attention_factor", inferred),
	};
}

function longropeScaling(settings: Settings, context: ScalingContext, original: number): RopeScaling {
	const factor = settings.number("factor", context.maxPositionEmbeddings / original);
	const inferred = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original));
	return {
		type: "longrope",
		shortFactors: settings.numbers("short_factor", context.rotaryDim / 2),
		longFactors: settings.numbers("long_factor", context.rotaryDim / 2),
		originalMaxPositionEmbeddings: original,
		attentionFactor: settings.number("attention_factor", inferred),
	};
}

/** The scaling that an object of settings says. */
function ropeScaling(json: Json, context: ScalingContext): RopeScaling | null {
	let type = json.rope_type ?? json.type ?? "default";
	// Early files of Phi-3 call it so.
	if (context.family === "phi3" && (type === "su" || type === "yarn")) type = "longrope";
	const settings = new Settings(context.path, (key) => json[key], "rope_scaling.");
	const original = () =>
		context.originalMaxPositionEmbeddings ??
		settings.size("original_max_position_embeddings", context.maxPositionEmbeddings);
	switch (type) {
		case "default":
			return null;
		case "linear":
			return { type: "linear", factor: settings.number("factor") };
		case "dynamic":
			return {
				type: "dynamic",
				factor: settings.number("factor"),
				originalMaxPositionEmbeddings: context.maxPositionEmbeddings,
			};
		case "llama3":
			return {
				type: "llama3",
				factor: settings.number("factor"),
				lowFreqFactor: settings.number("low_freq_factor"),
				highFreqFactor: settings.number("high_freq_factor"),
				originalMaxPositionEmbeddings: original(),
			};
		case "yarn":
			return yarnScaling(settings, context, original());
		case "longrope":
			return longropeScaling(settings, context, original());
		default:
			throw new ModelFileError(
				context.path,
				`rope_scaling has the type ${JSON.stringify(type)}; ${WORKING_TYPES.join(", ")} work`,
			);
	}
}

/** The rotary embeddings of a model. */
export interface RopeSettings {
	readonly rotaryDim: number;
	readonly rope: RotarySettings;
	/** Where layers with a window have an embedding of their own. */
	readonly localRope: RotarySettings | null;
	/** The longest context, tokens, which some scalings extend. */
	readonly maxPositionEmbeddings: number;
}

/** An object of settings, or an empty one. */
function object(value: unknown): Json {
	return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Json) : {};
}

/**
 * Reads the rotary settings of a config.json.
 * @throws ModelFileError for a scaling that does not work or lacks a setting.
 */
export function ropeFromJson(path: string, family: ModelFamily, json: Json, headDim: number): RopeSettings {
	const settings = new Settings(path, (key) => json[key]);
	const parameters = object(json.rope_parameters);
	const nested = "full_attention" in parameters || "sliding_attention" in parameters;
	const whole: Json = nested ? object(parameters.full_attention) : { ...parameters, ...object(json.rope_scaling) };
	const share = Number(json.partial_rotary_factor ?? whole.partial_rotary_factor ?? 1);
	if (!(share > 0 && share <= 1)) settings.fail("partial_rotary_factor", `is ${share}; 0 to 1 works`);
	const rotaryDim = Math.floor(headDim * share);
	const maxPositionEmbeddings = settings.size("max_position_embeddings", 2048);
	const outside = settings.get("original_max_position_embeddings");
	const context: ScalingContext = {
		path,
		family,
		rotaryDim,
		maxPositionEmbeddings,
		originalMaxPositionEmbeddings:
			outside === undefined ? undefined : settings.size("original_max_position_embeddings"),
	};
	const theta = (own: Json, key: string, fallback?: number) =>
		typeof own.rope_theta === "number" ? own.rope_theta : settings.number(key, fallback);
	const rope = { theta: theta(whole, "rope_theta", 10000), scaling: ropeScaling(whole, context) };
	let localRope: RotarySettings | null = null;
	if (family === "gemma3" || family === "olmo3") {
		const local = object(parameters.sliding_attention);
		const base = family === "gemma3" ? undefined : rope.theta;
		localRope = { theta: theta(local, "rope_local_base_freq", base), scaling: ropeScaling(local, context) };
	}
	return { rotaryDim, rope, localRope, maxPositionEmbeddings: extendedLength(rope.scaling, maxPositionEmbeddings) };
}

/** The longest context with a scaling that extends the one that a file states. */
export function extendedLength(scaling: RopeScaling | null, stated: number): number {
	if (scaling?.type !== "dynamic" && scaling?.type !== "yarn") return stated;
	return Math.max(stated, Math.floor(scaling.factor * scaling.originalMaxPositionEmbeddings));
}
