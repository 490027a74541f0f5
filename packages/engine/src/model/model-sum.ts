// SPDX-License-Identifier: Apache-2.0
// Whether two engines compute the same keys and values from the same tokens: a sum of their graphs and weights.

import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { dirname, join } from "node:path";
import { addSamples } from "../weights/file-samples.js";
import { WEIGHTS_FILE } from "./graph-cache.js";
import type { ModelConfig } from "./model-runner.js";

/** The sum of a model that is made of these files, hex. Where they are and how old they are does not matter. */
export function sumOfFiles(files: readonly string[], more: readonly unknown[] = []): string {
	const hash = createHash("sha256");
	hash.update(JSON.stringify([...more, ...files.map((file) => statSync(file).size)]));
	for (const file of files) addSamples(hash, file);
	return hash.digest("hex").slice(0, 32);
}

/**
 * The sum of a graph of our own, with the weights as it has them.
 * @param maxModelLen tokens; it counts where positions are scaled by it.
 */
export function sumOfGraph(modelPath: string, config: ModelConfig, maxModelLen: number): string {
	const scaled = [config.rope, config.localRope].some(
		(rope) => rope?.scaling?.type === "dynamic" || rope?.scaling?.type === "longrope",
	);
	return sumOfFiles([modelPath, join(dirname(modelPath), WEIGHTS_FILE)], scaled ? [maxModelLen] : []);
}
