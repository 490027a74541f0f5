// SPDX-License-Identifier: Apache-2.0
// Sampling where a device gives only the likeliest tokens of a row and the row's log-sum-exp. What is not at hand is
// bounded: each such logit is at most the smallest one given, and together they have the rest of the mass.

import { expNonPositive } from "./fast-exp.js";
import { editedLogit, hasEdits } from "./logit-edits.js";
import type { SamplerInput } from "./sampler.js";
import { isAllowed } from "./token-mask.js";
import { drawSorted, HEAD_SIZE, placeWithin } from "./vocabulary-draw.js";

/** Relative error that a row's mass may have: single precision, summed in parallel. */
const MASS_ERROR = 1e-4;

/** Reusable scratch; see `Sampler.sampleTop`. */
export class TopCandidates {
	private readonly vocabSize: number;
	private editedIds = new Int32Array(HEAD_SIZE);
	private editedValues = new Float32Array(HEAD_SIZE);
	private mass = new Float64Array(HEAD_SIZE);
	/** Bounds of the mass of the tokens that are not at hand, relative to the best candidate's. */
	private outsideLow = 0;
	private outsideHigh = 0;

	constructor(vocabSize: number) {
		this.vocabSize = vocabSize;
	}

	/** See `Sampler.sampleTop`. */
	sample(
		ids: Int32Array,
		logits: Float32Array,
		k: number,
		offset: number,
		logSumExp: number,
		input: SamplerInput,
	): number {
		const { params } = input;
		// Read once: a grammar may have to work for it.
		const mask = input.allowedTokens;
		const edited = mask !== undefined || hasEdits(input);
		if (edited && params.mayRaise) return -1;
		if (k > this.mass.length) this.mass = new Float64Array(k);
		if (edited) this.edit(ids, logits, k, offset, input, mask);
		const values = edited ? this.editedValues : logits;
		if (!Number.isFinite(values[edited ? 0 : offset]!)) return -1;
		const bound = k < this.vocabSize ? logits[offset + k - 1]! : Number.NEGATIVE_INFINITY;
		// How many stand in the order of the whole row: all as they came, of the edited ones those above the bound.
		let ordered = edited ? 0 : k;
		if (edited) while (ordered < k && values[ordered]! > bound) ordered++;
		if (ordered === 0) return -1;
		const place = params.greedy ? 0 : this.place(logits, k, offset, logSumExp, ordered, bound, edited, input);
		if (place < 0) return -1;
		return edited ? this.editedIds[place]! : ids[offset + place]!;
	}

	private place(
		logits: Float32Array,
		k: number,
		offset: number,
		logSumExp: number,
		ordered: number,
		bound: number,
		edited: boolean,
		{ params, random }: SamplerInput,
	): number {
		const { topK, topP, minP, temperature } = params;
		const { mass, vocabSize } = this;
		const values = edited ? this.editedValues : logits;
		const base = edited ? 0 : offset;
		const max = values[base]!;
		const inverse = 1 / temperature;
		const limited = topK > 0 && topK < vocabSize;
		if (limited && topK <= ordered) return drawSorted(values, base, topK, mass, params, random.nextFloat());
		if (minP > 0) {
			// Those that are likely enough are all at hand when what is outside cannot be among them.
			if (k < vocabSize && expNonPositive((bound - max) * inverse) >= minP) return -1;
			let likely = 0;
			while (likely < ordered && expNonPositive((values[base + likely]! - max) * inverse) >= minP) likely++;
			if (likely >= (limited ? topK : Math.min(HEAD_SIZE, k))) return -1;
			return drawSorted(values, base, likely, mass, params, random.nextFloat());
		}
		if (limited) return -1;
		let sum = 0;
		for (let i = 0; i < k; i++) {
			mass[i] = expNonPositive((values[base + i]! - max) * inverse);
			sum += mass[i]!;
		}
		this.boundOutside(logits, k, offset, logSumExp, max, bound, temperature, edited);
		const low = sum + this.outsideLow;
		const high = sum + this.outsideHigh;
		const place = placeWithin(mass, Math.min(ordered, HEAD_SIZE), low, high, topP, random.peekFloat());
		if (place >= 0) random.nextFloat();
		return place;
	}

	/** Puts the candidates, as edited, in order. */
	private edit(
		ids: Int32Array,
		logits: Float32Array,
		k: number,
		offset: number,
		input: SamplerInput,
		mask: Uint32Array | undefined,
	): void {
		if (k > this.editedIds.length) {
			this.editedIds = new Int32Array(k);
			this.editedValues = new Float32Array(k);
		}
		const { editedIds, editedValues } = this;
		for (let i = 0; i < k; i++) {
			const id = ids[offset + i]!;
			const own = logits[offset + i]!;
			const value = isAllowed(mask, id) ? editedLogit(own, id, input) : Number.NEGATIVE_INFINITY;
			// By insertion: few change places.
			let hole = i;
			for (; hole > 0; hole--) {
				const before = editedValues[hole - 1]!;
				if (before > value || (before === value && editedIds[hole - 1]! < id)) break;
				editedIds[hole] = editedIds[hole - 1]!;
				editedValues[hole] = before;
			}
			editedIds[hole] = id;
			editedValues[hole] = value;
		}
	}

	/**
	 * Bounds the mass at the request's temperature by that at temperature 1, which the log-sum-exp tells. With x = the
	 * mass of one token relative to that of the bound (at most 1) and p = 1 / temperature, that of the token is x^p:
	 * for p >= 1 the sum of x^p is at most the sum of x, for p < 1 at least that and, by Hölder's inequality, at most
	 * n^(1-p) times the p-th power of it. Edits only lower, so they leave the upper bound.
	 */
	private boundOutside(
		logits: Float32Array,
		k: number,
		offset: number,
		logSumExp: number,
		max: number,
		bound: number,
		temperature: number,
		edited: boolean,
	): void {
		this.outsideLow = 0;
		this.outsideHigh = 0;
		const outside = this.vocabSize - k;
		if (outside <= 0) return;
		const top = logits[offset]!;
		const total = Math.exp(logSumExp - top);
		let inside = 0;
		for (let i = 0; i < k; i++) inside += expNonPositive(logits[offset + i]! - top);
		const scale = Math.exp(top - bound);
		const most = Math.min(outside, Math.max(0, total * (1 + MASS_ERROR) - inside) * scale);
		const least = Math.max(0, total * (1 - MASS_ERROR) - inside) * scale;
		const power = 1 / temperature;
		const unit = Math.exp((bound - max) * power);
		this.outsideHigh = unit * (power >= 1 ? most : outside ** (1 - power) * most ** power);
		if (!edited && power <= 1) this.outsideLow = unit * Math.min(least, most);
	}
}
