// SPDX-License-Identifier: Apache-2.0

/** Flags of `model_type`, as Dynamo 1.6.1 spells them. */
export const MODEL_TYPES = [
	"Chat",
	"Completions",
	"Embedding",
	"TensorBased",
	"Prefill",
	"Images",
	"Audios",
	"Videos",
	"Realtime",
	"Classify",
	"Pooling",
	"Rerank",
] as const;
export type ModelType = (typeof MODEL_TYPES)[number];

/** The flags in a `model_type`; undefined when one of them is unknown. Spaces around `|` do not matter; "" has no flag. */
export function parseModelType(text: string): Set<ModelType> | undefined {
	const flags = new Set<ModelType>();
	if (text.trim() === "") return flags;
	for (const part of text.split("|")) {
		const flag = MODEL_TYPES.find((known) => known === part.trim());
		if (flag === undefined) return undefined;
		flags.add(flag);
	}
	return flags;
}

/** Writes flags in Dynamo's order and form: `Chat | Completions`. */
export function formatModelType(flags: Iterable<ModelType>): string {
	const wanted = new Set(flags);
	return MODEL_TYPES.filter((flag) => wanted.has(flag)).join(" | ");
}
