// SPDX-License-Identifier: Apache-2.0
import type { BucketRange } from "./config.js";

/** Rounds to two significant digits; the detour over text avoids results like 0.022000000000000002. */
function twoDigits(value: number): number {
	return Number(value.toPrecision(2));
}

/**
 * Upper bounds of a histogram the way Dynamo computes them: `count` points in geometric steps from `min` to `max`,
 * each rounded to two significant digits, the first replaced by 0. Points that round to the same bound are merged.
 */
export function histogramBuckets({ min, max, count }: BucketRange): number[] {
	const ratio = (max / min) ** (1 / (count - 1));
	const bounds = [0];
	for (let i = 1; i < count; i++) {
		const bound = twoDigits(i === count - 1 ? max : min * ratio ** i);
		if (bound > (bounds.at(-1) as number)) bounds.push(bound);
	}
	return bounds;
}
