// SPDX-License-Identifier: Apache-2.0
// The custom resource DynamoWorkerMetadata: all records of one process, read from and written to its spec.data.
import {
	BUCKETS,
	type Bucket,
	bucketOfKey,
	type DiscoveryRecord,
	isJsonObject,
	parseDiscoveryRecord,
	recordKey,
	stringifyJson,
} from "@dynamo-ts/protocols/internal";
import type { KubeIdentity } from "./kube-config.js";

/** API group, version and plural of the custom resource. */
export const WORKER_METADATA = {
	group: "nvidia.com",
	version: "v1alpha1",
	kind: "DynamoWorkerMetadata",
	plural: "dynamoworkermetadatas",
} as const;

/** The map in `spec.data` that holds a bucket's records. */
const MAP_OF_BUCKET: { readonly [B in Bucket]: string } = {
	"v1/instances": "endpoints",
	"v1/mdc": "model_cards",
	"v1/event_channels": "event_channels",
	"v1/event_sources": "event_sources",
};

/** A record as it stands in the resource of a process. */
export interface MetadataRecord {
	readonly key: string;
	readonly bucket: Bucket;
	readonly text: string;
	readonly record: DiscoveryRecord;
}

/** Uid of the pod that owns an object: the first owner of kind Pod. */
export function ownerPodUid(object: Readonly<Record<string, unknown>>): string | undefined {
	const owners = isJsonObject(object.metadata) ? object.metadata.ownerReferences : undefined;
	if (!Array.isArray(owners)) return undefined;
	const pod = owners.find((owner) => isJsonObject(owner) && owner.kind === "Pod");
	return pod !== undefined && typeof pod.uid === "string" && pod.uid !== "" ? pod.uid : undefined;
}

/**
 * All records of a resource. A map may be missing or null; the maps' keys mean nothing.
 * @throws DynamoError `InvalidArgument` when one of them cannot be read: then none counts.
 */
export function readWorkerMetadata(object: Readonly<Record<string, unknown>>): MetadataRecord[] {
	const data = isJsonObject(object.spec) ? object.spec.data : undefined;
	if (!isJsonObject(data)) throw new Error("spec.data is not an object");
	const records: MetadataRecord[] = [];
	for (const bucket of BUCKETS) {
		const map = data[MAP_OF_BUCKET[bucket]] ?? {};
		if (!isJsonObject(map)) throw new Error(`spec.data.${MAP_OF_BUCKET[bucket]} is not an object`);
		for (const value of Object.values(map)) {
			const record = parseDiscoveryRecord(withScope(value));
			const key = recordKey(record);
			if (bucketOfKey(key) !== bucket)
				throw new Error(`a record of type ${record.type} is in ${MAP_OF_BUCKET[bucket]}`);
			records.push({ key, bucket, text: stringifyJson(record), record });
		}
	}
	return records;
}

/** An event channel as Dynamo 1.2 wrote it has namespace and component instead of a scope. */
function withScope(value: unknown): unknown {
	if (!isJsonObject(value) || value.type !== "EventChannel" || value.scope !== undefined) return value;
	const { namespace, component } = value;
	return { ...value, scope: { kind: "component", namespace, component } };
}

/** The complete object that makes `records` the content of the process' resource; the body of a server-side apply. */
export function workerMetadataBody(identity: KubeIdentity, records: ReadonlyMap<string, DiscoveryRecord>): string {
	const data: Record<string, Record<string, unknown>> = {};
	for (const bucket of BUCKETS) data[MAP_OF_BUCKET[bucket]] = {};
	for (const [key, record] of records) {
		const bucket = bucketOfKey(key) as Bucket;
		const map = data[MAP_OF_BUCKET[bucket]] as Record<string, unknown>;
		map[key.slice(bucket.length + 1)] = record.type === "EventChannel" ? { ...record, ...oldScope(record) } : record;
	}
	const { podName, podUid, resourceName } = identity;
	return stringifyJson({
		apiVersion: `${WORKER_METADATA.group}/${WORKER_METADATA.version}`,
		kind: WORKER_METADATA.kind,
		metadata: {
			name: resourceName,
			ownerReferences: [
				{
					apiVersion: "v1",
					kind: "Pod",
					name: podName,
					uid: podUid,
					controller: resourceName === podName,
					blockOwnerDeletion: false,
				},
			],
		},
		spec: { data },
	});
}

/** What readers of Dynamo 1.2 look for in an event channel. */
function oldScope({ scope }: Extract<DiscoveryRecord, { type: "EventChannel" }>): Record<string, string> {
	switch (scope.kind) {
		case "namespace":
			return { namespace: scope.name };
		case "component":
			return { namespace: scope.namespace, component: scope.component };
		case "endpoint":
			return { namespace: scope.endpoint.namespace, component: scope.endpoint.component };
	}
}
