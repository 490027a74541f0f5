// SPDX-License-Identifier: Apache-2.0
import type { LLMEngineOutput, TopLogprob, WireFinishReason } from "@dynamo-ts/protocols/internal";
import { type IncrementalDetokenizer, StopSequenceMatcher, type Tokenizer } from "@dynamo-ts/tokenizers";

/** Finish reasons as clients see them. */
export type FinishReason = "stop" | "length" | "content_filter";

/** A token that could have been chosen. */
export interface TokenAlternative {
	readonly token: string;
	readonly bytes: readonly number[] | null;
	/** Natural logarithm. */
	readonly logprob: number;
}

/** Log-probability of one generated token, with its alternatives. */
export interface TokenLogprob {
	readonly tokenId: number;
	/** Empty for a token that is never shown, such as the one that ends the choice. */
	readonly token: string;
	/** Null for a token without any. */
	readonly bytes: readonly number[] | null;
	/** Natural logarithm; NaN where there is none, which is so for the first token of an echoed prompt. */
	readonly logprob: number;
	/** The likeliest tokens; the chosen one comes last when it is not among them. */
	readonly top: readonly TokenAlternative[];
	/** Where the token's text begins in the text of the choice, UTF-16 units. */
	readonly textOffset: number;
}

/** What all choices of one prompt share; made once per request. */
export interface ChoiceRules {
	readonly tokenizer: Tokenizer;
	readonly skipSpecialTokens: boolean;
	readonly stops: readonly string[];
	readonly includeStopString: boolean;
	/** Show the token that ends a choice too (unless it is special and those are skipped). */
	readonly showStopTokens: boolean;
	/** Ids that end a choice and are not shown: EOS ids (unless ignored) and the client's stop_token_ids. */
	readonly stopTokenIds: ReadonlySet<number>;
	/** Nothing stops a choice before that many tokens. */
	readonly minTokens: number;
	readonly wantLogprobs: boolean;
	/** How many alternatives the client asked for. */
	readonly topLogprobs: number;
	/** Show no alternatives, whatever the worker sends. */
	readonly hideAlternatives: boolean;
	/** The client wants to see those of the prompt, too. */
	readonly promptLogprobs: boolean;
	/** Log-probabilities name tokens `token_id:<id>`. */
	readonly tokensAsIds: boolean;
}

/** Thrown by {@link ChoiceState.accept} when the worker reports that generation failed. */
export class WorkerFinishError extends Error {
	override readonly name = "WorkerFinishError";
}

/**
 * The state of one choice: token ids in, text out. Text is what is certain: whole characters, nothing that could
 * still become a stop string. After {@link finishReason} is set nothing more is taken.
 */
export class ChoiceState {
	/** Number of the choice as clients see it. */
	readonly index: number;
	/** Tokens received, the one that ended the choice included. */
	tokens = 0;
	finishReason: FinishReason | undefined;
	/** The worker has sent something for it. */
	begun = false;
	/** The role went out. */
	roleSent = false;
	/** True when the end was found here, so that the worker may still be generating. */
	stoppedHere = false;
	/** The whole text so far; kept only for answers in one piece. */
	text = "";
	/** Log-probabilities of tokens whose text was not yet handed out. */
	pendingLogprobs: TokenLogprob[] = [];
	private readonly rules: ChoiceRules;
	private readonly detokenizer: IncrementalDetokenizer;
	private readonly stopMatcher: StopSequenceMatcher | undefined;
	/** UTF-16 units of detokenized text, held-back text included; logprobs' text_offset. */
	private offset: number;

	/** @param offset length of text that comes before this choice's own (an echoed prompt). */
	constructor(index: number, rules: ChoiceRules, offset = 0) {
		this.index = index;
		this.rules = rules;
		this.offset = offset;
		this.detokenizer = rules.tokenizer.detokenizer({ skipSpecialTokens: rules.skipSpecialTokens, continuation: true });
		this.stopMatcher =
			rules.stops.length === 0
				? undefined
				: new StopSequenceMatcher(rules.stops, { includeStopString: rules.includeStopString });
	}

	/**
	 * Takes the worker's next delta and returns the text that can be shown now.
	 * @throws WorkerFinishError when the worker says that generation failed.
	 */
	accept(output: LLMEngineOutput): string {
		if (this.finishReason !== undefined) return "";
		const ids = output.token_ids;
		let text = "";
		if (typeof output.text === "string") {
			text = this.acceptText(output, output.text);
		} else {
			for (let i = 0; i < ids.length; i++) {
				text += this.acceptToken(ids[i] as number, output, i);
				if (this.finishReason !== undefined) return text;
			}
		}
		const finish = output.finish_reason;
		if (finish !== null && finish !== undefined && this.finishReason === undefined) text += this.finish(finish);
		return text;
	}

	/** The worker's stream is complete though it gave no finish reason; returns what was held back. */
	finishQuietly(): string {
		return this.finishReason === undefined ? this.finish("stop") : "";
	}

