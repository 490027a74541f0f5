// SPDX-License-Identifier: Apache-2.0
// Count, sum and variance of lengths that come and go.

import type { LengthSummary } from "./engine.js";

export class LengthTally {
	count = 0;
	/** Tokens. */
	sum = 0;
	private squares = 0;

	add(length: number): void {
		this.count++;
		this.sum += length;
		this.squares += length * length;
	}

	/** Takes back an `add` of the same length. */
	remove(length: number): void {
		this.count--;
		this.sum -= length;
		this.squares -= length * length;
	}

	clear(): void {
		this.count = 0;
		this.sum = 0;
		this.squares = 0;
	}

	summary(): LengthSummary {
		const { count, sum } = this;
		const mean = count === 0 ? 0 : sum / count;
		return {
			requests: count,
			tokens: sum,
			variance: count === 0 ? 0 : Math.max(0, this.squares / count - mean * mean),
		};
	}
}
