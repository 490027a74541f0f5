// SPDX-License-Identifier: Apache-2.0
// What a request would cost a worker, in blocks: the formula of Dynamo 1.6.1's KV router.

/** Weights of the cost; `--router-*` flags of the same names. */
export interface CostWeights {
	/** Blocks of prefill that a cached block saves. */
	readonly overlapScoreCredit: number;
	/** How fast that credit falls with the worker's prefill backlog; 0: not at all. */
	readonly overlapScoreCreditDecay: number;
	readonly prefillLoadScale: number;
	/** Added per request that the worker has already. */
	readonly decodeActiveRequestWeight: number;
	/** Credit of blocks in host memory and on disk. */
	readonly hostCacheHitWeight: number;
	readonly diskCacheHitWeight: number;
	/** Credit of blocks in a cache that workers share. */
	readonly sharedCacheMultiplier: number;
}

/** Dynamo's defaults. */
export const DEFAULT_COST_WEIGHTS: CostWeights = {
	overlapScoreCredit: 1,
	overlapScoreCreditDecay: 0,
	prefillLoadScale: 1,
	decodeActiveRequestWeight: 0,
	hostCacheHitWeight: 0.75,
	diskCacheHitWeight: 0.25,
	sharedCacheMultiplier: 0.5,
};

/** What is known of a worker and a request. */
export interface CostInputs {
	/** Tokens of a block. */
	readonly blockSize: number;
	/** Tokens of the prompt. */
	readonly promptTokens: number;
	/** Prompt tokens that the worker has still to compute for others, and the least of all eligible workers. */
	readonly activePrefillTokens: number;
	readonly leastActivePrefillTokens: number;
	/** Blocks of the prompt that the worker holds: in device memory, further ones in host memory, on disk, shared. */
	readonly deviceBlocks: number;
	readonly hostBlocks: number;
	readonly diskBlocks: number;
	readonly sharedBlocks: number;
	/** Blocks that would be in use at the worker with this request. */
	readonly decodeBlocks: number;
	/** Requests that it has, without this one. */
	readonly activeRequests: number;
}

/** A worker with nothing cached and nothing to do, and a prompt of no tokens: what inputs are made from. */
export function idleInputs(blockSize: number): CostInputs {
	return {
		blockSize,
		promptTokens: 0,
		activePrefillTokens: 0,
		leastActivePrefillTokens: 0,
		deviceBlocks: 0,
		hostBlocks: 0,
		diskBlocks: 0,
		sharedBlocks: 0,
		decodeBlocks: 0,
		activeRequests: 0,
	};
}

/** The cost in blocks; lower is better. Fractions of blocks are kept. */
export function workerCost(weights: CostWeights, inputs: CostInputs): number {
	const { blockSize, promptTokens, activePrefillTokens } = inputs;
	let credit = weights.overlapScoreCredit;
	if (weights.overlapScoreCreditDecay > 0) {
		const backlog = (activePrefillTokens - inputs.leastActivePrefillTokens) / blockSize;
		const ownBlocks = Math.max(1, Math.ceil(promptTokens / blockSize));
		credit /= 1 + (weights.overlapScoreCreditDecay * backlog) / ownBlocks;
	}
	const credited =
		credit * inputs.deviceBlocks +
		weights.hostCacheHitWeight * inputs.hostBlocks +
		weights.diskCacheHitWeight * inputs.diskBlocks +
		weights.sharedCacheMultiplier * inputs.sharedBlocks;
	const prefill = Math.max(0, (activePrefillTokens + promptTokens) / blockSize - credited);
	return (
		weights.prefillLoadScale * prefill + inputs.decodeBlocks + weights.decodeActiveRequestWeight * inputs.activeRequests
	);
}

/**
 * Draws one of `count` costs.
 * @param temperature 0: the lowest, any of equal ones; above, each with a probability that falls exponentially with
 * its distance from the lowest, measured in the range of all costs.
 * @param random a source of numbers in [0, 1).
 * @returns its index; -1 when there is none.
 */
export function drawByCost(
	costs: ArrayLike<number>,
	count: number,
	temperature: number,
	random: () => number = Math.random,
): number {
	let best = -1;
	let least = Number.POSITIVE_INFINITY;
	let most = Number.NEGATIVE_INFINITY;
	let equals = 0;
	for (let i = 0; i < count; i++) {
		const cost = costs[i] as number;
		if (cost > most) most = cost;
		if (cost < least) {
			best = i;
			least = cost;
			equals = 1;
		} else if (cost === least) {
			// Keeps each of k equals with probability 1/k without collecting them.
			equals++;
			if (random() * equals < 1) best = i;
		}
	}
	if (!(temperature > 0) || !(most > least)) return best;
	const scale = (most - least) * temperature;
	let sum = 0;
	for (let i = 0; i < count; i++) sum += Math.exp((least - (costs[i] as number)) / scale);
	let at = random() * sum;
	for (let i = 0; i < count; i++) {
		at -= Math.exp((least - (costs[i] as number)) / scale);
		if (at < 0) return i;
	}
	return best;
}
