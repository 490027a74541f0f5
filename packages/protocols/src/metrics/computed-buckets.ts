// SPDX-License-Identifier: Apache-2.0

/** Range of a histogram's bounds: `count` points from `min` to `max`, in the unit of the metric. */
export interface BucketRange {
	readonly min: number;
	readonly max: number;
	readonly count: number;
}

/** Ranges that Dynamo 1.6.1 computes bounds from; DYN_METRICS_{TTFT,ITL,...}_{MIN,MAX,COUNT} change the frontend's. */
export const BUCKET_RANGES = {
	timeToFirstTokenSeconds: { min: 0.001, max: 480, count: 18 },
	interTokenLatencySeconds: { min: 0.001, max: 80, count: 20 },
	inputSequenceTokens: { min: 50, max: 128000, count: 12 },
	outputSequenceTokens: { min: 50, max: 32000, count: 10 },
	requestDurationSeconds: { min: 1, max: 512, count: 10 },
	routerInterTokenLatencySeconds: { min: 0.001, max: 2, count: 13 },
	kvTransferSeconds: { min: 0.001, max: 10, count: 15 },
	mutationWaitSeconds: { min: 0.000001, max: 1, count: 16 },
} as const satisfies Record<string, BucketRange>;

/**
 * Upper bounds the way Dynamo computes them: geometric steps, each rounded to two significant digits, the first replaced
 * by 0. Points that round to the same bound are merged.
 *
 * @throws RangeError unless 0 < min < max and count is an integer from 2 on.
 */
export function computedBuckets({ min, max, count }: BucketRange): number[] {
	if (!(min > 0 && min < max && Number.isFinite(max) && Number.isInteger(count) && count >= 2)) {
		throw new RangeError(
			`buckets need 0 < min < max and at least 2 points, got min ${min}, max ${max}, count ${count}`,
		);
	}
	const ratio = (max / min) ** (1 / (count - 1));
	const bounds = [0];
	for (let i = 1; i < count; i++) {
		const point = i === count - 1 ? max : min * ratio ** i;
		// By way of text: rounding in binary leaves tails such as 0.022000000000000002.
		const bound = Number(point.toPrecision(2));
		if (bound > (bounds.at(-1) as number)) bounds.push(bound);
	}
	return bounds;
}
