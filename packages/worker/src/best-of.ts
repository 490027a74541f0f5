// SPDX-License-Identifier: Apache-2.0
// best_of: the engine generates more choices than the client gets. They are kept until all have ended; the ones with the
// highest log-probability per token then go out, the best first.
import type { EngineOutput, EngineRequest, TopLogprob } from "@dynamo-ts/engine";

/** What a request with best_of above n asks for. */
export interface BestOfOptions {
	/** Choices that the client gets. */
	readonly n: number;
	/** Stop strings; text behind one must not count for the choice. */
	readonly stops: readonly string[];
	readonly minTokens: number;
	/** The client wants log-probabilities itself. */
	readonly withLogprobs: boolean;
}

/** Tells whether the text of a choice has come to a stop string; called with each of its tokens in order. */
export type StopScanner = (tokenId: number) => boolean;

interface Candidate {
	readonly index: number;
	readonly tokenIds: number[];
	readonly logProbs: number[];
	readonly topLogprobs: TopLogprob[][];
	readonly scan: StopScanner | undefined;
	sum: number;
	/** The output that ended it, or at which a stop string did. */
	last: EngineOutput | undefined;
}

/** @returns the request with which the engine makes the candidates: their ranking takes log-probabilities. */
export function candidateRequest(request: EngineRequest): EngineRequest {
	return { ...request, logprobs: request.logprobs ?? 0 };
}

/** Gathers the candidates of one request. */
export class BestOf {
	private readonly options: BestOfOptions;
	private readonly candidates: Candidate[];
	private promptLogprobs: EngineOutput["promptLogprobs"];
	private open: number;

	/** @param scanner makes one for each candidate; undefined when there are no stop strings. */
	constructor(count: number, options: BestOfOptions, scanner: (() => StopScanner) | undefined) {
		this.options = options;
		this.open = count;
		this.candidates = Array.from({ length: count }, (_, index) => ({
			index,
			tokenIds: [],
			logProbs: [],
			topLogprobs: [],
			scan: scanner?.(),
			sum: 0,
			last: undefined,
		}));
	}

	/**
	 * Takes an output that is no error.
	 * @returns what to send once the last candidate has ended: one output for each choice of the client.
	 */
	add(output: EngineOutput): EngineOutput[] | undefined {
		this.promptLogprobs ??= output.promptLogprobs;
		const candidate = this.candidates[output.index];
		if (candidate === undefined || candidate.last !== undefined) return undefined;
		for (let i = 0; i < output.tokenIds.length; i++) {
			const id = output.tokenIds[i]!;
			const logprob = output.logProbs?.[i] ?? 0;
			candidate.tokenIds.push(id);
			candidate.logProbs.push(logprob);
			candidate.topLogprobs.push(output.topLogprobs?.[i] ?? []);
			candidate.sum += logprob;
			const stopped = candidate.scan?.(id) === true && candidate.tokenIds.length >= this.options.minTokens;
			if (!stopped) continue;
			return this.end(candidate, { ...output, finishReason: "stop", stopReason: undefined });
		}
		return output.finishReason === undefined ? undefined : this.end(candidate, output);
	}

	private end(candidate: Candidate, last: EngineOutput): EngineOutput[] | undefined {
		candidate.last = last;
		this.open--;
		return this.open === 0 ? this.best() : undefined;
	}

	private best(): EngineOutput[] {
		const { n, withLogprobs } = this.options;
		const score = ({ sum, tokenIds }: Candidate): number => (tokenIds.length === 0 ? 0 : sum / tokenIds.length);
		const ranked = [...this.candidates].sort((a, b) => score(b) - score(a) || a.index - b.index);
		// All that was generated counts, as OpenAI counts it.
		const generated = this.candidates.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0);
		return ranked.slice(0, n).map(({ tokenIds, logProbs, topLogprobs, last }, index) => ({
			...last!,
			index,
			tokenIds,
			logProbs: withLogprobs ? logProbs : undefined,
			topLogprobs: withLogprobs ? topLogprobs : undefined,
			promptLogprobs: index === 0 ? this.promptLogprobs : undefined,
			completionTokens: generated,
		}));
	}
}
