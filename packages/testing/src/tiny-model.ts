// SPDX-License-Identifier: Apache-2.0
// A model of random weights that is loaded in no time, for tests of everything around a real engine.
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { makeTinyLlama, writeTinyFolder } from "@dynamo-ts/engine/internal";

/**
 * Writes it, of at most 512 tokens, with the tokenizer of another model.
 * @param tokenizerFolder a folder in Hugging Face form; its vocabulary may have 49,152 tokens.
 * @param shape members of its configuration that are to differ.
 * @returns `folder`.
 */
export function writeTinyModel(
	folder: string,
	tokenizerFolder: string,
	shape: Parameters<typeof makeTinyLlama>[0] = {},
): string {
	writeTinyFolder(folder, makeTinyLlama({ vocab_size: 49_152, max_position_embeddings: 512, ...shape }, 3));
	for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
		copyFileSync(join(tokenizerFolder, name), join(folder, name));
	}
	return folder;
}
