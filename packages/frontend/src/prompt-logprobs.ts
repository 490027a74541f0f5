// SPDX-License-Identifier: Apache-2.0
// Log-probabilities of a prompt's tokens: they come from the worker with one of its first or last items, and go to the
// client as `prompt_logprobs` (vLLM's extension) or, with `echo`, among the completion's own.
import {
	DynamoError,
	isJsonObject,
	type LLMEngineOutput,
	stringifyJson,
	type WirePromptLogprobs,
} from "@dynamo-ts/protocols/internal";
import { type ChoiceRules, type TokenLogprob, tokenText } from "./choice-state.js";

/** What one prompt's log-probabilities are wanted for, and what has come of them. */
export class PromptLogprobs {
	private readonly tokenIds: readonly number[];
	private readonly echo: string;
	private readonly rules: ChoiceRules;
	private given: WirePromptLogprobs | undefined;

	/** @param echo the prompt's text where it is shown. */
	constructor(tokenIds: readonly number[], echo: string, rules: ChoiceRules) {
		this.tokenIds = tokenIds;
		this.echo = echo;
		this.rules = rules;
	}

	get arrived(): boolean {
		return this.given !== undefined;
	}

	/**
	 * Looks for them in a worker's item. The first that come count: a worker that takes over a broken stream has
	 * generated tokens in its prompt.
	 * @throws DynamoError `BackendProtocol` when they do not have the form that workers give them.
	 */
	take(output: LLMEngineOutput): void {
		const list = output.engine_data?.prompt_logprobs;
		if (list === undefined || list === null || this.given !== undefined) return;
		if (!Array.isArray(list) || !list.every((entry) => entry === null || isJsonObject(entry))) {
			throw new DynamoError("BackendProtocol", "the worker sent prompt_logprobs that are no list of maps");
		}
		this.given = list.slice(0, this.tokenIds.length);
	}

	/** The JSON of the client's `prompt_logprobs`; undefined when there are none. */
	json(): string | undefined {
		return this.given === undefined ? undefined : stringifyJson(this.given);
	}

	/** The entries that stand before those of the generated tokens; tokens of which nothing is known have no number. */
	entries(): TokenLogprob[] {
		const { tokenizer, topLogprobs } = this.rules;
		// Where the client gave text, special tokens that were added to it are not part of what is shown.
		const skipSpecialTokens = tokenizer.decode(this.tokenIds, { skipSpecialTokens: false }) !== this.echo;
		const detokenizer = tokenizer.detokenizer({ skipSpecialTokens });
		let offset = 0;
		return this.tokenIds.map((id, i) => {
			const textOffset = Math.min(offset, this.echo.length);
			offset += detokenizer.push(id).length;
			const all = this.given?.[i] ?? {};
			const own = { ...tokenText(this.rules, id), logprob: all[id]?.logprob ?? Number.NaN };
			const top = Object.entries(all)
				.filter(([, { rank }]) => rank === undefined || rank === null || rank <= topLogprobs)
				.sort(([, a], [, b]) => b.logprob - a.logprob)
				.slice(0, topLogprobs)
				.map(([other, { logprob }]) => ({ ...tokenText(this.rules, Number(other)), logprob }));
			return { ...own, tokenId: id, top, textOffset };
		});
	}
}
