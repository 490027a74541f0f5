// SPDX-License-Identifier: Apache-2.0
// From logits to a token id, on the CPU. The order of operations is that of vLLM: masks, logit bias, penalties,
// temperature, min_p, top_k, top_p, draw. Nothing is allocated per token unless log-probabilities are asked for.

import type { PromptLogprob, TopLogprob } from "./engine.js";
import { expNonPositive } from "./fast-exp.js";
import { LogitEdits } from "./logit-edits.js";
import type { Xoshiro128 } from "./prng.js";
import { ROUGH_FACTOR, ROUGH_REST, roughMass, roughOf } from "./rough-mass.js";
import type { SamplingParams } from "./sampling-params.js";
import type { TokenCounts } from "./token-counts.js";
import { isAllowed } from "./token-mask.js";
import { TopCandidates } from "./top-candidates.js";
import { TopKSelector } from "./top-k-selector.js";
import { argmax, drawPlace, drawSorted, HEAD_SIZE, largest, placeWithin } from "./vocabulary-draw.js";

/** Bins of the nucleus search: `BINS_PER_NAT` for each factor of e below the likeliest token. */
const BINS = 2048;
const BINS_PER_NAT = 64;

/** What one draw depends on besides the logits. */
export interface SamplerInput {
	readonly params: SamplingParams;
	readonly random: Xoshiro128;
	/** Tokens seen so far; undefined when no penalty is set. */
	readonly tokenCounts: TokenCounts | undefined;
	/** Ids that must not be drawn now; empty when any may. */
	readonly maskedIds: readonly number[];
	/** The only tokens that may be drawn now, as a mask (see `TokenMask`); undefined = all. */
	readonly allowedTokens?: Uint32Array | undefined;
}

/** Log-probabilities of one generated token, before penalties and temperature. */
export interface TokenLogprobs {
	readonly logprob: number;
	readonly top: TopLogprob[];
}

/** Scratch for one vocabulary; one per engine thread. */
export class Sampler {
	private readonly selector = new TopKSelector();
	private readonly edits: LogitEdits;
	private readonly candidates: TopCandidates;
	private readonly headMass = new Float64Array(HEAD_SIZE);
	private readonly allIds: Int32Array;
	private readonly candidateIds: Int32Array;
	private readonly candidateMass: Float64Array;
	private readonly candidateBins: Uint16Array;
	private readonly binMass = new Float64Array(BINS);
	private readonly boundaryLogits: Float32Array;
	private readonly boundaryPlaces: Int32Array;
	private readonly vocabSize: number;

	constructor(vocabSize: number) {
		this.vocabSize = vocabSize;
		this.edits = new LogitEdits(vocabSize);
		this.candidates = new TopCandidates(vocabSize);
		this.allIds = Int32Array.from({ length: vocabSize }, (_, i) => i);
		this.candidateIds = new Int32Array(vocabSize);
		this.candidateMass = new Float64Array(vocabSize);
		this.candidateBins = new Uint16Array(vocabSize);
		this.boundaryLogits = new Float32Array(vocabSize);
		this.boundaryPlaces = new Int32Array(vocabSize);
	}

	/**
	 * Draws one token from `logits[offset .. offset + vocabSize - 1]`. The logits are changed while it runs and are
	 * as before when it returns, so that several choices may draw from the same ones.
	 *
	 * To verify a draft of speculative decoding, draw as if there were none: the draft is accepted when the token is the
	 * draft, else the token stands in its place. For a drafter that proposes one token this is speculative sampling
	 * (accept with the draft's probability, otherwise draw from the others), and it takes the same random numbers, so
	 * that a seed gives the same text with drafts and without.
	 * @returns the token id, or -1 when no logit is finite.
	 */
	sample(logits: Float32Array, offset: number, input: SamplerInput): number {
		this.edits.apply(logits, offset, input);
		const { params, allowedTokens } = input;
		let token: number;
		if (params.greedy) token = argmax(logits, offset, this.vocabSize, allowedTokens);
		else if (params.topK > 0 && params.topK < this.vocabSize) token = this.drawTopK(logits, offset, input);
		else token = this.drawFromAll(logits, offset, input);
		this.edits.undo(logits, offset);
		return token;
	}

	/**
	 * Draws from a row of which only the likeliest tokens are at hand, where that is enough to know what `sample` would
	 * draw from the whole row with the same random numbers.
	 * @param ids the k likeliest tokens at `offset`, likeliest first, the lower id first among equals.
	 * @param logits their logits, as the model gave them.
	 * @param logSumExp of the whole row, to within 1e-4.
	 * @returns the token id; -1 when it takes the whole row, and then no random number was used.
	 */
	sampleTop(
		ids: Int32Array,
		logits: Float32Array,
		k: number,
		offset: number,
		logSumExp: number,
		input: SamplerInput,
	): number {
		return this.candidates.sample(ids, logits, k, offset, logSumExp, input);
	}