	private acceptToken(id: number, output: LLMEngineOutput, position: number): string {
		const rules = this.rules;
		this.tokens++;
		const mayStop = this.tokens >= rules.minTokens;
		if (mayStop && rules.stopTokenIds.has(id)) {
			if (rules.wantLogprobs) this.addLogprob(id, output, position);
			this.finishReason = "stop";
			this.stoppedHere = true;
			return this.flush(rules.showStopTokens ? this.detokenizer.push(id) : "");
		}
		const piece = this.detokenizer.push(id);
		if (rules.wantLogprobs) this.addLogprob(id, output, position);
		this.offset += piece.length;
		return this.matchStops(piece, mayStop);
	}

	private acceptText(output: LLMEngineOutput, text: string): string {
		const ids = output.token_ids;
		this.tokens += ids.length;
		if (this.rules.wantLogprobs) for (let i = 0; i < ids.length; i++) this.addLogprob(ids[i] as number, output, i);
		this.offset += text.length;
		return this.matchStops(text, this.tokens >= this.rules.minTokens);
	}

	private matchStops(piece: string, mayStop: boolean): string {
		if (this.stopMatcher === undefined || piece === "") return piece;
		if (!mayStop) return this.stopMatcher.flush().text + piece;
		const result = this.stopMatcher.push(piece);
		if (result.stopped !== undefined) {
			this.finishReason = "stop";
			this.stoppedHere = true;
		}
		return result.text;
	}

	private finish(reason: WireFinishReason): string {
		if (typeof reason === "object") throw new WorkerFinishError(reason.error);
		switch (reason) {
			case "length":
			case "content_filter":
				this.finishReason = reason;
				break;
			case "stop":
			case "eos":
			case "cancelled":
			case "abort":
				this.finishReason = "stop";
				break;
			case "error":
				throw new WorkerFinishError("the worker gave no reason");
			default:
				throw new WorkerFinishError(`unknown finish reason ${String(reason)}`);
		}
		return this.flush();
	}

	/** What the detokenizer and the stop matcher still hold, behind `before`. A stop string may turn up in it. */
	private flush(before = ""): string {
		const rest = before + this.detokenizer.flush();
		this.offset += rest.length;
		if (this.stopMatcher === undefined) return rest;
		const last = this.stopMatcher.push(rest);
		if (last.stopped === undefined) return last.text + this.stopMatcher.flush().text;
		this.finishReason = "stop";
		return last.text;
	}

	private addLogprob(id: number, output: LLMEngineOutput, position: number): void {
		const logprob = output.log_probs?.[position];
		if (logprob === undefined || logprob === null) return;
		const alternatives = this.rules.hideAlternatives ? [] : (output.top_logprobs?.[position] ?? []);
		// Only a worker that makes the text itself knows better what its tokens look like.
		const given = typeof output.text === "string" ? output.tokens?.[position] : undefined;
		const chosen = { ...tokenText(this.rules, id, given), logprob };
		const top = alternatives.map((other) => ({ ...this.alternativeText(other), logprob: other.logprob }));
		if (this.rules.topLogprobs > 0 && !alternatives.some(({ token_id }) => token_id === id)) top.push(chosen);
		this.pendingLogprobs.push({ ...chosen, tokenId: id, top, textOffset: this.offset });
	}

	/** What the worker says of it counts, but for bytes that its text does not have. */
	private alternativeText(top: TopLogprob): Omit<TokenAlternative, "logprob"> {
		const { token } = top;
		if (typeof token !== "string" || this.rules.tokensAsIds) return tokenText(this.rules, top.token_id);
		if (Array.isArray(top.bytes)) return { token, bytes: top.bytes };
		return { token, bytes: token.includes("\ufffd") ? tokenText(this.rules, top.token_id).bytes : bytesOf(token) };
	}

	/** Hands over the log-probabilities that are due; undefined when there are none. */
	takeLogprobs(): TokenLogprob[] | undefined {
		if (this.pendingLogprobs.length === 0) return undefined;
		const due = this.pendingLogprobs;
		this.pendingLogprobs = [];
		return due;
	}
}

/**
 * A token's own text and bytes; text that is part of a character shows as U+FFFD, the bytes tell what it is.
 * @param given the text that a worker gives it.
 */
export function tokenText(
	{ tokenizer, skipSpecialTokens, tokensAsIds }: ChoiceRules,
	id: number,
	given?: string | null,
): Omit<TokenAlternative, "logprob"> {
	if (typeof given === "string" && !tokensAsIds) return { token: given, bytes: bytesOf(given) };
	if (tokensAsIds) return { token: `token_id:${id}`, bytes: bytesOf(`token_id:${id}`) };
	const bytes = tokenizer.idToBytes(id);
	if (bytes === undefined || (skipSpecialTokens && tokenizer.isSpecial(id))) return { token: "", bytes: null };
	return { token: Buffer.from(bytes).toString("utf8"), bytes: [...bytes] };
}

function bytesOf(text: string): number[] | null {
	return text === "" ? null : [...Buffer.from(text, "utf8")];
}
