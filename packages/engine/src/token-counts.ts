// SPDX-License-Identifier: Apache-2.0
// Which tokens a sequence has seen, kept sparse: penalties cost by distinct tokens, not by vocabulary.

/** Distinct tokens with the number of times each was generated; prompt tokens have count 0 until generated. */
export class TokenCounts {
	readonly ids: number[] = [];
	readonly counts: number[] = [];
	private readonly places = new Map<number, number>();

	/** How often a token was generated, 0 for one that is only in the prompt; undefined for one that was not seen. */
	countOf(id: number): number | undefined {
		const place = this.places.get(id);
		return place === undefined ? undefined : this.counts[place];
	}

	/** Notes a token of the prompt (seen, but not generated). */
	addPromptToken(id: number): void {
		if (this.places.has(id)) return;
		this.places.set(id, this.ids.length);
		this.ids.push(id);
		this.counts.push(0);
	}

	/** Notes a generated token. */
	addOutputToken(id: number): void {
		const place = this.places.get(id);
		if (place !== undefined) {
			this.counts[place]!++;
			return;
		}
		this.places.set(id, this.ids.length);
		this.ids.push(id);
		this.counts.push(1);
	}
}
