// SPDX-License-Identifier: Apache-2.0
// Which workers are ready, by the name of their custom resource, as EndpointSlices or Pods say.
import { isJsonObject } from "@dynamo-ts/protocols/internal";
import { containerResourceName } from "./kube-config.js";

/** A worker that an object calls ready. */
export interface ReadyWorker {
	readonly resourceName: string;
	/** Of its pod. */
	readonly uid: string;
}

/** The ready ones of an EndpointSlice. A condition that is absent does not count as ready. */
export function readyInSlice(slice: Readonly<Record<string, unknown>>): ReadyWorker[] {
	const ready: ReadyWorker[] = [];
	for (const endpoint of objectsOf(slice.endpoints)) {
		const conditions = isJsonObject(endpoint.conditions) ? endpoint.conditions : {};
		const target = isJsonObject(endpoint.targetRef) ? endpoint.targetRef : {};
		if (conditions.ready === true && isText(target.name) && isText(target.uid)) {
			ready.push({ resourceName: target.name, uid: target.uid });
		}
	}
	return ready;
}

/** The ready containers of a Pod. */
export function readyInPod(pod: Readonly<Record<string, unknown>>): ReadyWorker[] {
	const metadata = isJsonObject(pod.metadata) ? pod.metadata : {};
	const { name, uid } = metadata;
	if (!isText(name) || !isText(uid)) return [];
	const status = isJsonObject(pod.status) ? pod.status : {};
	return objectsOf(status.containerStatuses)
		.filter((container) => container.ready === true && isText(container.name))
		.map((container) => ({ resourceName: containerResourceName(name, container.name as string), uid }));
}

/** Counts who is called ready by any object. */
export class ReadyWorkers {
	readonly #byObject = new Map<string, readonly ReadyWorker[]>();
	/** Resource name → pod uid → how many objects say so. */
	readonly #counts = new Map<string, Map<string, number>>();

	/**
	 * What an object says now; nothing when it is gone.
	 * @returns the resource names that it concerned before or concerns now.
	 */
	set(object: string, ready: readonly ReadyWorker[]): Set<string> {
		const before = this.#byObject.get(object) ?? [];
		if (ready.length === 0) this.#byObject.delete(object);
		else this.#byObject.set(object, ready);
		for (const worker of ready) this.#count(worker, 1);
		for (const worker of before) this.#count(worker, -1);
		return new Set([...before, ...ready].map((worker) => worker.resourceName));
	}

	/** Uid of the ready pod of this name; undefined when none is, or when two of different uids claim the name. */
	uid(resourceName: string): string | undefined {
		const uids = this.#counts.get(resourceName);
		return uids?.size === 1 ? uids.keys().next().value : undefined;
	}

	#count({ resourceName, uid }: ReadyWorker, by: number): void {
		const uids = this.#counts.get(resourceName) ?? new Map<string, number>();
		const count = (uids.get(uid) ?? 0) + by;
		if (count > 0) uids.set(uid, count);
		else uids.delete(uid);
		if (uids.size > 0) this.#counts.set(resourceName, uids);
		else this.#counts.delete(resourceName);
	}
}

function objectsOf(value: unknown): Record<string, unknown>[] {
	return Array.isArray(value) ? value.filter(isJsonObject) : [];
}

function isText(value: unknown): value is string {
	return typeof value === "string" && value !== "";
}
