// SPDX-License-Identifier: Apache-2.0
// Watches the sequence numbers of publishers: what is new, what came twice, what is missing.

/** Missing numbers that are remembered per publisher, in case they come late. */
const MAX_MISSING = 1024;
/** Publishers that are remembered; the one silent for longest is forgotten first. */
const MAX_PUBLISHERS = 10_000;

interface PublisherState {
	next: bigint;
	readonly missing: Set<bigint>;
}

export type SequenceVerdict =
	| { readonly kind: "new"; readonly gap?: { readonly from: bigint; readonly to: bigint } }
	/** One that was missing. */
	| { readonly kind: "late" }
	| { readonly kind: "duplicate" };

const NEW: SequenceVerdict = { kind: "new" };

/** The first message of a publisher may have any number: the subscriber may be the younger one. */
export class SequenceTracker {
	readonly #publishers = new Map<bigint, PublisherState>();

	/** Publishers that are remembered. */
	get size(): number {
		return this.#publishers.size;
	}

	see(publisherId: bigint, sequence: bigint): SequenceVerdict {
		const state = this.#publishers.get(publisherId);
		if (state === undefined) {
			if (this.#publishers.size >= MAX_PUBLISHERS) {
				for (const oldest of this.#publishers.keys()) {
					this.#publishers.delete(oldest);
					break;
				}
			}
			this.#publishers.set(publisherId, { next: sequence + 1n, missing: new Set() });
			return NEW;
		}
		if (sequence === state.next) {
			state.next++;
			return NEW;
		}
		if (sequence < state.next) return { kind: state.missing.delete(sequence) ? "late" : "duplicate" };
		const gap = { from: state.next, to: sequence - 1n };
		state.next = sequence + 1n;
		// The newest ones: those are the likeliest to be under way still.
		const first = gap.to - gap.from >= BigInt(MAX_MISSING) ? gap.to - BigInt(MAX_MISSING) + 1n : gap.from;
		for (let missing = first; missing <= gap.to; missing++) {
			if (state.missing.size >= MAX_MISSING) {
				for (const oldest of state.missing) {
					state.missing.delete(oldest);
					break;
				}
			}
			state.missing.add(missing);
		}
		return { kind: "new", gap };
	}

	forget(publisherId: bigint): void {
		this.#publishers.delete(publisherId);
	}
}
