// SPDX-License-Identifier: Apache-2.0
// What can be seen of a cluster: the records of each custom resource whose owning pod is ready.
import { BUCKETS, type Bucket, isJsonObject } from "@dynamo-ts/protocols/internal";
import type { Logger } from "../../observability/logging.js";
import { errorText } from "../connection-report.js";
import { RecordView } from "../record-view.js";
import { type ReadyWorker, ReadyWorkers } from "./ready-pods.js";
import { type MetadataRecord, ownerPodUid, readWorkerMetadata } from "./worker-metadata.js";

interface KnownResource {
	readonly uid: unknown;
	readonly ownerUid: string | undefined;
	/** The last content that could be read; undefined if none yet. */
	readonly records: readonly MetadataRecord[] | undefined;
}

/**
 * Joins resources and readiness: a process' records are visible while its pod is ready and owns the resource (same uid).
 * One record that cannot be read spoils its resource, whose last good content then stays.
 */
export class KubeJoin {
	readonly views: ReadonlyMap<Bucket, RecordView>;
	readonly #log: Logger;
	readonly #ready = new ReadyWorkers();
	readonly #resources = new Map<string, KnownResource>();
	/** Key → name of the resource whose record is shown under it. */
	readonly #shownBy = new Map<string, string>();
	readonly #shown = new Map<string, readonly MetadataRecord[]>();

	constructor(log: Logger) {
		this.#log = log;
		this.views = new Map(BUCKETS.map((bucket) => [bucket, new RecordView(log)]));
	}

	/** Who an EndpointSlice or a Pod calls ready now. */
	setReady(object: string, ready: readonly ReadyWorker[]): void {
		for (const name of this.#ready.set(object, ready)) this.#refresh(name);
	}

	/** A custom resource is there, or is another now. */
	setResource(name: string, object: Readonly<Record<string, unknown>>): void {
		const uid = isJsonObject(object.metadata) ? object.metadata.uid : undefined;
		const ownerUid = ownerPodUid(object);
		let records: readonly MetadataRecord[] | undefined;
		try {
			records = readWorkerMetadata(object);
		} catch (error) {
			const before = this.#resources.get(name);
			if (before?.uid === uid && before?.ownerUid === ownerUid) records = before?.records;
			this.#log.warn("Failed to deserialize metadata from DynamoWorkerMetadata CR", {
				name,
				kept: records !== undefined,
				error: errorText(error),
			});
		}
		this.#resources.set(name, { uid, ownerUid, records });
		this.#refresh(name);
	}

	/** A custom resource is gone. */
	removeResource(name: string): void {
		this.#resources.delete(name);
		this.#refresh(name);
	}

	close(): void {
		for (const view of this.views.values()) view.close();
	}

	#refresh(name: string): void {
		const resource = this.#resources.get(name);
		const uid = this.#ready.uid(name);
		const visible = uid !== undefined && resource?.ownerUid === uid ? (resource.records ?? []) : [];
		const wanted = new Set(visible.map(({ key }) => key));
		for (const { key, bucket } of this.#shown.get(name) ?? []) {
			if (wanted.has(key) || this.#shownBy.get(key) !== name) continue;
			this.#shownBy.delete(key);
			this.views.get(bucket)?.remove(key);
		}
		for (const { key, bucket, text, record } of visible) {
			// Two processes that claim one record: the first one has it.
			if ((this.#shownBy.get(key) ?? name) !== name) continue;
			this.#shownBy.set(key, name);
			this.views.get(bucket)?.putRecord(key, text, record);
		}
		if (visible.length > 0) this.#shown.set(name, visible);
		else this.#shown.delete(name);
	}
}
