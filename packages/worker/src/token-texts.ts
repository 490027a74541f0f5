// SPDX-License-Identifier: Apache-2.0
import { StopSequenceMatcher, Tokenizer } from "@dynamo-ts/tokenizers";
import type { TokenTexts } from "./generate-handler.js";

/**
 * Loads the texts of single tokens from a tokenizer.json.
 * @throws TokenizerError that names the path.
 */
export async function loadTokenTexts(tokenizerPath: string): Promise<TokenTexts> {
	const tokenizer = await Tokenizer.fromFile(tokenizerPath);
	const texts = new Map<number, string>();
	return {
		text(id) {
			let text = texts.get(id);
			if (text === undefined) {
				text = Buffer.from(tokenizer.idToBytes(id) ?? []).toString("utf8");
				texts.set(id, text);
			}
			return text;
		},
		bytes(id) {
			const bytes = tokenizer.idToBytes(id);
			return bytes === undefined ? undefined : [...bytes];
		},
		stopScanner(stops) {
			const detokenizer = tokenizer.detokenizer({ skipSpecialTokens: true, continuation: true });
			const matcher = new StopSequenceMatcher(stops);
			return (id) => matcher.push(detokenizer.push(id)).stopped !== undefined;
		},
	};
}
