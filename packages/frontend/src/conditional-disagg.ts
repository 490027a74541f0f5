// SPDX-License-Identifier: Apache-2.0
// Whether a prompt is worth a prefill worker: short ones, and those that a decode worker has mostly in its cache, can be
// computed where the answer is generated. Rules and names of Dynamo's conditional disaggregation.
import { DynamoError, isJsonObject } from "@dynamo-ts/protocols/internal";

/** Ways to decide; `policy` of the configuration. */
export const CONDITIONAL_DISAGG_POLICIES = ["isl_bounding", "prefill_load", "isl_or_load"] as const;
export type ConditionalDisaggPolicy = (typeof CONDITIONAL_DISAGG_POLICIES)[number];

export interface ConditionalDisagg {
	readonly policy: ConditionalDisaggPolicy;
	/** Prompts with as many uncached tokens go to a prefill worker. */
	readonly effIslThreshold: number;
	/** So do prompts of which this share is uncached, 0 to 1. */
	readonly effIslRatioThreshold: number;
	/** A prefill worker with more than this share of `max_num_batched_tokens` to compute is busy; undefined: never. */
	readonly prefillBusyThreshold: number | undefined;
	/** A decode worker that would use more than this share of its blocks gets no prompts; undefined: it always may. */
	readonly decodeBusyThreshold: number | undefined;
}

const DEFAULTS: ConditionalDisagg = {
	policy: "isl_bounding",
	effIslThreshold: 2048,
	effIslRatioThreshold: 0.7,
	prefillBusyThreshold: undefined,
	decodeBusyThreshold: undefined,
};

const FIELDS = {
	eff_isl_threshold: "effIslThreshold",
	eff_isl_ratio_threshold: "effIslRatioThreshold",
	prefill_busy_threshold: "prefillBusyThreshold",
	decode_busy_threshold: "decodeBusyThreshold",
} as const;

/**
 * Reads the settings of `--router-conditional-disagg-config`.
 * @param name who is to blame for a bad value.
 * @throws DynamoError `InvalidArgument` that says what is valid.
 */
export function parseConditionalDisagg(text: string | undefined, name: string): ConditionalDisagg {
	if (text === undefined || text === "") return DEFAULTS;
	const bad = (problem: string): DynamoError => new DynamoError("InvalidArgument", `${name}: ${problem}`);
	let given: unknown;
	try {
		given = JSON.parse(text);
	} catch (error) {
		throw bad(`not JSON: ${(error as Error).message}`);
	}
	if (!isJsonObject(given)) throw bad("must be a JSON object");
	const settings: { -readonly [K in keyof ConditionalDisagg]: ConditionalDisagg[K] } = { ...DEFAULTS };
	for (const [key, value] of Object.entries(given)) {
		if (value === null) continue;
		if (key === "policy") {
			const policy = CONDITIONAL_DISAGG_POLICIES.find((known) => known === value);
			if (policy === undefined) throw bad(`policy must be one of ${CONDITIONAL_DISAGG_POLICIES.join(", ")}`);
			settings.policy = policy;
		} else if (Object.hasOwn(FIELDS, key)) {
			if (typeof value !== "number" || !Number.isFinite(value) || value < 0) {
				throw bad(`${key} must be a number from 0 on`);
			}
			settings[FIELDS[key as keyof typeof FIELDS]] = value;
		} else throw bad(`unknown field ${key}; there are policy, ${Object.keys(FIELDS).join(", ")}`);
	}
	return settings;
}

/** What is known when the decision is made. */
export interface PrefillSituation {
	readonly promptTokens: number;
	/** Tokens of it that the best decode worker need not compute. */
	readonly cachedTokens: number;
	/** The share of its `max_num_batched_tokens` that the prefill worker has still to compute; undefined: not known. */
	readonly prefillLoad: number | undefined;
	/** The share of its blocks that the decode worker would have in use; undefined: not known. */
	readonly decodeLoad: number | undefined;
}

/** True when the decode worker should compute the prompt itself. What is not known speaks against it. */
export function bypassesPrefill(settings: ConditionalDisagg, situation: PrefillSituation): boolean {
	const { policy, prefillBusyThreshold, decodeBusyThreshold } = settings;
	const { promptTokens, cachedTokens, prefillLoad, decodeLoad } = situation;
	if (promptTokens === 0) return false;
	const uncached = Math.max(0, promptTokens - cachedTokens);
	const small = uncached < settings.effIslThreshold && uncached / promptTokens < settings.effIslRatioThreshold;
	const busy = prefillBusyThreshold !== undefined && prefillLoad !== undefined && prefillLoad > prefillBusyThreshold;
	const wanted = policy === "isl_bounding" ? small : policy === "prefill_load" ? busy : small || busy;
	if (!wanted || decodeBusyThreshold === undefined) return wanted;
	return decodeLoad !== undefined && decodeLoad <= decodeBusyThreshold;
}
