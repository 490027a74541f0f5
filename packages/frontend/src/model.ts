// SPDX-License-Identifier: Apache-2.0
import type { ModelType, WorkerType } from "@dynamo-ts/protocols/internal";
import type { BusyThresholds } from "@dynamo-ts/router";
import { inTurn } from "./worker-group.js";
import type { WorkerSet } from "./worker-set.js";

/** Readiness of one namespace of a model, as `/v1/models/{id}/ready` tells it. */
export interface NamespaceReadiness {
	ready: boolean;
	worker_types: Record<string, { workers: number; needs: WorkerType[][] }>;
	present: string[];
	missing_worker_types: string[];
}

/** A model by its public name (or an alias): all worker sets that serve it. */
export class Model {
	readonly name: string;
	readonly sets = new Set<WorkerSet>();
	private turn = 0;

	constructor(name: string) {
		this.name = name;
	}

	/** Sets that requests of this kind can go to once they and those that they need have live workers. */
	serving(type: ModelType): WorkerSet[] {
		return [...this.sets].filter((set) => set.committed && set.modelTypes.has(type) && set.answers);
	}

	/** Those of them that have what they need. */
	callable(type: ModelType): WorkerSet[] {
		return this.serving(type).filter((set) => set.needsMet);
	}

	/** Files of all its sets are there; before that it is still starting. */
	get committed(): boolean {
		for (const set of this.sets) if (!set.committed) return false;
		return true;
	}

	/** A request of some kind would find a worker now. */
	get ready(): boolean {
		for (const set of this.sets) {
			if (isReady(set)) return true;
		}
		return false;
	}

	/** The set whose turn it is; sets get turns in proportion to their live workers. Undefined: no live worker. */
	pick(type: ModelType): WorkerSet | undefined {
		const sets = this.callable(type);
		if (sets.length === 1) return (sets[0] as WorkerSet).candidates().length > 0 ? sets[0] : undefined;
		return inTurn(sets, this.turn++);
	}

	/** The limits above which its workers get no more; undefined while no set of it watches their load. */
	busyThresholds(): BusyThresholds | undefined {
		for (const set of this.sets) if (set.load !== undefined) return set.load.thresholds;
		return undefined;
	}

	/** Changes those limits that are given, for all its sets. */
	limit(thresholds: BusyThresholds): void {
		const given = Object.entries(thresholds).filter(([, limit]) => limit !== undefined);
		const all: BusyThresholds = { ...this.busyThresholds(), ...Object.fromEntries(given) };
		for (const set of this.sets) if (set.load !== undefined) set.load.thresholds = all;
	}

	/** Tokens of the largest context among the sets; 0: unknown. */
	get contextWindow(): number {
		return Math.max(0, ...[...this.sets].map((set) => set.contextWindow));
	}

	readiness(): { model: string; ready: boolean; namespaces: Record<string, NamespaceReadiness> } {
		const namespaces: Record<string, NamespaceReadiness> = {};
		for (const set of this.sets) {
			let entry = namespaces[set.namespace];
			if (entry === undefined) {
				entry = { ready: false, worker_types: {}, present: [], missing_worker_types: [] };
				namespaces[set.namespace] = entry;
			}
			const workers = set.candidates().length;
			const known = entry.worker_types[set.workerType];
			if (known === undefined) entry.worker_types[set.workerType] = { workers, needs: set.card.needs ?? [] };
			else known.workers += workers;
			if (workers > 0 && !entry.present.includes(set.workerType)) entry.present.push(set.workerType);
			if (isReady(set)) entry.ready = true;
		}
		for (const entry of Object.values(namespaces)) {
			const needed = Object.values(entry.worker_types).flatMap(({ needs }) => needs[0] ?? []);
			const types = [...Object.keys(entry.worker_types), ...needed];
			entry.missing_worker_types = [...new Set(types)].filter((type) => !entry.present.includes(type));
		}
		return { model: this.name, ready: this.ready, namespaces };
	}
}

function isReady(set: WorkerSet): boolean {
	return set.modelTypes.size > 0 && set.answers && set.needsMet && set.candidates().length > 0;
}
