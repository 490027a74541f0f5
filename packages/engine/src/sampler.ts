// SPDX-License-Identifier: Apache-2.0
// From logits to a token id, on the CPU. The order of operations is that of vLLM: stop mask, logit bias, penalties,
// temperature, min_p, top_k, top_p, draw. Nothing is allocated per token unless log-probabilities are asked for.

import type { TopLogprob } from "./engine.js";
import { expNonPositive } from "./fast-exp.js";
import type { Xoshiro128 } from "./prng.js";
import type { SamplingParams } from "./sampling-params.js";
import type { TokenCounts } from "./token-counts.js";
import { TopKSelector } from "./top-k-selector.js";

/** Bins of the nucleus search: `BINS_PER_NAT` for each factor of e below the likeliest token. */
const BINS = 2048;
const BINS_PER_NAT = 64;
/** Tokens that are tried as the nucleus before the whole vocabulary is binned. */
const HEAD_SIZE = 64;

/** What one draw depends on besides the logits. */
export interface SamplerInput {
	readonly params: SamplingParams;
	readonly random: Xoshiro128;
	/** Tokens seen so far; undefined when no penalty is set. */
	readonly tokenCounts: TokenCounts | undefined;
	/** Ids that must not be drawn now; empty when any may. */
	readonly maskedIds: readonly number[];
}

/** Log-probabilities of one generated token, before penalties and temperature. */
export interface TokenLogprobs {
	readonly logprob: number;
	readonly top: TopLogprob[];
}

/** Scratch for one vocabulary; one per engine thread. */
export class Sampler {
	private readonly selector = new TopKSelector();
	private readonly headMass = new Float64Array(HEAD_SIZE);
	private readonly allIds: Int32Array;
	private readonly candidateIds: Int32Array;
	private readonly candidateMass: Float64Array;
	private readonly candidateBins: Uint16Array;
	private readonly binMass = new Float64Array(BINS);
	private readonly boundaryLogits: Float32Array;
	private readonly boundaryPlaces: Int32Array;
	private editIds = new Int32Array(1024);
	private editValues = new Float32Array(1024);
	private edits = 0;
	private readonly vocabSize: number;