	/** Log-probability of `token` and of the `count` likeliest tokens, from logits as the model gave them. */
	logprobs(logits: Float32Array, offset: number, token: number, count: number): TokenLogprobs {
		const logSum = this.logSumExp(logits, offset);
		return { logprob: logits[offset + token]! - logSum, top: this.likeliest(logits, offset, logSum, count) };
	}

	/**
	 * What a row of logits says of the prompt's next token.
	 * @param count likeliest tokens to name beside it.
	 */
	promptLogprob(logits: Float32Array, offset: number, token: number, count: number): PromptLogprob {
		const logSum = this.logSumExp(logits, offset);
		const own = logits[offset + token]!;
		let rank = 1;
		for (let i = offset, end = offset + this.vocabSize; i < end; i++) if (logits[i]! > own) rank++;
		return { tokenId: token, logprob: own - logSum, rank, top: this.likeliest(logits, offset, logSum, count) };
	}

	private logSumExp(logits: Float32Array, offset: number): number {
		const max = largest(logits, offset, this.vocabSize);
		let sum = 0;
		for (let i = offset, end = offset + this.vocabSize; i < end; i++) sum += expNonPositive(logits[i]! - max);
		return max + Math.log(sum);
	}

	private likeliest(logits: Float32Array, offset: number, logSum: number, count: number): TopLogprob[] {
		const { selector } = this;
		const top: TopLogprob[] = [];
		if (count === 0) return top;
		selector.select(logits, offset, this.vocabSize, count);
		for (let i = 0; i < selector.size; i++) {
			top.push({ rank: i + 1, tokenId: selector.ids[i]!, logprob: selector.values[i]! - logSum });
		}
		return top;
	}

	private drawTopK(logits: Float32Array, offset: number, { params, random, allowedTokens }: SamplerInput): number {
		const { selector, candidateMass } = this;
		selector.select(logits, offset, this.vocabSize, params.topK, allowedTokens);
		if (!Number.isFinite(selector.values[0]!)) return -1;
		return selector.ids[drawSorted(selector.values, 0, selector.size, candidateMass, params, random.nextFloat())]!;
	}

	/** The likeliest few come first in the order of the draw: often they decide it, and a device can give them alone. */
	private drawFromAll(logits: Float32Array, offset: number, { params, random, allowedTokens }: SamplerInput): number {
		const { vocabSize, candidateMass, candidateIds, selector, headMass } = this;
		selector.select(logits, offset, vocabSize, HEAD_SIZE, allowedTokens);
		const { ids, values, size } = selector;
		const max = values[0]!;
		if (!Number.isFinite(max)) return -1;
		const { minP, topP } = params;
		const inverse = 1 / params.temperature;
		if (minP > 0) {
			if (expNonPositive((values[size - 1]! - max) * inverse) < minP) {
				return ids[drawSorted(values, 0, size, headMass, params, random.nextFloat())]!;
			}
			const likely = this.collectLikely(logits, offset, max, params, allowedTokens);
			let sum = 0;
			for (let i = 0; i < likely; i++) sum += candidateMass[i]!;
			if (topP < 1) sum = this.cutNucleus(logits, offset, candidateIds, likely, sum, max, params);
			return candidateIds[drawPlace(candidateMass, likely, random.nextFloat() * sum)]!;
		}
		const uniform = random.nextFloat();
		let head = 0;
		let outside = roughMass(logits, offset, vocabSize, max, params.temperature, allowedTokens);
		for (let i = 0; i < size; i++) {
			headMass[i] = expNonPositive((values[i]! - max) * inverse);
			head += headMass[i]!;
			outside -= roughOf(values[i]!, max, params.temperature);
		}
		// What is left of a sum after a subtraction is off by a little of the sum.
		const slack = vocabSize * ROUGH_REST + head * 1e-9;
		const low = head + Math.max(0, outside / ROUGH_FACTOR - slack);
		const high = head + Math.max(0, outside * ROUGH_FACTOR) + slack;
		const place = placeWithin(headMass, size, low, high, topP, uniform);
		if (place >= 0) return ids[place]!;
		const sum = this.fillMass(logits, offset, max, inverse, allowedTokens);
		return topP < 1
			? this.drawNucleus(logits, offset, sum, max, params, uniform)
			: this.drawHeadFirst(sum, uniform * sum);
	}

	private drawNucleus(
		logits: Float32Array,
		offset: number,
		sum: number,
		max: number,
		params: SamplingParams,
		uniform: number,
	): number {
		const { candidateMass, headMass, selector } = this;
		let mass = 0;
		for (let i = 0; i < selector.size; i++) {
			mass += headMass[i]!;
			if (mass >= params.topP * sum) return selector.ids[drawPlace(headMass, i + 1, uniform * mass)]!;
		}
		const nucleus = this.cutNucleus(logits, offset, this.allIds, this.vocabSize, sum, max, params);
		return drawPlace(candidateMass, this.vocabSize, uniform * nucleus);
	}

