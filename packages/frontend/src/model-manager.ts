// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type ModelType } from "@dynamo-ts/protocols/internal";
import { Model } from "./model.js";
import type { WorkerSet } from "./worker-set.js";

/** Told about the models that come and go; used for metrics. */
export interface ModelObserver {
	/** A set was committed. */
	onSet(set: WorkerSet): void;
	/** Whether requests for a model find a worker may have changed. */
	onReadiness(model: string, ready: boolean): void;
	/** The last set of a model is gone. */
	onGone(model: string): void;
}

/** The models that this frontend knows, by public name and alias. */
export class ModelManager {
	private readonly models = new Map<string, Model>();
	private readonly observer: ModelObserver | undefined;
	private readonly waiters = new Set<() => void>();

	constructor(observer?: ModelObserver) {
		this.observer = observer;
	}

	/** A model by its exact name. */
	find(name: string): Model | undefined {
		return this.models.get(name);
	}

	/** Models that can be called now, in the order of their names. */
	ready(): Model[] {
		return this.all().filter((model) => model.ready);
	}

	/** Any model of that kind is registered, whether its workers answer or not, and those that they need. */
	hasType(type: ModelType): boolean {
		for (const model of this.models.values()) if (model.serving(type).length > 0) return true;
		return false;
	}

	/** All models, in the order of their names. */
	all(): Model[] {
		return [...this.models.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
	}

	/** What the workers that answer a model's requests have in all; a prefill worker's part is in neither number. */
	workersOf(name: string): { maxRequests: number; cacheUsages: number[] } {
		const sets = [...(this.models.get(name)?.sets ?? [])].filter((set) => set.answers);
		return {
			maxRequests: sets.reduce((sum, set) => sum + set.maxRequests, 0),
			cacheUsages: sets.flatMap((set) => set.cacheUsages()),
		};
	}

	/** Number of names. */
	get size(): number {
		return this.models.size;
	}

	/** Resolves when a model can be called. @throws DynamoError `Unavailable` after `timeoutMs` milliseconds. */
	waitForReady(name: string, timeoutMs: number): Promise<void> {
		if (this.find(name)?.ready) return Promise.resolve();
		return new Promise((resolve, reject) => {
			const finish = (error?: DynamoError): void => {
				this.waiters.delete(look);
				clearTimeout(timer);
				if (error === undefined) resolve();
				else reject(error);
			};
			const look = (): void => {
				if (this.find(name)?.ready) finish();
			};
			const timer = setTimeout(
				() => finish(new DynamoError("Unavailable", `model ${name} was not ready within ${timeoutMs} ms`)),
				timeoutMs,
			);
			this.waiters.add(look);
		});
	}

	addSet(set: WorkerSet): void {
		for (const name of set.publicNames) {
			let model = this.models.get(name);
			if (model === undefined) {
				model = new Model(name);
				this.models.set(name, model);
			}
			model.sets.add(set);
		}
	}

	/** To be called when a set's parts are there. */
	committed(set: WorkerSet): void {
		this.observer?.onSet(set);
		this.refresh(set);
	}

	/** To be called when the live workers of a set changed: other sets of its group may need them. */
	refresh(set: WorkerSet): void {
		if (set.committed) for (const member of set.group.sets) this.tell(member);
		for (const look of [...this.waiters]) look();
	}

	private tell(set: WorkerSet): void {
		for (const name of set.publicNames) {
			const model = this.models.get(name);
			if (model !== undefined && set.committed) this.observer?.onReadiness(name, model.ready);
		}
	}

	removeSet(set: WorkerSet): void {
		set.group.sets.delete(set);
		for (const name of set.publicNames) {
			const model = this.models.get(name);
			if (model === undefined || !model.sets.delete(set)) continue;
			if (model.sets.size > 0) {
				this.observer?.onReadiness(name, model.ready);
			} else {
				this.models.delete(name);
				this.observer?.onGone(name);
			}
		}
		for (const member of set.group.sets) this.tell(member);
	}
}
