// SPDX-License-Identifier: Apache-2.0
import type { Bucket, DiscoveryRecord } from "@dynamo-ts/protocols/internal";

/**
 * A change of a bucket. A `put` of a known key replaces the record. Deletes carry only the key
 * (`v1/instances/{ns}/{component}/{endpoint}/{id:x}`), because that is all that is left of the record.
 */
export type DiscoveryEvent =
	| { readonly type: "put"; readonly key: string; readonly record: DiscoveryRecord }
	| { readonly type: "delete"; readonly key: string };

/** A running watch; see {@link Discovery.watch}. */
export interface Watch {
	/** Ends the watch; no event is delivered after the call. Idempotent. */
	close(): void;
}

/** The names of the discovery backends that this runtime has. */
export type DiscoveryBackend = "mem" | "file" | "etcd" | "kubernetes";

/**
 * Where processes find each other: four flat buckets of small records, each owned by one process and gone soon
 * after that process is.
 */
export interface Discovery {
	readonly backend: DiscoveryBackend;
	/** The process' id, u64; all endpoint and model records of this process carry it. */
	readonly instanceId: bigint;
	/**
	 * Writes a record of this process, or replaces it. Resolves once other processes can see it. The record is kept
	 * alive until {@link delete} or {@link close}.
	 * @throws DynamoError `Unavailable` when the store cannot be written.
	 */
	put(record: DiscoveryRecord): Promise<void>;
	/** Removes a record of this process; removing one that is not there is no error. */
	delete(record: DiscoveryRecord): Promise<void>;
	/** Removes all records of this process; watches go on. First step of leaving. */
	deleteOwn(): Promise<void>;
	/** All readable records of a bucket now; unreadable ones are left out with a warning. */
	list(bucket: Bucket): Promise<DiscoveryRecord[]>;
	/**
	 * Calls `onEvent` for each record that is there (before the promise resolves) and then for each change, in
	 * order per key. `onEvent` must not throw.
	 */
	watch(bucket: Bucket, onEvent: (event: DiscoveryEvent) => void): Promise<Watch>;
	/** Deletes this process' records and ends all watches. Idempotent. */
	close(): Promise<void>;
}
