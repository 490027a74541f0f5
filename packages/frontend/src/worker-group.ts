// SPDX-License-Identifier: Apache-2.0
// The worker sets of one model in one namespace, whatever their part is: those that need others find them here.
import type { WorkerType } from "@dynamo-ts/protocols/internal";
import type { WorkerSet } from "./worker-set.js";

export class WorkerGroup {
	readonly sets = new Set<WorkerSet>();
	private turn = 0;

	/** A worker of that type is there, even if it is put aside for the moment. */
	has(type: WorkerType): boolean {
		for (const set of this.sets) if (set.workerType === type && set.live().length > 0) return true;
		return false;
	}

	/** The first of the sets that requests of clients can come to. */
	answeringSet(): WorkerSet | undefined {
		for (const set of this.sets) if (set.answers) return set;
		return undefined;
	}

	/**
	 * The prefill set whose turn it is; sets get turns in proportion to the workers that they have to offer. One whose
	 * workers are all put aside comes only when there is no other. Undefined: there is no prefill worker.
	 */
	prefillSet(): WorkerSet | undefined {
		const sets: WorkerSet[] = [];
		for (const set of this.sets) if (set.workerType === "prefill" && set.live().length > 0) sets.push(set);
		return sets.length < 2 ? sets[0] : (inTurn(sets, this.turn++) ?? sets[0]);
	}

	/** The prefill set that a worker belongs to. */
	prefillSetOf(instanceId: bigint): WorkerSet | undefined {
		for (const set of this.sets) {
			if (set.workerType === "prefill" && set.member(instanceId) !== undefined) return set;
		}
		return undefined;
	}
}

/** The set that a turn falls to when each gets as many as it has workers to offer; undefined when none has any. */
export function inTurn(sets: readonly WorkerSet[], turn: number): WorkerSet | undefined {
	let total = 0;
	for (const set of sets) total += set.candidates().length;
	if (total === 0) return undefined;
	let at = turn % total;
	return sets.find((set) => {
		at -= set.candidates().length;
		return at < 0;
	});
}
