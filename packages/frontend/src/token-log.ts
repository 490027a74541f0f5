// SPDX-License-Identifier: Apache-2.0
// The tokens of one stream so far, kept so that another worker can go on with them.

const FIRST_CAPACITY = 64;

/** Token ids in the order in which they came, in a typed array that grows: adding one allocates nothing as a rule. */
export class TokenLog {
	private ids: Int32Array | undefined = new Int32Array(FIRST_CAPACITY);
	private readonly limit: number;
	private count = 0;

	/** @param limit most tokens that are kept; beyond it the log is given up and its memory freed. */
	constructor(limit: number) {
		this.limit = limit;
	}

	/** Tokens that were added. */
	get length(): number {
		return this.count;
	}

	/** True when there were more tokens than the limit allows. */
	get givenUp(): boolean {
		return this.ids === undefined;
	}

	push(ids: readonly number[]): void {
		const before = this.count;
		this.count += ids.length;
		if (this.ids === undefined) return;
		if (this.count > this.limit) {
			this.ids = undefined;
			return;
		}
		if (this.count > this.ids.length) {
			const grown = new Int32Array(Math.max(2 * this.ids.length, this.count));
			grown.set(this.ids);
			this.ids = grown;
		}
		for (let i = 0; i < ids.length; i++) this.ids[before + i] = ids[i] as number;
	}

	/** A prompt with everything that was added behind it. @throws Error when the log was given up. */
	after(prompt: readonly number[]): number[] {
		if (this.ids === undefined) throw new Error("the tokens were not kept");
		const all = prompt.slice();
		for (let i = 0; i < this.count; i++) all.push(this.ids[i] as number);
		return all;
	}
}
