// SPDX-License-Identifier: Apache-2.0
import { randomBytes } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { type Bucket, bucketOfKey, type DiscoveryRecord, recordKey } from "@dynamo-ts/protocols/internal";
import type { Discovery, DiscoveryEvent, Watch } from "./discovery.js";

/** What the runtimes of one process share with the mem backend. */
export interface MemStore {
	readonly records: Map<string, DiscoveryRecord>;
	readonly watches: Set<MemWatch>;
}

interface MemWatch {
	readonly bucket: Bucket;
	readonly onEvent: (event: DiscoveryEvent) => void;
}

/** A store of its own, for runtimes that should see each other and nobody else. */
export function createMemStore(): MemStore {
	return { records: new Map(), watches: new Set() };
}

let shared: MemStore | undefined;

/** The store of all runtimes of this process that were not given one. */
export function sharedMemStore(): MemStore {
	shared ??= createMemStore();
	return shared;
}

/** Any u64, as the file and mem backends use it for ids. */
export function randomInstanceId(): bigint {
	return randomBytes(8).readBigUInt64BE();
}

/** Discovery within one process. Events come in a microtask, never within the call that causes them. */
export class MemDiscovery implements Discovery {
	readonly backend = "mem";
	readonly instanceId = randomInstanceId();
	readonly #store: MemStore;
	readonly #own = new Set<string>();
	readonly #watches = new Set<MemWatch>();
	#closed = false;

	constructor(store: MemStore) {
		this.#store = store;
	}

	async put(record: DiscoveryRecord): Promise<void> {
		if (this.#closed) return;
		const key = recordKey(record);
		// A copy: what the caller changes later is not in the store, as with every other backend.
		const stored = structuredClone(record);
		this.#own.add(key);
		if (isDeepStrictEqual(this.#store.records.get(key), stored)) return;
		this.#store.records.set(key, stored);
		this.#tell({ type: "put", key, record: stored });
	}

	async delete(record: DiscoveryRecord): Promise<void> {
		this.#remove(recordKey(record));
	}

	async deleteOwn(): Promise<void> {
		for (const key of [...this.#own]) this.#remove(key);
	}

	async list(bucket: Bucket): Promise<DiscoveryRecord[]> {
		return [...this.#store.records].filter(([key]) => bucketOfKey(key) === bucket).map(([, record]) => record);
	}

	async watch(bucket: Bucket, onEvent: (event: DiscoveryEvent) => void): Promise<Watch> {
		const watch: MemWatch = { bucket, onEvent };
		for (const [key, record] of this.#store.records) {
			if (bucketOfKey(key) === bucket) onEvent({ type: "put", key, record });
		}
		this.#watches.add(watch);
		this.#store.watches.add(watch);
		return {
			close: () => {
				this.#watches.delete(watch);
				this.#store.watches.delete(watch);
			},
		};
	}

	async close(): Promise<void> {
		this.#closed = true;
		for (const watch of this.#watches) this.#store.watches.delete(watch);
		this.#watches.clear();
		await this.deleteOwn();
	}

	#remove(key: string): void {
		this.#own.delete(key);
		if (this.#store.records.delete(key)) this.#tell({ type: "delete", key });
	}

	#tell(event: DiscoveryEvent): void {
		const bucket = bucketOfKey(event.key);
		for (const watch of this.#store.watches) {
			if (watch.bucket !== bucket) continue;
			queueMicrotask(() => {
				if (this.#store.watches.has(watch)) watch.onEvent(event);
			});
		}
	}
}
