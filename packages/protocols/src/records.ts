// SPDX-License-Identifier: Apache-2.0
import { parseModelCard } from "./card/parse-card.js";
import type {
	Bucket,
	DiscoveryRecord,
	EndpointId,
	EndpointRecord,
	EventChannelRecord,
	EventScope,
	EventSourceRecord,
	EventTransport,
	ModelRecord,
	TransportAddress,
} from "./discovery-records.js";
import { FieldReader } from "./field-reader.js";
import { parseJson } from "./json.js";

/** The type member of the records that a bucket holds. */
const TYPE_OF_BUCKET = {
	"v1/instances": "Endpoint",
	"v1/mdc": "Model",
	"v1/event_channels": "EventChannel",
	"v1/event_sources": "EventSource",
} as const satisfies Record<Bucket, DiscoveryRecord["type"]>;

function readTransport(record: FieldReader): TransportAddress {
	const object = record.object("transport");
	const kinds = Object.keys(object.value);
	if (kinds.length !== 1) object.fail("must have exactly one member: tcp or nats_tcp");
	if (kinds[0] === "tcp") return { tcp: object.string("tcp") };
	if (kinds[0] === "nats_tcp") return { nats_tcp: object.string("nats_tcp") };
	return object.fail(`knows tcp and nats_tcp, not ${JSON.stringify(kinds[0])}`);
}

function readInstance(record: FieldReader): Omit<EndpointRecord, "type"> {
	const instance: Omit<EndpointRecord, "type"> = {
		component: record.string("component"),
		endpoint: record.string("endpoint"),
		namespace: record.string("namespace"),
		instance_id: record.u64("instance_id"),
		transport: readTransport(record),
	};
	const device = record.optionalWord("device_type", ["cuda", "cpu"]);
	if (device !== undefined) instance.device_type = device;
	const codec = record.optionalWord("request_plane_codec", ["msgpack", "json"]);
	if (codec !== undefined) instance.request_plane_codec = codec;
	return instance;
}

/**
 * Checks an instance record as Dynamo 1.6.1 does: unknown members are ignored, unknown device types and codecs refused.
 *
 * @throws DynamoError InvalidArgument that names the member at fault.
 */
export function parseEndpointRecord(value: unknown): EndpointRecord {
	const record = new FieldReader(value, "Endpoint record");
	record.word("type", ["Endpoint"]);
	return { type: "Endpoint", ...readInstance(record) };
}

/**
 * Checks a model record and its card, see {@link parseModelCard}.
 *
 * @throws DynamoError InvalidArgument that names the member at fault.
 */
export function parseModelRecord(value: unknown): ModelRecord {
	const record = new FieldReader(value, "Model record");
	record.word("type", ["Model"]);
	const suffix = record.optionalString("model_suffix");
	if (suffix === "") record.fail("model_suffix must not be empty; leave it out for a base model");
	const model: ModelRecord = {
		type: "Model",
		namespace: record.string("namespace"),
		component: record.string("component"),
		endpoint: record.string("endpoint"),
		instance_id: record.u64("instance_id"),
		card_json: parseModelCard(record.member("card_json")),
	};
	if (suffix !== undefined) model.model_suffix = suffix;
	return model;
}

function readEndpointId(endpoint: FieldReader): EndpointId {
	return {
		namespace: endpoint.string("namespace"),
		component: endpoint.string("component"),
		name: endpoint.string("name"),
	};
}

function readScope(record: FieldReader): EventScope {
	const scope = record.object("scope");
	switch (scope.word("kind", ["namespace", "component", "endpoint"])) {
		case "namespace":
			return { kind: "namespace", name: scope.string("name") };
		case "component":
			return { kind: "component", namespace: scope.string("namespace"), component: scope.string("component") };
		case "endpoint":
			return { kind: "endpoint", endpoint: readEndpointId(scope.object("endpoint")) };
	}
}

function readEventTransport(record: FieldReader): EventTransport {
	const transport = record.object("transport");
	const kind = transport.word("kind", ["Zmq", "ZmqBroker", "Nats"]);
	const config = transport.object("config");
	switch (kind) {
		case "Zmq":
			return { kind, config: { endpoint: config.string("endpoint") } };
		case "ZmqBroker":
			return {
				kind,
				config: { xsub_endpoints: config.strings("xsub_endpoints"), xpub_endpoints: config.strings("xpub_endpoints") },
			};
		case "Nats":
			return { kind, config: { subject_prefix: config.string("subject_prefix") } };
	}
}

/**
 * Checks an event channel record; every member is required.
 *
 * @throws DynamoError InvalidArgument that names the member at fault.
 */
export function parseEventChannelRecord(value: unknown): EventChannelRecord {
	const record = new FieldReader(value, "EventChannel record");
	record.word("type", ["EventChannel"]);
	return {
		type: "EventChannel",
		scope: readScope(record),
		topic: record.string("topic"),
		instance_id: record.u64("instance_id"),
		transport: readEventTransport(record),
	};
}

/**
 * Checks an event source record; every member but `recovery_target` is required, and the publisher ids must agree.
 *
 * @throws DynamoError InvalidArgument that names the member at fault.
 */
export function parseEventSourceRecord(value: unknown): EventSourceRecord {
	const record = new FieldReader(value, "EventSource record");
	record.word("type", ["EventSource"]);
	const scope = readScope(record);
	const topic = record.string("topic");
	const publisherId = record.u64("publisher_id");
	const metadata = record.object("metadata");
	const worker = metadata.object("worker");
	const source: EventSourceRecord = {
		type: "EventSource",
		scope,
		topic,
		publisher_id: publisherId,
		metadata: {
			kv_state_endpoint: readEndpointId(metadata.object("kv_state_endpoint")),
			worker: { worker_id: worker.u64("worker_id"), dp_rank: worker.u32("dp_rank") },
			publisher_id: metadata.u64("publisher_id"),
		},
	};
	if (source.metadata.publisher_id !== publisherId) metadata.fail("publisher_id differs from the record's");
	if (metadata.has("recovery_target")) {
		const target = readInstance(metadata.object("recovery_target"));
		if (target.instance_id !== source.metadata.worker.worker_id) {
			metadata.fail("recovery_target.instance_id differs from worker.worker_id");
		}
		source.metadata.recovery_target = target;
	}
	return source;
}

/**
 * Checks a record of any kind, by its `type`.
 *
 * @throws DynamoError InvalidArgument that names the member at fault.
 */
export function parseDiscoveryRecord(value: unknown): DiscoveryRecord {
	const record = new FieldReader(value, "discovery record");
	switch (record.word("type", ["Endpoint", "Model", "EventChannel", "EventSource"])) {
		case "Endpoint":
			return parseEndpointRecord(value);
		case "Model":
			return parseModelRecord(value);
		case "EventChannel":
			return parseEventChannelRecord(value);
		case "EventSource":
			return parseEventSourceRecord(value);
	}
}

/**
 * Parses the stored JSON of a record and checks that it belongs into its bucket.
 *
 * @throws DynamoError InvalidArgument for a record at fault, SyntaxError for text that is not JSON.
 */
export function parseStoredRecord(bucket: Bucket, json: string | Uint8Array): DiscoveryRecord {
	const record = parseDiscoveryRecord(parseJson(json));
	if (record.type !== TYPE_OF_BUCKET[bucket]) {
		new FieldReader(record, "discovery record").fail(`of type ${record.type} does not belong into ${bucket}`);
	}
	return record;
}
