// SPDX-License-Identifier: Apache-2.0
import type { ModelFiles } from "./model-files.js";

/**
 * Loads a tokenizer ahead of its first use. The tokenizers package keeps the last ones by content, so a frontend in
 * the same process has it at once when the model appears. Blocks for about 2 ms per 1,000 tokens.
 * @throws TokenizerError that names the path.
 */
export async function preloadTokenizer(files: ModelFiles): Promise<void> {
	const { Tokenizer } = await import("@dynamo-ts/tokenizers");
	await Tokenizer.fromFile(files.tokenizer);
}
