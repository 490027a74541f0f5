// SPDX-License-Identifier: Apache-2.0
import type { ModelDeploymentCard } from "./model-card.js";

/** Namespace, component and endpoint name of a served endpoint. */
export interface EndpointId {
	namespace: string;
	component: string;
	name: string;
}

export type RequestPlaneCodec = "msgpack" | "json";
export type DeviceType = "cuda" | "cpu";

/** Where requests go: `host:port/{id:x}/{ns}/{component}/{endpoint}` over TCP, or a NATS subject. */
export type TransportAddress = { tcp: string } | { nats_tcp: string };

/** A live instance of an endpoint; bucket `v1/instances`. */
export interface EndpointRecord {
	type: "Endpoint";
	namespace: string;
	component: string;
	endpoint: string;
	/** u64. */
	instance_id: bigint;
	transport: TransportAddress;
	device_type?: DeviceType;
	/** Absent means json. */
	request_plane_codec?: RequestPlaneCodec;
}

/** A model served by an instance; bucket `v1/mdc`. Immutable once written, apart from runtime_config.taints. */
export interface ModelRecord {
	type: "Model";
	namespace: string;
	component: string;
	endpoint: string;
	instance_id: bigint;
	card_json: ModelDeploymentCard;
	model_suffix?: string | null;
}

export type EventScope =
	| { kind: "namespace"; name: string }
	| { kind: "component"; namespace: string; component: string }
	| { kind: "endpoint"; endpoint: EndpointId };

export type EventTransport =
	| { kind: "Zmq"; config: { endpoint: string } }
	| { kind: "ZmqBroker"; config: { xsub_endpoints: string[]; xpub_endpoints: string[] } }
	| { kind: "Nats"; config: { subject_prefix: string } };

/** A publisher of events; bucket `v1/event_channels`. */
export interface EventChannelRecord {
	type: "EventChannel";
	scope: EventScope;
	topic: string;
	/** The publisher's id (not the process' instance id), u64. */
	instance_id: bigint;
	transport: EventTransport;
}

/** Tells which worker a publisher's KV events belong to, and where lost ones can be asked for; bucket `v1/event_sources`. */
export interface EventSourceRecord {
	type: "EventSource";
	scope: EventScope;
	topic: string;
	publisher_id: bigint;
	metadata: {
		kv_state_endpoint: EndpointId;
		worker: { worker_id: bigint; dp_rank: number };
		publisher_id: bigint;
		recovery_target?: Omit<EndpointRecord, "type">;
	};
}

export type DiscoveryRecord = EndpointRecord | ModelRecord | EventChannelRecord | EventSourceRecord;

/** The four buckets of the store; the same key tails in every backend. */
export const BUCKETS = ["v1/instances", "v1/mdc", "v1/event_channels", "v1/event_sources"] as const;
export type Bucket = (typeof BUCKETS)[number];