	constructor(vocabSize: number) {
		this.vocabSize = vocabSize;
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
	 * @returns the token id, or -1 when no logit is finite.
	 */
	sample(logits: Float32Array, offset: number, input: SamplerInput): number {
		this.edits = 0;
		this.edit(logits, offset, input);
		const { params } = input;
		let token: number;
		if (params.greedy) token = argmax(logits, offset, this.vocabSize);
		else if (params.topK > 0 && params.topK < this.vocabSize) token = this.drawTopK(logits, offset, input);
		else token = this.drawFromAll(logits, offset, input);
		// In reverse, because an id may have been edited twice.
		for (let i = this.edits - 1; i >= 0; i--) logits[offset + this.editIds[i]!] = this.editValues[i]!;
		return token;
	}

	/** Log-probability of `token` and of the `count` likeliest tokens, from logits as the model gave them. */
	logprobs(logits: Float32Array, offset: number, token: number, count: number): TokenLogprobs {
		const { vocabSize, selector } = this;
		const max = largest(logits, offset, vocabSize);
		let sum = 0;
		for (let i = offset, end = offset + vocabSize; i < end; i++) sum += expNonPositive(logits[i]! - max);
		const logSum = max + Math.log(sum);
		const top: TopLogprob[] = [];
		if (count > 0) {
			selector.select(logits, offset, vocabSize, count);
			for (let i = 0; i < selector.size; i++) {
				top.push({ rank: i + 1, tokenId: selector.ids[i]!, logprob: selector.values[i]! - logSum });
			}
		}
		return { logprob: logits[offset + token]! - logSum, top };
	}

	private edit(logits: Float32Array, offset: number, input: SamplerInput): void {
		const { params, tokenCounts, maskedIds } = input;
		for (let i = 0; i < maskedIds.length; i++) this.write(logits, offset, maskedIds[i]!, Number.NEGATIVE_INFINITY);
		const { biasIds, biasValues } = params;
		for (let i = 0; i < biasIds.length; i++) {
			const id = biasIds[i]!;
			this.write(logits, offset, id, logits[offset + id]! + biasValues[i]!);
		}
		if (tokenCounts === undefined) return;
		const { ids, counts } = tokenCounts;
		const { repetitionPenalty, frequencyPenalty, presencePenalty } = params;
		for (let i = 0; i < ids.length; i++) {
			const id = ids[i]!;
			const count = counts[i]!;
			let value = logits[offset + id]!;
			value = value > 0 ? value / repetitionPenalty : value * repetitionPenalty;
			if (count > 0) value -= frequencyPenalty * count + presencePenalty;
			this.write(logits, offset, id, value);
		}
	}

	private write(logits: Float32Array, offset: number, id: number, value: number): void {
		if (id < 0 || id >= this.vocabSize) return;
		if (this.edits === this.editIds.length) {
			const ids = new Int32Array(this.edits * 2);
			const values = new Float32Array(this.edits * 2);
			ids.set(this.editIds);
			values.set(this.editValues);
			this.editIds = ids;
			this.editValues = values;
		}
		this.editIds[this.edits] = id;
		this.editValues[this.edits++] = logits[offset + id]!;
		logits[offset + id] = value;
	}

	private drawTopK(logits: Float32Array, offset: number, { params, random }: SamplerInput): number {
		const { selector, candidateMass } = this;
		selector.select(logits, offset, this.vocabSize, params.topK);
		const { ids, values } = selector;
		const max = values[0]!;
		if (!Number.isFinite(max)) return -1;
		const inverse = 1 / params.temperature;
		let size = 0;
		let sum = 0;
		for (; size < selector.size; size++) {
			const mass = expNonPositive((values[size]! - max) * inverse);
			if (mass < params.minP) break;
			candidateMass[size] = mass;
			sum += mass;
		}
		if (params.topP < 1) {
			const wanted = params.topP * sum;
			let kept = 0;
			let mass = 0;
			while (kept < size && mass < wanted) mass += candidateMass[kept++]!;
			size = kept;
			sum = mass;
		}
		const place = drawPlace(candidateMass, size, random.nextFloat() * sum);
		return ids[place]!;
	}

	private drawFromAll(logits: Float32Array, offset: number, { params, random }: SamplerInput): number {
		const { vocabSize, candidateMass } = this;
		const max = largest(logits, offset, vocabSize);
		if (!Number.isFinite(max)) return -1;
		const inverse = 1 / params.temperature;
		const { minP, topP } = params;
		let sum = 0;
		if (minP > 0) {
			const size = this.collectLikely(logits, offset, max, params);
			for (let i = 0; i < size; i++) sum += candidateMass[i]!;
			if (topP < 1) sum = this.cutNucleus(logits, offset, this.candidateIds, size, sum, max, params);
			return this.candidateIds[drawPlace(candidateMass, size, random.nextFloat() * sum)]!;
		}
		for (let i = 0; i < vocabSize; i++) {
			const mass = expNonPositive((logits[offset + i]! - max) * inverse);
			candidateMass[i] = mass;
			sum += mass;
		}
		if (topP < 1) {
			const token = this.drawFromHead(logits, offset, topP * sum, random);
			if (token >= 0) return token;
			sum = this.cutNucleus(logits, offset, this.allIds, vocabSize, sum, max, params);
		}
		return drawPlace(candidateMass, vocabSize, random.nextFloat() * sum);
	}

	/** Fills the candidates with the tokens of at least `minP` times the largest mass. @returns how many. */
	private collectLikely(logits: Float32Array, offset: number, max: number, params: SamplingParams): number {
		const { vocabSize, candidateIds, candidateMass } = this;
		const { minP, temperature } = params;
		// Tokens below the floor need no exponential; the margin keeps rounding from dropping one on the edge.
		const floor = max + temperature * Math.log(minP) * 1.0001 - 1e-3;
		const inverse = 1 / temperature;
		let size = 0;
		for (let i = 0; i < vocabSize; i++) {
			const value = logits[offset + i]!;
			if (!(value >= floor)) continue;
			const mass = expNonPositive((value - max) * inverse);
			if (mass < minP) continue;
			candidateIds[size] = i;
			candidateMass[size++] = mass;
		}
		return size;
	}

	/** The usual case: the nucleus lies within the likeliest few. @returns -1 when it does not. */
	private drawFromHead(logits: Float32Array, offset: number, wanted: number, random: Xoshiro128): number {
		const { selector, candidateMass, headMass } = this;
		selector.select(logits, offset, this.vocabSize, HEAD_SIZE);
		let mass = 0;
		for (let i = 0; i < selector.size; i++) {
			const own = candidateMass[selector.ids[i]!]!;
			headMass[i] = own;
			mass += own;
			if (mass >= wanted) return selector.ids[drawPlace(headMass, i + 1, random.nextFloat() * mass)]!;
		}
		return -1;
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
			const bin = depth < BINS - 1 ? depth | 0 : BINS - 1;
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

/** Index of the largest logit, the first of equals; -1 when none is finite. */
export function argmax(logits: Float32Array, offset: number, length: number): number {
	const max = largest(logits, offset, length);
	if (!Number.isFinite(max)) return -1;
	let i = offset;
	while (logits[i] !== max) i++;
	return i - offset;
}

/** The largest number; NaN is passed over. Four running maxima, because one would wait for itself each time. */
function largest(logits: Float32Array, offset: number, length: number): number {
	let a = Number.NEGATIVE_INFINITY;
	let b = a;
	let c = a;
	let d = a;
	let i = offset;
	const end = offset + length;
	for (; i < end - 3; i += 4) {
		const v = logits[i]!;
		const w = logits[i + 1]!;
		const x = logits[i + 2]!;
		const y = logits[i + 3]!;
		if (v > a) a = v;
		if (w > b) b = w;
		if (x > c) c = x;
		if (y > d) d = y;
	}
	for (; i < end; i++) if (logits[i]! > a) a = logits[i]!;
	return Math.max(a, b, c, d);
}

/** The first place where the running mass passes `target`; rounding at the very end falls on the last one with mass. */
function drawPlace(mass: Float64Array, size: number, target: number): number {
	let running = 0;
	for (let i = 0; i < size; i++) {
		running += mass[i]!;
		if (running > target) return i;
	}
	let last = size - 1;
	while (last > 0 && mass[last] === 0) last--;
	return last;
}