	private drawHeadFirst(sum: number, target: number): number {
		const { candidateMass, headMass, selector } = this;
		const { ids, size } = selector;
		let running = 0;
		for (let i = 0; i < size; i++) {
			running += headMass[i]!;
			if (running > target) return ids[i]!;
			candidateMass[ids[i]!] = 0;
		}
		const token = drawPlace(candidateMass, this.vocabSize, target - running);
		// Nothing but the head has mass, and rounding let the target pass it.
		return candidateMass[token]! > 0 ? token : ids[drawPlace(headMass, size, sum)]!;
	}

	/** Sets the mass of every token, relative to the likeliest; 0 for those that may not be drawn. @returns the sum. */
	private fillMass(
		logits: Float32Array,
		offset: number,
		max: number,
		inverse: number,
		mask: Uint32Array | undefined,
	): number {
		const { vocabSize, candidateMass } = this;
		let sum = 0;
		if (mask === undefined) {
			for (let i = 0; i < vocabSize; i++) {
				const mass = expNonPositive((logits[offset + i]! - max) * inverse);
				candidateMass[i] = mass;
				sum += mass;
			}
			return sum;
		}
		candidateMass.fill(0);
		for (let first = 0, word = 0; first < vocabSize; first += 32, word++) {
			if ((mask[word] ?? 0) === 0) continue;
			for (let i = first, end = Math.min(first + 32, vocabSize); i < end; i++) {
				if (!isAllowed(mask, i)) continue;
				const mass = expNonPositive((logits[offset + i]! - max) * inverse);
				candidateMass[i] = mass;
				sum += mass;
			}
		}
		return sum;
	}

	/** Fills the candidates with the tokens of at least `minP` times the largest mass. @returns how many. */
	private collectLikely(
		logits: Float32Array,
		offset: number,
		max: number,
		params: SamplingParams,
		mask: Uint32Array | undefined,
	): number {
		const { vocabSize, candidateIds, candidateMass } = this;
		const { minP, temperature } = params;
		// Tokens below the floor need no exponential; the margin keeps rounding from dropping one on the edge.
		const floor = max + temperature * Math.log(minP) * 1.0001 - 1e-3;
		const inverse = 1 / temperature;
		let size = 0;
		for (let i = 0; i < vocabSize; i++) {
			const value = logits[offset + i]!;
			if (!(value >= floor) || !isAllowed(mask, i)) continue;
			const mass = expNonPositive((value - max) * inverse);
			if (mass < minP) continue;
			candidateIds[size] = i;
			candidateMass[size++] = mass;
		}
		return size;
	}

	/**
	 * Sets the mass of every candidate outside the nucleus to 0. Exact without a sort of the vocabulary: masses are
	 * summed into bins by logit; only the bin in which the wanted mass is reached is put in order. `ids` are the
	 * tokens of the candidates.
	 * @returns the mass of the nucleus.
	 */
	private cutNucleus(
		logits: Float32Array,
		offset: number,
		ids: Int32Array,
		size: number,
		sum: number,
		max: number,
		params: SamplingParams,
	): number {
		const { candidateMass, candidateBins, binMass, boundaryLogits, boundaryPlaces, selector } = this;
		const wanted = params.topP * sum;
		const scale = BINS_PER_NAT / params.temperature;
		binMass.fill(0);
		for (let i = 0; i < size; i++) {
			const depth = (max - logits[offset + ids[i]!]!) * scale;
			// Below 0 only for tokens that the mask excludes; they have no mass.
			const bin = depth < BINS - 1 ? Math.max(0, depth | 0) : BINS - 1;
			candidateBins[i] = bin;
			binMass[bin]! += candidateMass[i]!;
		}
		let mass = 0;
		let boundary = 0;
		while (boundary < BINS - 1 && mass + binMass[boundary]! < wanted) mass += binMass[boundary++]!;
		let inBoundary = 0;
		for (let i = 0; i < size; i++) {
			const bin = candidateBins[i]!;
			if (bin < boundary) continue;
			if (bin === boundary) {
				boundaryPlaces[inBoundary] = i;
				boundaryLogits[inBoundary++] = logits[offset + ids[i]!]!;
			} else candidateMass[i] = 0;
		}
		// k = all of them: the selector then is a heap sort, likeliest first, lower id first among equals.
		selector.select(boundaryLogits, 0, inBoundary, inBoundary);
		for (let i = 0; i < inBoundary; i++) {
			const place = boundaryPlaces[selector.ids[i]!]!;
			if (mass < wanted) mass += candidateMass[place]!;
			else candidateMass[place] = 0;
		}
		return mass;
	}
}
