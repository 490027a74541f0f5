// SPDX-License-Identifier: Apache-2.0
// Log-probabilities of a prompt in the form in which Dynamo's workers send them (`engine_data.prompt_logprobs`).
import type { PromptLogprob } from "@dynamo-ts/engine";
import type { WirePromptLogprob, WirePromptLogprobs } from "@dynamo-ts/protocols/internal";

/** Stands for -Infinity, which JSON does not have; the number that Dynamo's workers use. */
const LEAST_LOGPROB = -1e30;

/** One map per token, null for the first: the token itself, then the likeliest ones in its place. */
export function wirePromptLogprobs(
	list: readonly (PromptLogprob | null)[],
	texts: { text(tokenId: number): string } | undefined,
): WirePromptLogprobs {
	return list.map((entry) => {
		if (entry === null) return null;
		const byId: { [tokenId: string]: WirePromptLogprob } = {};
		for (const { tokenId, logprob, rank } of [...entry.top, entry]) {
			const decoded = texts?.text(tokenId);
			const finite = Math.max(logprob, LEAST_LOGPROB);
			byId[tokenId] = { logprob: finite, rank, ...(decoded === undefined ? {} : { decoded_token: decoded }) };
		}
		return byId;
	});
}
