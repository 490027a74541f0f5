// SPDX-License-Identifier: Apache-2.0
// Small dense numbers for (worker, rank) pairs, so that an index can keep its scores in typed arrays.
import type { WorkerRank } from "@dynamo-ts/protocols/internal";

/** Numbers workers' ranks from 0; the number of one that left goes to a later one. */
export class WorkerSlots {
	readonly #byWorker = new Map<bigint, Map<number, number>>();
	readonly #workers: (WorkerRank | undefined)[] = [];
	readonly #free: number[] = [];

	/** One more than the highest number that was ever given. */
	get capacity(): number {
		return this.#workers.length;
	}

	/** The rank's number; undefined when it has none. */
	find(workerId: bigint, dpRank: number): number | undefined {
		return this.#byWorker.get(workerId)?.get(dpRank);
	}

	/** The rank's number, a new one when it has none. */
	obtain(workerId: bigint, dpRank: number): number {
		const known = this.find(workerId, dpRank);
		if (known !== undefined) return known;
		const slot = this.#free.pop() ?? this.#workers.length;
		this.#workers[slot] = { workerId, dpRank };
		const ranks = this.#byWorker.get(workerId);
		if (ranks === undefined) this.#byWorker.set(workerId, new Map([[dpRank, slot]]));
		else ranks.set(dpRank, slot);
		return slot;
	}

	/** Gives the number back. Whoever keeps state by it must have forgotten it first. */
	release(slot: number): void {
		const worker = this.#workers[slot];
		if (worker === undefined) return;
		this.#workers[slot] = undefined;
		this.#free.push(slot);
		const ranks = this.#byWorker.get(worker.workerId);
		ranks?.delete(worker.dpRank);
		if (ranks?.size === 0) this.#byWorker.delete(worker.workerId);
	}

	/** Whose number it is. */
	workerOf(slot: number): WorkerRank | undefined {
		return this.#workers[slot];
	}
}
