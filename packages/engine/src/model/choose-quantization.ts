// SPDX-License-Identifier: Apache-2.0
// What `auto` means on this machine.

import { hasByteDotProduct } from "../ort/cpu-features.js";
import type { WeightSource } from "../weights/weight-source.js";
import { processMemory } from "./cache-memory.js";
import type { Quantization } from "./model-runner.js";

/** fp32 weights may take so much of the memory; the rest is for the cache and the system. */
const FLOAT_SHARE = 0.25;
/** Up to so many sequences, a step is bound by reading the weights: then fewer bytes win, whatever the processor. */
const FEW_SEQUENCES = 2;

/** What the choice depends on. */
export interface QuantizationChoice {
	readonly weights: Pick<WeightSource, "tensors">;
	/** Sequences in a step, where that was asked for. */
	readonly maxNumSeqs?: number | undefined;
	/** Bytes that the process may use; default: of the machine or its control group. */
	readonly memoryBytes?: number;
	/** See `hasByteDotProduct`; default: this machine's. */
	readonly byteDotProduct?: boolean;
}

/** Bytes of all weights in fp32. */
export function floatBytes(weights: QuantizationChoice["weights"]): number {
	let bytes = 0;
	for (const { rows, columns } of weights.tensors.values()) bytes += rows * columns * 4;
	return bytes;
}

/**
 * Puts what is best here in the place of `auto`: "none", that is fp32, where the processor has no dot product of bytes,
 * steps have many rows and the weights fit well; else "auto", that is blocks as stored or 8 bits (see `matrixFormat`).
 */
export function chooseQuantization(asked: Quantization, choice: QuantizationChoice): Quantization {
	if (asked !== "auto") return asked;
	if (choice.byteDotProduct ?? hasByteDotProduct()) return "auto";
	if (choice.maxNumSeqs !== undefined && choice.maxNumSeqs <= FEW_SEQUENCES) return "auto";
	const memory = choice.memoryBytes ?? processMemory();
	return floatBytes(choice.weights) <= memory * FLOAT_SHARE ? "none" : "auto";
}
